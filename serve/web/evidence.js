// What the page shows to be believed: how fast it is, that its images are the server's, what it is.

import { $ } from "./controls.js";
import { newCanvas, paintGrid } from "./draw.js";
import { TECHNIQUE } from "./engine.js";
import { difference } from "./golden.js";

const LEVELS = 2; // of 255: how far the same graph may be from itself on another engine
const MAGNIFIED = 64; // a difference of one level is not to be seen

const element = (tag, className, ...children) => {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
};

/** Milliseconds with three digits that matter. */
export function duration(ms) {
  if (ms >= 1000) return `${(ms / 1000).toPrecision(3)} s`;
  return `${ms >= 100 ? Math.round(ms) : ms.toPrecision(ms < 1 ? 2 : 3)} ms`;
}

/** Bars of one image at batch 1: here, and what the export recorded on its machine. */
export function showSpeed(engine, variant, here, measured) {
  const threads = `${engine.threads} thread${engine.threads > 1 ? "s" : ""}`;
  const how = engine.device === "wasm" ? `${TECHNIQUE.wasm}, ${threads}` : TECHNIQUE.webgpu;
  const rows = [["This browser", how, here, "here"]];
  const { machine, pytorch, latency } = measured;
  const where = machine ? `${machine.cpu}, ${machine.cores} cores` : "another machine";
  const baseline = pytorch?.[variant.steps];
  if (baseline) rows.push(["PyTorch, eager", where, baseline, ""]);
  const server = latency?.[variant.name];
  if (server) rows.push(["ONNX Runtime, as a server runs it", where, server.batch1_ms, ""]);
  const most = Math.max(...rows.map((row) => row[2]));
  const bars = rows.map(([name, detail, ms, kind]) => {
    const bar = element("div", `bar ${kind}`);
    bar.style.setProperty("--share", ms / most);
    const title = element("p", "", element("b", "", name), element("span", "", detail));
    return element("div", "row", title, element("div", "track", bar), element("b", "ms", duration(ms)));
  });
  const note = baseline
    ? "The first row was measured in this browser just now. The others were recorded when the " +
      "model was exported, on the machine named: they say what that one does, not yours."
    : "Measured in this browser just now; this bundle carries no baseline to compare with.";
  $("speed").dataset.ms = here;
  $("speed").replaceChildren(...bars, element("p", "hint", note));
}

/**
 * Show golden images beside those that were made here.
 * @returns {boolean} whether all are within LEVELS of what the export recorded
 */
export function compare(manifest, engine, { items, expected, pytorch }, found) {
  const { images, largest } = difference(found, expected);
  const equal = largest <= LEVELS;
  const inPyTorch = difference(found, pytorch).largest;
  const count = `All ${items.length} images`;
  $("verdict").className = `verdict ${equal ? "good" : "bad"}`;
  $("verdict").dataset.levels = largest;
  $("verdict").textContent = equal
    ? `${largest === 0 ? `${count} are equal, bit for bit.` : `${count} agree within ${largest} ` +
      "of 255 levels."} Against PyTorch in fp32 the largest difference is ` +
      `${inPyTorch} of 255 levels.`
    : `The images differ by up to ${largest} of 255 levels; ${LEVELS} would be rounding. ` +
      `${TECHNIQUE[engine.device]} computes something else here.`;
  const { shape } = manifest.spec;
  const magnified = images.map((image) => image.map((levels) => Math.min(255, MAGNIFIED * levels)));
  const panels = [["server", expected], ["here", found], [`difference × ${MAGNIFIED}`, magnified]];
  $("same").replaceChildren(...panels.map(([name, shown]) => {
    const canvas = newCanvas(shape, `${items.length} images: ${name}`);
    const painted = paintGrid(shown, shape, {
      columns: Math.ceil(Math.sqrt(shown.length)), gap: 1, ground: "transparent",
    });
    [canvas.width, canvas.height] = [painted.width, painted.height];
    canvas.style.aspectRatio = `${painted.width} / ${painted.height}`;
    canvas.getContext("2d").drawImage(painted, 0, 0);
    return element("figure", "", canvas, element("figcaption", "", name));
  }));
  return equal;
}

/** What the model is, from the manifest. */
export function showFacts(manifest, variant) {
  const { spec, source, quality, versions } = manifest;
  const [channels, height, width] = spec.shape;
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  const rows = [
    ["Images", `${width} × ${height}, ${channels === 3 ? "colour" : "grey"}` +
      (spec.classes ? `, ${spec.classes} classes` : "")],
    ["Parameters", source.parameters.toLocaleString("en")],
    ["Trained", `run ${source.run}, ${source.step.toLocaleString("en")} steps`],
    ["This file", `${variant.file}, weights in ${variant.precision}`],
    ["Of the class asked for", quality.class_accuracy && percent(quality.class_accuracy)],
    ["Runtime", versions["onnxruntime-web"] && `onnxruntime-web ${versions["onnxruntime-web"]}`],
  ];
  $("facts").replaceChildren(...rows.filter((row) => row[1]).map(([name, value]) =>
    element("div", "", element("dt", "", name), element("dd", "", value))));
}
