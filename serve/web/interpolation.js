// From one seed to another, along the arc between their noises.

import { $, complain } from "./controls.js";
import { draw, newCanvas } from "./draw.js";
import { randomSeed, parseSeed } from "./noise.js";
import { classNames, labelOf, seedProblem } from "./state.js";

const FRAMES = [49, 25, 17, 9]; // of the whole way, both ends included; fewer of a slow model
const FILM = 9; // of them in the strip
const SECONDS = 4; // of the whole way
const PATIENCE_MS = 5000; // that making the frames may take

export class Interpolation {
  #turn = 0;
  #frames = [];
  #playing = 0;
  #film;

  /**
   * @param {(items: object[], onImages: Function) => Promise<boolean>} generate
   * @param {(milliseconds: number) => number} affordable how many images can be made in that time
   */
  constructor(manifest, generate, affordable) {
    Object.assign(this, { manifest, generate, affordable });
    this.#film = Array.from({ length: FILM }, () => newCanvas(manifest.spec.shape, ""));
    $("film").append(...this.#film);
    [, $("between-image").height, $("between-image").width] = manifest.spec.shape;
    if (manifest.spec.shape[2] < 256) $("between-image").classList.add("pixelated");
    for (const id of ["between-from", "between-to"]) {
      $(id).addEventListener("input", () => this.#seeds());
      $(id).addEventListener("change", () => this.update());
    }
    $("between-dice").addEventListener("click", () => {
      for (const id of ["between-from", "between-to"]) $(id).value = String(randomSeed());
      this.update();
    });
    $("scrub").addEventListener("input", () => {
      this.#stop();
      this.#show();
    });
    $("play").addEventListener("click", () => (this.#playing ? this.#stop() : this.#play()));
  }

  #seeds() {
    const fields = [$("between-from"), $("between-to")];
    const wrong = fields.filter((field) => seedProblem(field.value, 1));
    fields.forEach((field) => field.removeAttribute("aria-invalid"));
    const sentence = wrong.length ? seedProblem(wrong[0].value, 1) : "";
    if (!complain($("between-problem"), sentence, ...wrong)) return null;
    return fields.map((field) => parseSeed(field.value));
  }

  /** Make the frames again: another seed, class, guidance, number of steps. */
  async update(state = this.state) {
    this.state = state;
    const seeds = this.#seeds();
    if (!seeds) return;
    const turn = ++this.#turn;
    const label = labelOf(state, seeds[0], this.manifest.spec);
    const length = FRAMES.find((count) => count <= this.affordable(PATIENCE_MS)) ?? FRAMES.at(-1);
    const items = Array.from({ length }, (_, k) => ({
      seed: seeds[0], label, guidance: state.guidance,
      toward: { seed: seeds[1], fraction: k / (length - 1) },
    }));
    const frames = [];
    const done = await this.generate(items, (first, images) => {
      images.forEach((bytes, k) => (frames[first + k] = bytes));
      return turn === this.#turn;
    });
    if (!done || turn !== this.#turn) return;
    Object.assign(this, { label, seeds });
    this.#frames = frames;
    this.#film.forEach((canvas, k) => {
      draw(canvas, this.#at(k / (FILM - 1)), this.manifest.spec.shape);
    });
    $("scrub").disabled = $("play").disabled = false;
    this.#show();
  }

  #at(fraction) {
    return this.#frames[Math.round(fraction * (this.#frames.length - 1))];
  }

  #show() {
    const fraction = Number($("scrub").value);
    const { spec } = this.manifest;
    draw($("between-image"), this.#at(fraction), spec.shape);
    const percent = Math.round(100 * fraction);
    const name = spec.classes ? `, class ${classNames(spec)[this.label]}` : "";
    const words = `${percent}% of the way from seed ${this.seeds[0]} to seed ${this.seeds[1]}${name}`;
    $("between-caption").textContent = words;
    $("between-image").setAttribute("aria-label", `The image ${words}`);
    $("scrub").setAttribute("aria-valuetext", `${percent}% of the way`);
    this.#film.forEach((canvas, k) => {
      canvas.classList.toggle("here", Math.round(fraction * (FILM - 1)) === k);
    });
  }

  #play() {
    $("play").textContent = "Pause";
    let before;
    let direction = Number($("scrub").value) >= 1 ? -1 : 1;
    const tick = (now) => {
      const passed = before === undefined ? 0 : (now - before) / 1000 / SECONDS;
      before = now;
      const place = Number($("scrub").value) + direction * passed;
      if (place >= 1 || place <= 0) direction = place >= 1 ? -1 : 1;
      $("scrub").value = String(Math.min(1, Math.max(0, place)));
      this.#show();
      this.#playing = requestAnimationFrame(tick);
    };
    this.#playing = requestAnimationFrame(tick);
  }

  #stop() {
    cancelAnimationFrame(this.#playing);
    this.#playing = 0;
    $("play").textContent = "Play";
  }
}
