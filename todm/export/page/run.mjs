// Transcribes in Node with the same modules as the page and prints JSON, for tests and checks.
//
//   node page/run.mjs BUNDLE a.wav [--precision fp32|int8]

import { readFile, stat } from "node:fs/promises";
import path from "node:path";
import { parseArgs } from "node:util";

import { readWav, Resampler } from "./audio.js";
import { Bundle } from "./bundle.js";
import { beginsLine, confidence, detokenize, Recognizer } from "./recognizer.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { precision: { type: "string", default: "fp32" } },
});
const [folder, ...recordings] = positionals;

try {
  const ort = await import("../ort/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  const recognizer = await Recognizer.load(ort, await Bundle.open(read), values.precision);
  for (const recording of recordings) console.log(JSON.stringify(await transcribe(recognizer, recording)));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}

async function read(name) {
  const file = path.join(folder, name);
  return (await stat(file).catch(() => null)) ? new Uint8Array(await readFile(file)) : null;
}

async function transcribe(recognizer, recording) {
  const bytes = await readFile(recording);
  const wav = readWav(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  if (!wav) throw new Error(`${recording} is not a wav file that can be read here.`);
  const started = performance.now();
  const stream = recognizer.createStream();
  const resampler = new Resampler(wav.rate);
  for (let at = 0; at < wav.samples.length; at += wav.rate) {
    stream.accept(resampler.feed(wav.samples.subarray(at, at + wav.rate)));
    while (await stream.step());
  }
  stream.accept(resampler.finish());
  stream.finish();
  while (await stream.step());
  const { text, tokens, timestamps, logProbs } = stream;
  const begins = timestamps.flatMap((time, i) => (beginsLine(time, timestamps[i - 1], recognizer.pauseFrames) ? [i] : []));
  const spans = begins.map((from, i) => [from, begins[i + 1]]);
  const sure = spans.filter((span) => confidence(logProbs.slice(...span)) >= recognizer.threshold);
  const lines = sure.map((span) => detokenize(tokens.slice(...span)));
  const rtf = (performance.now() - started) / 1000 / (wav.samples.length / wav.rate);
  return { audio: recording, text, lines, tokens, timestamps, log_probs: logProbs, rtf };
}
