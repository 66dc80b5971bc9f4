"""The choice between kernels and the reference, with builds that fail in every way known."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stylegan2_fewshot import ops
from stylegan2_fewshot.ops import reference, torch_internals
from stylegan2_fewshot.ops.cpu import loader as cpu_loader
from stylegan2_fewshot.ops.cuda import loader as cuda_loader
from stylegan2_fewshot.ops.dispatch import SELECTED, Kernels
from stylegan2_fewshot.ops.precision import reduced_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
COMPILER_OUTPUT = """Error building extension 'stylegan2_fewshot_kernels': [1/3] nvcc -c a.cu
FAILED: a.cuda.o
/usr/include/c++/12/mutex(86): error: identifier "x" is undefined
2 errors detected in the compilation of "a.cu".
"""
FAILURES = {
    COMPILER_OUTPUT: ['/mutex(86): error: identifier "x" is undefined; ', "needed are ninja"],
    "Ninja is required to load C++ extensions (pip install ninja)": ["pip install ninja"],
    "CUDA_HOME environment variable is not set. Please": ["the CUDA toolkit", "set CUDA_HOME"],
    "The detected CUDA version (12.1) mismatches the version": ["this PyTorch was built with"],
    "x.cpp:1:10: fatal error: Python.h: No such file": ["fatal error: Python.h", "python3-dev"],
    "CUDA error: no kernel image is available": ["support this GPU"],
    "[1/3] nvcc\nnvcc fatal   : Unsupported gpu": ["nvcc fatal   : Unsupported gpu; needed are"],
    "Command '['which', 'c++']' returned non-zero exit status 1.": ["install g++ 11 or newer"],
    "": ["RuntimeError('')"],
}


class Marked(Kernels):
    """Kernels that can be told from the reference: everything that they compute is 7."""

    def takes_upfirdn2d(self, x):
        return True

    def takes_bias_act(self, x, settings):
        return True

    def takes_convolution(self, x, w, sides):
        return True

    def upfirdn2d(self, x, *arguments):
        return torch.full_like(x, 7.0)

    def bias_act(self, x, b, settings):
        return torch.full_like(x, 7.0)

    def convolve(self, x, w, sides, turned):
        return x.new_full((len(x), len(w), *x.shape[2:]), 7.0)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Leave behind what was chosen before."""
    monkeypatch.setattr(SELECTED, "kernels", {})


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU that has kernels; returns how to make their build fail."""
    error: list[str] = []

    def load(device):
        if error:
            raise RuntimeError(error[0])
        return Marked()

    monkeypatch.setattr(cuda_loader, "load", load)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    return error


@pytest.fixture
def marked():
    SELECTED.kernels = {"cpu": Marked()}


def results():
    """Return what each operation makes of ones."""
    x, w = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    return [
        ops.upfirdn2d(x, torch.ones(1, 1)),
        ops.bias_act(x, act="lrelu"),
        ops.conv2d_resample(x, w, padding=1),
    ]


def test_kernels_serve_what_they_take(marked):
    assert all((result == 7).all() for result in results())
    SELECTED.kernels = {}
    assert not any((result == 7).all() for result in results())


@pytest.mark.parametrize("mode", ["auto", "cuda"])
def test_kernels_of_a_gpu_serve_it_alone(fake_gpu, mode):
    assert ops.select(mode, GPU) == "Operations: CUDA kernels for NVIDIA X."
    assert set(SELECTED.kernels) == {"cuda"}
    assert not any((result == 7).all() for result in results())


@pytest.mark.parametrize("device", [GPU, CPU])
def test_pytorch_is_chosen(fake_gpu, device):
    ops.select("auto", GPU)
    assert ops.select("torch", device) == f"Operations: PyTorch on {device.type}."
    assert SELECTED.kernels == {}


def test_kernels_of_the_cpu_are_chosen(fake_gpu, monkeypatch):
    ops.select("auto", GPU)
    monkeypatch.setattr(cpu_loader, "load", Marked)
    assert ops.select("auto", CPU) == "Operations: PyTorch and C++ kernels on cpu."
    assert set(SELECTED.kernels) == {"cpu"}


def test_without_kernels_of_the_cpu_pytorch_serves_and_a_line_says_why(monkeypatch):
    def load():
        raise RuntimeError("no C++ compiler was found; install g++")

    monkeypatch.setattr(cpu_loader, "load", load)
    line = ops.select("auto", CPU)
    assert "PyTorch on cpu, slower than with our kernels, which failed: no C++ compiler" in line
    assert SELECTED.kernels == {}


def test_importing_and_calling_the_library_starts_nothing(tmp_path):
    """No compiler, no process at all: an audit hook would end the program."""
    code = """
