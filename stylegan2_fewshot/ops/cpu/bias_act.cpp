// Bias, leaky ReLU, gain and clamp in one pass, and their gradient from the result.
// Sums are in float32; tensors are float32 or bfloat16.

#include <algorithm>

#include "lanes.h"

namespace {

constexpr int64_t BLOCK = 4096;    // numbers that one thread takes at a time
constexpr int64_t MANY = 1 << 18;  // for more than one thread to pay

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

template <typename T>
inline Lanes get(const T* from, int64_t count) {
    return count == LANES ? load(from) : load(from, count);
}
template <typename T>
inline void put(T* to, Lanes value, int64_t count) {
    count == LANES ? store(to, value) : store(to, value, count);
}

// Call `run` with the line, the place in it, and the number of lanes. Each thread has its own copy of
// `run`, which stores cannot alias: what it holds stays in registers.
template <typename Run>
void each(int64_t lines, int64_t length, int32_t threads, Run run) {
    const int64_t whole = length / LANES * LANES;
#pragma omp parallel for num_threads(threads) firstprivate(run) if (lines * length > MANY)
    for (int64_t line = 0; line < lines; ++line) {
        const int64_t start = line * length;
        for (int64_t i = 0; i < whole; i += LANES) run(line, start + i, LANES);
        if (whole < length) run(line, start + whole, length - whole);
    }
}

template <typename T>
void forward(const T* x, const T* b, int64_t outer, int64_t channels, int64_t inner, Settings s,
             T* y, int32_t threads) {
    if (inner > 1)
        each(outer * channels, inner, threads, [=](int64_t line, int64_t i, int64_t count) {
            const float bias = b ? number(b[line % channels]) : 0.0f;
            put(y + i, s.forward(get(x + i, count) + bias), count);
        });
    else
        each(outer, channels, threads, [=](int64_t line, int64_t i, int64_t count) {
            const Lanes bias = b ? get(b + i - line * channels, count) : Lanes{};
            put(y + i, s.forward(get(x + i, count) + bias), count);
        });
}

template <typename T>
void gradient(const T* dy, const T* y, int64_t count, Settings s, T* dx, int32_t threads) {
    const int64_t lines = (count + BLOCK - 1) / BLOCK;
    each(lines, BLOCK, threads, [=](int64_t, int64_t i, int64_t lanes) {
        const int64_t n = std::min(lanes, count - i);
        if (n > 0) put(dx + i, s.gradient(get(dy + i, n), get(y + i, n)), n);
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
