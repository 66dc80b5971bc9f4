"""What a CUDA graph could not replay, found without a GPU: phases of training on the meta device.

A captured phase runs its Python once. Each later replay repeats the device's work alone, on the
same memory: what waits for the device, copies from ordinary memory, or is drawn or decided on the
CPU either fails while capturing, or is silently the first iteration's for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from . import ahead, laws, stats
from .loss import StyleGAN2Loss
from .plugin import Plugins, Run
from .watched import NotCapturable, Watched

__all__ = ["NotCapturable", "Rules", "waits", "why_not"]

META = torch.device("meta")
aten = torch.ops.aten
_INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
_COPIES = (aten._to_copy.default, aten.copy_.default)


class Rules(TorchDispatchMode):
    """Refuse what a CUDA graph cannot hold, while active; the CPU is the host, all else a device.

    It looks at operations, not at Python.

    Args:
        generators: Returns the device's generators that the graph would know, apart from PyTorch's
            default one.
    """

    def __init__(self, generators: Callable[[], Collection[torch.Generator]] = tuple) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = _PythonCalls(generators)

    def __enter__(self) -> Rules:
        self._calls.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        self._calls.__exit__(*details)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not ahead.is_making() and (reason := _refusal(func, args, kwargs)):
            raise NotCapturable(f"{reason} ({func})")
        return func(*args, **kwargs)


class _PythonCalls(TorchFunctionMode):
    """Refuse what does not reach the dispatcher as it was written."""

    def __init__(self, generators: Callable[[], Collection[torch.Generator]]) -> None:
        super().__init__()
        self._generators = generators

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if ahead.is_making():
            return func(*args, **(kwargs or {}))
        if func in (Tensor.numpy, Tensor.__array__) and _is_on_device(args[0]):
            raise NotCapturable("values of the device are wanted on the CPU (numpy)")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and _is_on_device(args[0]):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                raise NotCapturable("a copy from the CPU's memory (a list as an index)")
        result = func(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        if generator and _is_on_device(result) and generator not in self._generators():
            raise NotCapturable(
                "a generator that the graph does not know; draw from self.rng(step, device)"
            )
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
            is_kept = func is not Tensor.new_tensor and bool(args) and _is_on_device(args[0])
            if _is_on_device(result) and not is_kept:
                name = func.__name__
                raise NotCapturable(f"a copy from the CPU's memory ({name} of Python's numbers)")
        return result


def why_not(
    plugins: Plugins, networks: tuple[nn.Module, nn.Module] | None = None, *, parts: int = 1
) -> str | None:
    """Return why a CUDA graph cannot hold the passes of training with these plugins, or None.

    Runs the loss and its gradients in all four phases on the meta device, under `Rules`: what a
    graph holds. Optimizers and the hooks around their steps stay outside, see `waits`.

    Args:
        plugins: What takes part; is set up here, as for a run with --resume.
        networks: G and D, are moved to the meta device; by default those of `laws`.
        parts: Micro-batches of an iteration.
    """
    return _refused(plugins, networks, lambda run, trained: _pass(run, plugins, trained, parts))


def waits(plugins: Plugins, networks: tuple[nn.Module, nn.Module] | None = None) -> str | None:
    """Return how the hooks around an optimizer's step make the CPU wait for the device, or None.

    They stay outside of graphs, so that this costs time and nothing else. `before_step` and
    `after_optimizer` of both networks run on the meta device, under `Rules`.

    Args:
        plugins: What takes part; is set up here, as for a run with --resume.
        networks: G and D, are moved to the meta device; by default those of `laws`.
    """
    return _refused(plugins, networks, lambda run, trained: _step(plugins, trained))


_Trained = dict[str, dict[str, nn.Parameter]]


def _refused(
    plugins: Plugins,
    networks: tuple[nn.Module, nn.Module] | None,
    work: Callable[[Run, _Trained], None],
) -> str | None:
    """Return what `Rules` refuse of some work on the meta device, or None."""
    G, D = (net.to(META) for net in networks or (laws.ToyGenerator(), laws.ToyDiscriminator()))
    given: dict[str, Any] = dict(dataset=laws.ToyImages(), batch_size=laws.BATCH, resumed="-")
    run = Run(G, D, device=META, estimates=False, **given)
    plugins.setup(run)
    trained = {
        net: {k: p for k, p in module.named_parameters() if plugins.trainable(net, k)}
        for net, module in (("G", G), ("D", D))
    }
    with stats.apart():  # nothing of the meta device stays behind
        try:
            work(run, trained)
        except NotCapturable as error:
            return ", ".join([str(error), *getattr(error, "__notes__", [])])
    return None


def _pass(run: Run, plugins: Plugins, trained: _Trained, parts: int) -> None:
    G: Any = run.G
    loss = StyleGAN2Loss(META, G.mapping, G.synthesis, run.D, plugins)
    loss.cur_nimg = cast(int, Watched(0))
    count, size = max(run.batch_size // parts, 1), G.img_resolution
    real = torch.zeros(count, 3, size, size, device=META)
    z, c = (torch.zeros(count, width, device=META) for width in (G.z_dim, G.c_dim))
    for phase in laws.PHASES:
        for net, params in trained.items():
            for param in params.values():
                param.requires_grad_(phase[0] == net)
        with Rules(lambda: plugins.generators(META)):
            for _ in range(parts):
                loss.accumulate_gradients(phase, real, c, z, c, gain=1 / parts)
        for name, sums in stats.accumulators().items():
            if not _is_on_device(sums):
                raise NotCapturable(f"the statistic {name} is reported as a number of the CPU")


def _step(plugins: Plugins, trained: _Trained) -> None:
    for net, params in trained.items():
        for param in params.values():
            param.grad = torch.zeros_like(param)
        with Rules():
            plugins.before_step(net, params)
            plugins.after_optimizer(net, params)


def _is_on_device(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type != "cpu"


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _refusal(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return why a graph cannot hold an operation; empty where it can."""
    tensors = [x for x in _flat((*args, *kwargs.values())) if isinstance(x, Tensor)]
    there = any(map(_is_on_device, tensors))
    target = kwargs.get("device")
    leads_there = there if target is None else torch.device(target).type != "cpu"
    if there and (reason := _waits(func, args, kwargs, leads_there)):
        return reason
    if not leads_there:
        is_draw = torch.Tag.nondeterministic_seeded in func.tags
        return "random numbers on the CPU, which a replay would not draw anew" if is_draw else ""
    host = [x for x in tensors if x.device.type == "cpu" and not x.is_pinned()]
    if host and (func in _COPIES or any(x.ndim for x in host)):
        return "a copy from the CPU's memory"
    return "a number on the CPU, which would stay as it is in every replay" if host else ""


def _waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], leads_there: bool) -> str:
    """Return how the CPU has to wait for the device; empty where it has not."""
    is_copied = func is aten._to_copy.default and not leads_there
    if is_copied or (func is aten.copy_.default and not _is_on_device(args[0])):
        return "values of the device are wanted on the CPU"
    if func in _INDEXING:
        is_masked = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        is_fill = func is not aten.index.Tensor and args[2].numel() == 1
        return "a mask as an index, whose size is not known" if is_masked and not is_fill else ""
    if torch.Tag.data_dependent_output in func.tags:
        return "the CPU waits for a value of the device"
    if torch.Tag.dynamic_output_shape in func.tags and kwargs.get("output_size") is None:
        return "the size of a result depends on values of the device"
    return ""
