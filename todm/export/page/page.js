// The page: sends a dropped file or the microphone to the worker and shows its results.

import { readWav } from "./audio.js";
import { SAMPLE_RATE } from "./features.js";
import { beginsLine, confidence, detokenize } from "./recognizer.js";

const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const BARS = 160;
const LATENCIES = 1000; // the newest, so that an hour of listening costs no more than a minute

let state = "loading"; // loading, ready, busy, listening, failed
let facts = null;
let session = 0;
let source = null; // what is being recognised: {name, promised}
let microphone = null;
let transcript = null;
let latencies = [];
let numChunks = 0;

/**
 * The text of one session as lines; the words of the newest chunk, and the line that may go on, are marked.
 * A line that ends with too little confidence goes away.
 */
class Transcript {
  #tokens = [];
  #logProbs = [];
  #last;
  #line = null;

  add(tokens, timestamps, logProbs) {
    for (const mark of document.querySelectorAll("#transcript .new")) mark.className = "";
    tokens.forEach((token, i) => {
      if (beginsLine(timestamps[i], this.#last, facts.pauseFrames)) this.#begin(timestamps[i]);
      this.#last = timestamps[i];
      this.#tokens.push(token);
      this.#logProbs.push(logProbs[i]);
    });
    if (!tokens.length) return;
    const settled = detokenize(this.#tokens.slice(0, Math.max(0, this.#tokens.length - tokens.length)));
    const whole = detokenize(this.#tokens);
    this.#line.replaceChildren(span(settled, ""), span(whole.slice(settled.length), "new"));
    $("transcript").scrollTop = $("transcript").scrollHeight;
  }

  /** Shows the last line as final, or takes it away. */
  end() {
    this.#line?.parentElement.classList.remove("open");
    if (this.#line && confidence(this.#logProbs) < facts.threshold) {
      this.#line.parentElement.remove();
      this.#line = null;
      const isEmpty = !$("transcript").children.length;
      $("nothing").hidden = !isEmpty;
      $("copy").hidden = isEmpty;
    }
  }

  #begin(seconds) {
    this.end();
    this.#line?.replaceChildren(span(detokenize(this.#tokens), ""));
    this.#tokens = [];
    this.#logProbs = [];
    this.#line = document.createElement("span");
    const [item, time] = [document.createElement("li"), document.createElement("time")];
    time.textContent = clock(seconds);
    item.className = "open";
    item.append(time, this.#line);
    $("transcript").append(item);
    $("nothing").hidden = true;
    $("copy").hidden = false;
  }
}

function span(text, name) {
  const element = document.createElement("span");
  element.className = name;
  element.textContent = text;
  return element;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function say(text, kind = "") {
  $("status").textContent = text;
  $("status").className = kind;
}

function enter(next) {
  state = next;
  document.body.dataset.state = next;
  const idle = next === "ready";
  for (const id of ["choose", "sample", "precision"]) $(id).disabled = !idle;
  $("listen").disabled = !idle && next !== "listening";
  $("listen").textContent = next === "listening" ? "Stop" : "Listen";
  $("listen").classList.toggle("on", next === "listening");
  $("meter").hidden = next !== "listening";
}

function load(precision = "fp32") {
  enter("loading");
  const url = new URL(new URLSearchParams(location.search).get("bundle") ?? "./", location.href);
  if (url.origin !== location.origin) {
    enter("failed");
    say("A bundle is only read from the server of the page itself: copy it there.", "bad");
    return;
  }
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  if (facts) say("Loading the recogniser.");
  worker.postMessage({ type: "load", bundle: url.href, precision });
}

function loaded(found) {
  facts = found;
  const options = found.precisions.map(({ name, bytes }) => {
    const option = new Option(`${name}, ${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 0)} MB`, name);
    option.selected = name === found.precision;
    return option;
  });
  $("precision").replaceChildren(...options);
  $("sample").hidden = !found.sample;
  $("facts").textContent = `Chunks of ${found.chunkMs} ms, one thread, onnxruntime-web ${found.runtime}`;
  $("caption").textContent = `Each bar is the computing time of one chunk, decoded once its ${found.chunkMs} ms have been recorded.`;
  say("Ready.");
  enter("ready");
}

/** Clears the page for a new recording and tells the worker. */
function begin(name, rate, promised = null) {
  source = { name, promised };
  session++;
  transcript = new Transcript();
  latencies = [];
  numChunks = 0;
  $("transcript").replaceChildren();
  $("nothing").hidden = false;
  $("copy").hidden = true;
  for (const id of ["latency", "rtf", "seconds"]) $(id).textContent = "–";
  for (const id of ["worst", "faster", "chunks"]) $(id).textContent = "\u00a0";
  draw();
  worker.postMessage({ type: "start", session, rate });
}

function feed(samples) {
  worker.postMessage({ type: "audio", session, samples }, [samples.buffer]);
}

async function recognise(name, buffer, promised) {
  enter("busy");
  say(`Reading ${name}.`);
  try {
    const { samples, rate } = readWav(buffer) ?? (await decode(name, buffer));
    if (!samples.length) throw new Error(`${name} holds no samples: record it again.`);
    begin(name, rate, promised);
    say(`Recognising ${name}.`);
    for (let at = 0; at < samples.length; at += rate) feed(samples.slice(at, at + rate));
    worker.postMessage({ type: "end", session });
  } catch (error) {
    say(error.message, "bad");
    enter("ready");
  }
}

/** Reads any format that the browser can decode, channels averaged. */
async function decode(name, buffer) {
  let audio;
  try {
    audio = await new OfflineAudioContext(1, 1, SAMPLE_RATE).decodeAudioData(buffer);
  } catch {
    throw new Error(`${name} cannot be read as audio by this browser: give a wav, flac, mp3 or opus file.`);
  }
  const samples = new Float32Array(audio.length);
  for (let c = 0; c < audio.numberOfChannels; c++) {
    audio.getChannelData(c).forEach((value, i) => (samples[i] += value / audio.numberOfChannels));
  }
  return { samples, rate: audio.sampleRate };
}

async function listen() {
  enter("busy");
  say("Waiting for the microphone.");
  // Unprocessed: the recogniser has no normalisation and was trained on plain speech.
  const plain = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const context = new AudioContext();
  let stream = null;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
    await context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
    await context.resume();
  } catch (error) {
    const refused = error.name === "NotAllowedError";
    say(refused ? "The microphone was not allowed: allow it for this page and try again." : `There is no microphone (${error.message}).`, "bad");
    stream?.getTracks().forEach((track) => track.stop());
    await context.close();
    enter("ready");
    return;
  }
  begin("the microphone", context.sampleRate);
  const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  node.port.onmessage = ({ data }) => {
    showLevel(data);
    feed(data);
  };
  context.createMediaStreamSource(stream).connect(node);
  microphone = { stream, context, node };
  stream.getAudioTracks()[0].onended = stop; // unplugged
  say("Listening.");
  enter("listening");
}

async function stop() {
  if (!microphone) return;
  const { stream, context, node } = microphone;
  microphone = null;
  enter("busy");
  node.port.onmessage = null;
  stream.getTracks().forEach((track) => track.stop());
  worker.postMessage({ type: "end", session });
  await context.close();
}

function showLevel(samples) {
  const power = samples.reduce((sum, v) => sum + v * v, 0) / samples.length;
  const decibels = 10 * Math.log10(power + 1e-10);
  $("meter").firstElementChild.style.width = `${Math.max(0, Math.min(100, (decibels + 60) * (100 / 50)))}%`;
}

function chunk({ tokens, timestamps, logProbs, isEnded, ms, audioMs, busyMs }) {
  transcript.add(tokens, timestamps, logProbs);
  if (isEnded) transcript.end();
  numChunks++;
  latencies = [...latencies.slice(1 - LATENCIES), ms];
  const sorted = latencies.toSorted((a, b) => a - b);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  const rtf = busyMs / audioMs;
  $("latency").textContent = `${at(0.5).toFixed(1)} ms`;
  $("worst").textContent = `95 % within ${at(0.95).toFixed(1)} ms`;
  $("rtf").textContent = rtf.toFixed(3);
  $("faster").textContent = rtf < 1 ? `${(1 / rtf).toFixed(0)} times faster than speech` : "slower than speech";
  $("seconds").textContent = `${(audioMs / 1000).toFixed(1)} s`;
  $("chunks").textContent = `${numChunks} chunks decoded`;
  draw();
}

function done({ text }) {
  transcript.add([], [], []);
  transcript.end();
  if (!$("transcript").children.length && source.promised !== text) say(`No words were recognised in ${source.name}.`);
  else if (source.promised === null) say(`Done with ${source.name}.`);
  else if (source.promised === text) say("Done: exactly the transcript that the bundle has for its sample.", "good");
  else say(`The bundle has another transcript for its sample: ${source.promised}`, "bad");
  enter("ready");
}

function failed({ message, fatal }) {
  if (microphone) stop();
  session++; // results still on their way are ignored
  say(message, "bad");
  enter(fatal ? "failed" : "ready");
}

/** Draws the computing times of the last chunks as bars. */
function draw() {
  const canvas = $("chart");
  const scale = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const shown = latencies.slice(-BARS);
  const most = Math.max(1, ...shown);
  const step = Math.min(12, width / Math.max(1, shown.length));
  const [accent, faint] = [canvas, $("caption")].map((element) => getComputedStyle(element).color);
  pen.fillStyle = faint;
  pen.fillRect(0, height - 1, width, 0.5);
  pen.fillStyle = accent;
  shown.forEach((ms, i) => {
    const bar = Math.max(2, (ms / most) * (height - 18));
    pen.fillRect(i * step, height - bar, Math.max(1, step - 2), bar);
  });
  if (!shown.length) return;
  pen.fillStyle = faint;
  pen.font = "12px system-ui, sans-serif";
  pen.textAlign = "right";
  pen.fillText(`longest ${most.toFixed(1)} ms`, width, 11);
}

worker.onmessage = ({ data }) => {
  if (data.type === "loaded") return loaded(data);
  if (data.type === "failed") return failed(data);
  if (data.session !== session) return;
  if (data.type === "chunk") chunk(data);
  else done(data);
};
worker.onerror = () => {
  enter("failed");
  say("The recogniser could not be started: a file of the folder page or ort is missing, or this browser is too old.", "bad");
};

$("listen").onclick = () => (state === "listening" ? stop() : listen());
$("choose").onclick = () => $("file").click();
$("file").onchange = async () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) await recognise(file.name, await file.arrayBuffer(), null);
};
$("sample").onclick = () => recognise("the sample", facts.sample.slice(0), facts.promised);
$("precision").onchange = () => load($("precision").value);
$("copy").onclick = () => {
  const lines = [...document.querySelectorAll("#transcript li > span")].map((line) => line.textContent);
  navigator.clipboard.writeText(lines.join("\n"));
};
ondragover = (event) => {
  event.preventDefault();
  $("drop").classList.toggle("over", state === "ready");
};
ondragleave = () => $("drop").classList.remove("over");
ondrop = async (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file && state === "ready") await recognise(file.name, await file.arrayBuffer(), null);
};
onresize = draw;

if (isSecureContext) load();
else {
  enter("failed");
  say("A browser allows what this page needs only over https or from localhost: open it there.", "bad");
}
