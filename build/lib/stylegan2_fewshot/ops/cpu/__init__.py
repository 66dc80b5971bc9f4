"""The C++ kernels of the CPU."""
