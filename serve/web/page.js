// The page: from its address to images.

import { $, Controls, complain } from "./controls.js";
import { DEVICES, Engine, TECHNIQUE, hasGPU } from "./engine.js";
import { compare, duration, showFacts, showSpeed } from "./evidence.js";
import { json } from "./fetching.js";
import { loadGolden } from "./golden.js";
import { Interpolation } from "./interpolation.js";
import { Journey } from "./journey.js";
import { Result } from "./result.js";
import { itemsOf, offers, permalink, readAddress, variantOf } from "./state.js";

const BATCH = 16; // images of one run of the network, at most
const RUN_MS = 150; // that a run shall take, so that images appear while others are made
const LATENCY_MS = 400; // of measuring one image at a time
const PATIENCE_MS = 8000; // of comparing with golden images: fewer of a slow model
const SLOW_MS = 150; // an image: from there on a GPU is worth its download

const progress = {};

function showProgress(name, loaded, total) {
  progress[name] = { loaded, total };
  const parts = Object.values(progress);
  const sum = (key) => parts.reduce((all, part) => all + part[key], 0);
  const known = parts.every((part) => part.total) ? sum("total") : 0;
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  $("loading-text").textContent = `${megabytes(sum("loaded"))} MB` +
    (known ? ` of ${megabytes(known)} MB` : "");
  if (known) $("loaded").value = sum("loaded") / known;
  else $("loaded").removeAttribute("value");
}

function showLoading(loading) {
  $("loading").hidden = !loading;
  if (loading) return;
  for (const name of Object.keys(progress)) delete progress[name];
}

function fail(error) {
  window.showProblem(error.message);
  showLoading(false);
  $("status").textContent = "No images.";
}

class Page {
  #turn = 0;
  #opening = 0; // variants on their way
  #writing;
  #each = {}; // milliseconds an image, by file and device: how many to make in one run

