// The network, away from the page's own thread, which so never waits. One worker a device:
// worker.js?device=wasm or worker.js?device=webgpu.

import { download, gunzip } from "./fetching.js";
import { gaussian, spherical } from "./noise.js";

const ORT_VERSION = "1.30.0"; // of onnxruntime-web; export/ort_web.py takes the same
const DEVICE = new URLSearchParams(self.location.search).get("device");
const SMALL_GRAPH_BYTES = 4 << 20; // threads cost such a graph more than they gain
const LARGE_GRAPH_BYTES = 32 << 20; // of such ones only the current is kept

const sessions = new Map(); // file -> {ort, session, spec}

const progress = (name) => (loaded, total) => postMessage({ progress: name, loaded, total });

// what does not depend on the bundle is fetched before the page knows which one it is
const runtime = Promise.all([
  import(`./ort-${DEVICE}.js?v=${ORT_VERSION}`).catch(() => {
    throw new Error(`ort-${DEVICE}.js could not be fetched. The folder has to be copied whole.`);
  }),
  download(`ort-${DEVICE}.wasm.gz`, ORT_VERSION, progress("runtime")).then(gunzip),
]);
runtime.catch(() => {}); // said where it is awaited

async function open({ file, version, spec }) {
  if (!sessions.has(file)) {
    const model = await download(file, version, progress("model"));
    const [ort, binary] = await runtime;
    if (!ort.env.wasm.wasmBinary) {
      ort.env.logLevel = "error";
      ort.env.wasm.wasmBinary = binary;
      const cores = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;
      ort.env.wasm.numThreads = model.byteLength < SMALL_GRAPH_BYTES ? 1 : cores;
    }
    if (model.byteLength > LARGE_GRAPH_BYTES) await forget();
    const bytes = new Uint8Array(model);
    const session = await ort.InferenceSession.create(bytes, {
      executionProviders: DEVICE === "webgpu" ? [await webgpu(bytes)] : [DEVICE],
      graphOptimizationLevel: "all",
      logSeverityLevel: 3,
    });
    sessions.set(file, { ort, session, spec });
  }
  return { threads: sessions.get(file).ort.env.wasm.numThreads };
}

/** WebGPU, with the nodes on the CPU that it cannot run for want of buffers. */
async function webgpu(bytes) {
  const { wideNodes } = await import("./graph.js");
  const { limits } = await navigator.gpu.requestAdapter();
  // its kernel binds every output at once, and the input
  const most = limits.maxStorageBuffersPerShaderStage - 1;
  return { name: "webgpu", forceCpuNodeNames: wideNodes(bytes, "Split", most) };
}

async function forget() {
  for (const { session } of sessions.values()) await session.release();
  sessions.clear();
}

/** Noise of every item: {seed, toward: {seed, fraction} or undefined}. */
function noiseOf(items, size) {
  const noise = new Float32Array(items.length * size);
  items.forEach(({ seed, toward }, k) => {
    const start = gaussian(seed, size);
    const here = toward ? spherical(start, gaussian(toward.seed, size), toward.fraction) : start;
    noise.set(here, k * size);
  });
  return noise;
}

function feedsOf({ ort, spec }, items) {
  const size = spec.shape.reduce((a, b) => a * b);
  const feeds = {
    noise: new ort.Tensor("float32", noiseOf(items, size), [items.length, ...spec.shape]),
  };
  if (spec.classes > 0) {
    const labels = BigInt64Array.from(items, (item) => BigInt(item.label));
    feeds.label = new ort.Tensor("int64", labels, [items.length]);
  }
  if (spec.guidance) {
    const scales = Float32Array.from(items, (item) => item.guidance);
    feeds.guidance = new ort.Tensor("float32", scales, [items.length]);
  }
  return feeds;
}

/** Items {seed, label, guidance, toward} to one output of the graph, and its milliseconds. */
async function run({ file, items, output }) {
  const model = sessions.get(file);
  const feeds = feedsOf(model, items);
  const began = performance.now();
  const found = await model.session.run(feeds, [output]);
  const ms = performance.now() - began;
  return { data: await found[output].getData(), dims: found[output].dims, ms };
}

/**
 * Milliseconds of one image at batch 1: the median of the second half of the readings, when the
 * browser has optimised what runs often. Its clock is coarse, so a reading is of several runs.
 */
async function latency({ file, milliseconds }) {
  const model = sessions.get(file);
  const feeds = feedsOf(model, [{ seed: 0n, label: 0, guidance: model.spec.guidance?.[0] }]);
  const times = [];
  const until = performance.now() + milliseconds;
  let runs = 1;
  while (times.length < 1 || (performance.now() < until && times.length < 101)) {
    const began = performance.now();
    for (let k = 0; k < runs; k++) await model.session.run(feeds, ["image"]);
    const each = (performance.now() - began) / runs;
    if (each * runs < 5) runs = Math.ceil(5 / Math.max(each, 0.01));
    else times.push(each);
  }
  const warm = times.slice(times.length >> 1).sort((a, b) => a - b);
  return warm[warm.length >> 1];
}

const ACTIONS = { open, run, latency };
let last = Promise.resolve();

// one after the other: a session runs one batch at a time
self.onmessage = ({ data: { id, action, ...asked } }) => {
  last = last.then(async () => {
    try {
      const result = await ACTIONS[action](asked);
      postMessage({ id, result }, result?.data ? [result.data.buffer] : []);
    } catch (error) {
      postMessage({ id, error: String(error?.message ?? error) });
    }
  });
};
