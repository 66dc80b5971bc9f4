// What is done to w between mapping and synthesis. All arrays are Float32Array.

export function decode(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

// Karras et al. 2019, section B: psi 0 is the mean, 1 leaves w as it is.
export function truncate(w, mean, psi) {
  return w.map((value, i) => mean[i] + (value - mean[i]) * psi);
}

export function between(one, two, share) {
  return one.map((value, i) => value + (two[i] - value) * share);
}

// Directions are rows of `size` numbers; amounts is [[row, amount], ...].
export function move(w, directions, amounts) {
  const moved = w.slice();
  for (const [row, amount] of amounts) {
    for (let i = 0; i < w.length; i++) moved[i] += amount * directions[row * w.length + i];
  }
  return moved;
}

// Layers up to `crossover` take w of the first, the rest that of the second.
export function mix(first, second, crossover, layers) {
  const ws = new Float32Array(layers * first.length);
  for (let layer = 0; layer < layers; layer++) {
    ws.set(layer < crossover ? first : second, layer * first.length);
  }
  return ws;
}

// [C, R, R] of about [-1, 1] as the bytes RGBA of R x R pixels; grey, RGB or RGBA.
export function toPixels(image, channels) {
  const count = image.length / channels;
  const pixels = new Uint8ClampedArray(4 * count).fill(255);
  for (let i = 0; i < count; i++) {
    for (let k = 0; k < Math.max(channels, 3); k++) {
      const value = image[(channels === 1 ? 0 : k) * count + i];
      pixels[4 * i + k] = Math.floor(value * 127.5 + 128);
    }
  }
  return pixels;
}
