// Bias, activation, gain and clamp in one pass over memory, with two derivatives.
#include <cmath>

#include "device.cuh"

namespace {

constexpr double kSeluScale = 1.0507009873554804934, kSeluAlpha = 1.6732632423543772848;

template <class W> __device__ W logistic(W v) { return 1 / (1 + exp(-v)); }
template <class W> __device__ W bell(W v) { return logistic(v) * logistic(-v); }  // its slope

template <class W> __device__ W value(int function, W v, W alpha) {
  switch (function) {
    case kRelu: return v > 0 ? v : 0;
    case kLrelu: return v > 0 ? v : v * alpha;
    case kTanh: return tanh(v);
    case kSigmoid: return logistic(v);
    case kElu: return v > 0 ? v : expm1(v);
    case kSelu: return static_cast<W>(kSeluScale) * (v > 0 ? v : W(kSeluAlpha) * expm1(v));
    case kSoftplus: return v > 20 ? v : log1p(exp(v));  // as torch does
    case kSwish: return v * logistic(v);
    default: return v;
  }
}

template <class W> __device__ W slope(int function, W v, W alpha) {
  switch (function) {
    case kRelu: return v > 0 ? 1 : 0;
    case kLrelu: return v > 0 ? 1 : alpha;
    case kTanh: return 1 - tanh(v) * tanh(v);
    case kSigmoid: return bell(v);
    case kElu: return v > 0 ? 1 : exp(v);
    case kSelu: return static_cast<W>(kSeluScale) * (v > 0 ? 1 : W(kSeluAlpha) * exp(v));
    case kSoftplus: return logistic(v);
    case kSwish: return logistic(v) + v * bell(v);
    default: return 1;
  }
}

template <class W> __device__ W curvature(int function, W v) {
  switch (function) {
    case kTanh: return -2 * tanh(v) * (1 - tanh(v) * tanh(v));
    case kSigmoid: return bell(v) * (1 - 2 * logistic(v));
    case kElu: return v < 0 ? exp(v) : 0;
    case kSelu: return v < 0 ? static_cast<W>(kSeluScale * kSeluAlpha) * exp(v) : 0;
    case kSoftplus: return bell(v);
    case kSwish: return bell(v) * (2 + v * (1 - 2 * logistic(v)));
    default: return 0;
  }
}

template <int kOrder, class W>
__device__ W result(const Activation& a, W x, W bias, W first, W other) {
  const W alpha = static_cast<W>(a.alpha), gain = static_cast<W>(a.gain);
  const W clamp = static_cast<W>(a.clamp);
  const W v = x + bias;
  const W y = a.from_output ? x : gain * value(a.function, v, alpha);
  if constexpr (kOrder == 0) return y < -clamp ? -clamp : y > clamp ? clamp : y;
  if (y <= -clamp || y >= clamp) return 0;
  if constexpr (kOrder == 1) return first * gain * slope(a.function, v, alpha);
  return first * other * gain * curvature(a.function, v);
}

template <class T, int kOrder, int kCount> __global__ void activate_packs(Activation a) {
  using W = wide_t<T>;
  const int64_t packs = a.count / kCount, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < packs;
       i += step) {
    const auto x = read<T, kCount>(a.x, i);
    Pack<T, kCount> first = {}, other = {}, y;
    if constexpr (kOrder > 0) first = read<T, kCount>(a.first, i);
    if constexpr (kOrder > 1) other = read<T, kCount>(a.other, i);
    int64_t channel = 0, within = 0;
    if (a.bias) {
      const int64_t line = divide(i * kCount, a.inner);
      within = i * kCount - line * a.inner;
      channel = line - divide(line, a.channels) * a.channels;
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      W bias = 0;
      if (a.bias) {
        bias = widen(static_cast<const T*>(a.bias)[channel]);
        if (++within == a.inner) {
          within = 0;
          if (++channel == a.channels) channel = 0;
        }
      }
      narrow(result<kOrder, W>(a, widen(x.values[k]), bias, widen(first.values[k]),
                               widen(other.values[k])),
             y.values[k]);
    }
    static_cast<Pack<T, kCount>*>(a.y)[i] = y;
  }
}

bool aligned(const Activation& a) {
  uintptr_t all = 0;
  for (const void* p : {a.x, a.first, a.other, static_cast<const void*>(a.y)})
    all |= reinterpret_cast<uintptr_t>(p);
  return all % 16 == 0;
}

struct Launch {
  const Activation& a;
  CUstream_st* stream;

  template <class T> void operator()(T) const {
    constexpr int wide = 16 / sizeof(T);
    aligned(a) && a.count % wide == 0 ? order<T, wide>() : order<T, 1>();
  }
  template <class T, int kCount> void order() const {
    if (a.order == 0) return run<T, 0, kCount>();
    a.order == 1 ? run<T, 1, kCount>() : run<T, 2, kCount>();
  }
  template <class T, int kOrder, int kCount> void run() const {
    const int64_t blocks = (a.count / kCount + 255) / 256;
    launch(activate_packs<T, kOrder, kCount>, a, blocks, 256, stream);
  }
};

}  // namespace

void activate(const Activation* arguments, CUstream_st* stream) {
  for_dtype(arguments->dtype, Launch{*arguments, stream});
}
