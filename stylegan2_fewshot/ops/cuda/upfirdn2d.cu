// Resampling of images: one kernel for anything, one in tiles for what networks do all day.
#include "device.cuh"

namespace {

// The taps `tap`, `tap + up`, ... lie on the pixels `pixel`, `pixel + 1`, ..., `count` of them;
// all others lie on inserted zeros or outside.
struct Overlap {
  int64_t tap, pixel, count;
};

__device__ Overlap overlap(int64_t out, int up, int down, int before, int taps, int size) {
  const int64_t start = out * down - before;  // of the filter, in the upsampled image
  const int64_t pixel = start > 0 ? (start + up - 1) / up : 0;
  const int64_t tap = pixel * up - start;
  const int64_t fitting = (taps - tap + up - 1) / up, left = size - pixel;
  return {tap, pixel, fitting < left ? fitting : left};
}

template <class T> __global__ void resample_any(Resampling a) {
  const int64_t count = a.planes * a.out_y * a.out_x * a.minor;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int last = a.taps_x * a.taps_y - 1;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const int64_t pixel = divide(i, a.minor), row = divide(pixel, a.out_x);
    const int64_t plane = divide(row, a.out_y), lane = i - pixel * a.minor;
    const Overlap across =
        overlap(pixel - row * a.out_x, a.up_x, a.down_x, a.left, a.taps_x, a.in_x);
    const Overlap down = overlap(row - plane * a.out_y, a.up_y, a.down_y, a.top, a.taps_y, a.in_y);
    const T* x = static_cast<const T*>(a.x) + lane;
    wide_t<T> sum = 0;
    for (int64_t v = 0; v < down.count; ++v) {
      const T* line = x + ((plane * a.in_y + down.pixel + v) * a.in_x + across.pixel) * a.minor;
      const int first = static_cast<int>((down.tap + v * a.up_y) * a.taps_x + across.tap);
      for (int64_t u = 0; u < across.count; ++u) {
        const int tap = first + static_cast<int>(u) * a.up_x;
        sum += widen(line[u * a.minor]) * __ldg(a.filter + (a.flip_filter ? tap : last - tap));
      }
    }
    narrow(sum * static_cast<wide_t<T>>(a.gain), static_cast<T*>(a.y)[i]);
  }
}

// What one block makes: `width` x `height` outputs of `lanes` neighbours in the minor dimension,
// each thread a strip of outputs one below the other, so that it reads an input line once.
template <int kLanes, int kTaps, int kUp, int kDown, bool kSeparable, int kPack> struct Tile {
  static constexpr int lanes = kLanes, taps = kTaps, up = kUp, down = kDown;
  static constexpr int pack = kPack;  // lanes that are read at a time: all are inside, or none
  static constexpr bool separable = kSeparable;
  static constexpr int width = lanes == 1 ? 64 : 16 / down;
  static constexpr int strip = (lanes == 1 ? 8 : 16) / down;
  static constexpr int groups = lanes == 1 ? 4 : 1;
  static constexpr int height = strip * groups;
  static constexpr int threads = width * lanes * groups;
  static constexpr int reach = taps / up;  // taps that meet a pixel, per axis
  static constexpr int weights = separable ? taps : taps * taps;
  static constexpr int in_width = ((width - 1) * down + taps - 1) / up + 1;
  static constexpr int in_height = ((height - 1) * down + taps - 1) / up + 1;
  static constexpr int strip_rows = ((strip - 1) * down + taps - 1) / up + 1;
  static constexpr int middle = separable ? in_height * width * lanes : 1;
  static constexpr int pixels = in_height * in_width * lanes;
  static_assert(taps % up == 0 && strip % up == 0 && width % up == 0, "phases repeat");
  static_assert((weights + middle + pixels) * sizeof(float) <= 48 * 1024, "fits a block");
};

// Where a tile's outputs begin. Tiles start at outputs whose first tap lies on a pixel: then all
// that depends on the phase is known to the compiler.
struct Corner {
  int64_t plane, lane;
  int out_x, out_y, in_x, in_y;
};

