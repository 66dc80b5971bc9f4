// Bias, leaky ReLU, gain and clamp in one pass, and their gradient from the result.
// Sums are in float32; tensors are float32 or bfloat16.

#include <algorithm>

#include "lanes.h"

namespace {

constexpr int64_t BLOCK = 4096;  // numbers that one thread takes at a time
constexpr int64_t MANY = 1 << 16;  // for more than one thread to pay

struct Settings {
    float slope, gain, clamp;  // no clamp: infinity

    Lanes forward(Lanes v) const {
        const Lanes y = (v > 0.0f ? v : v * slope) * gain;
        const Lanes low = y < -clamp ? Lanes{} - clamp : y;
        return low > clamp ? Lanes{} + clamp : low;
    }
    Lanes gradient(Lanes dy, Lanes y) const {
        const Lanes inside = (y > -clamp && y < clamp) ? dy * gain : Lanes{};
        return y > 0.0f ? inside : inside * slope;
    }
};

// Call `run` with the first and the number of lanes, over `count` numbers.
template <typename Run>
void each(int64_t count, int32_t threads, Run run) {
#pragma omp parallel for num_threads(threads) if (count > MANY)
    for (int64_t block = 0; block < count; block += BLOCK) {
        const int64_t end = std::min(block + BLOCK, count);
        for (int64_t i = block; i < end; i += LANES) run(i, std::min<int64_t>(LANES, end - i));
    }
}

template <typename T>
inline Lanes get(const T* from, int64_t count) {
    return count == LANES ? load(from) : load(from, count);
}
template <typename T>
inline void put(T* to, Lanes value, int64_t count) {
    count == LANES ? store(to, value) : store(to, value, count);
}

template <typename T>
void forward(const T* x, const T* b, int64_t outer, int64_t channels, int64_t inner, Settings s,
             T* y, int32_t threads) {
    if (!b || inner > 1) {  // one bias for a line of numbers, or none
        const int64_t line = b ? inner : outer * channels * inner;
        for (int64_t start = 0; start < outer * channels * inner; start += line) {
            const float bias = b ? number(b[start / line % channels]) : 0.0f;
            each(line, threads, [&](int64_t i, int64_t count) {
                put(y + start + i, s.forward(get(x + start + i, count) + bias), count);
            });
        }
        return;
    }
#pragma omp parallel for num_threads(threads) if (outer * channels > MANY)
    for (int64_t o = 0; o < outer; ++o)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t count = std::min<int64_t>(LANES, channels - c), i = o * channels + c;
            put(y + i, s.forward(get(x + i, count) + get(b + c, count)), count);
        }
}

template <typename T>
void gradient(const T* dy, const T* y, int64_t count, Settings s, T* dx, int32_t threads) {
    each(count, threads, [&](int64_t i, int64_t n) {
        put(dx + i, s.gradient(get(dy + i, n), get(y + i, n)), n);
    });
}

}  // namespace

extern "C" {

// y = clamp(gain * leaky_relu(x + b)) for x [outer, channels, inner]; b [channels] or null.
void bias_act_forward(int32_t reduced, const void* x, const void* b, int64_t outer,
                      int64_t channels, int64_t inner, float slope, float gain, float clamp,
                      void* y, int32_t threads) {
    const Settings s = {slope, gain, clamp};
    if (reduced)
        forward((const bfloat16*)x, (const bfloat16*)b, outer, channels, inner, s, (bfloat16*)y,
                threads);
    else
        forward((const float*)x, (const float*)b, outer, channels, inner, s, (float*)y, threads);
}

// dx from dy and the result y, `count` numbers each.
void bias_act_gradient(int32_t reduced, const void* dy, const void* y, int64_t count, float slope,
                       float gain, float clamp, void* dx, int32_t threads) {
    const Settings s = {slope, gain, clamp};
    if (reduced)
        gradient((const bfloat16*)dy, (const bfloat16*)y, count, s, (bfloat16*)dx, threads);
    else
        gradient((const float*)dy, (const float*)y, count, s, (float*)dx, threads);
}

}  // extern "C"
