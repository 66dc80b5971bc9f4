// 3x3 convolution of channels-last images by Winograd's minimal filtering
// (Lavin & Gray 2016, arXiv 1509.09308).
//
// Input tiles d, kernels g [3, 3] and output tiles y meet in independent matrix products:
//     y = A' [(G g G') * (B' d B)] A,  and for the gradient by the weights
//     g = G' [(B' d B) * (A y A')] G,  each summed over channels or tiles.
// Tiles are of 4x4 outputs, with 36 products instead of 144; where there are few of them, and in
// bfloat16 (summed in float32), of 2x2 with 16 instead of 36.
// Plain C++ without a header of PyTorch; compiled by loader.py, called through ctypes.

#include <algorithm>

#include "lanes.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 12;
#else
constexpr int ROWS = 6;
#endif
constexpr int COLUMNS = 2 * LANES;  // ROWS x COLUMNS sums stay in registers
constexpr int64_t SPACING = 16;     // floats between rows, against conflicts in the cache
constexpr int64_t CACHE = 16 << 20, MOST_TILES = 72;  // of a block
constexpr int64_t RUN = 64;        // products that are summed in order: short runs round less
constexpr int64_t FEW_PIXELS = 2048;
constexpr float ROOT_HALF = 0.70710678f, ROOT_TWO = 1.41421356f;

// F(4x4, 3x3) of polynomials that meet in 0, +-sqrt(1/2), +-sqrt(2) and infinity: errors of rounding
// are about those of a plain sum, several times smaller than with 0, +-1, +-2.
// Each function maps a line of a tile or kernel, `step` apart.
struct Large {
    static constexpr int OUT = 4, IN = 6;

    // Values at the four finite points but 0, from the even and odd parts of polynomials.
    static void at_points(Lanes even, Lanes odd, Lanes other_even, Lanes other_odd, Lanes* out,
                          int out_step) {
        out[out_step] = even + odd;
        out[2 * out_step] = even - odd;
        out[3 * out_step] = other_even + other_odd;
        out[4 * out_step] = other_even - other_odd;
    }
    static void input(const Lanes* d, int step, Lanes* out, int out_step) {  // B' d
        const Lanes d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
        const Lanes even = d4 - 2.0f * d2, odd = ROOT_HALF * (d3 - 2.0f * d1);
        const Lanes other_even = d4 - 0.5f * d2, other_odd = ROOT_TWO * (d3 - 0.5f * d1);
        out[0] = d[0] + d4 - 2.5f * d2;
        at_points(even, odd, other_even, other_odd, out, out_step);
        out[5 * out_step] = d1 + d[5 * step] - 2.5f * d3;
    }
    static void output(const Lanes* m, int step, Lanes* out, int out_step) {  // A' m
        const Lanes sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
        const Lanes other_sum = m[3 * step] + m[4 * step];
        const Lanes other_difference = m[3 * step] - m[4 * step];
        out[0] = m[0] + sum + other_sum;
        out[out_step] = ROOT_HALF * difference + ROOT_TWO * other_difference;
        out[2 * out_step] = 0.5f * sum + 2.0f * other_sum;
        out[3 * out_step] =
            0.5f * ROOT_HALF * difference + 2.0f * ROOT_TWO * other_difference + m[5 * step];
    }
    static void gradient(const Lanes* y, int step, Lanes* out, int out_step) {  // A y
        const Lanes y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
        const Lanes even = y0 + 0.5f * y2, odd = ROOT_HALF * (y1 + 0.5f * y3);
        const Lanes other_even = y0 + 2.0f * y2, other_odd = ROOT_TWO * (y1 + 2.0f * y3);
        out[0] = y0;
        at_points(even, odd, other_even, other_odd, out, out_step);
        out[5 * out_step] = y3;
    }
    static void kernel(const Lanes* g, int step, Lanes* out, int out_step) {  // G g
        const Lanes g0 = g[0], g1 = g[step], g2 = g[2 * step];
        const Lanes even = (-2.0f / 3) * g0 - (1.0f / 3) * g2, odd = (-2.0f / 3 * ROOT_HALF) * g1;
        const Lanes other_even = (1.0f / 6) * g0 + (1.0f / 3) * g2, other_odd = (ROOT_TWO / 6) * g1;
        out[0] = g0;
        at_points(even, odd, other_even, other_odd, out, out_step);
        out[5 * out_step] = g2;
    }
    static void kernel_back(const Lanes* u, int step, Lanes* out, int out_step) {  // G' u
        const Lanes sum = u[step] + u[2 * step], difference = u[step] - u[2 * step];
        const Lanes other_sum = u[3 * step] + u[4 * step];
        const Lanes other_difference = u[3 * step] - u[4 * step];
        out[0] = u[0] - (2.0f / 3) * sum + (1.0f / 6) * other_sum;
        out[out_step] = (ROOT_TWO / 6) * other_difference - (2.0f / 3 * ROOT_HALF) * difference;
        out[2 * out_step] = (other_sum - sum) * (1.0f / 3) + u[5 * step];
    }
};