template <class Tile> struct Grid {
  int shift_x, shift_y;
  int64_t lanes, across, down, count;

  __host__ __device__ explicit Grid(const Resampling& a) {
    shift_x = (a.left % Tile::up + Tile::up) % Tile::up;
    shift_y = (a.top % Tile::up + Tile::up) % Tile::up;
    lanes = (a.minor + Tile::lanes - 1) / Tile::lanes;
    across = (a.out_x + shift_x + Tile::width - 1) / Tile::width;
    down = (a.out_y + shift_y + Tile::height - 1) / Tile::height;
    count = a.planes * lanes * across * down;
  }

  __device__ Corner corner(int64_t tile, const Resampling& a) const {
    const int64_t column = divide(tile, lanes), row = divide(column, across);
    const int64_t plane = divide(row, down);
    Corner at;
    at.plane = plane;
    at.lane = (tile - column * lanes) * Tile::lanes;
    at.out_x = static_cast<int>(column - row * across) * Tile::width - shift_x;
    at.out_y = static_cast<int>(row - plane * down) * Tile::height - shift_y;
    at.in_x = (at.out_x * Tile::down - a.left) / Tile::up;
    at.in_y = (at.out_y * Tile::down - a.top) / Tile::up;
    return at;
  }
};

template <class T, class Tile>
__device__ void read_tile(const Resampling& a, const Corner& at, float (&tile)[Tile::pixels]) {
  constexpr int pack = Tile::pack;
  const T* x = static_cast<const T*>(a.x) + at.plane * a.in_y * a.in_x * a.minor + at.lane;
#pragma unroll
  for (int i = threadIdx.x * pack; i < Tile::pixels; i += Tile::threads * pack) {
    const int lane = i % Tile::lanes, column = i / Tile::lanes % Tile::in_width;
    const int px = at.in_x + column, py = at.in_y + i / (Tile::lanes * Tile::in_width);
    const bool inside =
        px >= 0 && px < a.in_x && py >= 0 && py < a.in_y && at.lane + lane < a.minor;
    Pack<T, pack> found = {};
    const T* from = x + (static_cast<int64_t>(py) * a.in_x + px) * a.minor + lane;
    if (inside) found = read<T, pack>(from, 0);
    Pack<float, pack> numbers;
#pragma unroll
    for (int k = 0; k < pack; ++k) numbers.values[k] = widen(found.values[k]);
    *reinterpret_cast<Pack<float, pack>*>(tile + i) = numbers;
  }
}

// Sum a strip of outputs over `kWide` pixels a line; `lines` begins at the strip's first pixel.
template <class Tile, int kWide>
__device__ void sum_strip(const float* lines, int pitch, const float (&weights)[Tile::taps][kWide],
                          float (&sums)[Tile::strip]) {
#pragma unroll
  for (int row = 0; row < Tile::strip_rows; ++row) {
    float line[kWide];
#pragma unroll
    for (int u = 0; u < kWide; ++u) line[u] = lines[row * pitch + u * Tile::lanes];
#pragma unroll
    for (int q = 0; q < Tile::strip; ++q) {
      const int tap = row * Tile::up - q * Tile::down;
      if (tap < 0 || tap >= Tile::taps) continue;
#pragma unroll
      for (int u = 0; u < kWide; ++u) sums[q] += weights[tap][u] * line[u];
    }
  }
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads) resample_tiles(Resampling a) {
  __shared__ float filter[Tile::weights], middle[Tile::middle];
  alignas(32) __shared__ float tile[Tile::pixels];  // written in packs of up to 8
  constexpr int wide = Tile::separable ? 1 : Tile::reach;
  const int lane = threadIdx.x % Tile::lanes, column = threadIdx.x / Tile::lanes % Tile::width;
  const int group = threadIdx.x / (Tile::lanes * Tile::width);
  const int phase = (Tile::up - column * Tile::down % Tile::up) % Tile::up;
  const int first = (column * Tile::down + phase) / Tile::up;  // pixel under the first tap used

  for (int i = threadIdx.x; i < Tile::weights; i += Tile::threads)
    filter[i] = a.filter[a.flip_filter ? i : Tile::weights - 1 - i];
  __syncthreads();
  float weights[Tile::taps][wide], across[Tile::reach];
#pragma unroll
  for (int v = 0; v < Tile::taps; ++v) {
#pragma unroll
    for (int u = 0; u < wide; ++u)
      weights[v][u] = filter[Tile::separable ? v : v * Tile::taps + phase + u * Tile::up];
  }
#pragma unroll
  for (int u = 0; u < Tile::reach; ++u) across[u] = filter[phase + u * Tile::up];

  const Grid<Tile> grid(a);
  for (int64_t index = blockIdx.x; index < grid.count; index += gridDim.x) {
    const Corner at = grid.corner(index, a);
    read_tile<T, Tile>(a, at, tile);
    __syncthreads();
    if constexpr (Tile::separable) {
      for (int row = group; row < Tile::in_height; row += Tile::groups) {
        float sum = 0;
#pragma unroll
        for (int u = 0; u < Tile::reach; ++u)
          sum += across[u] * tile[(row * Tile::in_width + first + u) * Tile::lanes + lane];
        middle[(row * Tile::width + column) * Tile::lanes + lane] = sum;
      }
      __syncthreads();
    }
    constexpr int pitch = (Tile::separable ? Tile::width : Tile::in_width) * Tile::lanes;
    const int start = group * (Tile::strip * Tile::down / Tile::up) * pitch + lane;
    const float* lines = Tile::separable ? middle + start + column * Tile::lanes
                                         : tile + start + first * Tile::lanes;
    float sums[Tile::strip] = {};
    sum_strip<Tile, wide>(lines, pitch, weights, sums);

    const int x = at.out_x + column, y = at.out_y + group * Tile::strip;
    T* out = static_cast<T*>(a.y) + at.lane + lane;
#pragma unroll
    for (int q = 0; q < Tile::strip; ++q) {
      if (x < 0 || x >= a.out_x || y + q < 0 || y + q >= a.out_y || at.lane + lane >= a.minor)
        continue;
      const int64_t pixel = (at.plane * a.out_y + y + q) * a.out_x + x;
      narrow(sums[q] * static_cast<float>(a.gain), out[pixel * a.minor]);
    }
    __syncthreads();  // the next tile goes to the same place
  }
}

