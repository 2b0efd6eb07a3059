// A bundle comes from a stranger: no file is used before its size and SHA-256 are checked against the
// manifest (todm/artifact.py) and its metadata against what the runtime needs (todm/device/contract.py).

/** Says in one sentence, for the reader of the page, what is wrong with a bundle. */
export class BundleError extends Error {}

const MANIFEST = "manifest.json";
const FORMAT_VERSION = 1;
const PRECISIONS = ["fp32", "int8", "int8.block", "int4"]; // sums do not overflow here: no int8.rr
const MOST_MANIFEST_BYTES = 16 * 2 ** 20;
const AGAIN = "export or copy it again";

/** A bundle whose manifest was read; each file is checked when it is read. */
export class Bundle {
  #read;
  #files;

  constructor(read, manifest) {
    this.#read = read;
    this.#files = manifest.files;
    this.info = manifest.info;
  }

  /**
   * Opens a bundle.
   *
   * `read(name, mostBytes)` returns a file as Uint8Array, or null if it does not exist; it may stop
   * after more than `mostBytes`.
   */
  static async open(read) {
    const bytes = await read(MANIFEST, MOST_MANIFEST_BYTES);
    if (bytes === null) {
      throw new BundleError(`There is no bundle here (no ${MANIFEST}): give the folder that todm export wrote.`);
    }
    return new Bundle(read, parseManifest(bytes));
  }