// F(2x2, 3x3), of 0, +-1 and infinity: less work for the kernels, and its intermediate values bear
// rounding to bfloat16.
struct Small {
    static constexpr int OUT = 2, IN = 4;

    static void input(const Lanes* d, int step, Lanes* out, int out_step) {
        const Lanes d1 = d[step], d2 = d[2 * step];
        out[0] = d[0] - d2;
        out[out_step] = d1 + d2;
        out[2 * out_step] = d2 - d1;
        out[3 * out_step] = d1 - d[3 * step];
    }
    static void output(const Lanes* m, int step, Lanes* out, int out_step) {
        out[0] = m[0] + m[step] + m[2 * step];
        out[out_step] = m[step] - m[2 * step] - m[3 * step];
    }
    static void gradient(const Lanes* y, int step, Lanes* out, int out_step) {
        out[0] = y[0];
        out[out_step] = y[0] + y[step];
        out[2 * out_step] = y[0] - y[step];
        out[3 * out_step] = -y[step];
    }
    static void kernel(const Lanes* g, int step, Lanes* out, int out_step) {
        const Lanes even = 0.5f * (g[0] + g[2 * step]), odd = 0.5f * g[step];
        out[0] = g[0];
        out[out_step] = even + odd;
        out[2 * out_step] = even - odd;
        out[3 * out_step] = g[2 * step];
    }
    static void kernel_back(const Lanes* u, int step, Lanes* out, int out_step) {
        const Lanes sum = 0.5f * (u[step] + u[2 * step]);
        out[0] = u[0] + sum;
        out[out_step] = 0.5f * (u[step] - u[2 * step]);
        out[2 * out_step] = sum + u[3 * step];
    }
};

// Map the columns of a square [FROM, FROM], and then its rows, to [TO, TO].
template <int FROM, int TO, typename Map>
inline void both_ways(Map map, const Lanes* in, Lanes* out) {
    Lanes half[TO * FROM];
    for (int i = 0; i < FROM; ++i) map(in + i, FROM, half + i, FROM);
    for (int i = 0; i < TO; ++i) map(half + FROM * i, 1, out + TO * i, 1);
}

struct Images {  // [count, high, wide, channels], and tiles over them
    int64_t high, wide, channels, top, left, tile, tiles_high, tiles_wide;

    // Offsets of the pixels [side, side] of one tile, -1 where there is none.
    void find(int64_t number, int side, int64_t* offsets) const {
        const int64_t per_image = tiles_high * tiles_wide, image = number / per_image;
        const int64_t y0 = number % per_image / tiles_wide * tile - top;
        const int64_t x0 = number % tiles_wide * tile - left;
        for (int64_t y = y0; y < y0 + side; ++y)
            for (int64_t x = x0; x < x0 + side; ++x) {
                const bool inside = 0 <= y && y < high && 0 <= x && x < wide;
                *offsets++ = inside ? ((image * high + y) * wide + x) * channels : -1;
            }
    }
};

template <typename T>
inline void read(const T* from, const int64_t* offsets, int count, int64_t channel, Lanes* to) {
    for (int i = 0; i < count; ++i)
        to[i] = offsets[i] < 0 ? Lanes{} : load(from + offsets[i] + channel);
}

// Matrices [rows, columns] side by side, of floats or of pairs of bfloat16.
struct Planes {
    float* data;
    int64_t stride, distance;  // from row to row, and from matrix to matrix

    Planes(float* data, int64_t rows, int64_t columns)
        : data(data), stride(columns + SPACING), distance(rows * stride + SPACING) {}
    static int64_t size(int points, int64_t rows, int64_t columns) {
        return points * (rows * (columns + SPACING) + SPACING);
    }
    float* at(int point, int64_t row, int64_t column = 0) const {
        return data + point * distance + row * stride + column;
    }
};

inline void accumulate(Lanes& sum, float factor, Lanes lanes, float) { sum += factor * lanes; }

