// The page's side of worker.js.

import { address } from "./fetching.js";

export const DEVICES = { wasm: "CPU", webgpu: "GPU" };
export const TECHNIQUE = { wasm: "WebAssembly", webgpu: "WebGPU" };

export class Engine {
  #worker;
  #waiting = new Map();
  #next = 0;
  #broken;

  /**
   * @param {"wasm" | "webgpu"} device
   * @param {(name: "runtime" | "model", loaded: number, total: number) => void} onProgress
   */
  constructor(device, onProgress = () => {}) {
    this.device = device;
    this.threads = 1;
    const url = address("worker.js");
    url.search = `?device=${device}`;
    this.#worker = new Worker(url, { type: "module" });
    this.#worker.onmessage = ({ data }) => {
      if (data.progress) onProgress(data.progress, data.loaded, data.total);
      else this.#settle(data);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#broken = new Error("The part of the page that runs the network could not start" +
        (event.message ? ` (${event.message}).` : ": worker.js was not loaded."));
      for (const { reject } of this.#waiting.values()) reject(this.#broken);
      this.#waiting.clear();
    };
  }

  #settle({ id, result, error }) {
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  }

  #ask(action, asked) {
    if (this.#broken) return Promise.reject(this.#broken);
    return new Promise((resolve, reject) => {
      const id = this.#next++;
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, action, ...asked });
    });
  }

  /** Get a variant of the manifest ready to run; a model is fetched once. */
  async open(manifest, variant) {
    const { file } = variant;
    const asked = { file, version: manifest.files[file], spec: manifest.spec };
    this.threads = (await this.#ask("open", asked)).threads;
  }

  /**
   * One output of the graph of an open variant, for a batch.
   * @param {{seed: bigint, label: number, guidance?: number, toward?: object}[]} items
   * @returns {Promise<{data: Uint8Array | Float32Array, dims: number[], ms: number}>}
   */
  run({ file }, items, output = "image") {
    return this.#ask("run", { file, items, output });
  }

  /** Median milliseconds of one image at batch 1, from about so many milliseconds of runs. */
  latency({ file }, milliseconds) {
    return this.#ask("latency", { file, milliseconds });
  }

  close() {
    this.#worker.terminate();
  }
}

/** Whether this browser offers WebGPU on this machine. */
export async function hasGPU() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}