template <class T, class Tile> void launch_tiles(const Resampling& a, CUstream_st* stream) {
  launch(resample_tiles<T, Tile>, a, Grid<Tile>(a).count, Tile::threads, stream);
}

template <class T, int kLanes, int kTaps, bool kSeparable, int kPack = 1>
void launch_scale(const Resampling& a, CUstream_st* stream) {
  if (a.up_x == 2)
    return launch_tiles<T, Tile<kLanes, kTaps, 2, 1, kSeparable, kPack>>(a, stream);
  if (a.down_x == 2)
    return launch_tiles<T, Tile<kLanes, kTaps, 1, 2, kSeparable, kPack>>(a, stream);
  launch_tiles<T, Tile<kLanes, kTaps, 1, 1, kSeparable, kPack>>(a, stream);
}

template <class T> void launch_layout(const Resampling& a, CUstream_st* stream) {
  constexpr int wide = 16 / sizeof(T);
  if (a.separable) return launch_scale<T, 1, 12, true>(a, stream);
  if (a.minor == 1) return launch_scale<T, 1, 4, false>(a, stream);
  if (a.minor % wide == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0)
    return launch_scale<T, 16, 4, false, wide>(a, stream);
  launch_scale<T, 16, 4, false>(a, stream);
}

struct Launch {
  const Resampling& a;
  CUstream_st* stream;

  void operator()(double) const { any<double>(); }
  template <class T> void operator()(T) const {
    resamples_in_tiles(&a) ? launch_layout<T>(a, stream) : any<T>();
  }
  template <class T> void any() const {
    const int64_t count = a.planes * a.out_y * a.out_x * a.minor;
    launch(resample_any<T>, a, (count + 255) / 256, 256, stream);
  }
};

}  // namespace

bool resamples_in_tiles(const Resampling* a) {
  const bool alike = a->up_x == a->up_y && a->down_x == a->down_y && a->taps_x == a->taps_y;
  const bool scale = a->up_x * a->down_x <= 2;
  const bool taps = a->separable ? a->taps_x == 12 && a->minor == 1 : a->taps_x == 4;
  const bool layout = a->minor == 1 || a->minor >= 8;
  const int fair = a->minor == 1 ? 32 : 8;  // small images leave most of a tile idle
  const bool large = a->out_x >= fair && 2 * a->out_y >= fair;
  return alike && scale && taps && layout && large && a->dtype != kFloat64;
}

void resample_images(const Resampling* arguments, CUstream_st* stream) {
  for_dtype(arguments->dtype, Launch{*arguments, stream});
}
