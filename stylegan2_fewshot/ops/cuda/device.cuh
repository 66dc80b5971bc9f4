// What both kernels share: numbers in the precision of arithmetic, and launching.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels.h"

// The type to compute in.
template <class T> struct Wide { using type = float; };
template <> struct Wide<double> { using type = double; };
template <class T> using wide_t = typename Wide<T>::type;

__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }

__device__ inline void narrow(float value, __half& to) { to = __float2half_rn(value); }
__device__ inline void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }
__device__ inline void narrow(float value, float& to) { to = value; }
__device__ inline void narrow(double value, double& to) { to = value; }

// Numbers that one thread moves at a time, 16 bytes if `kCount` fills them.
template <class T, int kCount> struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

template <class T, int kCount> __device__ Pack<T, kCount> read(const void* from, int64_t index) {
  return static_cast<const Pack<T, kCount>*>(from)[index];
}

// a / b for a >= 0, b > 0. A 64-bit division takes several times as long as one of 32 bits.
__device__ inline int64_t divide(int64_t a, int64_t b) {
  if ((a | b) >> 32) return a / b;
  return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}

// Kernels stride over their work, so any number of blocks is right.
template <class Arguments>
void launch(void (*kernel)(Arguments), const Arguments& arguments, int64_t blocks, int threads,
            CUstream_st* stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(blocks, 0x7fffffff)));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, arguments);
}

// Call `run` with a value of the C++ type of a dtype.
template <class Run> void for_dtype(int32_t dtype, Run run) {
  switch (dtype) {
    case kFloat16: return run(__half());
    case kBFloat16: return run(__nv_bfloat16());
    case kFloat32: return run(float());
    case kFloat64: return run(double());
  }
}