  constructor(engine, manifest) {
    this.engine = engine;
    this.engines = { wasm: engine };
    this.manifest = manifest;
    this.offered = offers(manifest);
    const { state, problems } = readAddress(new URLSearchParams(location.search), manifest,
      this.offered);
    this.state = state;
    $("lock").checked = new URLSearchParams(location.search).has("seed");
    this.controls = new Controls(manifest, this.offered, state, () => this.changed(),
      () => this.changed());
    if (problems.length) complain($("seed-problem"), problems.join(" "));
    this.result = new Result(manifest, (item, bytes) => this.#select(item, bytes));
    this.journey = new Journey(manifest, () => this.result.saveOne());
    this.interpolation = new Interpolation(manifest, (items, onImages) =>
      this.#background(items, onImages), (ms) => ms / this.#each[this.opened]);
    $("copy").addEventListener("click", () => this.#copy());
    $("save-grid").addEventListener("click", () => this.result.saveGrid());
    const items = itemsOf(state, manifest.spec);
    this.result.begin(items);
    this.journey.wait(items[0]);
  }

  /** The first images, and then all that rests on them. */
  async start() {
    if (!(await this.generate())) return;
    this.measured = await json("measured.json").then((found) => found.measured, () => ({}));
    await this.rest();
    if (await hasGPU()) await this.#offerGPU();
  }

  /** A control was set: show what it gives. */
  async changed() {
    const turn = ++this.#turn;
    if (!(await this.generate(turn))) return;
    clearTimeout(this.#writing);
    // browsers allow an address to change so many times a second and no more
    this.#writing = setTimeout(() => history.replaceState(null, "", this.link), 200);
    if (this.rested !== this.opened) await this.rest();
    else await this.interpolation.update(this.state);
  }

  get link() {
    return permalink(location.href, this.state, this.manifest, this.offered);
  }

  /** Generate what the state says; false if that failed or something newer came between. */
  async generate(turn = this.#turn) {
    try {
      await this.open(variantOf(this.offered, this.state));
      if (turn !== this.#turn) return false;
      const { link } = this;
      const items = itemsOf(this.state, this.manifest.spec);
      let ms = 0;
      const done = await this.#batches(items, (first, images, took) => {
        if (turn !== this.#turn) return false;
        if (first === 0) this.result.begin(items);
        ms += took;
        this.result.show(first, images);
        if (!this.begun) requestAnimationFrame(() => performance.mark("first image"));
        this.begun = true;
        return true;
      });
      if (!done) return false;
      this.#said(items.length, ms, link === this.shown, this.rested !== this.opened);
      this.shown = link;
      // of which state the images are, for whoever drives the page
      $("grid").dataset.shown = new URL(link).search;
      $("problem").hidden = true;
      return true;
    } catch (error) {
      if (turn === this.#turn) fail(error);
      return false;
    }
  }

  /** Have the engine run a variant; of several that are asked for meanwhile, the last one. */
  async open(variant) {
    const { engine } = this;
    const opened = `${variant.file} ${engine.device}`;
    this.wanted = opened;
    if (this.opened === opened && !this.#opening) return;
    this.#opening++;
    showLoading(true);
    try {
      await engine.open(this.manifest, variant);
    } finally {
      this.#opening--;
    }
    if (!this.#opening) showLoading(false);
    if (this.wanted !== opened) return;
    Object.assign(this, { opened, variant });
    $("status").textContent = "Generating …";
    $("copy").disabled = $("save-grid").disabled = false;
    showFacts(this.manifest, variant);
  }

  /**
   * Images in batches that are short enough to show while the next is made.
   * @param {(first: number, images: Uint8Array[], ms: number) => boolean} onImages false: stop
   */
  async #batches(items, onImages) {
    const size = this.manifest.spec.shape.reduce((a, b) => a * b);
    const { engine, opened, variant } = this;
    for (let first = 0; first < items.length; ) {
      const fits = this.#each[opened] ? Math.floor(RUN_MS / this.#each[opened]) : 1;
      const part = items.slice(first, first + Math.max(1, Math.min(BATCH, fits)));
      const { data, ms } = await engine.run(variant, part);
      this.#each[opened] = ms / part.length;
      const images = part.map((_, k) => data.subarray(k * size, (k + 1) * size));
      if (!onImages(first, images, ms)) return false;
      first += part.length;
    }
    return true;
  }

  /** The same, until the state changes. */
  #background(items, onImages) {
    const turn = this.#turn;
    return this.#batches(items, (...some) => turn === this.#turn && onImages(...some));
  }

  /** The way between seeds, the comparison and the speed, for a model or a device that is new. */
  async rest() {
    const { engine, variant, opened } = this;
    this.rested = opened;
    $("verdict").className = "verdict";
    $("verdict").textContent = "Comparing …";
    try {
      await this.interpolation.update(this.state);
      const most = Math.max(2, PATIENCE_MS / this.#each[opened]);
      const golden = await loadGolden(this.manifest, variant, most);
      const found = [];
      await this.#batches(golden.items, (first, images) => found.push(...images));
      if (opened !== this.opened) return;
      this.equal = compare(this.manifest, engine, golden, found);
      // last: by now the browser has compiled what runs often
      const ms = await engine.latency(variant, LATENCY_MS);
      if (opened !== this.opened) return;
      showSpeed(engine, variant, ms, this.measured);
      this.here = ms;
    } catch (error) {
      $("verdict").className = "verdict bad";
      $("verdict").textContent = error.message;
    }
    document.documentElement.dataset.ready = opened;
  }

  async #offerGPU() {
    this.#devices();
    const { here } = this;
    if (here <= SLOW_MS) return;
    await this.#use("webgpu");
    // a driver may compute in software, or wrongly
    if (!this.equal || this.here > here) await this.#use("wasm");
  }

  #devices() {
    this.controls.offerDevices(Object.keys(DEVICES), this.engine.device,
      (device) => `${DEVICES[device]}, ${TECHNIQUE[device]}`, (device) => this.#use(device));
  }

  /** Run on another device; stay where that does not work. */
  async #use(device) {
    this.engines[device] ??= new Engine(device, showProgress);
    this.engine = this.engines[device];
    $("status").textContent = `Preparing the ${DEVICES[device]} …`;
    try {
      await this.open(variantOf(this.offered, this.state));
    } catch (error) {
      this.engine = this.engines.wasm;
      fail(error);
    }
    this.#devices();
    await this.changed();
  }

  async #select(item, bytes) {
    try {
      await this.journey.show(this.engine, this.variant, item, bytes);
    } catch (error) {
      fail(error);
    }
  }

  async #copy() {
    const { link } = this;
    let text = "Link copied. It opens with these very images.";
    try {
      await navigator.clipboard.writeText(link);
    } catch {
      history.replaceState(null, "", link);
      text = "The address of this page is the link: copy it from there.";
    }
    $("status").textContent = text;
  }

  #said(count, ms, same, first) {
    const each = count > 1 ? `, ${duration(ms / count)} each` : "";
    // browsers compile code when it first runs
    const note = same ? " Same seed, same images." : first ? " The first run also compiles." : "";
    $("status").textContent =
      `${count} image${count > 1 ? "s" : ""} in ${duration(ms)}${each}.${note}`;
  }
}

async function main() {
  // the runtime is on its way before the manifest says what for
  const engine = new Engine("wasm", showProgress);
  const manifest = await json("bundle.json");
  document.title = `${manifest.name}: images in one step`;
  $("name").textContent = manifest.name;
  if (!offers(manifest).variants.length) {
    throw new Error("This folder holds no model for browsers: mmf-export RUN --target web");
  }
  await new Page(engine, manifest).start();
}

if (!document.documentElement.classList.contains("broken")) main().catch(fail);
