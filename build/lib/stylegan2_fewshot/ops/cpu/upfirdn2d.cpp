// Upsampling, FIR filtering and downsampling of channels-last images.
// Sums are in float32; images are float32 or bfloat16.

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t MANY = 1 << 17;  // numbers, for more than one thread to pay

struct Tap {
    int64_t pixel, tap;
};

// For every position of the output: the pixels that it sees, and through which taps.
std::vector<std::vector<Tap>> taps_along(int64_t size, int64_t out_size, int64_t count, int64_t up,
                                         int64_t down, int64_t before) {
    std::vector<std::vector<Tap>> taps(out_size);
    for (int64_t i = 0; i < out_size; ++i)
        for (int64_t tap = 0; tap < count; ++tap) {
            const int64_t place = i * down + tap - before;
            if (place >= 0 && place < size * up && place % up == 0)
                taps[i].push_back({place / up, tap});
        }
    return taps;
}

// One pixel of the output, VECTORS of its channels.
template <int VECTORS, typename T>
inline void filter(const T* image, int64_t line, int64_t channels, const float* f, int64_t f_wide,
                   const std::vector<Tap>& down, const std::vector<Tap>& across, T* to) {
    Lanes sums[VECTORS] = {};
    for (const Tap& row : down)
        for (const Tap& column : across) {
            const float factor = f[row.tap * f_wide + column.tap];
            const T* from = image + row.pixel * line + column.pixel * channels;
            for (int i = 0; i < VECTORS; ++i) sums[i] += factor * load(from + i * LANES);
        }
    for (int i = 0; i < VECTORS; ++i) store(to + i * LANES, sums[i]);
}

template <typename T>
void run(const T* x, int64_t count, int64_t high, int64_t wide, int64_t channels, const float* f,
         int64_t f_wide, const std::vector<std::vector<Tap>>& rows,
         const std::vector<std::vector<Tap>>& columns, T* y, int32_t threads) {
    const int64_t out_high = rows.size(), out_wide = columns.size(), line = wide * channels;
    const bool is_large = count * out_high * out_wide * channels > MANY;
#pragma omp parallel for num_threads(threads) if (is_large)
    for (int64_t number = 0; number < count * out_high; ++number) {
        const T* image = x + number / out_high * high * line;
        const auto& down = rows[number % out_high];
        T* to = y + number * out_wide * channels;
        for (const auto& across : columns) {
            int64_t c = 0;
            for (; c + 4 * LANES <= channels; c += 4 * LANES)
                filter<4>(image + c, line, channels, f, f_wide, down, across, to + c);
            for (; c + 2 * LANES <= channels; c += 2 * LANES)
                filter<2>(image + c, line, channels, f, f_wide, down, across, to + c);
            if (c < channels)
                filter<1>(image + c, line, channels, f, f_wide, down, across, to + c);
            to += channels;
        }
    }
}

}  // namespace

extern "C" {

// y [count, out_high, out_wide, channels] from x [count, high, wide, channels] and `gain` times the
// filter f [f_high, f_wide], which correlates if `is_flipped`, else convolves; channels are a multiple
// of LANES. Pairs are (y, x).
void upfirdn2d(int32_t reduced, const void* x, int64_t count, int64_t high, int64_t wide,
               int64_t channels, const float* f, int64_t f_high, int64_t f_wide, int32_t is_flipped,
               float gain, const int64_t* up, const int64_t* down, const int64_t* before, void* y,
               int64_t out_high, int64_t out_wide, int32_t threads) {
    std::vector<float> taps(f, f + f_high * f_wide);
    if (!is_flipped) std::reverse(taps.begin(), taps.end());
    for (float& tap : taps) tap *= gain;
    const auto rows = taps_along(high, out_high, f_high, up[0], down[0], before[0]);
    const auto columns = taps_along(wide, out_wide, f_wide, up[1], down[1], before[1]);
    if (reduced)
        run((const bfloat16*)x, count, high, wide, channels, taps.data(), f_wide, rows, columns,
            (bfloat16*)y, threads);
    else
        run((const float*)x, count, high, wide, channels, taps.data(), f_wide, rows, columns,
            (float*)y, threads);
}

}  // extern "C"
