// The form: what a person sets, as a state.

import { ALL, COUNTS, EACH, classNames, itemsOf, offersAll, seedProblem } from "./state.js";
import { parseSeed, randomSeed } from "./noise.js";

export const $ = (id) => document.getElementById(id);

/** Say what is wrong with a field, or that nothing is. Returns whether nothing is. */
export function complain(box, sentence, ...fields) {
  box.textContent = sentence;
  box.hidden = !sentence;
  for (const field of fields) {
    if (sentence) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  }
  return !sentence;
}

/** Radio buttons in a row. */
function segments(box, values, text, chosen, onChange) {
  box.replaceChildren(...values.map((value) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: box.id, value, checked: value === chosen });
    input.addEventListener("change", () => onChange(value));
    const span = document.createElement("span");
    span.textContent = text(value);
    label.append(input, span);
    return label;
  }));
}

export class Controls {
  /**
   * @param {(state: object) => void} onChange something was set; show it
   * @param {(state: object) => void} onGenerate images were asked for
   */
  constructor(manifest, offered, state, onChange, onGenerate) {
    Object.assign(this, { manifest, offered, state, onChange });
    this.#label();
    this.#guidance();
    this.#seed(onGenerate);
    const set = (name) => (value) => this.#set(name, value);
    segments($("n"), COUNTS, String, state.n, set("n"));
    segments($("steps"), offered.steps, String, state.steps, set("steps"));
    $("steps-field").hidden = offered.steps.length < 2;
    segments($("precision"), offered.precisions, (p) => this.#size(p), state.precision,
      set("precision"));
    $("precision-field").hidden = offered.precisions.length < 2;
    $("fields").disabled = false;
  }

  /** The choice of a device, once there is more than one. */
  offerDevices(devices, chosen, text, onDevice) {
    segments($("device"), devices, text, chosen, onDevice);
    $("device-field").hidden = devices.length < 2;
  }

  /** Read the seed field; complain and return false if it holds none. */
  takeSeed() {
    const count = itemsOf(this.state, this.manifest.spec).length;
    const problem = seedProblem($("seed").value, this.state.label === ALL ? 1 : count);
    if (!complain($("seed-problem"), problem, $("seed"))) return false;
    this.state.seed = parseSeed($("seed").value);
    return true;
  }

  #set(name, value) {
    this.state[name] = value;
    if (this.takeSeed()) this.onChange(this.state);
  }

  #showSeed(seed) {
    $("seed").value = String(seed);
    this.takeSeed();
  }

  #seed(onGenerate) {
    $("seed").value = String(this.state.seed);
    // who types a seed wants it
    $("seed").addEventListener("input", () => {
      $("lock").checked = true;
      this.takeSeed();
    });
    $("seed").addEventListener("change", () => this.takeSeed() && this.onChange(this.state));
    $("dice").addEventListener("click", () => {
      this.#showSeed(randomSeed());
      this.onChange(this.state);
    });
    $("controls").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!$("lock").checked) this.#showSeed(randomSeed());
      if (this.takeSeed()) onGenerate(this.state);
      else $("seed").focus();
    });
  }

  #label() {
    const { spec } = this.manifest;
    if (!spec.classes) return;
    const names = classNames(spec);
    const option = (value, text) => new Option(text, value, false, value === String(this.state.label));
    const own = `in turn: seed mod ${spec.classes}`;
    $("label").append(option(EACH, own));
    if (offersAll(spec)) $("label").append(option(ALL, `all ${spec.classes} from one seed`));
    $("label").append(...names.map((name, k) => option(String(k), name)));
    $("label").addEventListener("change", ({ target: { value } }) => {
      $("n").classList.toggle("idle", value === ALL);
      this.#set("label", value === EACH || value === ALL ? value : Number(value));
    });
    $("n").classList.toggle("idle", this.state.label === ALL);
    $("label-field").hidden = false;
  }

  #guidance() {
    const { guidance: range } = this.manifest.spec;
    if (!range) return;
    const show = () => ($("guidance-value").textContent = this.state.guidance.toFixed(2));
    const step = (range[1] - range[0]) / 100 || 1;
    Object.assign($("guidance"), { min: range[0], max: range[1], step });
    $("guidance").value = String(this.state.guidance);
    $("guidance").addEventListener("input", () => {
      this.#set("guidance", Number($("guidance").value));
      show();
    });
    show();
    $("guidance-field").hidden = false;
  }

  #size(precision) {
    const bytes = this.offered.variants.find((v) => v.precision === precision).graph.bytes;
    return bytes ? `${precision}, ${(bytes / 1e6).toPrecision(2)} MB` : precision;
  }
}
