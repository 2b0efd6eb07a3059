// Streaming transcription in onnxruntime-web, as in todm/device/recognizer.py and decode.py: the encoder's
// two states are carried from chunk to chunk, and greedy search emits at most one symbol a frame.

import { BundleError, graphName, onnxMetadata } from "./bundle.js";
import { NUM_BINS, OnlineFeatures, SAMPLE_RATE } from "./features.js";

const BLANK_ID = 0;
const FRAME_SECONDS = 0.04;
const PAUSE_SECONDS = 0.8; // of bundles that state no endpoint
const WORD = "\u2581";
const CERTAIN = 8; // log-odds, the most that a symbol counts for
const LOG_CERTAIN = -Math.log1p(Math.exp(-CERTAIN));
const GRAPHS = ["encoder", "decoder", "joiner"];

/** The loaded graphs of one precision, whose metadata is checked against their outputs. */
export class Recognizer {
  static async load(ort, bundle, precision) {
    const self = new Recognizer();
    self.tailSeconds = bundle.tailSeconds;
    self.threshold = bundle.threshold;
    self.restarts = bundle.endpointSeconds !== null;
    self.pauseFrames = Math.floor((bundle.endpointSeconds ?? PAUSE_SECONDS) / FRAME_SECONDS + 0.5);
    self.tokens = await bundle.tokens();
    self.silent = new Set([BLANK_ID, ...self.tokens.flatMap((t, i) => (t === "<unk>" ? [i] : []))]);
    self.ort = ort;
    const metadata = {};
    for (const name of GRAPHS) {
      const file = graphName(name, precision);
      const bytes = await bundle.file(file);
      metadata[name] = onnxMetadata(bytes);
      self[name] = await session(ort, bytes, file);
    }
    Object.assign(self, sizesOf(metadata));
    self.startIds = [...Array(self.contextSize - 1).fill(-1), BLANK_ID];
    self.startPredicted = await self.predict(self.startIds);
    await self.#check();
    return self;
  }

  /** A new stream, with states at zero. */
  createStream() {
    return new Stream(this);
  }

  /** A float32 tensor. */
  tensor(data, shape) {
    return new this.ort.Tensor("float32", data, shape);
  }

  /** Runs the encoder: chunk [T * 80] and two states to {out, states}. */
  async encode(chunk, states) {
    const x = this.tensor(chunk, [1, this.chunkFrames, NUM_BINS]);
    const [out, ...next] = await run(this.encoder, [x, ...states], 3);
    return { out, states: next };
  }

  /** Predictor output for the last K symbols, a tensor [1, J]. */
  async predict(ids) {
    const context = BigInt64Array.from(ids, BigInt);
    const y = new this.ort.Tensor("int64", context, [1, this.contextSize]);
    return (await run(this.decoder, [y], 1))[0];
  }

  /** Scores of the next symbol, Float32Array [V]. */
  async score(encoderOut, predicted) {
    const frame = this.tensor(encoderOut, [1, encoderOut.length]);
    return (await run(this.joiner, [frame, predicted], 1))[0].data;
  }

  /** Runs every graph once, so that wrong sizes are an error here and not in the middle of speech. */
  async #check() {
    const stream = this.createStream();
    const fits = (ok, what) => {
      if (!ok) throw new BundleError(`The bundle's graphs do not fit together (${what}): export it again.`);
    };
    const { out, states } = await this.encode(new Float32Array(this.chunkFrames * NUM_BINS), stream.states);
    fits(states.every((s, i) => String(s.dims) === String(stream.states[i].dims)), "states");
    fits(out.dims.length === 3 && out.dims[2] === this.startPredicted.dims[1], "width of the joiner");
    const logits = await this.score(out.data.slice(0, out.dims[2]), this.startPredicted);
    fits(logits.length === this.tokens.length && this.vocabSize === this.tokens.length, "tokens");
  }
}

/** One audio stream in a `Recognizer`: its features, states and tokens. */
export class Stream {
  #model;
  #features = new OnlineFeatures();
  #ids; // the predictor's context
  #predicted;
  #frames = 0;
  #last = null; // the frame of the last symbol
  tokens = [];
  timestamps = []; // seconds from the start of the stream
  logProbs = [];

  constructor(model) {
    this.#model = model;
    this.states = model.stateShapes.map(([layers, size]) =>
      model.tensor(new Float32Array(layers * size), [layers, 1, size]),
    );
    this.#restart();
  }

  /** Adds audio: Float32Array [S] at 16 kHz, in [-1, 1]. */
  accept(samples) {
    this.#features.accept(samples);
  }

  /** Ends the audio: adds the tail of silence that brings out the last words. */
  finish() {
    this.#features.accept(new Float32Array(Math.round(this.#model.tailSeconds * SAMPLE_RATE)));
    this.#features.finish();
  }

