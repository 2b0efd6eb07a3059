// The recogniser in its own thread, so that the page never waits for it.
//
// In: load {bundle, precision}, start {session, rate}, audio {session, samples}, end {session}.
// Out: loaded {facts}, chunk {session, tokens, timestamps, logProbs, isEnded, ms, audioMs, busyMs}, done {session, text}, failed {message, fatal}.

import * as ort from "../ort/ort.wasm.min.mjs";

import { Resampler } from "./audio.js";
import { Bundle, BundleError } from "./bundle.js";
import { SAMPLE_RATE } from "./features.js";
import { Recognizer } from "./recognizer.js";

ort.env.wasm.numThreads = 1; // more need headers that a static server does not send
ort.env.logLevel = "fatal"; // errors are thrown as exceptions

let recognizer = null;
let stream = null;
let resampler = null;
let session = 0; // waiting audio of an older session is dropped
let sent = 0;
let audioMs = 0;
let busyMs = 0;
let queue = Promise.resolve();

onmessage = ({ data }) => {
  if (data.session !== undefined) session = data.session;
  queue = queue.then(() => handle(data)).catch((error) => {
    const known = error instanceof BundleError;
    postMessage({ type: "failed", fatal: data.type === "load", message: known ? error.message : `Something failed: ${error?.message ?? error}` });
  });
};

async function handle(data) {
  if (data.type === "load") return load(data);
  if (data.session !== session || !recognizer) return;
  if (data.type === "start") return start(data.rate);
  if (!stream) return;
  const started = performance.now();
  if (data.type === "audio") {
    stream.accept(resampler.feed(data.samples));
    audioMs += data.samples.length / resampler.perMs;
  } else {
    stream.accept(resampler.finish());
    stream.finish();
  }
  busyMs += performance.now() - started;
  await decode(data.session);
  if (data.type === "end") {
    postMessage({ type: "done", session, text: stream.text });
    stream = null;
  }
}

async function load({ bundle: url, precision }) {
  recognizer = stream = null;
  const bundle = await Bundle.open((name, most) => read(new URL(name, url), most));
  const wanted = bundle.precisions.includes(precision) ? precision : "fp32";
  recognizer = await Recognizer.load(ort, bundle, wanted);
  const expected = bundle.has("test_wavs/expected.json") ? await bundle.file("test_wavs/expected.json") : null;
  const sample = expected && bundle.has("test_wavs/0.wav") ? await bundle.file("test_wavs/0.wav") : null;
  postMessage({
    type: "loaded",
    precision: wanted,
    precisions: bundle.precisions.map((name) => ({ name, bytes: bundle.sizeOf(name) })),
    chunkMs: (1000 * recognizer.shiftFrames) / 100,
    tailSeconds: recognizer.tailSeconds,
    pauseFrames: recognizer.pauseFrames,
    threshold: recognizer.threshold,
    runtime: ort.env.versions.web,
    sample: sample?.buffer ?? null,
    promised: expected ? (JSON.parse(new TextDecoder().decode(expected))[wanted]?.streaming?.text ?? null) : null,
  });
}

function start(rate) {
  stream = recognizer.createStream();
  resampler = new Resampler(rate, SAMPLE_RATE);
  resampler.perMs = rate / 1000;
  sent = audioMs = busyMs = 0;
}

/** Decodes all chunks that are ready and reports each one. */
async function decode(of) {
  for (;;) {
    const started = performance.now();
    if (!(await stream.step())) return;
    const ms = performance.now() - started;
    busyMs += ms;
    const { tokens, timestamps, logProbs, isEnded } = stream;
    postMessage({
      type: "chunk",
      session: of,
      tokens: tokens.slice(sent),
      timestamps: timestamps.slice(sent),
      logProbs: logProbs.slice(sent),
      isEnded,
      ms,
      audioMs,
      busyMs,
    });
    sent = tokens.length;
  }
}

/** A file as bytes, or null if it does not exist; reading stops beyond the stated size. */
async function read(url, most) {
  const response = await fetch(url, { cache: "no-cache" });
  if (!response.ok) return null;
  const pieces = [];
  let size = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    size += value.length;
    if (size > most) {
      await reader.cancel();
      break;
    }
  }
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}
