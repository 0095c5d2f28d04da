// Seed to noise, exactly as the server makes it: mmf_deploy/noise.py says it in words,
// docs/seeds.md for any language. 64-bit words are pairs of unsigned 32-bit numbers here.

export const MAX_SEED = 2n ** 63n - 1n;

const ROUNDS = 10;
const M0 = [0xd2e7470e, 0xe14c6c93]; // multipliers, as [high, low]
const M1 = [0xca5a8263, 0x95121157];
const W0 = [0x9e3779b9, 0x7f4a7c15]; // what a round adds to the key
const W1 = [0xbb67ae85, 0x84caa73b];

/** The high 32 bits of the product of two unsigned 32-bit numbers. */
function mulHigh(a, b) {
  const a1 = a >>> 16, a0 = a & 0xffff, b1 = b >>> 16, b0 = b & 0xffff;
  const middle = a1 * b0 + ((a0 * b0) >>> 16); // at most 2^32 - 2^16
  const other = a0 * b1 + (middle & 0xffff);
  return a1 * b1 + Math.floor(middle / 65536) + Math.floor(other / 65536);
}

const P = new Uint32Array(4); // a 128-bit product, highest first

/** P = (mh, ml) * (xh, xl), all 128 bits. */
function multiply(mh, ml, xh, xl) {
  const low = mulHigh(ml, xl);
  const crossA = Math.imul(mh, xl) >>> 0, crossB = Math.imul(ml, xh) >>> 0;
  const second = low + crossA + crossB;
  const top = Math.imul(mh, xh) >>> 0;
  const third = mulHigh(mh, xl) + mulHigh(ml, xh) + top + Math.floor(second / 4294967296);
  P[3] = Math.imul(ml, xl);
  P[2] = second;
  P[1] = third;
  P[0] = mulHigh(mh, xh) + Math.floor(third / 4294967296);
}

/** Philox4x64-10 (Salmon et al. 2011) of counter (count, 0, 0, 0) and key (seed, 0). */
function philox(count, seedHigh, seedLow, out) {
  let c0h = Math.floor(count / 4294967296), c0l = count >>> 0;
  let c1h = 0, c1l = 0, c2h = 0, c2l = 0, c3h = 0, c3l = 0;
  let k0h = seedHigh, k0l = seedLow, k1h = 0, k1l = 0;
  for (let round = 0; round < ROUNDS; round++) {
    multiply(M0[0], M0[1], c0h, c0l);
    const ph = P[0], pl = P[1], p0h = P[2], p0l = P[3];
    multiply(M1[0], M1[1], c2h, c2l);
    c0h = (P[0] ^ c1h ^ k0h) >>> 0;
    c0l = (P[1] ^ c1l ^ k0l) >>> 0;
    c1h = P[2];
    c1l = P[3];
    c2h = (ph ^ c3h ^ k1h) >>> 0;
    c2l = (pl ^ c3l ^ k1l) >>> 0;
    c3h = p0h;
    c3l = p0l;
    const low0 = k0l + W0[1], low1 = k1l + W1[1];
    k0h = (k0h + W0[0] + (low0 > 0xffffffff ? 1 : 0)) >>> 0;
    k0l = low0 >>> 0;
    k1h = (k1h + W1[0] + (low1 > 0xffffffff ? 1 : 0)) >>> 0;
    k1l = low1 >>> 0;
  }
  out[0] = c0h, out[1] = c0l, out[2] = c1h, out[3] = c1l;
  out[4] = c2h, out[5] = c2l, out[6] = c3h, out[7] = c3l;
}

/** The upper 53 bits of a word as a number in [0, 1). */
const uniform = (high, low) => (high * 2097152 + (low >>> 11)) * 2 ** -53;

/**
 * Standard normal noise of one sample.
 * @param {bigint} seed 0 ... MAX_SEED
 * @param {number} count elements of a sample; they fill it channel by channel, row by row
 * @returns {Float32Array} of that length; the same for the same seed, everywhere
 */
export function gaussian(seed, count) {
  const high = Number(seed >> 32n), low = Number(seed & 0xffffffffn);
  const z = new Float32Array(count), words = new Uint32Array(8);
  for (let first = 0, block = 1; first < count; first += 4, block++) {
    philox(block, high, low, words);
    for (let pair = 0; pair < 2; pair++) {
      const k = first + 2 * pair, w = 4 * pair;
      const radius = Math.sqrt(-2 * Math.log1p(-uniform(words[w], words[w + 1])));
      const angle = 2 * Math.PI * uniform(words[w + 2], words[w + 3]);
      if (k < count) z[k] = radius * Math.cos(angle);
      if (k + 1 < count) z[k + 1] = radius * Math.sin(angle);
    }
  }
  return z;
}

/**
 * The point at `fraction` (0 ... 1) of the great arc from noise x to noise y: a straight line
 * would pass through points of too small a norm, which no generator has seen.
 */
export function spherical(x, y, fraction) {
  if (fraction === 0) return x;
  if (fraction === 1) return y;
  let xy = 0, xx = 0, yy = 0;
  for (let k = 0; k < x.length; k++) {
    xy += x[k] * y[k];
    xx += x[k] * x[k];
    yy += y[k] * y[k];
  }
  const angle = Math.acos(Math.min(1, Math.max(-1, xy / (Math.sqrt(xx) * Math.sqrt(yy)))));
  const sine = Math.sin(angle);
  let a = 1 - fraction, b = fraction; // the same direction, or the opposite one: no single arc
  if (sine >= 1e-6) {
    a = Math.sin((1 - fraction) * angle) / sine;
    b = Math.sin(fraction * angle) / sine;
  }
  return x.map((value, k) => a * value + b * y[k]);
}

/** A fresh seed below 2^32, short enough to be read aloud. */
export const randomSeed = () => BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);

/**
 * The seed that someone typed.
 * @returns {bigint | null} null unless it is an integer from 0 to MAX_SEED
 */
export function parseSeed(text) {
  const digits = text.trim();
  if (!/^[0-9]{1,40}$/.test(digits)) return null;
  const seed = BigInt(digits);
  return seed <= MAX_SEED ? seed : null;
}