import sys

def audit(event, args):
    if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "ctypes.dlopen"):
        seen.append((event, args))

seen = []
import torch
from stylegan2_fewshot import ops
sys.addaudithook(audit)
x, w = torch.randn(2, 32, 32, 32), torch.randn(32, 32, 3, 3, requires_grad=True)
f = ops.setup_filter([1, 3, 3, 1])
y = ops.bias_act(ops.conv2d_resample(x, w, f, up=2, padding=1), torch.zeros(32), act="lrelu")
ops.conv2d_resample(y, w, padding=1).sum().backward()
sys.exit(str(seen) if seen else 0)
"""
    environment = {"STYLEGAN2_FEWSHOT_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_first_operation_inside_a_transform_changes_nothing(marked):
    def total(x):
        return ops.bias_act(x, act="lrelu").sum()

    (gradient,) = torch.func.grad(total)(torch.ones(1, 3)).unique()
    assert gradient == pytest.approx(2**0.5)
    assert all((result == 7).all() for result in results())


def test_exports_take_the_reference_and_onlookers_do_not_matter(marked):
    class Onlooker(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    x = torch.ones(1, 1, 3, 3)
    with Onlooker():
        assert (ops.bias_act(x, act="lrelu") == 7).all()
    with FakeTensorMode():
        assert not torch_internals.is_traced() or SELECTED.kernels_for(x) is None
        assert SELECTED.kernels_for(torch.ones(1)) is None
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x: ops.bias_act(x, act="lrelu"))(x)
    assert traced(x).unique() == pytest.approx(2**0.5)


def test_a_pytorch_without_private_names_is_slow_but_right(monkeypatch, marked):
    ours = SimpleNamespace(mkldnn=SimpleNamespace())
    bare = SimpleNamespace(_C=SimpleNamespace(), ops=ours, backends=torch.backends)
    monkeypatch.setattr(torch_internals, "torch", bare)
    assert torch_internals.transforms_are_active() and torch_internals.is_traced()
    assert not torch_internals.cpu_computes_bfloat16()
    got = results()
    SELECTED.kernels = {}
    monkeypatch.undo()
    assert all(torch.equal(a, b) for a, b in zip(got, results(), strict=True))


def test_transforms_and_exports_are_seen():
    def seen(x):
        assert torch_internals.transforms_are_active()
        return x

    torch.func.vmap(seen)(torch.ones(2))
    assert not torch_internals.transforms_are_active()
    with FakeTensorMode():
        assert torch_internals.is_traced()
    assert not torch_internals.is_traced()


def test_precision_follows_what_is_asked_and_the_device(monkeypatch):
    assert reduced_dtype("fp32", GPU) is torch.float32
    assert reduced_dtype("bf16", GPU) is torch.bfloat16
    assert reduced_dtype("auto", GPU) is torch.float16
    for computes, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch_internals, "cpu_computes_bfloat16", lambda c=computes: c)
        assert reduced_dtype("auto", CPU) is dtype
    with pytest.raises(ValueError, match="precision must be one of auto, fp32, fp16, bf16"):
        reduced_dtype("fp8", CPU)


def test_library_of_the_cpu_is_compiled_once(compiler, tmp_path, monkeypatch):
    cpu_loader.load(folder=tmp_path)
    (path,) = tmp_path.rglob("*.so")
    built = path.stat().st_mtime_ns
    cpu_loader.load(folder=tmp_path)
    assert path.stat().st_mtime_ns == built
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    cpu_loader.load(flags=("-O1",), folder=tmp_path)  # for another processor: another file
    assert len(list(tmp_path.rglob("*.so"))) == 2


def test_compilers_complaint_is_shown_and_nothing_kept(compiler, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match=r"error: .*no-such-option"):
        cpu_loader.load(flags=("--no-such-option",), folder=tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    monkeypatch.setattr(cpu_loader, "COMPILERS", ())
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler was found; install g\\+\\+"):
        cpu_loader.load(folder=tmp_path)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("upfirdn2d", "upfirdn2d"),
        ("bias_act", "bias_act"),
        ("bias_act_gradient", "its gradient"),
        ("convolve", "convolution"),
        ("convolution_weight_gradient", "its gradient"),
    ],
)
def test_wrong_kernels_of_the_cpu_are_refused(compiler, tmp_path, operation, name, monkeypatch):
    kernels = cpu_loader.load()
    right = getattr(kernels, operation)
    monkeypatch.setattr(kernels, operation, lambda *args: right(*args) * 1.001)
    with pytest.raises(RuntimeError, match=f"error: {name} is off by 0.001"):
        cpu_loader.verify(kernels)


@pytest.mark.parametrize("output", FAILURES)
def test_auto_does_without_kernels_of_a_gpu_and_says_why(fake_gpu, output):
    ops.select("auto", GPU)
    fake_gpu.append(output)
    line = ops.select("auto", GPU)
    assert line.startswith("Operations: PyTorch on cuda") and "\n" not in line
    assert all(part in line for part in FAILURES[output])
    assert SELECTED.kernels == {}


def test_cuda_makes_failure_an_error(fake_gpu):
    fake_gpu.append(COMPILER_OUTPUT)
    with pytest.raises(ValueError, match=r'--ops=cuda: .* error: identifier "x"'):
        ops.select("cuda", GPU)
    assert SELECTED.kernels == {}


def test_mistaken_choices():
    with pytest.raises(ValueError, match="--ops=cuda needs a CUDA device, got cpu"):
        ops.select("cuda", CPU)
    with pytest.raises(ValueError, match="--ops must be one of auto, cuda, torch, got 'triton'"):
        ops.select("triton", CPU)


def test_cache_is_per_pytorch_cuda_gpu_and_source(monkeypatch, tmp_path):
    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path))
    folders = {cuda_loader.cache_folder((8, 0)), cuda_loader.cache_folder((9, 0))}
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    folders.add(cuda_loader.cache_folder((9, 0)))
    monkeypatch.setattr(torch, "__version__", "99.2")
    folders.add(cuda_loader.cache_folder((9, 0)))
    monkeypatch.setattr(cuda_loader, "HEADERS", ())
    folders.add(cuda_loader.cache_folder((9, 0)))
    assert len(folders) == 5 and all(folder.parent == tmp_path / "kernels" for folder in folders)


def test_cuda_build_is_kept_whole_or_not_at_all(monkeypatch, tmp_path):
    from torch.utils import cpp_extension

    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def compile_(name, sources, build_directory, extra_cuda_cflags, with_cuda):
        assert "-gencode=arch=compute_90,code=sm_90" in extra_cuda_cflags
        if failing:
            raise RuntimeError("error: no")
        path = f"{build_directory}/{name}.so"
        with open(path, "w") as file:
            file.write("built")
        return SimpleNamespace(__file__=path)

    monkeypatch.setattr(cpp_extension, "load", compile_)
    failing = True
    with pytest.raises(RuntimeError):
        cuda_loader.extension(GPU)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    failing = False
    assert cuda_loader.extension(GPU).__file__.endswith(".so")
    failing = True  # from now on the cache must do
    with pytest.raises(ImportError):  # it holds the word that the compiler wrote
        cuda_loader.extension(GPU)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [
        f"{cuda_loader.NAME}.so"
    ]


def test_reference_is_what_runs_without_a_choice():
    x = torch.randn(2, 16, 8, 8)
    f = ops.setup_filter([1, 3, 3, 1])
    got = ops.upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1])
    want = reference.upfirdn2d(x, f, (2, 2), (1, 1), (2, 1, 2, 1), False, 1.0)
    assert torch.equal(got, want)
