"""Compile the CUDA kernels once for a PyTorch, a CUDA and a GPU, and load them."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import cache
from ...files import replacing
from .. import reference
from ..dispatch import Kernels
from ..reference import ACTIVATIONS, BiasActSettings
from .kernels import CUDAKernels

NAME = "stylegan2_fewshot_kernels"
FOLDER = Path(__file__).parent
SOURCES = ("binding.cpp", "upfirdn2d.cu", "bias_act.cu")
HEADERS = ("kernels.h", "device.cuh")


def load(device: torch.device) -> CUDAKernels:
    """Return the kernels for the GPU `device`, compiled unless an earlier call has done so.

    Raises:
        Exception: Whatever stops the compiler or the loader, or a wrong result; see `explain`.
    """
    kernels = CUDAKernels(extension(device))
    verify(kernels, device)
    return kernels


def extension(device: torch.device) -> Any:
    """Return the extension module for the GPU `device`, compiled if there is none."""
    capability = torch.cuda.get_device_capability(device)
    path = cache_folder(capability) / f"{NAME}.so"
    return _import(path) if path.exists() else _compile(path, capability)


def cache_folder(capability: tuple[int, int]) -> Path:
    """Return the folder of the extension for this PyTorch and CUDA, these sources and a GPU."""
    content = b"".join((FOLDER / name).read_bytes() for name in (*SOURCES, *HEADERS))
    major, minor = capability
    parts = [
        f"torch{torch.__version__}",
        f"cuda{torch.version.cuda}",
        f"sm{major}{minor}",
        hashlib.sha256(content).hexdigest()[:12],
    ]
    return cache.folder() / "kernels" / "-".join(parts)


def explain(error: BaseException) -> str:
    """Return a build's first line of error and what to install, in one line."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [repr(error)]
    first = next((line for line in lines if re.search(r"\b(error|fatal)\s*:", line)), lines[0])
    cuda = f"the CUDA toolkit {torch.version.cuda or ''}".strip()
    remedies = {
        r"Ninja is required": "install ninja: pip install ninja",
        r"CUDA_HOME|nvcc.*not found|No such file.*nvcc": f"install {cuda} and set CUDA_HOME to it",
        r"mismatches the version": f"install {cuda}, which this PyTorch was built with",
        r"Python\.h": "install Python's headers: python3-dev",
        r"unsupported (GNU|clang) version": f"install a C++ compiler that {cuda} supports",
        r"which.*\+\+|\+\+.*not found|No such file.*\+\+": "install g++ 11 or newer",
        r"no kernel image": f"install a PyTorch and {cuda} that support this GPU",
    }
    general = f"needed are ninja, a C++ compiler and {cuda}"
    remedy = next((cure for sign, cure in remedies.items() if re.search(sign, text)), general)
    return f"{first}; {remedy}"


def _compile(path: Path, capability: tuple[int, int]) -> Any:
    """Compile aside, so that neither a crash nor another process can spoil the result."""
    from torch.utils import cpp_extension  # slow to import

    path.parent.mkdir(parents=True, exist_ok=True)
    target = "{}{}".format(*capability)
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as folder:
        module = cpp_extension.load(
            NAME,
            [str(FOLDER / source) for source in SOURCES],
            extra_cuda_cflags=["-O3", f"-gencode=arch=compute_{target},code=sm_{target}"],
            build_directory=folder,
            with_cuda=True,
        )
        with open(module.__file__, "rb") as source, replacing(path) as file:
            shutil.copyfileobj(source, file)
    return module


def _import(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not an extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verify(kernels: Kernels, device: torch.device) -> None:
    """Compare the kernels with the reference on the CPU, on small inputs that are not random.

    Raises:
        RuntimeError: A result differs.
    """
    x = torch.arange(2 * 8 * 40 * 36).float().sin().reshape(2, 8, 40, 36)
    for dtype in (torch.float32, torch.float16):
        for layout in (torch.contiguous_format, torch.channels_last):
            images = x.to(dtype).contiguous(memory_format=layout)
            _verify_upfirdn2d(kernels, images, device)
            for act in ACTIVATIONS:
                _verify_bias_act(kernels, images, device, act)


def _verify_upfirdn2d(kernels: Kernels, x: Tensor, device: torch.device) -> None:
    taps = torch.tensor([0.1, 0.3, 0.4, 0.2])
    for f in (torch.outer(taps, taps), taps.repeat(3), taps[:3]):
        for up, down in ((1, 1), (2, 1), (1, 2)):
            arguments = (up, up), (down, down), (6, 5, 5, 6), False, 1.5
            got = kernels.upfirdn2d(x.to(device), f.to(device), *arguments)
            want = reference.upfirdn2d(x.float(), f, *arguments)
            _expect_equal(got, want, f"upfirdn2d, {list(f.shape)} taps, up {up}, down {down}")


@torch.enable_grad()
def _verify_bias_act(kernels: Kernels, x: Tensor, device: torch.device, act: str) -> None:
    kind, b = ACTIVATIONS[act], x[0, :, 0, 0]
    settings = BiasActSettings(1, act, kind.alpha, 1.5, None)
    v = (x.float() + b.float()[:, None, None]).requires_grad_()
    y = 1.5 * kind.apply(v, kind.alpha)
    (slope,) = torch.autograd.grad(y.sum(), v, create_graph=kind.curved)
    on_device, bias = x.to(device), b.to(device)
    one = torch.ones_like(on_device)
    result = kernels.bias_act(on_device, bias, settings)
    _expect_equal(result, y.detach(), f"bias_act, {act}")
    kept, added = (result, None) if settings.gradient_reads_output else (on_device, bias)
    gradient = kernels.bias_act_gradient(one, kept, added, settings)
    _expect_equal(gradient, slope.detach(), f"bias_act, {act}, gradient")
    if kind.curved:
        (curvature,) = torch.autograd.grad(slope.sum(), v)
        got = kernels.bias_act_curvature(one, one, on_device, bias, settings)
        _expect_equal(got, curvature, f"bias_act, {act}, curvature")


def _expect_equal(got: Tensor, want: Tensor, what: str) -> None:
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3}[got.dtype]
    error = (got.cpu().float() - want).abs().max().item()
    if not error <= tolerance * max(1.0, want.abs().max().item()):
        raise RuntimeError(f"error: {what}, {got.dtype}: off by {error:.2g}")
