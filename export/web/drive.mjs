// Opens a web bundle in headless Chromium, does what a reader would do, and prints what the page then
// shows: a JSON object per step.
//
//   node drive.mjs URL [--mic speech.wav] STEP...
//
//   open                   wait until the recogniser is loaded or has refused; go=PATH: of another page
//   choose=FILE            as by the button; drop=FILE: as dragged onto the page
//   sample                 the bundle's own recording
//   listen=SECONDS         the microphone, which plays the file of --mic once; stop: ends it
//   precision=int8         load other graphs
//   picture=FILE           a screenshot

import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";

// Where setup.sh puts it: not beside this file, whose folder is for readers.
const { chromium } = createRequire(new URL("../../build/", import.meta.url))("playwright-core");

const QUIET = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const DEADLINE = 60_000;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mic: { type: "string" },
    browser: { type: "string", default: "/usr/bin/chromium" },
    dark: { type: "boolean", default: false },
  },
});
const [url, ...steps] = positionals;
const fake = values.mic
  ? ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", `--use-file-for-fake-audio-capture=${path.resolve(values.mic)}%noloop`]
  : [];
const profile = await mkdtemp(path.join(tmpdir(), "todm-page-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: values.browser,
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", ...QUIET, ...fake],
  viewport: { width: 900, height: 860 },
  colorScheme: values.dark ? "dark" : "light",
  permissions: values.mic ? ["microphone"] : [],
});
try {
  const page = context.pages()[0] ?? (await context.newPage());
  page.setDefaultTimeout(DEADLINE);
  const problems = [];
  const foreign = new Set();
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  context.on("request", (request) => new URL(request.url()).origin !== new URL(url).origin && foreign.add(request.url()));
  await page.goto(url);
  for (const step of steps) {
    const [, name, value] = /^(\w+)=?(.*)$/.exec(step);
    await actions(page)[name](value);
    console.log(JSON.stringify({ step, ...(await shown(page)), problems, foreign: [...foreign] }));
  }
} finally {
  await context.close();
  await rm(profile, { recursive: true, force: true });
}

function actions(page) {
  const settled = () => page.waitForFunction(() => ["ready", "failed"].includes(document.body.dataset.state));
  /** Does something and waits until the page shows the result. */
  const answered = async (act) => {
    await page.evaluate(() => (document.getElementById("status").textContent = ""));
    await act();
    await page.waitForFunction(() => document.getElementById("status").textContent !== "");
    await settled();
  };
  return {
    open: settled,
    go: async (place) => {
      await page.goto(new URL(place, url).href);
      await settled();
    },
    choose: (file) => answered(() => page.setInputFiles("#file", file)),
    drop: (file) => answered(() => page.evaluate(drop, [readFileSync(file).toString("base64"), path.basename(file)])),
    sample: () => answered(() => page.click("#sample")),
    listen: async (seconds) => {
      await page.click("#listen");
      await page.waitForFunction(() => document.body.dataset.state === "listening");
      await page.waitForTimeout(Number(seconds) * 1000);
    },
    stop: () => answered(() => page.click("#listen")),
    precision: (name) => answered(() => page.selectOption("#precision", name)),
    picture: (file) => page.screenshot({ path: file, fullPage: true }),
  };
}

/** Runs in the page: a file dragged onto it. */
function drop([base64, name]) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name));
  const event = (type) => new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer });
  for (const type of ["dragover", "drop"]) document.getElementById("drop").dispatchEvent(event(type));
}

/** What a reader sees. */
function shown(page) {
  return page.evaluate(() => {
    const text = (id) => document.getElementById(id).textContent.trim();
    return {
      state: document.body.dataset.state,
      status: text("status"),
      kind: document.getElementById("status").className,
      lines: [...document.querySelectorAll("#transcript li > span")].map((line) => line.textContent),
      open: document.querySelectorAll("#transcript li.open").length,
      times: [...document.querySelectorAll("#transcript time")].map((time) => time.textContent),
      latency: text("latency"),
      worst: text("worst"),
      rtf: text("rtf"),
      seconds: text("seconds"),
      chunks: text("chunks"),
    };
  });
}