#if defined(__AVX512BF16__)
inline void accumulate(Lanes& sum, float factor, Lanes lanes, bfloat16) {
    const __m512bh pair = (__m512bh)_mm512_set1_ps(factor), pairs = (__m512bh)(__m512)lanes;
    sum = (Lanes)_mm512_dpbf16_ps((__m512)sum, pair, pairs);
}
#else
inline void accumulate(Lanes&, float, Lanes, bfloat16) {}  // see winograd_has_bfloat16
#endif

// c [ROWS, COLUMNS] = (or += if `is_more`) the sum over depth of a(row, depth) b(depth, column).
template <typename T>
inline void multiply(const float* a, int64_t a_row, int64_t a_depth, const float* b,
                     int64_t b_depth, int64_t depth, float* c, int64_t c_row, bool is_more) {
    for (int64_t start = 0; start < depth; start += RUN) {
        Lanes sums[ROWS][2] = {};
        const int64_t end = std::min(start + RUN, depth);
        for (int64_t d = start; d < end; ++d, a += a_depth, b += b_depth) {
            const Lanes left = load(b), right = load(b + LANES);
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; ++r) {
                accumulate(sums[r][0], a[r * a_row], left, T{});
                accumulate(sums[r][1], a[r * a_row], right, T{});
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
            float* to = c + r * c_row;
            store(to, is_more ? load(to) + sums[r][0] : sums[r][0]);
            store(to + LANES, is_more ? load(to + LANES) + sums[r][1] : sums[r][1]);
        }
        is_more = true;
    }
}

template <typename T>
struct Kernels {  // [outputs, channels, 3, 3], any strides
    const T* data;
    int64_t outputs, channels, by_output, by_channel, by_row, by_column;
};

// One convolution in numbers of type T and by the polynomials F. Rows and columns that fill up a
// block hold anything: what comes of them is not read.
template <typename T, typename F>
struct Work {
    static constexpr int IN = F::IN, OUT = F::OUT, POINTS = IN * IN;
    static constexpr int DEPTH = sizeof(float) / sizeof(T);  // numbers in a unit of Planes

    Images in, out;
    int64_t tiles, block, rows, columns;
    int32_t threads;

    Work(int64_t count, int64_t high, int64_t wide, int64_t channels, int64_t top, int64_t left,
         int64_t outputs, int64_t out_high, int64_t out_wide, bool weight, int32_t threads)
        : threads(threads) {
        const int64_t down = (out_high + OUT - 1) / OUT, across = (out_wide + OUT - 1) / OUT;
        in = {high, wide, channels, top, left, OUT, down, across};
        out = {out_high, out_wide, outputs, 0, 0, OUT, down, across};
        tiles = count * down * across;
        rows = round_up(outputs, ROWS);
        columns = round_up(weight ? channels : outputs, COLUMNS);
        const int64_t bytes = POINTS * (channels + outputs) * int64_t(sizeof(float));
        const int64_t share = weight ? tiles : (tiles + threads - 1) / threads;
        const int64_t most = weight ? 12 * ROWS : MOST_TILES;
        block = round_up(std::clamp<int64_t>(CACHE / bytes, 2 * ROWS, most), ROWS);
        block = std::min(block, round_up(share, ROWS));
    }

    int64_t packed_point() const { return columns * in.channels / DEPTH + SPACING; }
    int64_t packed() const { return POINTS * packed_point(); }
    int64_t own_input() const { return Planes::size(POINTS, block, in.channels / DEPTH); }
    int64_t own() const { return own_input() + Planes::size(POINTS, block, columns); }
    int64_t forward_scratch() const { return packed() + threads * own(); }

    int64_t shared_input() const { return Planes::size(POINTS, block / DEPTH, columns); }
    int64_t shared_output() const { return Planes::size(POINTS, block / DEPTH, rows); }
    int64_t weight_scratch() const {
        return shared_input() + shared_output() + Planes::size(POINTS, rows, columns);
    }

    // G g G' of LANES outputs and of the channels of a unit, into panels of COLUMNS outputs.
    void pack(const Kernels<T>& w, int64_t first, int64_t channel, float* to) const {
        Lanes points[DEPTH][POINTS];
        for (int part = 0; part < DEPTH; ++part) {
            Lanes taps[9];
            for (int tap = 0; tap < 9; ++tap) {
                const T* from = w.data + first * w.by_output + (channel + part) * w.by_channel +
                                tap / 3 * w.by_row + tap % 3 * w.by_column;
                for (int i = 0; i < LANES; ++i) taps[tap][i] = number(from[i * w.by_output]);
            }
            both_ways<3, IN>(F::kernel, taps, points[part]);
        }
        const int64_t panel = first / COLUMNS * w.channels / DEPTH + channel / DEPTH;
        to += panel * COLUMNS + first % COLUMNS;
        for (int i = 0; i < POINTS; ++i, to += packed_point())
            store(to, unit(points[0][i], points[DEPTH - 1][i]));
    }

