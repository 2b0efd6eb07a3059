// The device's features (todm/device/features.py): 80 log-mel bins as kaldi-native-fbank computes them.
// 16 kHz samples in [-1, 1]; 25 ms povey windows every 10 ms, frames centred (snip_edges=False);
// 20 to 7600 Hz; natural log; no dither and no normalisation.

export const SAMPLE_RATE = 16000;
export const NUM_BINS = 80;

const SHIFT = 160;
const WINDOW = 400;
const FFT_SIZE = 512;
const FIRST = SHIFT / 2 - WINDOW / 2; // where frame 0 begins: before the first sample
const PREEMPHASIS = 0.97;
const LOW_HZ = 20;
const HIGH_HZ = SAMPLE_RATE / 2 - 400;
const FLOOR = 2 ** -23; // the float32 epsilon

const mel = (hertz) => 1127 * Math.log(1 + hertz / 700);

/** The povey window, a Hann window to the power of 0.85. */
const POVEY = Float64Array.from(
  { length: WINDOW },
  (_, i) => (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / (WINDOW - 1))) ** 0.85,
);

/** Triangles on the mel scale: for each mel bin, its first FFT bin and the weights from that bin on. */
const FILTERS = melFilters();

function melFilters() {
  const low = mel(LOW_HZ);
  const step = (mel(HIGH_HZ) - low) / (NUM_BINS + 1);
  const mels = Array.from({ length: FFT_SIZE / 2 }, (_, i) => mel((i * SAMPLE_RATE) / FFT_SIZE));
  return Array.from({ length: NUM_BINS }, (_, bin) => {
    const centre = low + (bin + 1) * step;
    const weights = mels.map((m) => Math.max(0, 1 - Math.abs(m - centre) / step));
    const first = weights.findIndex((w) => w > 0);
    return { first, weights: weights.filter((w) => w > 0) };
  });
}

/** Twiddle factors and bit-reversed positions of the FFT. */
const COS = Float64Array.from({ length: FFT_SIZE / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / FFT_SIZE));
const SIN = Float64Array.from({ length: FFT_SIZE / 2 }, (_, i) => -Math.sin((2 * Math.PI * i) / FFT_SIZE));
const REVERSED = Uint16Array.from({ length: FFT_SIZE }, (_, i) => {
  let place = 0;
  for (let bit = 1; bit < FFT_SIZE; bit *= 2) place = 2 * place + (i & bit ? 1 : 0);
  return place;
});

/** The discrete Fourier transform in place; the input is in bit-reversed order. */
function fft(re, im) {
  for (let size = 2; size <= FFT_SIZE; size *= 2) {
    const half = size / 2;
    const stride = FFT_SIZE / size;
    for (let start = 0; start < FFT_SIZE; start += size) {
      for (let k = 0; k < half; k++) {
        const [c, s] = [COS[k * stride], SIN[k * stride]];
        const [a, b] = [start + k, start + k + half];
        const [x, y] = [re[b] * c - im[b] * s, re[b] * s + im[b] * c];
        [re[b], im[b]] = [re[a] - x, im[a] - y];
        [re[a], im[a]] = [re[a] + x, im[a] + y];
      }
    }
  }
}

/** Features of one window of 400 samples, which is overwritten: Float32Array [80]. */
function frameOf(window, re, im) {
  const mean = window.reduce((sum, v) => sum + v, 0) / WINDOW;
  re.fill(0);
  im.fill(0);
  for (let i = WINDOW - 1; i >= 0; i--) {
    const before = window[Math.max(0, i - 1)] - mean;
    re[REVERSED[i]] = (window[i] - mean - PREEMPHASIS * before) * POVEY[i];
  }
  fft(re, im);
  const frame = new Float32Array(NUM_BINS);
  FILTERS.forEach(({ first, weights }, bin) => {
    let energy = 0;
    weights.forEach((weight, i) => {
      const at = first + i;
      energy += weight * (re[at] * re[at] + im[at] * im[at]);
    });
    frame[bin] = Math.log(Math.max(energy, FLOOR));
  });
  return frame;
}

/** Features of one stream, computed as audio arrives. */
export class OnlineFeatures {
  #samples = new Float32Array(0); // those that later frames still need
  #first = 0; // the position of the first of them in the stream
  #total = 0;
  #done = 0; // frames computed
  #frames = []; // and not yet taken
  #window = new Float64Array(WINDOW);
  #re = new Float64Array(FFT_SIZE);
  #im = new Float64Array(FFT_SIZE);

  /** The number of frames computed and not yet taken. */
  get numReady() {
    return this.#frames.length;
  }

  /** Adds audio: Float32Array [S] at 16 kHz, in [-1, 1]. */
  accept(samples) {
    const joined = new Float32Array(this.#samples.length + samples.length);
    joined.set(this.#samples);
    joined.set(samples, this.#samples.length);
    this.#samples = joined;
    this.#total += samples.length;
    this.#upto(Math.floor((this.#total - FIRST - WINDOW) / SHIFT) + 1);
    const next = Math.max(0, SHIFT * this.#done + FIRST);
    this.#samples = joined.slice(next - this.#first);
    this.#first = next;
  }

  /** Ends the audio: the last frames, which mirror its end, become ready. */
  finish() {
    if (this.#total) this.#upto(Math.floor((this.#total + SHIFT / 2) / SHIFT));
  }

  /** The next frames, Float32Array [num * 80]; the stream moves on by `advance` (default: all). */
  take(num, advance = num) {
    const out = new Float32Array(num * NUM_BINS);
    this.#frames.slice(0, num).forEach((frame, row) => out.set(frame, row * NUM_BINS));
    this.#frames.splice(0, advance);
    return out;
  }

  #upto(end) {
    for (; this.#done < end; this.#done++) {
      const start = SHIFT * this.#done + FIRST;
      for (let i = 0; i < WINDOW; i++) this.#window[i] = this.#samples[this.#mirror(start + i)];
      this.#frames.push(frameOf(this.#window, this.#re, this.#im));
    }
  }

  /** The index in the kept samples of a position in the stream, mirrored at its ends. */
  #mirror(at) {
    while (at < 0 || at >= this.#total) at = at < 0 ? -at - 1 : 2 * this.#total - 1 - at;
    return at - this.#first;
  }
}

/** Features of a whole recording: Float32Array [T * 80], 100 frames a second. */
export function fbank(samples) {
  const online = new OnlineFeatures();
  online.accept(samples);
  online.finish();
  return online.take(online.numReady);
}
