// Images: from a file to the model's pixels, as data/image_files.py does with Pillow; from pixels to a canvas.
const MAX_PIXELS = 64_000_000;
const BITS = 22; // fraction bits of Pillow's fixed-point weights

// Return uint8 [C, S, S]: EXIF orientation applied, on black, RGB or grey, the central square, resized bilinearly
// with antialiasing.
async function readImage(file, [channels, size]) {
  let image;
  try {
    image = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "premultiply" });
  } catch {
    throw new Error(`${file.name || "this file"} is not an image that this browser can read; use a PNG or JPEG file`);
  }
  const { width, height } = image;
  if (width * height > MAX_PIXELS) throw new Error(`the image has ${width} x ${height} pixels; at most 64 million are read`);
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0);
  image.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const channelData = channels === 1 ? [toGrey(rgba)] : [0, 1, 2].map(c => channelOf(rgba, c));
  const pixels = new Uint8Array(channels * size * size);
  channelData.forEach((channel, c) => pixels.set(cropAndResize(channel, width, height, size), c * size * size));
  return pixels;
}

const channelOf = (rgba, c) => Uint8Array.from({ length: rgba.length / 4 }, (_, i) => rgba[4 * i + c]);

// Pillow's conversion to "L" (ITU-R 601), in 16-bit fixed point.
function toGrey(rgba) {
  const luma = i => (rgba[i] * 19595 + rgba[i + 1] * 38470 + rgba[i + 2] * 7471 + 0x8000) >> 16;
  return Uint8Array.from({ length: rgba.length / 4 }, (_, i) => luma(4 * i));
}

// Crop the central square of one channel [H, W] and resize it to [S, S]. Equals Pillow's ImageOps.fit exactly where
// Pillow resizes rows first too; some of its versions resize columns of tall images first, a difference of at most
// 1 of 255.
function cropAndResize(channel, width, height, size) {
  if (width === size && height === size) return channel;
  const side = Math.min(width, height), left = (width - side) / 2, top = (height - side) / 2;
  const narrow = resizeRows(channel, width, height, filterWeights(width, left, side, size), width !== size || left !== 0);
  const columns = transpose(narrow, height, size);
  const square = resizeRows(columns, height, size, filterWeights(height, top, side, size), height !== size || top !== 0);
  return transpose(square, size, size);
}

// Return for each of `size` output pixels the first input pixel and the fixed-point weights from there on.
function filterWeights(length, start, side, size) {
  const scale = side / size, support = Math.max(scale, 1), result = [];
  for (let i = 0; i < size; i++) {
    const center = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(length, Math.trunc(center + support + 0.5));
    const exact = [];
    for (let k = first; k < last; k++) exact.push(Math.max(0, 1 - Math.abs((k - center + 0.5) / support)));
    const sum = exact.reduce((a, b) => a + b, 0);
    result.push([first, exact.map(w => Math.trunc(0.5 + (sum ? w / sum : w) * 2 ** BITS))]);
  }
  return result;
}

// Resize the rows of [R, W] to [R, S].
function resizeRows(channel, width, rows, weights, needed) {
  if (!needed) return channel;
  const out = new Uint8Array(rows * weights.length);
  for (let row = 0; row < rows; row++) {
    weights.forEach(([first, weight], i) => {
      let sum = 2 ** (BITS - 1);
      for (let k = 0; k < weight.length; k++) sum += channel[row * width + first + k] * weight[k];
      out[row * weights.length + i] = Math.min(255, Math.floor(sum / 2 ** BITS));
    });
  }
  return out;
}

function transpose(channel, rows, columns) {
  const out = new Uint8Array(channel.length);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[c * rows + r] = channel[r * columns + c];
  return out;
}

// Return float32 pixels clip(bytes / 255 + scale * delta, 0, 1); without delta, bytes / 255.
function toPixels(bytes, delta, scale = 0) {
  return Float32Array.from(bytes, (b, i) => Math.min(1, Math.max(0, b / 255 + (delta ? scale * delta[i] : 0))));
}

// Draw pixels [C, H, W] in [0, 1]: one channel as grey, the first three of more.
function paint(canvas, pixels, [channels, height, width]) {
  const image = new ImageData(width, height), size = height * width;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(255 * pixels[i + size * (channels < 3 ? 0 : c)]);
    image.data[4 * i + 3] = 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const decodeBase64 = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