  /** The precisions it has an encoder for. */
  get precisions() {
    return PRECISIONS.filter((p) => graphName("encoder", p) in this.#files);
  }

  /** The size of the three graphs of a precision, in bytes. */
  sizeOf(precision) {
    const names = ["encoder", "decoder", "joiner"].map((stem) => graphName(stem, precision));
    return names.reduce((sum, name) => sum + (this.#files[name]?.bytes ?? 0), 0);
  }

  /** Seconds of silence to feed after speech to get the last words. */
  get tailSeconds() {
    const seconds = this.info.tail_seconds ?? 1;
    if (!(seconds >= 0 && seconds <= 10)) throw new BundleError(`The bundle is damaged: its tail is ${seconds} s; ${AGAIN}.`);
    return seconds;
  }

  /**
   * Seconds without a symbol that end a segment and start the predictor's context again; null in
   * bundles of earlier versions, whose context goes on.
   */
  get endpointSeconds() {
    const seconds = this.info.endpoint_seconds;
    if (seconds === undefined) return null;
    if (!(typeof seconds === "number" && seconds >= 0 && seconds <= 100)) {
      throw new BundleError(`The bundle is damaged: its endpoint is ${String(seconds).slice(0, 40)}, not 0 to 100 s; ${AGAIN}.`);
    }
    return seconds;
  }

  /** The confidence below which a segment gives no text; 0, which keeps all, in bundles that state none. */
  get threshold() {
    const threshold = this.info.decision_threshold ?? 0;
    if (!(typeof threshold === "number" && threshold >= 0 && threshold <= 1)) {
      throw new BundleError(`The bundle is damaged: its threshold is ${String(threshold).slice(0, 40)}, not 0 to 1; ${AGAIN}.`);
    }
    return threshold;
  }

  /** Whether the manifest lists a file. */
  has(name) {
    return name in this.#files;
  }

  /** One of its files, checked: Uint8Array. */
  async file(name) {
    const entry = this.#files[name];
    if (!entry) throw new BundleError(`The bundle has no file ${name}: ${AGAIN}.`);
    const bytes = await this.#read(name, entry.bytes);
    if (bytes === null) throw new BundleError(`The bundle is incomplete: ${name} is missing; ${AGAIN}.`);
    if (bytes.length !== entry.bytes || (await sha256(bytes)) !== entry.sha256) {
      throw new BundleError(`The bundle is damaged: ${name} does not match its manifest; ${AGAIN}.`);
    }
    return bytes;
  }

  /** The symbols of tokens.txt in the order of their ids. */
  async tokens() {
    const symbols = new Map();
    const text = decodeText(await this.file("tokens.txt"), "tokens.txt");
    for (const line of text.replace(/\r?\n$/, "").split(/\r?\n/)) {
      const [, symbol, id] = /^(?:(.*) )?(\d+)\s*$/.exec(line) ?? [];
      if (id === undefined || symbols.has(Number(id))) {
        throw new BundleError(`The bundle is damaged: a line of tokens.txt is not a symbol and a unique id; ${AGAIN}.`);
      }
      symbols.set(Number(id), symbol || " ");
    }
    const tokens = Array.from(symbols.keys(), (_, i) => symbols.get(i));
    if (tokens.includes(undefined) || tokens[0] !== "<blk>") {
      throw new BundleError(`The bundle is damaged: the ids of tokens.txt do not run from 0, its blank; ${AGAIN}.`);
    }
    return tokens;
  }
}

/** The file of a graph: encoder.onnx, encoder.int8.onnx; all encoders but fp32 share decoder and joiner. */
export function graphName(stem, precision) {
  if (precision === "fp32") return `${stem}.onnx`;
  return stem === "encoder" ? `${stem}.${precision}.onnx` : `${stem}.int8.onnx`;
}

function parseManifest(bytes) {
  let manifest;
  try {
    manifest = JSON.parse(decodeText(bytes, MANIFEST));
  } catch {
    throw new BundleError(`The bundle's ${MANIFEST} is damaged: ${AGAIN}.`);
  }
  const isTable = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  if (!isTable(manifest) || !isTable(manifest.files) || !isTable(manifest.info)) {
    throw new BundleError(`This is not a bundle of todm: its ${MANIFEST} lists no files.`);
  }
  if (manifest.kind !== "bundle") {
    throw new BundleError(`This is a ${String(manifest.kind).slice(0, 40)}, and a bundle is needed: run todm export.`);
  }
  if (manifest.format_version !== FORMAT_VERSION) {
    throw new BundleError(`The bundle has format ${String(manifest.format_version).slice(0, 40)}, and this page reads ${FORMAT_VERSION}.`);
  }
  for (const [name, entry] of Object.entries(manifest.files)) {
    // Plain relative names only, which a browser cannot resolve to another place.
    if (!/^[\w.-]+(\/[\w.-]+)*$/.test(name) || name.split("/").some((part) => /^\.+$/.test(part))) {
      throw new BundleError("The bundle names a file outside itself: it is not to be trusted.");
    }
    if (!isTable(entry) || !Number.isSafeInteger(entry.bytes) || typeof entry.sha256 !== "string") {
      throw new BundleError(`The bundle's ${MANIFEST} is damaged: ${AGAIN}.`);
    }
  }
  // Without a prototype, so that "constructor" is a file only if the manifest lists it.
  return { ...manifest, files: Object.assign(Object.create(null), manifest.files) };
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function decodeText(bytes, name) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new BundleError(`The bundle is damaged: ${name} is not UTF-8 text; ${AGAIN}.`);
  }
}

/**
 * The metadata of an ONNX file, which onnxruntime-web does not expose: a Map of strings.
 * Field 14 of ModelProto has entries of key (1) and value (2); other fields are skipped.
 */
export function onnxMetadata(bytes) {
  const found = new Map();
  for (const [field, entry] of protobufFields(bytes)) {
    if (field !== 14 || !entry) continue;
    const parts = new Map(protobufFields(entry));
    const text = (number) => new TextDecoder().decode(parts.get(number) ?? new Uint8Array(0));
    found.set(text(1), text(2));
  }
  return found;
}

/** Pairs of field number and content; numeric fields come without content. */
function* protobufFields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; at < bytes.length; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) break;
    }
    return value;
  };
  const fixed = { 1: 8, 5: 4 };
  while (at < bytes.length) {
    const key = varint();
    const type = key % 8;
    if (type === 0) varint();
    const size = type === 2 ? varint() : (fixed[type] ?? 0);
    yield [Math.floor(key / 8), type === 2 ? bytes.subarray(at, at + size) : null];
    at += size;
  }
}
