"""The choice between kernels and PyTorch, with builds that fail in every way known."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from stylegan2_fewshot.ops import backend, build, native

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


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Leave behind what was chosen before."""
    for name in ("_KERNELS", "_NATIVE", "_NATIVE_IS_WANTED"):
        monkeypatch.setattr(backend, name, getattr(backend, name))


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU for which kernels are built that say who they are; returns how to make that fail."""
    error: list[str] = []

    def load(device):
        if error:
            raise RuntimeError(error[0])
        return "kernels"

    monkeypatch.setattr(build, "load", load)
    monkeypatch.setattr(build, "verify", lambda kernels, device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    return error


def on_gpu(**attributes):
    return SimpleNamespace(is_cuda=True, **attributes)


def served(x):
    return backend.kernels(x)


@pytest.fixture(autouse=True)
def _not_transformed(monkeypatch):
    monkeypatch.setattr(backend, "_is_transformed", lambda x: getattr(x, "transformed", False))


@pytest.mark.parametrize("mode", ["auto", "cuda"])
def test_kernels_serve_the_gpu_alone(fake_gpu, mode):
    assert backend.select(mode, GPU) == "Operations: CUDA kernels for NVIDIA X."
    assert served(on_gpu()) == "kernels"
    assert served(on_gpu(transformed=True)) is None
    assert backend.kernels(on_gpu(), on_gpu(transformed=True)) is None
    assert served(torch.ones(1)) is None


@pytest.mark.parametrize("device", [GPU, CPU])
def test_pytorch_is_chosen(fake_gpu, device):
    backend.select("auto", GPU)
    assert backend.select("torch", device) == f"Operations: PyTorch on {device.type}."
    assert served(on_gpu()) is None
    assert backend.native(torch.ones(1)) is None


def test_kernels_of_the_cpu_serve_it_alone(fake_gpu, monkeypatch):
    backend.select("auto", GPU)
    monkeypatch.setattr(native, "load", lambda: "library")
    assert backend.select("auto", CPU) == "Operations: PyTorch and C++ kernels on cpu."
    assert served(on_gpu()) is None
    for dtype in (torch.float32, torch.bfloat16):
        assert backend.native(torch.ones(1, dtype=dtype)) == "library"
    for other in (torch.ones(1, dtype=torch.float64), torch.ones(1, device="meta")):
        assert backend.native(other) is None


def test_without_a_choice_kernels_of_the_cpu_are_loaded_once(monkeypatch):
    calls = []
    monkeypatch.setattr(native, "load", lambda: calls.append(1) or "library")
    monkeypatch.setattr(backend, "_NATIVE_IS_WANTED", True)
    assert backend.native(torch.ones(1)) == backend.native(torch.ones(2)) == "library"
    assert calls == [1]


@pytest.mark.parametrize("is_chosen", [True, False])
def test_without_kernels_of_the_cpu_it_goes_on_and_says_why(monkeypatch, is_chosen):
    def load():
        raise RuntimeError("no C++ compiler was found; install g++")

    monkeypatch.setattr(native, "load", load)
    monkeypatch.setattr(backend, "_NATIVE_IS_WANTED", True)
    reason = "PyTorch on cpu, slower than with our kernels, which failed: no C++ compiler"
    if is_chosen:
        assert reason in backend.select("auto", CPU)
    else:
        with pytest.warns(UserWarning, match=re.escape(reason)):
            assert backend.native(torch.ones(1)) is None
    assert backend.native(torch.ones(1)) is None  # and no second warning


@pytest.fixture
def own_cache(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path


def test_library_of_the_cpu_is_compiled_once(own_cache, monkeypatch):
    native.load()
    (path,) = own_cache.rglob("*.so")
    monkeypatch.setattr(native, "_compile", None)
    native.load()
    monkeypatch.setattr(native, "_processor", lambda: "another")
    with pytest.raises(TypeError):  # compiles for another processor
        native.load()
    assert [file for file in own_cache.rglob("*") if file.is_file()] == [path]


def test_compilers_complaint_is_shown_and_nothing_kept(own_cache, monkeypatch):
    broken = own_cache / "broken.cpp"
    broken.write_text("int f() { return unknown; }\n")
    monkeypatch.setattr(native, "SOURCES", (str(broken),))
    with pytest.raises(RuntimeError, match=r"error: .unknown. was not declared"):
        native.load()
    assert [file for file in own_cache.rglob("*") if file.is_file()] == [broken]
    monkeypatch.setattr(native, "COMPILERS", ())
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler was found; install g\\+\\+"):
        native.load()


def test_wrong_library_of_the_cpu_is_not_used(own_cache, monkeypatch):
    monkeypatch.setattr(native, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match="is off by"):
        native.load()


@pytest.mark.parametrize("output", FAILURES)
def test_auto_goes_on_without_kernels_and_says_why(fake_gpu, output):
    backend.select("auto", GPU)
    fake_gpu.append(output)
    line = backend.select("auto", GPU)
    assert line.startswith("Operations: PyTorch on cuda") and "\n" not in line
    assert all(part in line for part in FAILURES[output])
    assert served(on_gpu()) is None


def test_cuda_makes_failure_an_error(fake_gpu):
    fake_gpu.append(COMPILER_OUTPUT)
    with pytest.raises(ValueError, match=r'--ops=cuda: .* error: identifier "x"'):
        backend.select("cuda", GPU)
    assert served(on_gpu()) is None


def test_wrong_kernels_are_not_used(fake_gpu, monkeypatch):
    def verify(kernels, device):
        raise RuntimeError("error: bias_act, lrelu: off by 0.1")

    monkeypatch.setattr(build, "verify", verify)
    assert "bias_act, lrelu: off by 0.1" in backend.select("auto", GPU)
    assert served(on_gpu()) is None


def test_mistaken_choices():
    with pytest.raises(ValueError, match="--ops=cuda needs a CUDA device, got cpu"):
        backend.select("cuda", CPU)
    with pytest.raises(ValueError, match="--ops must be one of auto, cuda, torch, got 'triton'"):
        backend.select("triton", CPU)


def test_cache_is_per_pytorch_cuda_gpu_and_source(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folders = {build.cache_folder((8, 0)), build.cache_folder((9, 0))}
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    folders.add(build.cache_folder((9, 0)))
    monkeypatch.setattr(torch, "__version__", "99.2")
    folders.add(build.cache_folder((9, 0)))
    monkeypatch.setattr(build, "HEADERS", ())
    folders.add(build.cache_folder((9, 0)))
    assert len(folders) == 5 and all(folder.parent == tmp_path for folder in folders)


def test_build_is_kept_whole_or_not_at_all(monkeypatch, tmp_path):
    from torch.utils import cpp_extension

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(build, "_import", lambda path: path.read_text())

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
        build.load(GPU)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    failing = False
    assert build.load(GPU).__file__.endswith(".so")
    failing = True  # from now on the cache must do
    assert build.load(GPU) == "built"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{build.NAME}.so"]
