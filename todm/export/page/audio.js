// Audio to 16 kHz mono samples, with the resampler and the wav reading of todm/device/audio.py.

import { SAMPLE_RATE } from "./features.js";

const ZERO_CROSSINGS = 32;
const ROLLOFF = 0.95;
const KAISER_BETA = 10;
const UNKNOWN_BYTES = 0x7fff0000; // a wav header written before the length was known

/** Band-limited resampling of a signal in pieces, by a polyphase Kaiser-windowed sinc. */
export class Resampler {
  #up;
  #down;
  #taps;
  #bank;
  #kept; // the inputs that later outputs still need
  #first; // the position of the first of them in the signal
  #numIn = 0;
  #numOut = 0;

  constructor(rate, target = SAMPLE_RATE) {
    const divisor = gcd(rate, target);
    this.#up = target / divisor;
    this.#down = rate / divisor;
    const half = this.#same ? 0 : Math.ceil(ZERO_CROSSINGS / cutoffOf(this.#up, this.#down));
    this.#taps = 2 * half + 1;
    this.#bank = this.#same ? null : filterBank(this.#up, this.#down, half);
    this.#kept = new Float32Array(half);
    this.#first = -half;
  }

  get #same() {
    return this.#up === this.#down;
  }

  get #half() {
    return (this.#taps - 1) / 2;
  }

  /** Adds samples; returns the finished ones at the target rate. */
  feed(samples) {
    if (this.#same) return samples;
    this.#numIn += samples.length;
    this.#kept = join([this.#kept, samples]);
    return this.#upto(Math.ceil(((this.#numIn - this.#half) * this.#up) / this.#down));
  }

  /** Ends the signal: returns the last samples at the target rate. */
  finish() {
    if (this.#same) return new Float32Array(0);
    this.#kept = join([this.#kept, new Float32Array(this.#half + 1)]);
    return this.#upto(Math.ceil((this.#numIn * this.#up) / this.#down));
  }

  #upto(end) {
    const start = this.#numOut;
    this.#numOut = Math.max(end, start);
    const out = new Float32Array(this.#numOut - start);
    for (let i = 0; i < out.length; i++) {
      const tick = (start + i) * this.#down;
      const row = Math.floor(tick / this.#up) - this.#half - this.#first;
      const taps = (tick % this.#up) * this.#taps;
      let sum = 0;
      for (let k = 0; k < this.#taps; k++) sum += this.#kept[row + k] * this.#bank[taps + k];
      out[i] = sum;
    }
    const next = Math.floor((this.#numOut * this.#down) / this.#up) - this.#half;
    this.#kept = this.#kept.slice(next - this.#first);
    this.#first = next;
    return out;
  }
}

function cutoffOf(up, down) {
  return ROLLOFF * Math.min(1, up / down);
}

/** One row of taps for each of the `up` sub-sample phases, one after another. */
function filterBank(up, down, half) {
  const cutoff = cutoffOf(up, down);
  const size = 2 * half + 1;
  const bank = new Float32Array(up * size);
  for (let phase = 0; phase < up; phase++) {
    const taps = Array.from({ length: size }, (_, k) => {
      const offset = k - half - phase / up;
      const within = Math.max(0, 1 - (offset / (half + 1)) ** 2);
      const sinc = offset === 0 ? 1 : Math.sin(Math.PI * cutoff * offset) / (Math.PI * cutoff * offset);
      return cutoff * sinc * bessel(KAISER_BETA * Math.sqrt(within));
    });
    const sum = taps.reduce((a, b) => a + b, 0); // every phase passes a constant signal unchanged
    bank.set(taps.map((tap) => tap / sum), phase * size);
  }
  return bank;
}

/** The modified Bessel function of the first kind and order 0, by its series; x is at most 10. */
function bessel(x) {
  let [sum, term] = [1, 1];
  for (let k = 1; term > 1e-17 * sum; k++) {
    term *= (x / 2 / k) ** 2;
    sum += term;
  }
  return sum;
}

function gcd(a, b) {
  return b ? gcd(b, a % b) : a;
}

/** Concatenates pieces of samples. */
export function join(pieces) {
  const out = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  return out;
}

/**
 * The samples of a wav file, channels averaged: {samples, rate}; null for other files and encodings.
 * A browser's own decoder would resample, and scales 16 bits differently.
 */
export function readWav(buffer) {
  const view = new DataView(buffer);
  const name = (at) => String.fromCharCode(...new Uint8Array(buffer, at, 4));
  if (buffer.byteLength < 12 || name(0) !== "RIFF" || name(8) !== "WAVE") return null;
  let format = null;
  for (let at = 12; at + 8 <= buffer.byteLength; ) {
    const [chunk, stated] = [name(at), view.getUint32(at + 4, true)];
    const left = buffer.byteLength - at - 8;
    if (chunk === "fmt ") format = readFormat(view, at + 8);
    if (chunk === "data" && format) {
      if (stated > left && stated < UNKNOWN_BYTES) {
        throw new Error("The recording is damaged: the file ends before its stated length.");
      }
      return readSamples(view, at + 8, Math.min(stated, left), format);
    }
    at += 8 + stated + (stated % 2);
  }
  return null;
}

function readFormat(view, at) {
  const extensible = view.getUint16(at, true) === 0xfffe;
  return {
    coding: view.getUint16(extensible ? at + 24 : at, true),
    channels: view.getUint16(at + 2, true),
    rate: view.getUint32(at + 4, true),
    bits: view.getUint16(at + 14, true),
  };
}

const READERS = {
  "1/8": (view, at) => (view.getUint8(at) - 128) / 2 ** 7,
  "1/16": (view, at) => view.getInt16(at, true) / 2 ** 15,
  "1/24": (view, at) => (view.getInt16(at + 1, true) * 256 + view.getUint8(at)) / 2 ** 23,
  "1/32": (view, at) => view.getInt32(at, true) / 2 ** 31,
  "3/32": (view, at) => view.getFloat32(at, true),
  "3/64": (view, at) => view.getFloat64(at, true),
};

function readSamples(view, start, numBytes, { coding, channels, rate, bits }) {
  const read = READERS[`${coding}/${bits}`];
  if (!read || channels < 1 || rate < 1) return null;
  const bytes = bits / 8;
  const samples = new Float32Array(Math.floor(numBytes / bytes / channels));
  for (let i = 0; i < samples.length; i++) {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += read(view, start + (i * channels + c) * bytes);
    samples[i] = sum / channels;
  }
  if (!samples.every(Number.isFinite)) {
    throw new Error("The recording holds samples that are not finite numbers: write it again.");
  }
  return { samples, rate };
}
