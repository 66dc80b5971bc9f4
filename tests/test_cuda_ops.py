"""The CUDA kernels: index arithmetic on the CPU, the compiler, and on a GPU the numbers."""

from __future__ import annotations

import math
import shutil
import subprocess

import pytest
import torch
from emulated_kernels import DTYPES, SOURCES, EmulatedKernels
from torch.autograd import gradcheck, gradgradcheck

from stylegan2_fewshot import ops
from stylegan2_fewshot.ops import reference, select
from stylegan2_fewshot.ops.cuda import loader
from stylegan2_fewshot.ops.cuda.kernels import CUDAKernels
from stylegan2_fewshot.ops.dispatch import SELECTED
from stylegan2_fewshot.ops.reference import ACTIVATIONS

CPU = torch.device("cpu")
EPSILON = {dtype: torch.finfo(dtype).eps for dtype in DTYPES[:3]} | {torch.float64: 1e-7}
SCALES = [(1, 1), (2, 1), (1, 2)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    return EmulatedKernels(tmp_path_factory.mktemp("kernels"), compiler)


@pytest.fixture
def as_kernels(emulated, monkeypatch):
    """Let the operations believe that the CPU has kernels."""
    monkeypatch.setattr(SELECTED, "kernels", {"cpu": CUDAKernels(emulated)})


@pytest.fixture
def cuda():
    """The GPU, with the kernels, which plain PyTorch afterwards replaces again."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda", 0)
    select("cuda", device)
    yield device
    select("torch", device)


def draw(generator, low, high):
    return int(torch.randint(low, high + 1, [], generator=generator))


def random_case(seed):
    """Draw images and arguments of upfirdn2d; every second case is one that tiles serve."""
    g = torch.Generator().manual_seed(seed)
    dtype, layout, is_common = DTYPES[seed // 2 % 4], LAYOUTS[seed // 8 % 2], seed % 2
    up, down = [(s, s) for s in SCALES[draw(g, 0, 2)]]
    taps, size = [[4, 4], [12]][draw(g, 0, 1)], (32, 90)
    if not is_common:
        up, down = [(draw(g, 1, 3), draw(g, 1, 3)) for _ in range(2)]
        taps, size = [draw(g, 1, 32) for _ in range(draw(g, 1, 2))], (1, 24)
    f = torch.randn(taps, generator=g)
    high, wide = (max(draw(g, *size), max(taps) + 8) for _ in range(2))
    x = torch.randn(draw(g, 1, 2), [1, 3, 8, 17][draw(g, 0, 3)], high, wide, generator=g)
    sides = tuple(draw(g, -4, 14) for _ in range(4))
    flip_filter = bool(draw(g, 0, 1))
    x = x.to(dtype).contiguous(memory_format=layout)
    return x, f, up, down, sides, flip_filter, 1.7


def expect_close(got, want, dtype, ulps=8):
    assert got.shape == want.shape
    scale = want.abs().max().clamp(min=1)
    assert ((got.double() - want).abs().max() / scale).item() <= ulps * EPSILON[dtype]


@pytest.mark.parametrize("seeds", [range(n, n + 20) for n in range(0, 160, 20)])
def test_resampling_by_emulated_kernels(emulated, seeds):
    for seed in seeds:
        x, f, *arguments = random_case(seed)
        got = emulated.upfirdn2d(x, f, *arguments)
        want = reference.upfirdn2d(x.double(), f.double(), *arguments)
        assert got.is_contiguous() or got.is_contiguous(memory_format=torch.channels_last)
        expect_close(got, want, x.dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("up", "down"), SCALES)
def test_tiles_serve_what_networks_do(emulated, up, down, layout):
    x = torch.randn(2, 16, 40 * down, 40 * down).contiguous(memory_format=layout)
    before = emulated.tiled
    emulated.upfirdn2d(x, torch.ones(4, 4), (up, up), (down, down), (2, 1, 2, 1), False, 1.0)
    assert emulated.tiled == before + 1
    emulated.upfirdn2d(x.contiguous(), torch.ones(12), (up, up), (down, down), (6,) * 4, False, 1.0)
    assert emulated.tiled == before + 2


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize(("up", "down"), SCALES)
@pytest.mark.parametrize(("channels", "begin"), [(16, 0), (24, 0), (12, 0), (16, 1)])
def test_neighbours_in_channels_last_are_read_together(emulated, up, down, dtype, channels, begin):
    count = 20 * 18 * channels
    memory = torch.randn(count + begin).to(dtype)[begin:]  # from 1 on, no pack lies where it has to
    x = memory.as_strided([1, channels, 20, 18], [count, 1, 18 * channels, channels])
    arguments = (up, up), (down, down), (2, 1, -2, 1), False, 1.0
    f, before = torch.randn(4, 4), emulated.tiled
    got = emulated.upfirdn2d(x, f, *arguments)
    assert emulated.tiled == before + 1
    expect_close(got, reference.upfirdn2d(x.double(), f.double(), *arguments), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_by_emulated_kernels(emulated, act, dtype):
    index, kind = list(ACTIVATIONS).index(act), ACTIVATIONS[act]
    shapes = [([2, 16, 3, 5], 1), ([2, 5, 3, 3], 1), ([4, 24], 1), ([3, 7], 0), ([6, 2, 4], -1)]
    for (shape, dim), clamp in zip(shapes, [None, 0.9, None, 0.5, None], strict=True):
        x = torch.randn(shape, dtype=torch.float64).mul(2).to(dtype)
        x = x.contiguous(memory_format=LAYOUTS[1]) if clamp is None and len(shape) == 4 else x
        b = torch.randn(shape[dim]).to(dtype)
        first, other = torch.randn_like(x), torch.randn_like(x)
        along = [-1 if i == dim % x.ndim else 1 for i in range(x.ndim)]
        v = (x.double() + b.double().reshape(along)).requires_grad_()
        y = kind.apply(v, kind.alpha) * 1.3
        bound = math.inf if clamp is None else clamp
        gradient = torch.autograd.grad(y.sum(), v, create_graph=True)[0] * (y.abs() < bound)
        second = torch.zeros_like(v)
        if kind.curved:
            second = torch.autograd.grad(gradient.sum(), v)[0]
        arguments = x, b, dim, index, kind.alpha, 1.3, clamp
        factors = [(None, None), (first, None), (first, other)]
        got = [emulated.bias_act(*arguments, *pair, False) for pair in factors]
        expect_close(got[0], y.clamp(-bound, bound), dtype)
        expect_close(got[1], gradient * first, dtype)
        expect_close(got[2], second * first * other, dtype)


def check_bias_act_gradients(device, act, clamp):
    x = torch.linspace(-2.1, 2.3, 2 * 3 * 2 * 3, dtype=torch.float64, device=device)
    x = x.reshape(2, 3, 2, 3).requires_grad_()
    b = torch.tensor([0.03, -0.4, 0.2], dtype=torch.float64, device=device, requires_grad=True)

    def run(x, b):
        return ops.bias_act(x, b, act=act, clamp=clamp)

    assert gradcheck(run, (x, b))
    assert gradgradcheck(run, (x, b))


def check_upfirdn2d_gradients(device, f, up, down):
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    f = f.to(device)

    def run(x):
        return ops.upfirdn2d(x, f, up=up, down=down, padding=[3, 2, 4, 1], gain=1.5)

    assert gradcheck(run, (x,))
    assert gradgradcheck(run, (x,))


@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_gradients(as_kernels, act, clamp):
    check_bias_act_gradients(CPU, act, clamp)


@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_gradients_without_kernels(act, clamp):
    check_bias_act_gradients(CPU, act, clamp)


@pytest.mark.parametrize("f", [torch.rand(4, 4), torch.rand(3)])
@pytest.mark.parametrize(("up", "down"), [*SCALES, ([3, 2], [2, 1])])
def test_upfirdn2d_gradients(as_kernels, f, up, down):
    check_upfirdn2d_gradients(CPU, f, up, down)


def test_negative_gain_and_slope_use_the_input(as_kernels):
    x = torch.linspace(-2, 2, 30, dtype=torch.float64).reshape(2, 3, 5).requires_grad_()
    assert gradcheck(lambda x: ops.bias_act(x, act="lrelu", alpha=-0.3), (x,))
    assert gradcheck(lambda x: ops.bias_act(x, act="lrelu", gain=-1.2), (x,))


def test_verification_passes_right_kernels_and_refuses_wrong_ones(emulated):
    loader.verify(CUDAKernels(emulated), CPU)

    class Wrong(CUDAKernels):
        def upfirdn2d(self, x, *arguments):
            return super().upfirdn2d(x, *arguments) * 1.01

    with pytest.raises(RuntimeError, match=r"upfirdn2d, \[4, 4\] taps, up 1, down 1"):
        loader.verify(Wrong(emulated), CPU)


@pytest.mark.parametrize("source", ["upfirdn2d.cu", "bias_act.cu"])
def test_nvcc_compiles_for_a100_and_h100(tmp_path, source):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    path = tmp_path / "kernels.fatbin"
    command = [nvcc, "-std=c++17", "-fatbin", "-Xcicc", "-O0", "-Xptxas", "-O0", "-o", str(path)]
    command += [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90)]
    # PyTorch defines these: halves have to be converted by name.
    command += ["-D__CUDA_NO_HALF_CONVERSIONS__", "-D__CUDA_NO_BFLOAT16_CONVERSIONS__"]
    subprocess.run([*command, str(SOURCES / source)], check=True)
    assert path.stat().st_size > 0


@pytest.mark.gpu
def test_kernels_agree_with_pytorch_on_the_gpu(cuda):
    for seed in range(160):
        x, f, *arguments = random_case(seed)
        got = SELECTED.kernels["cuda"].upfirdn2d(x.to(cuda), f.to(cuda), *arguments)
        want = reference.upfirdn2d(x.double(), f.double(), *arguments)
        expect_close(got.cpu(), want, x.dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_gradients_on_the_gpu(cuda, act, clamp):
    check_bias_act_gradients(cuda, act, clamp)


@pytest.mark.gpu
@pytest.mark.parametrize("f", [torch.rand(4, 4), torch.rand(5)])
@pytest.mark.parametrize(("up", "down"), SCALES)
def test_upfirdn2d_gradients_on_the_gpu(cuda, f, up, down):
    check_upfirdn2d_gradients(cuda, f, up, down)


@pytest.mark.gpu
def test_unaligned_and_transposed_input_on_the_gpu(cuda):
    x = torch.randn(1 + 2 * 8 * 33 * 35, device=cuda)[1:].reshape(2, 8, 33, 35)
    for images in (x, x.transpose(2, 3), x[:, :, ::2]):
        b = torch.randn(8, device=cuda)
        want = ops.bias_act(images.cpu(), b.cpu(), act="swish", clamp=1)
        expect_close(ops.bias_act(images, b, act="swish", clamp=1).cpu(), want.double(), x.dtype)
        want = ops.upsample2d(images.cpu(), ops.setup_filter([1, 3, 3, 1]))
        got = ops.upsample2d(images, ops.setup_filter([1, 3, 3, 1], device=cuda))
        expect_close(got.cpu(), want.double(), x.dtype)


@pytest.mark.gpu
def test_plain_path_inside_vmap_on_the_gpu(cuda):
    x, b = torch.randn(4, 2, 3, 8, 8, device=cuda), torch.randn(3, device=cuda)
    f = ops.setup_filter([1, 3, 3, 1], device=cuda)
    got = torch.vmap(lambda x: ops.upsample2d(ops.bias_act(x, b, act="lrelu"), f))(x)
    want = torch.stack([ops.upsample2d(ops.bias_act(one, b, act="lrelu"), f) for one in x])
    expect_close(got.cpu(), want.double().cpu(), x.dtype)
