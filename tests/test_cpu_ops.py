"""The C++ kernels of the CPU against PyTorch's operations, for several kinds of processor."""

from __future__ import annotations

import importlib.util
import math
import platform
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from stylegan2_fewshot import ops
from stylegan2_fewshot.ops import convolution, reference, resample
from stylegan2_fewshot.ops.convolve import convolve
from stylegan2_fewshot.ops.cpu import loader
from stylegan2_fewshot.ops.dispatch import SELECTED
from stylegan2_fewshot.ops.reference import ACTIVATIONS

KINDS = {"native": "-march=native"}
if platform.machine() in ("x86_64", "AMD64"):  # vectors of 8 and of 4 numbers
    KINDS |= {"avx2": "-march=x86-64-v3", "sse": "-march=x86-64"}
LAYOUTS = [torch.contiguous_format, torch.channels_last]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


@pytest.fixture(scope="module")
def built(compiler, tmp_path_factory):
    """The kernels of every kind, each compiled in a folder of its own."""
    return {
        kind: loader.load(flags=(flag,), folder=tmp_path_factory.mktemp(kind))
        for kind, flag in KINDS.items()
        if kind != "avx2" or "avx2" in loader.processor().split()
    }


@pytest.fixture(params=KINDS)
def kernels(request, built, monkeypatch):
    """The kernels of one kind, selected."""
    if request.param not in built:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setattr(SELECTED, "kernels", {"cpu": built[request.param]})
    return built[request.param]


