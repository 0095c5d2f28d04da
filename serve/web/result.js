// The grid of generated images.

import { $ } from "./controls.js";
import { draw, newCanvas, paintGrid, savePNG, scaleTo } from "./draw.js";
import { classNames } from "./state.js";

const ARROWS = { ArrowRight: 1, ArrowLeft: -1 };
const TINY = 16; // pixels: images that nobody needs large

/** Columns of a grid of so many images. */
function columnsOf(count, shape) {
  if (shape[1] > TINY || count <= 4) return Math.ceil(Math.sqrt(count));
  return count % 8 && count % 5 === 0 ? 5 : 8;
}

/** What an image is, in words: "seed 3, class dog". */
export function describe(item, spec) {
  const label = spec.classes ? `, class ${classNames(spec)[item.label]}` : "";
  return `seed ${item.seed}${label}`;
}

/** What an image is, as the name of a file. */
export function fileName(manifest, item) {
  const label = manifest.spec.classes ? `-class${item.label}` : "";
  return `${manifest.name}-seed${item.seed}${label}.png`;
}

export class Result {
  /** @param {(item: object, bytes: Uint8Array) => void} onSelect an image was chosen */
  constructor(manifest, onSelect) {
    Object.assign(this, { manifest, onSelect, items: [], images: [], tiles: [], selected: 0 });
    $("grid").addEventListener("keydown", (event) => this.#move(event));
  }

  /** Room for the images of a new generation; the old ones stay until theirs come. */
  begin(items) {
    this.items = items;
    this.images = [];
    while (this.tiles.length > items.length) this.tiles.pop().figure.remove();
    while (this.tiles.length < items.length) this.tiles.push(this.#tile(this.tiles.length));
    const columns = columnsOf(items.length, this.manifest.spec.shape);
    $("grid").style.setProperty("--columns", columns);
    $("grid").dataset.size = columns > 5 ? "dense" : columns > 2 ? "normal" : "large";
    this.selected = Math.min(this.selected, items.length - 1);
    this.#rove();
  }

  /** Show images [H, W, C] from the place `first` on. */
  show(first, images) {
    const { spec } = this.manifest;
    images.forEach((bytes, k) => {
      const place = first + k, item = this.items[place], tile = this.tiles[place];
      this.images[place] = bytes;
      draw(tile.canvas, bytes, spec.shape);
      const words = describe(item, spec);
      tile.canvas.setAttribute("aria-label", `Image of ${words}`);
      tile.button.title = `Show how ${words} came about`;
      tile.save.setAttribute("aria-label", `Download the image of ${words}`);
      tile.name.textContent = spec.classes ? classNames(spec)[item.label] : "";
      tile.seed.textContent = spec.classes ? String(item.seed) : `seed ${item.seed}`;
      tile.seed.title = `seed ${item.seed}`;
      tile.figure.classList.remove("empty");
      if (place === this.selected) this.onSelect(item, bytes);
    });
  }

  #tile(place) {
    const figure = document.createElement("figure");
    figure.className = "tile empty";
    const canvas = newCanvas(this.manifest.spec.shape, "Not generated yet");
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "pick" });
    button.append(canvas);
    button.addEventListener("click", () => this.select(place));
    const caption = document.createElement("figcaption");
    const [name, seed] = ["name", "seed"].map((kind) => {
      const span = document.createElement("span");
      span.className = kind;
      return span;
    });
    const save = document.createElement("button");
    Object.assign(save, { type: "button", className: "save", title: "Download as PNG" });
    save.textContent = "↓";
    save.addEventListener("click", () => this.saveOne(place));
    caption.append(name, seed, save);
    figure.append(button, caption);
    $("grid").append(figure);
    return { figure, canvas, button, name, seed, save };
  }

  select(place) {
    this.selected = place;
    this.#rove();
    if (this.images[place]) this.onSelect(this.items[place], this.images[place]);
  }

  #rove() {
    this.tiles.forEach(({ button, save }, place) => {
      // one stop for the whole grid; arrow keys move in it
      button.tabIndex = save.tabIndex = place === this.selected ? 0 : -1;
      button.setAttribute("aria-pressed", String(place === this.selected));
    });
  }

  #move(event) {
    const columns = getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
    const step = ARROWS[event.key] ?? { ArrowDown: columns, ArrowUp: -columns }[event.key];
    const place = this.selected + step;
    if (!step || !event.target.matches(".pick") || !this.tiles[place]) return;
    event.preventDefault();
    this.select(place);
    this.tiles[place].button.focus();
  }

  saveOne(place = this.selected) {
    const { spec } = this.manifest;
    const options = { columns: 1, scale: scaleTo(256, spec.shape), gap: 0 };
    const canvas = paintGrid([this.images[place]], spec.shape, options);
    return savePNG(canvas, fileName(this.manifest, this.items[place]));
  }

  saveGrid() {
    const { shape } = this.manifest.spec;
    const columns = Math.ceil(Math.sqrt(this.images.length));
    const canvas = paintGrid(this.images, shape, { columns, scale: scaleTo(64, shape) });
    return savePNG(canvas, `${this.manifest.name}-grid-seed${this.items[0].seed}.png`);
  }
}
