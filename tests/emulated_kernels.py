"""The CUDA kernels' own source, compiled for the CPU, behind the interface of the binding."""

from __future__ import annotations

import ctypes
import math
import subprocess
from pathlib import Path

import torch

TESTS = Path(__file__).parent
SOURCES = TESTS.parent / "stylegan2_fewshot" / "ops" / "cuda"
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
CHECKS = "bounds,signed-integer-overflow,integer-divide-by-zero"


def structure(name, *groups):
    fields = [(field, kind) for kind, fields in groups for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Resampling = structure(
    "Resampling",
    (ctypes.c_void_p, "x y filter"),
    (ctypes.c_int64, "planes minor"),
    (ctypes.c_int32, "in_x in_y out_x out_y up_x up_y down_x down_y left top taps_x taps_y"),
    (ctypes.c_int32, "separable flip_filter"),
    (ctypes.c_double, "gain"),
    (ctypes.c_int32, "dtype"),
)
Activation = structure(
    "Activation",
    (ctypes.c_void_p, "x bias first other y"),
    (ctypes.c_int64, "count channels inner"),
    (ctypes.c_int32, "function order from_output"),
    (ctypes.c_double, "alpha gain clamp"),
    (ctypes.c_int32, "dtype"),
)


def pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


class EmulatedKernels:
    """What `binding.cpp` offers, on the CPU."""

    def __init__(self, folder, compiler):
        path = Path(folder) / "kernels.so"
        sources = [str(SOURCES / name) for name in ("upfirdn2d.cu", "bias_act.cu")]
        command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", f"-fsanitize={CHECKS}"]
        command += ["-fsanitize-undefined-trap-on-error", f"-I{TESTS / 'emulation'}", "-x", "c++"]
        subprocess.run([*command, *sources, "-o", str(path)], check=True)
        self.library = ctypes.CDLL(str(path))
        self.library.resamples_in_tiles.restype = ctypes.c_bool
        self.tiled = 0

    def upfirdn2d(self, x, f, up, down, padding, flip_filter, gain):
        call = self._resample(x, f, up, down, padding, flip_filter, gain)
        if call is not None:
            return call
        left, right, top, bottom = padding
        x = self._resample(
            x, f[None], (up[0], 1), (down[0], 1), (left, right, 0, 0), flip_filter, 1
        )
        return self._resample(
            x, f[:, None], (1, up[1]), (1, down[1]), (0, 0, top, bottom), flip_filter, gain
        )

    def _resample(self, x, f, up, down, padding, flip_filter, gain):
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        count, channels, high, wide = x.shape
        left, right, top, bottom = padding
        taps_y, taps_x = f.shape[0], f.shape[-1]
        out_x = (wide * up[0] + left + right - taps_x) // down[0] + 1
        out_y = (high * up[1] + top + bottom - taps_y) // down[1] + 1
        y = torch.full((count, channels, out_y, out_x), math.nan, dtype=x.dtype)
        y = y.contiguous(memory_format=torch.channels_last) if last else y
        arguments = Resampling(
            x=x.data_ptr(), y=y.data_ptr(), filter=f.data_ptr(),
            planes=count if last else count * channels, minor=channels if last else 1,
            in_x=wide, in_y=high, out_x=out_x, out_y=out_y, up_x=up[0], up_y=up[1],
            down_x=down[0], down_y=down[1], left=left, top=top, taps_x=taps_x, taps_y=taps_y,
            separable=f.ndim == 1, flip_filter=flip_filter, gain=gain, dtype=DTYPES.index(x.dtype),
        )  # fmt: skip
        tiles = self.library.resamples_in_tiles(ctypes.byref(arguments))
        if f.ndim == 1 and not tiles:
            return None
        self.tiled += tiles
        self.library.resample_images(ctypes.byref(arguments), None)
        return y

    def bias_act(self, x, b, dim, function, alpha, gain, clamp, first, other, from_output):
        y, b = torch.full_like(x, math.nan), None if b is None else b.contiguous()
        first, other = (None if t is None else torch.empty_like(x).copy_(t) for t in (first, other))
        arguments = Activation(
            x=pointer(x), bias=pointer(b), first=pointer(first), other=pointer(other), y=pointer(y),
            count=x.numel(), channels=x.shape[dim], inner=x.stride(dim), function=function,
            order=(first is not None) + (other is not None), from_output=from_output,
            alpha=alpha, gain=gain, clamp=math.inf if clamp is None else clamp,
            dtype=DTYPES.index(x.dtype),
        )  # fmt: skip
        self.library.activate(ctypes.byref(arguments), None)
        return y
