// What a person chose, and its form in the address: the permalink.

import { MAX_SEED, parseSeed } from "./noise.js";

export const COUNTS = [1, 4, 16, 64];
export const EACH = "each"; // every seed its own class, seed mod classes, as the server does
export const ALL = "all"; // every class from one seed
const MOST_CLASSES = 64; // of one grid

/** Class names as a person reads them. */
export function classNames(spec) {
  const own = spec.class_names.length ? spec.class_names : null;
  return Array.from({ length: spec.classes }, (_, k) => own?.[k] ?? String(k));
}

export const offersAll = (spec) => spec.classes > 1 && spec.classes <= MOST_CLASSES;

export const defaultLabel = (seed, spec) => (spec.classes ? Number(seed % BigInt(spec.classes)) : 0);

/** The variants that were made for browsers: all steps, all precisions, and one of them. */
export function offers(manifest) {
  const variants = manifest.variants.filter((variant) => variant.target === "web");
  const distinct = (key) => [...new Set(variants.map((variant) => variant[key]))];
  return {
    variants,
    steps: distinct("steps").sort((a, b) => a - b),
    precisions: distinct("precision"),
  };
}

export function variantOf(offered, state) {
  const fits = offered.variants.filter((variant) => variant.steps === state.steps);
  return fits.find((variant) => variant.precision === state.precision) ?? fits[0];
}

export function initialState(manifest, offered) {
  const { spec } = manifest;
  return {
    seed: 0n,
    label: EACH,
    guidance: spec.guidance ? spec.guidance[0] : undefined,
    steps: offered.steps[0],
    precision: offered.variants[0].precision,
    n: 16,
  };
}

/**
 * The state in an address.
 * @param {URLSearchParams} params
 * @returns {{state: object, problems: string[]}} one sentence for each value that cannot be used
 */
export function readAddress(params, manifest, offered) {
  const { spec } = manifest;
  const state = initialState(manifest, offered);
  const problems = [];
  const take = (name, read, expected) => {
    const text = params.get(name);
    if (text === null) return;
    const value = read(text);
    if (value === undefined || value === null) {
      problems.push(`${name}=${text} in the address: expected ${expected}.`);
    } else state[name] = value;
  };
  const among = (values) => (text) => values.find((value) => String(value) === text);
  take("seed", parseSeed, `a whole number from 0 to ${MAX_SEED}`);
  take("n", among(COUNTS), COUNTS.join(", "));
  take("steps", among(offered.steps), offered.steps.join(", "));
  take("precision", among(offered.precisions), offered.precisions.join(", "));
  if (spec.classes) take("label", (text) => readLabel(text, spec), "a class of this generator");
  if (spec.guidance) {
    const [low, high] = spec.guidance;
    take("guidance", (text) => {
      const value = Number(text);
      return text.trim() && value >= low && value <= high ? value : undefined;
    }, `a number from ${low} to ${high}`);
  }
  const problem = seedProblem(String(state.seed), itemsOf(state, spec).length);
  if (problem) {
    problems.push(problem);
    state.seed = 0n;
  }
  return { state, problems };
}

/** A class by its number or its name; EACH and ALL. */
export function readLabel(text, spec) {
  if (text === EACH || (text === ALL && offersAll(spec))) return text;
  const number = /^[0-9]{1,9}$/.test(text) ? Number(text) : classNames(spec).indexOf(text);
  return number >= 0 && number < spec.classes ? number : undefined;
}

/** The address that gives the same picture again. */
export function permalink(base, state, manifest, offered) {
  const url = new URL(base);
  url.hash = "";
  const params = new URLSearchParams({ seed: String(state.seed) });
  if (manifest.spec.classes) params.set("label", String(state.label));
  if (manifest.spec.guidance) params.set("guidance", String(state.guidance));
  if (offered.steps.length > 1) params.set("steps", String(state.steps));
  if (offered.precisions.length > 1) params.set("precision", state.precision);
  params.set("n", String(state.n));
  url.search = `?${params}`;
  return url.href;
}

/**
 * The images of a state.
 * @returns {{seed: bigint, label: number, guidance?: number}[]}
 */
export function itemsOf(state, spec) {
  const { seed, guidance } = state;
  if (spec.classes && state.label === ALL) {
    return Array.from({ length: spec.classes }, (_, label) => ({ seed, label, guidance }));
  }
  return Array.from({ length: state.n }, (_, k) => {
    const own = seed + BigInt(k);
    return { seed: own, label: labelOf(state, own, spec), guidance };
  });
}

/** The class of one seed. */
export function labelOf(state, seed, spec) {
  return typeof state.label === "number" ? state.label : defaultLabel(seed, spec);
}

/** Why these seeds cannot be used, as a sentence; an empty string if they can. */
export function seedProblem(text, count) {
  const seed = parseSeed(text);
  if (seed === null) {
    return `“${text.trim()}” is no seed. Type a whole number from 0 to ${MAX_SEED}.`;
  }
  const last = MAX_SEED - BigInt(count - 1);
  return seed > last ? `For ${count} images the seed may be at most ${last}.` : "";
}