    static Lanes unit(Lanes one, Lanes other) {
        return DEPTH == 1 ? one : (Lanes)(rounded(one) >> 16 | rounded(other));
    }

    void forward(const T* x, const Kernels<T>& w, T* y, float* scratch) const {
        const int64_t depth = in.channels / DEPTH, blocks = (tiles + block - 1) / block;
        float* weights = scratch;
#pragma omp parallel num_threads(threads)
        {
#pragma omp for collapse(2)
            for (int64_t group = 0; group < w.channels; group += 8)  // few pages at a time
                for (int64_t first = 0; first < w.outputs; first += LANES)
                    for (int64_t c = group; c < group + 8; c += DEPTH) pack(w, first, c, weights);
#pragma omp for
            for (int32_t thread = 0; thread < threads; ++thread) {
                float* mine = scratch + packed() + thread * own();
                const Planes v(mine, block, depth), m(mine + own_input(), block, columns);
                const int64_t last = (thread + 1) * blocks / threads;
                for (int64_t b = thread * blocks / threads; b < last; ++b) {
                    const int64_t start = b * block, here = std::min(block, tiles - start);
                    for (int64_t t = 0; t < here; ++t) spread(x, start + t, v, t);
                    for (int point = 0; point < POINTS; ++point)
                        for (int64_t column = 0; column < columns; column += COLUMNS)
                            for (int64_t row = 0; row < here; row += ROWS)
                                multiply<T>(v.at(point, row), v.stride, 1,
                                            weights + point * packed_point() + column * depth, COLUMNS,
                                            depth, m.at(point, row, column), m.stride, false);
                    for (int64_t t = 0; t < here; ++t) gather(m, t, y, start + t);
                }
            }
        }
    }

    // B' d B of one tile, into a row of every matrix.
    void spread(const T* x, int64_t tile, const Planes& v, int64_t row) const {
        int64_t offsets[POINTS];
        in.find(tile, IN, offsets);
        for (int64_t c = 0; c < in.channels; c += LANES) {
            Lanes d[POINTS], points[POINTS];
            read(x, offsets, POINTS, c, d);
            both_ways<IN, IN>(F::input, d, points);
            for (int i = 0; i < POINTS; ++i) store((T*)v.at(i, row) + c, points[i]);
        }
    }

    // A' m A of one tile, into its pixels.
    void gather(const Planes& m, int64_t row, T* y, int64_t tile) const {
        int64_t offsets[OUT * OUT];
        out.find(tile, OUT, offsets);
        for (int64_t c = 0; c < out.channels; c += LANES) {
            Lanes points[POINTS], pixels[OUT * OUT];
            for (int i = 0; i < POINTS; ++i) points[i] = load(m.at(i, row, c));
            both_ways<IN, OUT>(F::output, points, pixels);
            for (int i = 0; i < OUT * OUT; ++i)
                if (offsets[i] >= 0) store(y + offsets[i] + c, pixels[i]);
        }
    }

    // The gradient by the weights, from the images and the gradient g by the result.
    void weight(const T* x, const T* g, T* w, float* scratch) const {
        const Planes v(scratch, block / DEPTH, columns);
        const Planes d(scratch + shared_input(), block / DEPTH, rows);
        const Planes u(scratch + shared_input() + shared_output(), rows, columns);
#pragma omp parallel num_threads(threads)
        {
            for (int64_t start = 0; start < tiles; start += block) {
                const int64_t units = (std::min(block, tiles - start) + DEPTH - 1) / DEPTH;
#pragma omp for
                for (int64_t t = 0; t < units; ++t) {
                    pair<IN>(F::input, x, in, start + t * DEPTH, v, t);
                    pair<OUT>(F::gradient, g, out, start + t * DEPTH, d, t);
                }
#pragma omp for collapse(2)
                for (int point = 0; point < POINTS; ++point)
                    for (int64_t row = 0; row < rows; row += ROWS)
                        for (int64_t column = 0; column < columns; column += COLUMNS)
                            multiply<T>(d.at(point, 0, row), 1, d.stride, v.at(point, 0, column),
                                        v.stride, units, u.at(point, row, column), u.stride,
                                        start > 0);
            }
#pragma omp for
            for (int64_t o = 0; o < out.channels; ++o)
                for (int64_t c = 0; c < in.channels; c += LANES)
                    unpack(u, o, c, w + (o * in.channels + c) * 9);
        }
    }

