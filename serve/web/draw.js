// Pixels: bytes to canvases, canvases to PNG files.

const GAP = 2; // pixels between the images of a saved grid, as the server has it

/** Half to even, as the exported graph rounds. */
function rint(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 ? floor + 1 : floor;
}

/**
 * One float sample [C, H, W] in [-1, 1] to bytes [H, W, C], as the exported graph does it.
 * @param {Float32Array} values
 */
export function toBytes(values, [channels, height, width]) {
  const bytes = new Uint8Array(values.length);
  const plane = height * width;
  for (let k = 0; k < values.length; k++) {
    const clamped = Math.min(1, Math.max(-1, values[k]));
    const level = rint(Math.fround(Math.fround(clamped + 1) * 127.5));
    bytes[(k % plane) * channels + Math.floor(k / plane)] = level;
  }
  return bytes;
}

/** Bytes [H, W, C] as canvas pixels. */
function pixels(bytes, [channels, height, width]) {
  const data = new ImageData(width, height);
  for (let k = 0; k < height * width; k++) {
    for (let c = 0; c < 3; c++) data.data[4 * k + c] = bytes[k * channels + (channels === 3 ? c : 0)];
    data.data[4 * k + 3] = 255;
  }
  return data;
}

/** Show an image on a canvas, at the size of the image. */
export function draw(canvas, bytes, shape) {
  const [, height, width] = shape;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  canvas.getContext("2d").putImageData(pixels(bytes, shape), 0, 0);
}

export function newCanvas(shape, label) {
  const canvas = document.createElement("canvas");
  [, canvas.height, canvas.width] = shape;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
  if (canvas.width < 256) canvas.classList.add("pixelated");
  return canvas;
}

/** Paint images in a grid; each pixel becomes a scale x scale block. */
export function paintGrid(images, shape, { columns, scale = 1, gap = GAP, ground = "#fff" }) {
  const [, height, width] = shape;
  const rows = Math.ceil(images.length / columns);
  const canvas = document.createElement("canvas");
  canvas.width = columns * (width * scale + gap) + gap;
  canvas.height = rows * (height * scale + gap) + gap;
  const context = canvas.getContext("2d");
  context.fillStyle = ground;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  const one = new OffscreenCanvas(width, height);
  images.forEach((bytes, k) => {
    one.getContext("2d").putImageData(pixels(bytes, shape), 0, 0);
    const left = gap + (k % columns) * (width * scale + gap);
    const top = gap + Math.floor(k / columns) * (height * scale + gap);
    context.drawImage(one, left, top, width * scale, height * scale);
  });
  return canvas;
}

/** The whole factor that brings an image to about so many pixels. */
export const scaleTo = (target, [, height]) => Math.max(1, Math.round(target / height));

/** Offer a canvas as a PNG file. */
export async function savePNG(canvas, name) {
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
