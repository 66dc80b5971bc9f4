"""Time one code base in one process: operations, generator and training phases.

Started by `python -m benchmarks`, once per measurement. It imports nothing of this repository but
by way of --root, so that it can serve the original as well: both have `training.networks` and a
loss with `accumulate_gradients`. Every line of output is a JSON object `{"row": ..., "value": ...}`
with seconds or GiB, or `{"note": ...}`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple


class Case(NamedTuple):
    """Networks and a batch."""

    resolution: int
    channel_base: int
    channel_max: int
    dim: int  # of z and w
    batch: int


CASES = {
    "tiny32": Case(32, 1024, 32, 32, 8),
    "demo64": Case(64, 2048, 96, 128, 16),
    "train64": Case(64, 16384, 512, 512, 8),
    "train256": Case(256, 16384, 512, 512, 16),
    "train1024": Case(1024, 32768, 512, 512, 4),
}
TRANSFORMS = (
    "xflip rotate90 xint scale rotate aniso xfrac brightness contrast lumaflip hue saturation"
)
AUGMENT_P = 0.2
SEEDS = 3
PEAKS: list[float] = []  # of the GPU's memory in GiB, between calls of `forget_peak`
Values = dict[str, float]
CHOICES: dict[str, Callable[[], None]] = {"": lambda: None}  # of kernels, by the name of the side


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--what", choices=["ops", "pipe", *CASES], required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--nhwc", action="store_true")
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--ops", default="auto")
    parser.add_argument("--variants", action="store_true", help="without kernels, in turn")
    parser.add_argument("--avx2", action="store_true", help="as on processors without AVX-512")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's seconds")
    parser.add_argument("--batch", type=int, help="in place of the case's own")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--reps", type=int, default=3)
    return parser.parse_args()


args = parse()
sys.path[0] = args.root  # in place of this folder
clock = time.process_time if args.cpu_time else time.perf_counter
if args.avx2:  # PyTorch and its libraries read these when they are loaded
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
    os.environ |= dict.fromkeys(("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"), "AVX2")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

DEVICE = torch.device(args.device)
IS_OURS = (Path(args.root) / "stylegan2_fewshot").is_dir()


def emit(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def seconds(fn: Callable[[], object]) -> float:
    """Return the shortest of the timed calls, after one that is not timed."""
    return min([once(fn) for _ in range(args.reps + 1)][1:])


def once(fn: Callable[[], object]) -> float:
    synchronize()
    start = clock()
    fn()
    synchronize()
    return clock() - start


def in_turn(row: str, fn: Callable[[], object]) -> Values:
    """Time a function with each choice of kernels; emit the results, by side, and return them.

    On a GPU also its peak memory, without that of its first time, when cuDNN tries algorithms.
    """
    times: dict[str, list[float]] = {side: [] for side in CHOICES}
    for number in range(args.reps + 1):
        if number == 1:
            forget_peak()
        for side, choose in CHOICES.items():
            choose()
            times[side].append(once(fn))
    took = {side: min(each[1:]) for side, each in times.items()}
    emit_all(row, took)
    if DEVICE.type == "cuda":
        emit(row=f"{row}: peak GiB", value=torch.cuda.max_memory_allocated() / 2**30)
    return took


def emit_all(row: str, values: Values) -> None:
    for side, value in values.items():
        emit(row=row, value=value, **({"side": side} if side else {}))


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def set_up() -> None:
    """Choose precision and operations, which the original does by itself."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if IS_OURS:
        from stylegan2_fewshot.ops import select

        emit(note=select(args.ops, DEVICE))
        if DEVICE.type == "cpu" and args.ops != "torch":
            choose_kernels()
        return
    if args.precision == "bf16":
        raise SystemExit("the original has no bf16; compare with --precision=fp16 or fp32")
    if DEVICE.type == "cuda":
        let_original_find_its_kernels()


def choose_kernels() -> None:
    """Build the CPU's kernels for AVX2, and offer choices of them, as the options say."""
    from stylegan2_fewshot.ops.cpu import kernels, loader
    from stylegan2_fewshot.ops.dispatch import SELECTED

    if args.avx2:
        SELECTED.kernels = {"cpu": loader.load(("-mavx2", "-mfma"))}
    if not args.variants:
        return
    library = SELECTED.kernels["cpu"].library  # type: ignore[attr-defined]
    sets = {"": kernels.OPERATIONS, "PyTorch": frozenset()}
    sets |= {f"no {name}": kernels.OPERATIONS - {name} for name in sorted(kernels.OPERATIONS)}

    def choose(served: frozenset[str]) -> None:
        SELECTED.kernels = {"cpu": kernels.CPUKernels(library, served)} if served else {}

    CHOICES.clear()
    CHOICES.update({side: partial(choose, served) for side, served in sets.items()})


