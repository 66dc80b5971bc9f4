"""Compile the C++ kernels of the CPU once for a processor, and load them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ... import cache
from ...files import replacing
from .. import reference
from ..dispatch import Kernels
from .kernels import CPUKernels

FOLDER = Path(__file__).parent
SOURCES = ("winograd.cpp", "bias_act.cpp", "upfirdn2d.cpp")
HEADERS = ("lanes.h",)
TOLERANCE = 1e-5
LANES = 16  # channels of images come in multiples of this
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared")
THIS_PROCESSOR = ("-march=native",)
COMPILERS = ("c++", "g++", "clang++")
# Signatures in a letter an argument, the result first; see _TYPES.
FUNCTIONS = {
    "winograd_has_bfloat16": "i",
    "winograd_forward": "l" + "ia" + "llllll" + "aala" + "ll" + "ali",
    "winograd_weight": "l" + "ia" + "llllll" + "alll" + "a" + "ali",
    "bias_act_forward": "v" + "iaa" + "lll" + "fff" + "ai",
    "bias_act_gradient": "v" + "iaa" + "l" + "fff" + "ai",
    "upfirdn2d": "v" + "ia" + "llll" + "allif" + "aaa" + "all" + "i",
}
_TYPES = {
    "i": ctypes.c_int32,
    "l": ctypes.c_int64,
    "f": ctypes.c_float,
    "a": ctypes.c_void_p,
    "v": None,
}


def load(flags: tuple[str, ...] = THIS_PROCESSOR, folder: Path | None = None) -> CPUKernels:
    """Return the kernels, compiled unless an earlier process has done so, and compared.

    Args:
        flags: What tells the compiler of the processor.
        folder: Where the library is kept; default the cache folder.

    Raises:
        RuntimeError: There is no compiler, it fails, or the results are not PyTorch's.
        OSError: The folder cannot be written, or the library cannot be loaded.
    """
    flags = (*FLAGS, *flags)
    content = b"".join((FOLDER / name).read_bytes() for name in (*SOURCES, *HEADERS))
    content += " ".join((*flags, processor())).encode()
    name = f"cpu-{hashlib.sha256(content).hexdigest()[:16]}"
    path = (cache.folder() / "kernels" if folder is None else folder) / name / "kernels.so"
    if not path.exists():
        build(path, flags)
    library = ctypes.CDLL(str(path))
    for name, signature in FUNCTIONS.items():
        function = getattr(library, name)
        result, *arguments = (_TYPES[letter] for letter in signature)
        function.restype, function.argtypes = result, arguments
    kernels = CPUKernels(library)
    verify(kernels)
    return kernels


def processor() -> str:
    """Return what code for this processor alone depends on."""
    lines = []
    if os.path.exists("/proc/cpuinfo"):
        wanted = ("model name", "flags", "Features", "CPU part")
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        lines = [line for line in text.splitlines() if line.startswith(wanted)]
    return "\n".join([platform.machine(), platform.processor(), *lines])


def compiler() -> str | None:
    """Return the C++ compiler of this machine, or None."""
    return os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)


def build(path: Path, flags: tuple[str, ...]) -> None:
    """Compile aside, so that neither a crash nor another process can spoil the result."""
    program = compiler()
    if program is None:
        raise RuntimeError("no C++ compiler was found; install g++")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as folder:
        built = Path(folder) / path.name
        command = [program, *flags, *(str(FOLDER / name) for name in SOURCES), "-o", str(built)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            lines = run.stderr.splitlines() or [f"{program} ended with status {run.returncode}"]
            raise RuntimeError(next((line for line in lines if "error" in line), lines[0]))
        with open(built, "rb") as source, replacing(path) as file:
            shutil.copyfileobj(source, file)


@torch.inference_mode(False)
def verify(kernels: Kernels) -> None:
    """Compare the kernels with the reference, on small inputs that are not random.

    Raises:
        RuntimeError: A result differs.
    """
    x = torch.arange(2 * 16 * 8 * 6).float().sin().reshape(2, 16, 8, 6)
    w = torch.arange(48 * 16 * 9).float().cos().reshape(48, 16, 3, 3)
    sides = (1, 1, 1, 1)
    with torch.enable_grad():
        leaf = w.clone().requires_grad_()
        want = reference.convolve(x, leaf, sides)
        (want_gradient,) = torch.autograd.grad(want, leaf, want)
    y = want.detach()
    _expect_equal("convolution", kernels.convolve(x, w, sides, False), y)
    gradient = kernels.convolution_weight_gradient(x, y, sides)
    _expect_equal("its gradient", gradient, want_gradient)
    resampling = w[0, :4, :, 0].contiguous(), (2, 2), (1, 1), (2, 1, 2, 1), False, 4.0
    _expect_equal(
        "upfirdn2d", kernels.upfirdn2d(x, *resampling), reference.upfirdn2d(x, *resampling)
    )
    settings = reference.BiasActSettings(1, "lrelu", 0.2, 1.5, 0.9)
    result = reference.bias_act(x, x[0, :, 0, 0], settings)
    _expect_equal("bias_act", kernels.bias_act(x, x[0, :, 0, 0], settings), result)
    derivatives = (
        which.bias_act_gradient(x, result, None, settings) for which in (kernels, reference)
    )
    _expect_equal("its gradient", *derivatives)


def _expect_equal(name: str, got: Tensor, want: Tensor) -> None:
    error = (got - want).abs().max().item() / want.abs().max().item()
    if not error <= TOLERANCE:
        raise RuntimeError(f"error: {name} is off by {error:.2g}")
