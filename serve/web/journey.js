// The way of one image from its noise: the points between, where the graph gives them.

import { $ } from "./controls.js";
import { draw, newCanvas, toBytes } from "./draw.js";
import { gaussian } from "./noise.js";
import { describe } from "./result.js";

const SHOWN = 5; // frames of a long path

/** Places of at most SHOWN points among `count`, both ends included. */
function chosen(count) {
  if (count <= SHOWN) return Array.from({ length: count }, (_, k) => k);
  return Array.from({ length: SHOWN }, (_, k) => Math.round((k * (count - 1)) / (SHOWN - 1)));
}

export class Journey {
  #turn = 0;
  #tiles = [];

  constructor(manifest, onSave) {
    this.manifest = manifest;
    this.save = document.createElement("button");
    Object.assign(this.save, { type: "button", className: "plain", textContent: "Download image" });
    this.save.addEventListener("click", onSave);
  }

  /** Show the noise while the network is on its way. */
  wait(item) {
    this.#frames([this.#noise(item), null], [0, 1], 1);
    $("journey-caption").textContent = `The noise of seed ${item.seed}.`;
  }

  #noise({ seed }) {
    const { shape } = this.manifest.spec;
    return toBytes(gaussian(seed, shape[0] * shape[1] * shape[2]), shape);
  }

  /** Show noise and image at once, and the points between when they have been computed. */
  async show(engine, variant, item, bytes) {
    const turn = ++this.#turn;
    const { shape } = this.manifest.spec;
    const size = shape[0] * shape[1] * shape[2];
    this.#caption(variant, item);
    if (!variant.trajectory) {
      return this.#frames([this.#noise(item), bytes], [0, 1], variant.steps);
    }
    const { data } = await engine.run(variant, [item], "trajectory");
    if (turn !== this.#turn) return undefined;
    const points = Array.from({ length: variant.steps + 1 }, (_, k) =>
      toBytes(data.subarray(k * size, (k + 1) * size), shape));
    const places = chosen(points.length);
    return this.#frames(places.map((k) => points[k]), places, variant.steps);
  }

  #frames(images, places, steps) {
    const { shape } = this.manifest.spec;
    while (this.#tiles.length > images.length) this.#tiles.pop().remove();
    while (this.#tiles.length < images.length) {
      const frame = document.createElement("div");
      frame.className = "frame";
      frame.append(newCanvas(shape, ""), document.createElement("span"));
      this.#tiles.push(frame);
    }
    $("journey").replaceChildren(...this.#tiles);
    $("journey").style.setProperty("--frames", images.length);
    images.forEach((bytes, k) => {
      const [canvas, text] = this.#tiles[k].children;
      if (bytes) draw(canvas, bytes, shape);
      const end = k === images.length - 1;
      const between = `${places[k]} of ${steps}`;
      text.textContent = k === 0 ? "noise" : end ? "image" : between;
      const words = k === 0 ? "The noise" : end ? "The image" : `After evaluation ${between}`;
      canvas.setAttribute("aria-label", words);
    });
  }

  #caption(variant, item) {
    const evaluations = variant.steps === 1 ? "one evaluation" : `${variant.steps} evaluations`;
    const text = `From noise to image in ${evaluations}: ${describe(item, this.manifest.spec)}. `;
    $("journey-caption").replaceChildren(text, this.save);
  }
}
