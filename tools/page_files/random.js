// Latents of a seed, the same numbers as numpy.random.RandomState(seed).randn(size) draws,
// so that seed 7 here is seed 7 of generate.py.

const SIZE = 624;

class MersenneTwister {
  // Matsumoto & Nishimura 1998, MT19937.
  constructor(seed) {
    this.state = new Uint32Array(SIZE);
    this.state[0] = seed;
    for (let i = 1; i < SIZE; i++) {
      const last = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, last) + i;
    }
    this.index = SIZE;
  }

  #refill() {
    const s = this.state;
    for (let i = 0; i < SIZE; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % SIZE] & 0x7fffffff);
      s[i] = s[(i + 397) % SIZE] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.index = 0;
  }

  integer() {
    if (this.index === SIZE) this.#refill();
    let y = this.state[this.index++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  // 53 random bits, in [0, 1).
  fraction() {
    const high = this.integer() >>> 5;
    return (high * 67108864 + (this.integer() >>> 6)) / 9007199254740992;
  }
}

// Standard normal numbers by Marsaglia's polar method, two at a time, the second one first.
export function latent(seed, size) {
  const random = new MersenneTwister(seed);
  const z = new Float32Array(size);
  for (let i = 0; i < size; i += 2) {
    let x, y, square;
    do {
      x = 2 * random.fraction() - 1;
      y = 2 * random.fraction() - 1;
      square = x * x + y * y;
    } while (square >= 1 || square === 0);
    const factor = Math.sqrt((-2 * Math.log(square)) / square);
    z[i] = factor * y;
    if (i + 1 < size) z[i + 1] = factor * x;
  }
  return z;
}
