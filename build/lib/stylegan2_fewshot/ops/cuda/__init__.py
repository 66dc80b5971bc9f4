"""The kernels of NVIDIA's GPUs."""