  /** Decodes one chunk if it is ready; as on the device, that takes one frame more than a chunk. */
  async step() {
    const model = this.#model;
    if (this.#features.numReady <= model.chunkFrames) return false;
    const chunk = this.#features.take(model.chunkFrames, model.shiftFrames);
    const { out, states } = await model.encode(chunk, this.states);
    this.states = states;
    const [, numFrames, width] = out.dims;
    for (let frame = 0; frame < numFrames; frame++) {
      await this.#search(out.data.slice(frame * width, (frame + 1) * width));
      this.#frames++;
    }
    return true;
  }

  /** The transcript so far. */
  get text() {
    return detokenize(this.tokens);
  }

  /** Whether the last segment has ended: later symbols begin another one. */
  get isEnded() {
    return this.#last !== null && this.#frames - this.#last > this.#model.pauseFrames;
  }

  #restart() {
    this.#ids = this.#model.startIds;
    this.#predicted = this.#model.startPredicted;
  }

  async #search(encoderOut) {
    const model = this.#model;
    if (model.restarts && this.isEnded) this.#restart();
    const logits = await model.score(encoderOut, this.#predicted);
    const best = argmax(logits);
    if (model.silent.has(best)) return;
    this.#ids = [...this.#ids.slice(1), best];
    this.#predicted = await model.predict(this.#ids);
    this.#last = this.#frames;
    this.tokens.push(model.tokens[best]);
    this.timestamps.push(Math.round(this.#frames * FRAME_SECONDS * 100) / 100);
    this.logProbs.push(logSoftmax(logits, best));
  }
}

/** Tokens to text: U+2581 is a space, <0x..> a byte of UTF-8. */
export function detokenize(tokens) {
  const bytes = tokens.flatMap((token) => {
    const byte = /^<0x([0-9A-F]{2})>$/.exec(token);
    return byte ? [parseInt(byte[1], 16)] : [...new TextEncoder().encode(token)];
  });
  const text = new TextDecoder().decode(Uint8Array.from(bytes));
  return text.replaceAll("\ufffd", "").replaceAll(WORD, " ").trim();
}

/**
 * Whether a token begins a new line, by its time and that of the one before: after a pause, even within a
 * word, since nobody knew that the word would go on.
 */
export function beginsLine(time, previous, pauseFrames) {
  return previous === undefined || Math.round((time - previous) / FRAME_SECONDS) > pauseFrames;
}

/**
 * The confidence of a segment, 0 to 1, from the log-probability of each of its symbols; as in
 * todm/device/decision.py, which says why.
 */
export function confidence(logProbs) {
  const odds = logProbs.map((value) => Math.min(value, LOG_CERTAIN)).map((value) => value - Math.log1p(-Math.exp(value)));
  return 1 / (1 + Math.exp(-odds.reduce((sum, value) => sum + value, 0) / (odds.length + 1)));
}

function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

function logSoftmax(logits, at) {
  const most = logits[argmax(logits)];
  const sum = logits.reduce((total, value) => total + Math.exp(value - most), 0);
  return logits[at] - most - Math.log(sum);
}

/** The sizes in the graphs' metadata. */
function sizesOf({ encoder, decoder }) {
  const type = encoder.get("model_type");
  if (type !== "lstm") {
    throw new BundleError("This is not a streaming bundle of todm: its encoder's model_type is not lstm.");
  }
  const whole = (metadata, key) => {
    const value = Number(metadata.get(key));
    if (!Number.isSafeInteger(value) || value < 1 || value > 2 ** 24) {
      throw new BundleError(`The bundle is damaged: ${key} in its metadata is not a valid number; export it again.`);
    }
    return value;
  };
  const layers = whole(encoder, "num_encoder_layers");
  return {
    chunkFrames: whole(encoder, "T"),
    shiftFrames: whole(encoder, "decode_chunk_len"),
    stateShapes: [
      [layers, whole(encoder, "d_model")],
      [layers, whole(encoder, "rnn_hidden_size")],
    ],
    contextSize: whole(decoder, "context_size"),
    vocabSize: whole(decoder, "vocab_size"),
  };
}

async function session(ort, bytes, name) {
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 4 });
  } catch (error) {
    throw new BundleError(`onnxruntime cannot load ${name} (${firstLine(error)}): export the bundle again.`);
  }
}

/** Runs a graph on inputs in order, as the device does. */
async function run(graph, inputs, numOutputs) {
  const names = graph.inputNames;
  if (names.length !== inputs.length || graph.outputNames.length !== numOutputs) {
    throw new BundleError("A graph of the bundle has other inputs or outputs than a transducer: export it again.");
  }
  try {
    const feeds = Object.fromEntries(names.map((name, i) => [name, inputs[i]]));
    const outputs = await graph.run(feeds);
    return graph.outputNames.map((name) => outputs[name]);
  } catch (error) {
    throw new BundleError(`A graph of the bundle does not accept what its metadata promises (${firstLine(error)}).`);
  }
}

function firstLine(error) {
  return String(error?.message ?? error).split("\n")[0].slice(0, 200);
}
