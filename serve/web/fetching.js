// Files of this folder; an Error of this module is a sentence for the reader.

/** The address of a file of this folder. `version` makes a cache tell two exports apart. */
export function address(name, version = "") {
  const url = new URL(name, import.meta.url);
  if (version) url.search = `?v=${version.slice(0, 16)}`;
  return url;
}

async function response(name, version) {
  let found;
  try {
    // what has no version in its address is asked for again: it may have been replaced
    found = await fetch(address(name, version), version ? {} : { cache: "no-cache" });
  } catch {
    throw new Error(`${name} could not be fetched: the connection to the server failed.`);
  }
  if (!found.ok) {
    throw new Error(`${name} could not be fetched: the server answered ${found.status}. ` +
      "The folder has to be copied whole.");
  }
  return found;
}

/**
 * Download a file.
 * @param {(loaded: number, total: number) => void} onBytes total is 0 while it is not known
 * @returns {Promise<ArrayBuffer>}
 */
export async function download(name, version = "", onBytes = () => {}) {
  const found = await response(name, version);
  const encoded = found.headers.has("content-encoding");
  const total = encoded ? 0 : Number(found.headers.get("content-length") ?? 0);
  const parts = [];
  let loaded = 0;
  try {
    for (const reader = found.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      loaded += value.length;
      onBytes(loaded, total);
    }
  } catch {
    throw new Error(`${name} could not be fetched: the connection broke after ${loaded} bytes.`);
  }
  return new Blob(parts).arrayBuffer();
}

/** The content of a JSON file. */
export async function json(name) {
  const text = await (await response(name, "")).text();
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${name} is not what the export wrote: copy the folder again.`);
  }
}

/** The content of a gzip file; as it is, if the server or the browser has unpacked it already. */
export async function gunzip(buffer) {
  const start = new Uint8Array(buffer, 0, Math.min(2, buffer.byteLength));
  return start[0] === 0x1f && start[1] === 0x8b ? inflate(buffer, "gzip") : buffer;
}

/** Unpack "gzip" or "deflate-raw". */
export function inflate(buffer, format) {
  const unpacked = new Blob([buffer]).stream().pipeThrough(new DecompressionStream(format));
  return new Response(unpacked).arrayBuffer();
}