def let_original_find_its_kernels() -> None:
    """Enter what `cpp_extension.load` returns where the original imports it from, by name.

    PyTorch 2 does not enter it there, so that the original would fall back to its slow reference.
    """
    from torch.utils import cpp_extension

    load = cpp_extension.load

    def load_and_enter(name: str, **options: Any) -> Any:
        module = sys.modules[name] = load(name=name, **options)
        return module

    cpp_extension.load = load_and_enter  # type: ignore[assignment]


def operations() -> tuple[Any, Any, Any]:
    if IS_OURS:
        from stylegan2_fewshot.ops import bias_act, conv2d_resample, upfirdn2d

        return upfirdn2d, bias_act, conv2d_resample
    from torch_utils.ops import bias_act as bias_act_module  # type: ignore[import-not-found]
    from torch_utils.ops import conv2d_resample as conv2d_module
    from torch_utils.ops import upfirdn2d as upfirdn2d_module

    return upfirdn2d_module.upfirdn2d, bias_act_module.bias_act, conv2d_module.conv2d_resample


def time_ops() -> None:
    """Time each operation, forward alone and with its gradient, and a copy of as many bytes."""
    shape = (32, 128, 128, 128) if DEVICE.type == "cuda" else (4, 32, 64, 64)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.precision]
    layout = torch.channels_last if args.nhwc else torch.contiguous_format
    x = torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=layout)
    x.requires_grad_()
    for name, fn in calls(x):
        with torch.no_grad():
            y = fn()
            source = torch.empty(max(1, (x.nbytes + y.nbytes) // 2), dtype=torch.uint8).to(DEVICE)
            emit(row=f"{name}: copy of as many bytes", value=seconds(source.clone))
            emit(row=f"{name}: forward", value=seconds(fn))
        dy = torch.ones_like(y)
        emit(
            row=f"{name}: forward and gradient",
            value=seconds(functools.partial(gradient, fn, x, dy)),
        )


def gradient(fn: Callable[[], Tensor], x: Tensor, dy: Tensor) -> None:
    torch.autograd.grad(fn(), x, dy)


def calls(x: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    upfirdn2d, bias_act, conv2d_resample = operations()
    f = torch.tensor([1.0, 3.0, 3.0, 1.0], device=DEVICE) / 8
    f = torch.outer(f, f)
    b = torch.zeros(x.shape[1], device=DEVICE, dtype=x.dtype)
    for name, up, down, padding in (("up 2", 2, 1, [2, 1, 2, 1]), ("down 2", 1, 2, [1, 1, 1, 1])):
        how = dict(up=up, down=down, padding=padding)
        yield f"upfirdn2d {name}", functools.partial(upfirdn2d, x, f, **how)
    yield "upfirdn2d filter", lambda: upfirdn2d(x, f, padding=[2, 1, 2, 1])
    yield "bias_act lrelu", lambda: bias_act(x, b, act="lrelu", clamp=256)
    yield "bias_act swish", lambda: bias_act(x, b, act="swish")
    w = torch.randn(x.shape[1], x.shape[1], 3, 3, device=DEVICE, dtype=x.dtype)
    yield "3x3 convolution", lambda: conv2d_resample(x, w, padding=1)


def augment_pipe(p: float) -> Any:
    """Return ADA's pipe of bgc at a fixed probability."""
    if IS_OURS:
        from stylegan2_fewshot.augment import AugmentPipe
    else:
        from training.augment import (  # type: ignore[import-not-found, no-redef]
            AugmentPipe,
        )
    pipe = AugmentPipe(**dict.fromkeys(TRANSFORMS.split(), 1)).to(DEVICE)
    pipe.p.fill_(p)
    return pipe


def time_pipe() -> None:
    """Time ADA's pipe on 8 images of 256x256, a mean over the draws of three seeds."""
    img = (torch.rand(8, 3, 256, 256, device=DEVICE) * 2 - 1).requires_grad_()
    dy = torch.ones_like(img)

    def augment(pipe: Any, gradient: bool) -> None:
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            with torch.set_grad_enabled(gradient):
                out = pipe(img)
            if gradient:
                torch.autograd.grad(out, img, dy)

    for p in (AUGMENT_P, 1.0):
        pipe = augment_pipe(p)
        for name, gradient in (("forward", False), ("forward and gradient", True)):
            took = seconds(functools.partial(augment, pipe, gradient))
            emit(row=f"p = {p:g}: {name}", value=took / SEEDS)


def build(case: Case) -> tuple[torch.nn.Module, torch.nn.Module]:
    from training import networks

    torch.manual_seed(0)
    precision: dict[str, Any] = dict(
        channel_base=case.channel_base,
        channel_max=case.channel_max,
        conv_clamp=256,
        num_fp16_res=0 if args.precision == "fp32" else 4,
    )
    images: dict[str, Any] = dict(img_resolution=case.resolution, img_channels=3, c_dim=0)
    G = networks.Generator(
        z_dim=case.dim,
        w_dim=case.dim,
        mapping_kwargs=dict(num_layers=2),
        synthesis_kwargs=dict(precision, fp16_channels_last=args.nhwc),
        **images,
    )
    D = networks.Discriminator(
        **images,
        **precision,
        block_kwargs=dict(fp16_channels_last=args.nhwc),
        epilogue_kwargs=dict(mbstd_group_size=4),
    )
    if IS_OURS:
        for net in (G, D):
            networks.set_precision(net, args.precision)
    return G.train().requires_grad_(False).to(DEVICE), D.train().requires_grad_(False).to(DEVICE)


def build_loss(case: Case, G: Any, D: Any) -> Any:
    common = dict(device=DEVICE, G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, r1_gamma=1.0)
    if not IS_OURS:
        from training.loss import (  # type: ignore[import-not-found]
            StyleGAN2Loss as OriginalLoss,
        )

        pipe = augment_pipe(AUGMENT_P) if args.augment else None
        return OriginalLoss(**common, augment_pipe=pipe)
    from stylegan2_fewshot.loss import StyleGAN2Loss
    from stylegan2_fewshot.plugin import Plugins, Run

    plugins = Plugins.create({"ada": {}} if args.augment else {})
    plugins.setup(Run(G, D, device=DEVICE, batch_size=case.batch))
    for plugin in plugins.values():
        plugin.pipe.p.fill_(AUGMENT_P)
    return StyleGAN2Loss(**common, plugins=plugins)


def time_training(case: Case) -> None:
    """Time the generator, every phase with its optimizer, and derive a whole training's pace."""
    G, D = build(case)
    loss = build_loss(case, G, D)
    z = torch.randn(case.batch, case.dim, device=DEVICE)
    c = torch.zeros(case.batch, 0, device=DEVICE)
    real = torch.rand(case.batch, 3, case.resolution, case.resolution, device=DEVICE) * 2 - 1
    with torch.no_grad():
        in_turn("generator", lambda: G.eval()(z, c, noise_mode="const"))
    G.train()
    took = {}
    for net, phases in ((G, ("Gmain", "Greg")), (D, ("Dmain", "Dreg"))):
        optimizer = torch.optim.Adam(
            net.parameters(), lr=1e-4, betas=(0.0, 0.99), **(dict(fused=True) if IS_OURS else {})
        )

        def step(phase: str, net: Any = net, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            net.requires_grad_(True)
            loss.accumulate_gradients(
                phase=phase, real_img=real, real_c=c, gen_z=z, gen_c=c, sync=True, gain=1
            )
            net.requires_grad_(False)
            optimizer.step()

        for phase in phases:
            took[phase] = in_turn(phase, functools.partial(step, phase))
    # Regularisation is lazy: every 4th and every 16th iteration.
    share = {"Gmain": 1, "Dmain": 1, "Greg": 1 / 4, "Dreg": 1 / 16}
    per_image = {
        side: sum(part * took[phase][side] for phase, part in share.items()) / case.batch
        for side in CHOICES
    }
    emit_all("sec/kimg", {side: value * 1000 for side, value in per_image.items()})


def forget_peak() -> None:
    """Note the peak of the GPU's memory so far, and let it start from what is in use now."""
    if DEVICE.type == "cuda":
        PEAKS.append(torch.cuda.max_memory_allocated() / 2**30)
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb() -> float:
    """Return the peak of the process, that of cuDNN's trials included."""
    if DEVICE.type == "cuda":
        forget_peak()
        return max(PEAKS)
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


set_up()
if args.what == "ops":
    time_ops()
elif args.what == "pipe":
    time_pipe()
else:
    case = CASES[args.what]
    time_training(case._replace(batch=args.batch or case.batch))
emit(row="peak GiB", value=peak_memory_gb())