    // Both sides of the tiles of one unit, into a row of every matrix.
    template <int FROM, typename Map>
    void pair(Map map, const T* x, const Images& images, int64_t tile, const Planes& v,
              int64_t row) const {
        int64_t offsets[DEPTH][FROM * FROM];
        for (int part = 0; part < DEPTH; ++part) {
            if (tile + part < tiles) images.find(tile + part, FROM, offsets[part]);
            else std::fill_n(offsets[part], FROM * FROM, -1);
        }
        for (int64_t c = 0; c < images.channels; c += LANES) {
            Lanes d[FROM * FROM], points[DEPTH][POINTS];
            for (int part = 0; part < DEPTH; ++part) {
                read(x, offsets[part], FROM * FROM, c, d);
                both_ways<FROM, IN>(map, d, points[part]);
            }
            for (int i = 0; i < POINTS; ++i)
                store(v.at(i, row, c), unit(points[0][i], points[DEPTH - 1][i]));
        }
    }

    // G' u G of LANES input channels, into [channel, 3, 3].
    void unpack(const Planes& u, int64_t output, int64_t channel, T* to) const {
        Lanes points[POINTS], taps[9];
        T line[LANES];
        for (int i = 0; i < POINTS; ++i) points[i] = load(u.at(i, output, channel));
        both_ways<IN, 3>(F::kernel_back, points, taps);
        for (int tap = 0; tap < 9; ++tap) {
            store(line, taps[tap]);
            for (int i = 0; i < LANES; ++i) to[i * 9 + tap] = line[i];
        }
    }
};

// Call `run` with a number type, and polynomials for so many pixels.
template <typename Run>
int64_t choose(int32_t reduced, int64_t pixels, Run run) {
    if (reduced) return run(bfloat16{}, Small{});
    return pixels < FEW_PIXELS ? run(float{}, Small{}) : run(float{}, Large{});
}

}  // namespace

extern "C" {

// Whether images may be bfloat16. With AMX, PyTorch's own convolution is faster.
int32_t winograd_has_bfloat16() {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
    return 1;
#else
    return 0;
#endif
}

// y [count, out_high, out_wide, outputs] from x [count, high, wide, channels] and weights
// [outputs, channels, 3, 3] with the strides `by`; channels and outputs are multiples of LANES.
// All three are bfloat16 if `reduced`, else float32. Returns the floats of scratch that it takes, and
// does nothing if those are above `capacity`.
int64_t winograd_forward(int32_t reduced, const void* x, int64_t count, int64_t high, int64_t wide,
                         int64_t channels, int64_t top, int64_t left, const void* w,
                         const int64_t* by, int64_t outputs, void* y, int64_t out_high,
                         int64_t out_wide, float* scratch, int64_t capacity, int32_t threads) {
    const auto run = [&](auto type, auto polynomials) {
        using T = decltype(type);
        using F = decltype(polynomials);
        const Work<T, F> work(count, high, wide, channels, top, left, outputs, out_high, out_wide,
                              false, threads);
        const Kernels<T> kernels = {(const T*)w, outputs, channels, by[0], by[1], by[2], by[3]};
        const int64_t needed = work.forward_scratch();
        if (needed <= capacity) work.forward((const T*)x, kernels, (T*)y, scratch);
        return needed;
    };
    return choose(reduced, count * out_high * out_wide, run);
}

// The gradient w [outputs, channels, 3, 3] by the weights, from x as above and the gradient
// g [count, out_high, out_wide, outputs] by the result.
int64_t winograd_weight(int32_t reduced, const void* x, int64_t count, int64_t high, int64_t wide,
                        int64_t channels, int64_t top, int64_t left, const void* g,
                        int64_t outputs, int64_t out_high, int64_t out_wide, void* w,
                        float* scratch, int64_t capacity, int32_t threads) {
    const auto run = [&](auto type, auto polynomials) {
        using T = decltype(type);
        using F = decltype(polynomials);
        const Work<T, F> work(count, high, wide, channels, top, left, outputs, out_high, out_wide,
                              true, threads);
        const int64_t needed = work.weight_scratch();
        if (needed <= capacity) work.weight((const T*)x, (const T*)g, (T*)w, scratch);
        return needed;
    };
    return choose(reduced, count * out_high * out_wide, run);
}

}  // extern "C"
