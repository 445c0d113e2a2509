// Images: a file to what the model is given, as images.py does with Pillow; pixels to a canvas.
const MAX_PIXELS = 64_000_000;
const BITS = 22; // of Pillow's fixed-point weights

// Return uint8 [C, S, S] of a file: upright, on black, RGB or grey, the middle square, bilinear and antialiased.
async function readImage(file, [channels, size]) {
  let image;
  try {
    image = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "premultiply" });
  } catch {
    throw new Error(`${file.name || "this"} is no image that can be read here; give a PNG or JPEG file`);
  }
  const { width, height } = image;
  if (width * height > MAX_PIXELS) throw new Error(`the image has ${width} x ${height} pixels, which is too many`);
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0);
  image.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const planes = channels === 1 ? [grey(rgba)] : [0, 1, 2].map(c => every(rgba, c));
  const pixels = new Uint8Array(channels * size * size);
  planes.forEach((plane, c) => pixels.set(fit(plane, width, height, size), c * size * size));
  return pixels;
}

const every = (rgba, c) => Uint8Array.from({ length: rgba.length / 4 }, (_, i) => rgba[4 * i + c]);

function grey(rgba) {
  const luma = i => (rgba[i] * 19595 + rgba[i + 1] * 38470 + rgba[i + 2] * 7471 + 0x8000) >> 16;
  return Uint8Array.from({ length: rgba.length / 4 }, (_, i) => luma(4 * i));
}

// Return a plane [H, W] resized to [S, S]: Pillow's ImageOps.fit, to the last bit where Pillow resizes rows first
// too; some of its versions take columns first for tall images, which differs by 1 of 255 at most.
function fit(plane, width, height, size) {
  if (width === size && height === size) return plane;
  const side = Math.min(width, height), left = (width - side) / 2, top = (height - side) / 2;
  const across = resized(plane, width, height, weights(width, left, side, size), width !== size || left !== 0);
  const turned = transposed(across, height, size);
  const down = resized(turned, height, size, weights(height, top, side, size), height !== size || top !== 0);
  return transposed(down, size, size);
}

// Return, for each of `size` places, the first input pixel and the fixed-point weights from there on.
function weights(length, start, side, size) {
  const scale = side / size, reach = Math.max(scale, 1), found = [];
  for (let place = 0; place < size; place++) {
    const center = start + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const last = Math.min(length, Math.trunc(center + reach + 0.5));
    const exact = [];
    for (let i = first; i < last; i++) exact.push(Math.max(0, 1 - Math.abs((i - center + 0.5) / reach)));
    const sum = exact.reduce((a, b) => a + b, 0);
    found.push([first, exact.map(w => Math.trunc(0.5 + (sum ? w / sum : w) * 2 ** BITS))]);
  }
  return found;
}

// Return rows [R, S] of rows [R, W].
function resized(plane, width, rows, places, needed) {
  if (!needed) return plane;
  const out = new Uint8Array(rows * places.length);
  for (let row = 0; row < rows; row++) {
    places.forEach(([first, weight], place) => {
      let sum = 2 ** (BITS - 1);
      for (let i = 0; i < weight.length; i++) sum += plane[row * width + first + i] * weight[i];
      out[row * places.length + place] = Math.min(255, Math.floor(sum / 2 ** BITS));
    });
  }
  return out;
}

function transposed(plane, rows, columns) {
  const out = new Uint8Array(plane.length);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[c * rows + r] = plane[r * columns + c];
  return out;
}

// Return float32 pixels in [0, 1] of bytes, and of an attack's delta on top of them.
function toPixels(bytes, delta, scale = 0) {
  return Float32Array.from(bytes, (b, i) => Math.min(1, Math.max(0, b / 255 + (delta ? scale * delta[i] : 0))));
}

// Draw values in [0, 1] of [C, H, W]; one channel is grey, more than three show the first three.
function paint(canvas, values, [channels, height, width]) {
  const image = new ImageData(width, height), plane = height * width;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(255 * values[i + plane * (channels < 3 ? 0 : c)]);
    image.data[4 * i + 3] = 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const unpack = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
