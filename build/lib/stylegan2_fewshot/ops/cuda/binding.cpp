// The kernels as functions of torch tensors.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/extension.h>

#include <array>
#include <limits>

#include "kernels.h"

namespace {

using torch::Tensor;
using Pair = std::array<int64_t, 2>;   // x, y
using Sides = std::array<int64_t, 4>;  // left, right, top, bottom

int32_t dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case torch::kHalf: return kFloat16;
    case torch::kBFloat16: return kBFloat16;
    case torch::kFloat: return kFloat32;
    case torch::kDouble: return kFloat64;
    default: TORCH_CHECK(false, "x must be a float16, bfloat16, float32 or float64 tensor");
  }
}

int32_t narrow(int64_t value) {
  TORCH_CHECK(std::abs(value) <= std::numeric_limits<int32_t>::max() / 64, value, " is too large");
  return static_cast<int32_t>(value);
}

int32_t output_size(int64_t size, int64_t up, int64_t down, int64_t padding, int64_t taps) {
  TORCH_CHECK(up >= 1 && down >= 1, "up and down must be at least 1");
  const int64_t left = size * up + padding - taps;
  TORCH_CHECK(left >= 0, "the filter is larger than the padded image");
  return narrow(left / down + 1);
}

// One launch; an undefined tensor where the filter is separable and no tiles serve.
Tensor resample(const Tensor& x, const Tensor& f, Pair up, Pair down, Sides sides,
                bool flip_filter, double gain) {
  const auto format = x.suggest_memory_format();
  const bool last = format == at::MemoryFormat::ChannelsLast;
  Resampling a = {};
  a.planes = last ? x.size(0) : x.size(0) * x.size(1);
  a.minor = last ? x.size(1) : 1;
  a.in_x = narrow(x.size(3)), a.in_y = narrow(x.size(2));
  a.up_x = narrow(up[0]), a.up_y = narrow(up[1]);
  a.down_x = narrow(down[0]), a.down_y = narrow(down[1]);
  a.left = narrow(sides[0]), a.top = narrow(sides[2]);
  a.taps_x = narrow(f.size(-1)), a.taps_y = narrow(f.size(0));
  a.out_x = output_size(x.size(3), up[0], down[0], sides[0] + sides[1], a.taps_x);
  a.out_y = output_size(x.size(2), up[1], down[1], sides[2] + sides[3], a.taps_y);
  a.separable = f.dim() == 1, a.flip_filter = flip_filter, a.gain = gain;
  a.dtype = dtype_of(x);
  if (a.separable && !resamples_in_tiles(&a)) return Tensor();

  const Tensor dense = x.contiguous(format);
  Tensor y = torch::empty({x.size(0), x.size(1), a.out_y, a.out_x},
                          x.options().memory_format(format));
  if (y.numel() == 0) return y;
  a.x = dense.data_ptr(), a.y = y.data_ptr(), a.filter = f.data_ptr<float>();
  resample_images(&a, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

Tensor upfirdn2d(const Tensor& x, const Tensor& filter, Pair up, Pair down, Sides sides,
                 bool flip_filter, double gain) {
  TORCH_CHECK(x.dim() == 4 && x.is_cuda(), "x must be a CUDA tensor [N, C, H, W]");
  TORCH_CHECK(filter.dim() == 1 || filter.dim() == 2, "f must be [taps] or [height, width]");
  TORCH_CHECK(filter.numel() > 0, "f must not be empty");
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor f = filter.to(x.device(), torch::kFloat).contiguous();
  const Tensor y = resample(x, f, up, down, sides, flip_filter, gain);
  if (y.defined()) return y;
  const Tensor across = resample(x, f.unsqueeze(0), {up[0], 1}, {down[0], 1},
                                 {sides[0], sides[1], 0, 0}, flip_filter, 1);
  return resample(across, f.unsqueeze(1), {1, up[1]}, {1, down[1]}, {0, 0, sides[2], sides[3]},
                  flip_filter, gain);
}

// `first` with the strides of `x`, whose numbers it goes with.
Tensor like(const Tensor& first, const Tensor& x) {
  TORCH_CHECK(first.sizes() == x.sizes(), "factors of a derivative must have the shape of x");
  if (first.scalar_type() == x.scalar_type() && first.strides() == x.strides()) return first;
  return torch::empty_like(x).copy_(first);
}

Tensor bias_act(const Tensor& input, const std::optional<Tensor>& b, int64_t dim, int64_t function,
                double alpha, double gain, std::optional<double> clamp,
                const std::optional<Tensor>& first, const std::optional<Tensor>& other,
                bool from_output) {
  TORCH_CHECK(input.is_cuda(), "x must be a CUDA tensor");
  TORCH_CHECK(function >= kLinear && function <= kSwish, "no such activation: ", function);
  TORCH_CHECK(first || !other, "the second derivative needs both factors");
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = input.is_non_overlapping_and_dense() ? input : input.contiguous();
  Tensor y = torch::empty_like(x), bias, factors[2];
  if (x.numel() == 0) return y;
  Activation a = {};
  a.x = x.data_ptr(), a.y = y.data_ptr(), a.count = x.numel();
  a.channels = a.inner = 1;
  if (b) {
    a.channels = x.size(dim);
    if (a.channels > 1) a.inner = x.stride(dim);  // that of a single index can be anything
    TORCH_CHECK(b->numel() == a.channels, "b must have one number for every index of dim");
    bias = b->to(x.device(), x.scalar_type()).contiguous();
    a.bias = bias.data_ptr();
  }
  if (first) a.first = (factors[0] = like(*first, x)).data_ptr();
  if (other) a.other = (factors[1] = like(*other, x)).data_ptr();
  a.function = static_cast<int32_t>(function);
  a.order = static_cast<int32_t>(first.has_value() + other.has_value());
  a.from_output = from_output;
  a.alpha = alpha, a.gain = gain;
  a.clamp = clamp.value_or(std::numeric_limits<double>::infinity());
  a.dtype = dtype_of(x);
  activate(&a, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("upfirdn2d", &upfirdn2d);
  m.def("bias_act", &bias_act);
}
