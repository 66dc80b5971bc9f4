// CUDA's language on the CPU, to test index arithmetic: every thread of a block is a fiber that
// runs until it ends or meets a barrier, forwards in one launch and backwards in the next. Only a few
// blocks run, whatever is asked for: kernels must stride over their work.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(threads)

using std::exp;
using std::expm1;
using std::log1p;
using std::tanh;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned x) : x(x) {}
};
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;
inline float __ldg(const float* p) { return *p; }

namespace emulation {

constexpr size_t kStack = 64 * 1024;
constexpr unsigned kBlocks = 3;
inline ucontext_t scheduler;
inline std::vector<ucontext_t> fibers;
inline std::function<void()> body;
inline unsigned current, ended, launches;

inline void fiber() {
  body();
  ++ended;
}

// All threads pass a barrier together: a thread that ends while others wait is an error.
inline void run_block(unsigned threads) {
  static std::vector<char> stacks;
  stacks.resize(kStack * threads);
  fibers.resize(threads);
  for (unsigned t = 0; t < threads; ++t) {
    getcontext(&fibers[t]);
    fibers[t].uc_stack.ss_sp = &stacks[kStack * t];
    fibers[t].uc_stack.ss_size = kStack;
    fibers[t].uc_link = &scheduler;
    makecontext(&fibers[t], fiber, 0);
  }
  for (ended = 0; ended < threads;) {
    if (ended != 0) __builtin_trap();
    for (unsigned i = 0; i < threads; ++i) {
      current = launches % 2 ? threads - 1 - i : i;
      threadIdx = dim3(current);
      threadIdx.y = threadIdx.z = 0;
      swapcontext(&scheduler, &fibers[current]);
    }
  }
}

}  // namespace emulation

inline void __syncthreads() {
  swapcontext(&emulation::fibers[emulation::current], &emulation::scheduler);
}

template <class Arguments>
int cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Arguments),
                       const Arguments& arguments) {
  ++emulation::launches;
  emulation::body = [&] { kernel(arguments); };
  blockDim = config->blockDim;
  gridDim = dim3(config->gridDim.x < emulation::kBlocks ? config->gridDim.x : emulation::kBlocks);
  for (unsigned b = 0; b < gridDim.x; ++b) {
    blockIdx = dim3(b);
    emulation::run_block(blockDim.x);
  }
  return 0;
}