def derivatives(function, *inputs):
    """Return a function's result, its gradients, and the gradients of a penalty on those."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    weights = torch.arange(y.numel()).reshape(y.shape).sin().to(y.dtype)
    first = torch.autograd.grad((y * weights).sum() + y.square().sum(), inputs, create_graph=True)
    penalty = sum(grad.float().square().sum() for grad in first)
    return [y, *first, *torch.autograd.grad(penalty, inputs)]


def expect_close(got, want, dtype):
    assert [x.shape for x in got] == [x.shape for x in want]
    for a, b in zip(got, want, strict=True):
        assert a.dtype is dtype
        error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=0.1)
        assert error.item() <= TOLERANCE[dtype]


CONVOLUTIONS = {  # images, outputs, padding; the last two are large enough for tiles of 4x4
    "even": ((2, 16, 8, 8), 32, (1, 1, 1, 1)),
    "odd": ((3, 48, 7, 5), 16, (1, 0, 2, 1)),
    "cropped": ((1, 64, 9, 12), 64, (-1, 1, 1, -2)),
    "one pixel": ((4, 16, 3, 3), 48, (0, 0, 0, 0)),
    "large": ((5, 32, 32, 30), 48, (1, 1, 1, 1)),
    "large and odd": ((3, 48, 41, 43), 16, (0, 1, 2, 0)),
}


def padded_convolution(sides):
    return lambda x, w: F.conv2d(F.pad(x, sides), w)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_and_derivatives(kernels, case, layout):
    shape, outputs, sides = CONVOLUTIONS[case]
    g = torch.Generator().manual_seed(len(case))
    x = torch.randn(shape, generator=g).contiguous(memory_format=layout)
    w = torch.randn(outputs, shape[1], 3, 3, generator=g)
    got = derivatives(lambda x, w: convolve(x, w, sides), x, w)
    want = derivatives(padded_convolution(sides), x.double(), w.double())
    expect_close(got, want, torch.float32)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_in_bfloat16(kernels, case):
    if not kernels.convolves_bfloat16:
        pytest.skip("this kind of processor has no products of bfloat16")
    shape, outputs, sides = CONVOLUTIONS[case]
    g = torch.Generator().manual_seed(len(case))
    x = torch.randn(shape, generator=g).bfloat16()
    w = torch.randn(outputs, shape[1], 3, 3, generator=g).bfloat16()
    got = derivatives(lambda x, w: convolve(x, w, sides), x, w)[:3]
    want = derivatives(padded_convolution(sides), x.double(), w.double())[:3]
    expect_close(got, want, torch.bfloat16)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 2), (torch.bfloat16, 4)])
def test_convolution_is_about_as_exact_as_pytorch_s(kernels, dtype, factor):
    """With as many channels as networks have. In bfloat16 intermediate values are rounded too."""
    if dtype is torch.bfloat16 and not kernels.convolves_bfloat16:
        pytest.skip("this kind of processor has no products of bfloat16")
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 512, 48, 48, generator=g), torch.randn(32, 512, 3, 3, generator=g)
    x, w = x.to(dtype).contiguous(memory_format=torch.channels_last), w.to(dtype)
    right = F.conv2d(x.double(), w.double(), padding=1)
    errors = [
        (y - right).square().mean().sqrt().item()
        for y in (convolve(x, w, (1, 1, 1, 1)), F.conv2d(x, w, padding=1))
    ]
    assert errors[0] <= factor * errors[1]


def test_what_memory_held_before_does_not_matter(kernels, monkeypatch):
    scratch = kernels.scratch
    monkeypatch.setattr(scratch, "memory", torch.empty(3_000_000))
    for shape, outputs in (((2, 16, 8, 8), 48), ((3, 48, 7, 5), 16), ((5, 48, 31, 33), 80)):
        x, w = torch.randn(shape).requires_grad_(), torch.randn(outputs, shape[1], 3, 3)
        scratch.memory.fill_(math.nan)
        y = convolve(x, w.requires_grad_(), (1, 1, 1, 1))
        scratch.memory.fill_(math.nan)
        for result in (y, *torch.autograd.grad(y.sum(), (x, w))):
            assert result.isfinite().all()
    assert scratch.memory.numel() == 3_000_000


def test_what_convolution_takes(kernels):
    def pays(shape=(8, 32, 32, 32), outputs=32, size=3, dtype=torch.float32, sides=(1, 1, 1, 1)):
        x, w = torch.empty(shape), torch.empty(outputs, shape[1], size, size)
        return kernels.takes_convolution(x.to(dtype), w.to(dtype), sides)

    assert pays() and pays(sides=(0, 1, -2, 5))
    assert not pays(size=1)
    assert not pays(outputs=24) and not pays((8, 40, 32, 32))
    assert not pays(dtype=torch.float64) and not pays(dtype=torch.float16)
    assert not pays((1, 512, 4, 4), outputs=512)  # for a few pixels, weights cost more
    assert not pays((1, 32, 2, 2), sides=(0, 0, 0, 0))
    assert pays(dtype=torch.bfloat16, shape=(8, 64, 32, 32), outputs=64) == bool(
        kernels.convolves_bfloat16
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
@pytest.mark.parametrize("shape", [(2, 32, 5, 7), (3, 5, 4, 3), (1, 16, 90, 80)])
def test_bias_act_and_derivatives(kernels, shape, act, layout, dtype):
    g = torch.Generator().manual_seed(shape[1])
    x = torch.randn(shape, generator=g).to(dtype).contiguous(memory_format=layout)
    b = torch.randn(shape[1], generator=g).to(dtype)
    for clamp, gain in ((None, None), (0.8, 1.5)):
        settings = dict(act=act, clamp=clamp, gain=gain)
        got = derivatives(lambda x, b, s=settings: ops.bias_act(x, b, **s), x, b)
        want = derivatives(lambda x, b, s=settings: ops.bias_act(x, b, **s), x.double(), b.double())
        if dtype is torch.bfloat16:  # the rest hangs on where rounding meets the clamp
            got, want = (got[:2], want[:2]) if clamp is None else (got[:1], want[:1])
        expect_close(got, want, dtype)
        assert got[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("shape", "dim"), [((6, 20), 1), ((6, 20), 0), ((7,), 0), ((2, 3, 4), -1)])
def test_bias_along_any_dimension(kernels, shape, dim):
    x, b = torch.randn(shape), torch.randn(shape[dim])
    for bias in (b, None):
        got = ops.bias_act(x, bias, dim=dim, act="lrelu", alpha=0.1)
        want = ops.bias_act(x.double(), None if bias is None else b.double(), dim, "lrelu", 0.1)
        torch.testing.assert_close(got, want.float())
    assert ops.bias_act(x[:0], b if dim else None, dim=dim).shape == x[:0].shape


def test_other_activations_stay_pytorch_s(kernels):
    x = torch.randn(2, 16, 3, 3)
    for act in ACTIVATIONS:
        want = ops.bias_act(x.double(), act=act).float()
        torch.testing.assert_close(ops.bias_act(x, act=act), want)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("seeds", [range(n, n + 20) for n in range(0, 60, 20)])
def test_upfirdn2d(kernels, seeds, dtype):
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)

        def draw(low, high, g=g):
            return int(torch.randint(low, high + 1, [], generator=g))

        f = torch.randn([draw(1, 9) for _ in range(draw(1, 2))], generator=g)
        up, down = ([draw(1, 3), draw(1, 3)] for _ in range(2))
        sides = [draw(-2, 6) for _ in range(4)]
        shape = draw(1, 2), 16 * draw(1, 5), draw(12, 20), draw(12, 20)
        x = torch.randn(shape, generator=g).to(dtype).contiguous(memory_format=LAYOUTS[seed % 2])
        arguments = up, down, sides, bool(seed % 3), 1.7
        got = resample.upfirdn2d(x, f, *arguments)
        want = reference.upfirdn2d(x.double(), f.double(), up, down, sides, *arguments[3:])
        expect_close([got], [want], dtype)


def test_gradients_of_upfirdn2d(kernels):
    x, f = torch.randn(2, 32, 9, 8), torch.tensor([[1.0, 2, 3, 1], [0, 1, 2, 0], [3, 1, 1, 1]])

    def resampled(x):
        return resample.upfirdn2d(x, f.to(x.dtype), up=2, down=[1, 3], padding=[2, 1, 3, 1]).sin()

    expect_close(derivatives(resampled, x), derivatives(resampled, x.double()), torch.float32)


def test_modulated_convolution_and_derivatives(kernels, monkeypatch):
    """With the product of images and styles, which is computed again for the gradients."""
    monkeypatch.setattr(convolution, "MUCH_MEMORY", 1)
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(s, generator=g) for s in ([4, 32, 16, 16], [48, 32, 3, 3], [4, 32])]
    f = resample.setup_filter([1, 3, 3, 1])
    for up in (1, 2):

        def convolved(x, w, s, up=up, **kwargs):
            return ops.modulated_conv2d(
                x, w, s, up=up, padding=1, resample_filter=f, flip_weight=up == 1, **kwargs
            )

        got = derivatives(lambda *a, c=convolved: c(*a, fused_modconv=False), *inputs)
        want = derivatives(lambda *a, c=convolved: c(*a), *(x.double() for x in inputs))
        expect_close(got, want, torch.float32)


def test_the_graph_keeps_no_modulated_images(kernels):
    x, w, s = torch.randn(4, 32, 64, 64), torch.randn(32, 32, 3, 3), torch.randn(4, 32)
    for tensor in (x, w, s):
        tensor.requires_grad_()
    nodes = [ops.modulated_conv2d(x, w, s, padding=1, fused_modconv=False).grad_fn]
    while not nodes[-1].name().startswith("_Convolution"):
        nodes.append(nodes[-1].next_functions[0][0])
    one, other = (nodes[-1].saved_tensors[0] for _ in range(2))
    assert one.data_ptr() != other.data_ptr()  # made anew
    assert torch.equal(one, other) and torch.equal(one, x * s[:, :, None, None])


def test_threads_do_not_change_a_bit(kernels):
    threads = torch.get_num_threads()
    x, w = torch.randn(4, 48, 33, 31), torch.randn(64, 48, 3, 3)
    f, b = resample.setup_filter([1, 3, 3, 1]), torch.randn(64)
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)

            def layer(x, w, b):
                y = convolve(x, w, (1, 1, 1, 1))
                return resample.filter2d(ops.bias_act(y, b, act="lrelu", clamp=20), f)

            results.append(derivatives(layer, x, w, b)[:3])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_transforms_of_torch_func_take_the_plain_path(kernels):
    w, x = torch.randn(16, 16, 3, 3), torch.randn(3, 2, 16, 12, 12)
    f, b = resample.setup_filter([1, 3, 3, 1]), torch.randn(16)

    def loss(w, x):
        y = ops.conv2d_resample(x, w, f, up=2, padding=1)
        return ops.bias_act(ops.conv2d_resample(y, w, padding=1), b, act="lrelu").square().mean()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x)
    for got, images in zip(each, x, strict=True):
        own = w.clone().requires_grad_()
        (want,) = torch.autograd.grad(loss(own, images), own)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_tensors_of_an_export_take_the_plain_path(kernels):
    with FakeTensorMode():
        x, w = torch.empty(2, 32, 16, 16), torch.empty(48, 32, 3, 3)
        y = ops.conv2d_resample(x, w, resample.setup_filter([1, 3, 3, 1]), up=2, padding=1)
        assert ops.bias_act(y, torch.empty(48), act="lrelu").shape == (2, 48, 32, 32)
    assert ops.conv2d_resample(x, w, padding=1).shape == (2, 48, 16, 16)  # outside the mode, too


def cross_compiler():
    """Return the command of a compiler for 64-bit ARM: Debian's, or that of PyPI's ziglang."""
    if program := shutil.which("aarch64-linux-gnu-g++"):
        return [program]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu"]
    return None


@pytest.mark.slow
@pytest.mark.parametrize("source", loader.SOURCES)
def test_kernels_compile_for_arm(source, tmp_path):
    compiler, built = cross_compiler(), tmp_path / "kernels.o"
    if compiler is None:
        pytest.skip("there is no compiler for 64-bit ARM: pip install ziglang")
    flags = [flag for flag in loader.FLAGS if flag != "-shared"]
    command = [*compiler, *flags, "-c", str(loader.FOLDER / source), "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    machine = int.from_bytes(built.read_bytes()[18:20], "little")  # in an ELF file's header
    assert machine == 183
