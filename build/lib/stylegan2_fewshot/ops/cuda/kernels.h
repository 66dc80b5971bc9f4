// The two operations as plain C: pointers, sizes and a stream, no torch.
#pragma once

#include <cstdint>

struct CUstream_st;  // what cudaStream_t points to

enum Dtype : int32_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

// Zeros inserted, padding, FIR filter and decimation of dense images [planes, height, width,
// minor]: NCHW is planes = N * C and minor = 1, channels-last is planes = N and minor = C.
struct Resampling {
  const void* x;
  void* y;
  const float* filter;  // [taps_y, taps_x], or [taps_x] if separable
  int64_t planes, minor;
  int32_t in_x, in_y, out_x, out_y;
  int32_t up_x, up_y, down_x, down_y;
  int32_t left, top;  // zeros before the first pixel, negative to crop
  int32_t taps_x, taps_y;
  int32_t separable;    // the filter holds for both axes; only where tiles serve
  int32_t flip_filter;  // correlate instead of convolve
  double gain;
  int32_t dtype;
};

enum Function : int32_t {
  kLinear, kRelu, kLrelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish
};

// clamp(gain * act(x + bias)), or its first or second derivative, of `count` numbers that lie
// densely. The bias has one number for every index of a dimension of `channels`, `inner` apart.
struct Activation {
  const void* x;      // the operation's input, or with `from_output` its output
  const void* bias;   // or null
  const void* first;  // factor of every derivative
  const void* other;  // one more factor of the second derivative
  void* y;
  int64_t count, channels, inner;
  int32_t function, order, from_output;
  double alpha, gain, clamp;  // infinite if there is no clamp
  int32_t dtype;
};

extern "C" {
// Whether `resample_images` has a kernel that works in tiles for these arguments.
bool resamples_in_tiles(const Resampling* arguments);
void resample_images(const Resampling* arguments, CUstream_st* stream);
void activate(const Activation* arguments, CUstream_st* stream);
}
