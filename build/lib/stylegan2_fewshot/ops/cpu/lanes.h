// Vectors of the processor's width, in float32; stored as float32 or bfloat16.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

struct bfloat16 {
    uint16_t bits;
};

inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline void store(float* to, Lanes value) { *reinterpret_cast<Lanes*>(to) = value; }

inline Lanes load(const bfloat16* from) {
    const Halves halves = *reinterpret_cast<const Halves*>(from);
    return (Lanes)(__builtin_convertvector(halves, Bits) << 16);
}

// The bits of the nearest bfloat16, ties to even, in the upper half of each lane.
inline Bits rounded(Lanes value) {
    const Bits bits = (Bits)value;
    return (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
}

inline void store(bfloat16* to, Lanes value) {
    *reinterpret_cast<Halves*>(to) = __builtin_convertvector(rounded(value) >> 16, Halves);
}

// `count` numbers, fewer than LANES; the rest is 0.
template <typename T>
inline Lanes load(const T* from, int64_t count) {
    T copy[LANES] = {};
    std::memcpy(copy, from, count * sizeof(T));
    return load(copy);
}
template <typename T>
inline void store(T* to, Lanes value, int64_t count) {
    T copy[LANES];
    store(copy, value);
    std::memcpy(to, copy, count * sizeof(T));
}

inline float number(float value) { return value; }
inline float number(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
