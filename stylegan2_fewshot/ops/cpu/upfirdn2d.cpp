// Upsampling, FIR filtering and downsampling of channels-last images.
// Sums are in float32; images are float32 or bfloat16.

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace {

constexpr int BLOCK = 4;          // vectors of channels that stay in registers
constexpr int64_t MANY = 1 << 15;  // numbers, for more than one thread to pay

// For every position of the output: where the taps that meet a pixel lie, and which they are.
struct Axis {
    struct Tap {
        int64_t pixel, tap;
    };
    std::vector<std::vector<Tap>> taps;

    Axis(int64_t size, int64_t out_size, int64_t count, int64_t up, int64_t down, int64_t before)
        : taps(out_size) {
        for (int64_t i = 0; i < out_size; ++i)
            for (int64_t tap = 0; tap < count; ++tap) {
                const int64_t place = i * down + tap - before;
                if (place >= 0 && place < size * up && place % up == 0)
                    taps[i].push_back({place / up, tap});
            }
    }
};

template <typename T>
void run(const T* x, int64_t count, int64_t high, int64_t wide, int64_t channels, const float* f,
         int64_t f_wide, const Axis& rows, const Axis& columns, T* y, int32_t threads) {
    const int64_t out_high = rows.taps.size(), out_wide = columns.taps.size();
    const bool is_large = count * out_high * out_wide * channels > MANY;
#pragma omp parallel for num_threads(threads) if (is_large)
    for (int64_t line = 0; line < count * out_high; ++line) {
        const T* image = x + line / out_high * high * wide * channels;
        T* to = y + line * out_wide * channels;
        for (const auto& across : columns.taps) {
            for (int64_t c = 0; c < channels; c += BLOCK * LANES) {
                const int64_t vectors = std::min<int64_t>(BLOCK, (channels - c) / LANES);
                Lanes sums[BLOCK] = {};
                for (const auto& row : rows.taps[line % out_high])
                    for (const auto& column : across) {
                        const float factor = f[row.tap * f_wide + column.tap];
                        const T* from = image + (row.pixel * wide + column.pixel) * channels + c;
                        for (int64_t i = 0; i < vectors; ++i)
                            sums[i] += factor * load(from + i * LANES);
                    }
                for (int64_t i = 0; i < vectors; ++i) store(to + c + i * LANES, sums[i]);
            }
            to += channels;
        }
    }
}

}  // namespace

extern "C" {

// y [count, out_high, out_wide, channels] from x [count, high, wide, channels] and the filter
// f [f_high, f_wide], which correlates; channels are a multiple of LANES. Pairs are (y, x).
void upfirdn2d(int32_t reduced, const void* x, int64_t count, int64_t high, int64_t wide,
               int64_t channels, const float* f, int64_t f_high, int64_t f_wide, const int64_t* up,
               const int64_t* down, const int64_t* before, void* y, int64_t out_high,
               int64_t out_wide, int32_t threads) {
    const Axis rows(high, out_high, f_high, up[0], down[0], before[0]);
    const Axis columns(wide, out_wide, f_wide, up[1], down[1], before[1]);
    if (reduced)
        run((const bfloat16*)x, count, high, wide, channels, f, f_wide, rows, columns,
            (bfloat16*)y, threads);
    else
        run((const float*)x, count, high, wide, channels, f, f_wide, rows, columns, (float*)y,
            threads);
}

}  // extern "C"
