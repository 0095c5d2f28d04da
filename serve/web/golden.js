// golden.npz: the images that the export recorded, and how far the ones made here are from them.

import { download, inflate } from "./fetching.js";
import { toBytes } from "./draw.js";

const TYPES = {
  "<f4": Float32Array, "<f8": Float64Array, "<i8": BigInt64Array, "|u1": Uint8Array,
};

/** The files of a ZIP archive whose names pass `wanted`, as {name: ArrayBuffer}. */
async function unzip(buffer, wanted) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("golden.npz is not whole: copy the folder again.");
  const files = {};
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const sizes = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const name = new TextDecoder().decode(new Uint8Array(buffer, at + 46, sizes[0]));
    if (wanted(name)) {
      const local = view.getUint32(at + 42, true);
      const from = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
      const packed = buffer.slice(from, from + view.getUint32(at + 20, true));
      files[name] = view.getUint16(at + 10, true) ? await inflate(packed, "deflate-raw") : packed;
    }
    at += 46 + sizes[0] + sizes[1] + sizes[2];
  }
  return files;
}

/** An array of numpy, {data, shape}. */
function npy(buffer) {
  const view = new DataView(buffer);
  const wide = view.getUint8(6) > 1;
  const from = (wide ? 12 : 10) + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder().decode(new Uint8Array(buffer, 0, from));
  const type = TYPES[/'descr': '([^']+)'/.exec(header)[1]];
  const shape = /'shape': \(([^)]*)\)/.exec(header)[1].split(",").filter((s) => s.trim()).map(Number);
  return { data: new type(buffer.slice(from)), shape };
}

/**
 * What a variant must give.
 * @param {number} most how many images at most
 * @returns {Promise<{items: object[], expected: Uint8Array[], pytorch: Uint8Array[]}>}
 *   `expected` is what ONNX Runtime gave for this very file; `pytorch` the network it came from
 */
export async function loadGolden(manifest, variant, most) {
  const archive = await download("golden.npz", manifest.files["golden.npz"]);
  const wanted = ["seeds", "labels", "guidance", "outputs", `other_steps.${variant.steps}`,
    `samples.${variant.name}`].map((name) => `${name}.npy`);
  const files = await unzip(archive, (name) => wanted.includes(name));
  const array = (name) => (files[`${name}.npy`] ? npy(files[`${name}.npy`]) : undefined);
  const [seeds, labels, guidance] = ["seeds", "labels", "guidance"].map(array);
  const { shape } = manifest.spec;
  const outputs = array(`other_steps.${variant.steps}`) ?? array("outputs");
  const chosen = seeds.data.slice(0, Math.floor(most));
  const split = ({ data }) => Array.from(chosen, (_, k) => {
    const size = data.length / seeds.data.length;
    return data.subarray(k * size, (k + 1) * size);
  });
  const pytorch = split(outputs);
  const samples = array(`samples.${variant.name}`);
  return {
    items: Array.from(chosen, (seed, k) => ({
      seed,
      label: labels ? Number(labels.data[k]) : 0,
      guidance: guidance?.data[k],
    })),
    expected: samples ? split(samples).map((values) => toBytes(values, shape)) : pytorch,
    pytorch,
  };
}

/** The absolute difference of two lists of images, and the largest of all. */
export function difference(found, expected) {
  let largest = 0;
  const images = found.map((image, k) => image.map((value, i) => {
    const levels = Math.abs(value - expected[k][i]);
    largest = Math.max(largest, levels);
    return levels;
  }));
  return { images, largest };
}
