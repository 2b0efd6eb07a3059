// Runs on the audio thread: posts the microphone's samples, channels averaged, in pieces.

const PIECE = 2048; // 43 ms at 48 kHz

class Capture extends AudioWorkletProcessor {
  #piece = new Float32Array(PIECE);
  #filled = 0;

  process([channels]) {
    const size = channels[0]?.length ?? 0; // no channel: nothing is connected at this moment
    for (let i = 0; i < size; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.#piece[this.#filled++] = sum / channels.length;
      if (this.#filled === PIECE) this.#handOver();
    }
    return true;
  }

  #handOver() {
    this.port.postMessage(this.#piece, [this.#piece.buffer]);
    this.#piece = new Float32Array(PIECE);
    this.#filled = 0;
  }
}

registerProcessor("capture", Capture);
