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
import torch.nn.functional as F

from ..files import replacing

FOLDER = Path(__file__).parent / "cpu"
SOURCES = ("winograd.cpp", "bias_act.cpp", "upfirdn2d.cpp")
HEADERS = ("lanes.h",)
TOLERANCE = 1e-5
LANES = 16  # channels of images come in multiples of this
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")
# Signatures in a letter an argument, the result first; see _TYPES.
FUNCTIONS = {
    "winograd_has_bfloat16": "i",
    "winograd_forward": "l" + "ia" + "llllll" + "aala" + "ll" + "ali",
    "winograd_weight": "l" + "ia" + "llllll" + "alll" + "a" + "ali",
    "bias_act_forward": "v" + "iaa" + "lll" + "fff" + "ai",
    "bias_act_gradient": "v" + "iaa" + "l" + "fff" + "ai",
    "upfirdn2d": "v" + "ia" + "llll" + "all" + "aaa" + "all" + "i",
}
_TYPES = {
    "i": ctypes.c_int32,
    "l": ctypes.c_int64,
    "f": ctypes.c_float,
    "a": ctypes.c_void_p,
    "v": None,
}


def cache_root() -> Path:
    """Return where compiled kernels are kept: TORCH_EXTENSIONS_DIR, or the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "stylegan2_fewshot")


def load() -> ctypes.CDLL:
    """Return the library, compiled unless an earlier process has done so, and compared.

    Raises:
        RuntimeError: There is no compiler, it fails, or the results are not PyTorch's.
        OSError: The cache folder cannot be written, or the library cannot be loaded.
    """
    content = b"".join((FOLDER / name).read_bytes() for name in (*SOURCES, *HEADERS))
    content += " ".join((*FLAGS, _processor())).encode()
    path = cache_root() / f"cpu-{hashlib.sha256(content).hexdigest()[:16]}" / "kernels.so"
    if not path.exists():
        _compile(path)
    library = ctypes.CDLL(str(path))
    for name, signature in FUNCTIONS.items():
        function = getattr(library, name)
        result, *arguments = (_TYPES[letter] for letter in signature)
        function.restype, function.argtypes = result, arguments
    _verify(library)
    return library


def _processor() -> str:
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


def _compile(path: Path) -> None:
    """Compile aside, so that neither a crash nor another process can spoil the result."""
    program = compiler()
    if program is None:
        raise RuntimeError("no C++ compiler was found; install g++")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as folder:
        built = Path(folder) / path.name
        command = [program, *FLAGS, *(str(FOLDER / name) for name in SOURCES), "-o", str(built)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            lines = run.stderr.splitlines() or [f"{program} ended with status {run.returncode}"]
            raise RuntimeError(next((line for line in lines if "error" in line), lines[0]))
        with open(built, "rb") as source, replacing(path) as file:
            shutil.copyfileobj(source, file)


@torch.inference_mode(False)
@torch.enable_grad()
def _verify(library: ctypes.CDLL) -> None:
    """Compare with PyTorch on small inputs that are no random numbers."""
    from . import winograd

    x = torch.arange(2 * 16 * 8 * 6).float().sin().reshape(2, 16, 8, 6)
    w = torch.arange(48 * 16 * 9).float().cos().reshape(48, 16, 3, 3).requires_grad_()
    want = F.conv2d(x, w, padding=1)
    (want_gradient,) = torch.autograd.grad(want, w, want)
    sides = (1, 1, 1, 1)
    got = winograd.forward(library, x, w, sides, False)
    got_gradient = winograd.weight_gradient(library, x, want, sides)
    for name, result, right in (
        ("convolution", got, want),
        ("its gradient", got_gradient, want_gradient),
    ):
        error = (result - right).abs().max().item() / right.abs().max().item()
        if not error <= TOLERANCE:
            raise RuntimeError(f"error: {name} is off by {error:.2g}")
