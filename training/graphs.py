"""CUDA graphs of the passes through G and D: captured, compared with Python, and replayed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stylegan2_fewshot import distributed
from stylegan2_fewshot.ahead import Ahead
from stylegan2_fewshot.capture import Rules
from stylegan2_fewshot.watched import Watched

from .remembered import Remembered, Same, fingerprint
from .scene import Result, Scene, difference
from .state import State

CHECK_EVERY = 1000  # replays of a graph between two comparisons with Python
MOST_CAPTURES = 8  # iterations in which a phase may be captured before that is given up
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # images and labels, latents and labels
_Python = frozenset[tuple[str, Hashable]]  # what plugins remember
_Key = tuple[float, tuple[torch.Size, ...], tuple[int, ...], _Python]


class Backend(Protocol):
    """What captures and replays: `distributed.CUDAGraphs`, or what stands in for it."""

    def generators(self) -> list[torch.Generator]: ...
    def aside(self) -> AbstractContextManager[None]: ...
    def capture(
        self, work: Callable[[], None], generators: Iterable[torch.Generator]
    ) -> Callable[[], None]: ...


@dataclass
class _Graph:
    """A captured pass.

    Attributes:
        inputs: What it reads.
        ahead: What the CPU makes before a replay.
        replay: Repeats the device's work.
        watched: What Python asked of the number of images.
        reached: Parameters that have a gradient from it.
        outputs: Tensors that plugins remember: in the graph's memory, and where they last.
        after: What plugins remember when it is done.
        changed: Labels of what of that is not as it was before.
        runs: How often it has been replayed.
    """

    inputs: Inputs
    ahead: Ahead
    replay: Callable[[], None]
    watched: Watched
    reached: frozenset[nn.Parameter]
    outputs: list[tuple[Tensor, Tensor]]
    after: Remembered
    changed: frozenset[str]
    runs: int = 0


def of(
    options: Mapping[str, Any], state: State, device: torch.device, say: Callable[[str], None]
) -> Graphs | None:
    """Return the graphs of a run, or None: on the CPU, and without --graphs=auto.

    Args:
        options: Options of the run.
        state: What is trained.
        device: The device of this rank.
        say: Prints a line.
    """
    if device.type != "cuda" or options.get("graphs") != "auto":
        return None
    return Graphs(state, distributed.CUDAGraphs(device), say)


class Graphs:
    """Takes the place of `StyleGAN2Loss.accumulate_gradients`: by a graph where one can hold it.

    A graph stands for what Python did in one pass. It serves where shapes, the networks' memory and
    what plugins remember are as they were before that pass, and where comparisons of
    `step.cur_nimg` have the same answers; afterwards plugins remember what they did after it.
    Whatever else Python goes by is found out by comparison: before a graph's first replay, and
    every `CHECK_EVERY` replays, gradients, buffers and statistics are computed by Python as well.

    Args:
        state: What is trained.
        backend: What captures and replays.
        say: Prints a line.
    """

    def __init__(self, state: State, backend: Backend, say: Callable[[str], None]) -> None:
        self._state, self._backend, self._say = state, backend, say
        self._device = state.loss.pl_mean.device
        self._graphs: dict[str, dict[_Key, list[_Graph]]] = {}  # by phase and circumstances
        self._captured: dict[str, set[int]] = {}  # moments at which a phase was
        self._given_up: set[str] = set()
        self._gradients: dict[nn.Parameter, Tensor] = {}  # that graphs add to

    def accumulate_gradients(
        self,
        phase: str,
        real_img: Tensor,
        real_c: Tensor,
        gen_z: Tensor,
        gen_c: Tensor,
        sync: bool = True,
        gain: float = 1,
    ) -> None:
        """As `StyleGAN2Loss.accumulate_gradients`."""
        inputs, graph = (real_img, real_c, gen_z, gen_c), None
        if phase not in self._given_up:
            self._seed_plugins()
            try:
                graph = self._graph(phase, inputs, gain)
            except Exception as error:  # whatever stands in the way, Python can do it
                self._give_up(phase, error)
        if graph is None:
            self._state.loss.accumulate_gradients(phase, *inputs, sync, gain)
        else:
            self._run(graph, phase, inputs)

    def _graph(self, phase: str, inputs: Inputs, gain: float) -> _Graph:
        """Return the graph that serves now; capture it where there is none."""
        for name, plugin in self._state.plugins.items():
            if not plugin.capturable:
                raise ValueError(f"the plugin {name!r} says that none can hold it")
        cur_nimg, known = self._state.cur_nimg, self._graphs.setdefault(phase, {})
        shapes = tuple(x.shape for x in inputs)
        python = fingerprint(self._state.plugins, self._place)
        found = known.setdefault((gain, shapes, self._places(), python), [])
        graph = next((graph for graph in found if graph.watched.agrees(cur_nimg)), None)
        if graph is None:
            self._refuse_many(phase, python)
            graph = self._capture(phase, inputs, gain)
            found.append(graph)
        if graph.runs % CHECK_EVERY == 0:
            self._compare(graph, phase, inputs, gain)
        return graph

    def _run(self, graph: _Graph, phase: str, inputs: Inputs) -> None:
        """Let a graph add its gradients, and let plugins remember what they would."""
        params = self._params(phase)
        without = [p for p in params if p.grad is None and p not in graph.reached]
        self._keep_gradients(params)
        torch._foreach_copy_(list(graph.inputs), list(inputs))
        graph.ahead.renew(self._state.cur_nimg)
        graph.replay()
        for inside, outside in graph.outputs:
            outside.copy_(inside)
        graph.after.restore(graph.changed)
        for param in without:
            param.grad = None
        graph.runs += 1

    def _capture(self, phase: str, inputs: Inputs, gain: float) -> _Graph:
        """Return a graph of a pass; nothing has happened when it is there."""
        state, params = self._state, self._params(phase)
        scene = Scene(state, params, self._backend.generators())
        # Other values than those that it is compared on: what Python made of these would show.
        images, labels, z, c = (-x.detach().flip(0) for x in inputs)
        kept, ahead = (images, labels, z, c), Ahead()
        work = functools.partial(state.loss.accumulate_gradients, phase, *kept, True, gain)
        try:
            for param in params:
                param.grad = None
            with ahead.recording(), self._watching(), self._backend.aside(), self._rules():
                work()
            scene.forget_unchanged()
            reached = frozenset(param for param in params if param.grad is not None)
            scene.restore()
            self._keep_gradients(params)
            before = fingerprint(state.plugins, Same)
            known = {id(x) for x in scene.tensors()}
            with ahead.recording(), self._watching() as watched:
                replay = self._backend.capture(work, state.plugins.generators(self._device))
            outputs = [
                (x, torch.empty_like(x, requires_grad=False))
                for x in Remembered(state.plugins).tensors()
                if id(x) not in known and not isinstance(x, nn.Parameter)
            ]
            _refuse_attached([x for x, _ in outputs])
            after = Remembered(state.plugins, {id(x): y for x, y in outputs})
            changed = {label for label, _ in fingerprint(state.plugins, Same) ^ before}
        finally:
            scene.restore()
        return _Graph(kept, ahead, replay, watched, reached, outputs, after, frozenset(changed))

    def _compare(self, graph: _Graph, phase: str, inputs: Inputs, gain: float) -> None:
        """Raise unless a replay comes to what Python comes to; nothing has happened then.

        Python computes twice: kernels that add in any order differ from themselves as well.
        """
        state, params = self._state, self._params(phase)
        scene = Scene(state, params, self._backend.generators())
        try:
            results: list[Result] = []
            for is_graph in (False, False, True):
                for param in params:
                    param.grad = None
                if is_graph:
                    self._run(graph, phase, inputs)
                else:
                    state.loss.accumulate_gradients(phase, *inputs, True, gain)
                if not results:
                    scene.forget_unchanged()
                results.append(scene.result())
                scene.restore()
        finally:
            scene.restore()
        if words := difference(*results):
            raise ValueError(words)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[Watched]:
        """Let Python see the number of images as one that notes what it is compared with."""
        loss: Any = self._state.loss
        before, watched = loss.cur_nimg, Watched(loss.cur_nimg)
        loss.cur_nimg = watched
        try:
            yield watched
        finally:
            loss.cur_nimg = before

    def _rules(self) -> AbstractContextManager[Any]:
        """Refuse what a capture would fail of, and some that it would not repeat."""
        if self._device.type == "cpu":
            return contextlib.nullcontext()
        return Rules(lambda: self._state.plugins.generators(self._device))

    def _keep_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Put each gradient where graphs find it, 0 where there is none."""
        fresh = []
        for param in params:
            kept = self._gradients.get(param)
            if kept is None:
                kept = self._gradients[param] = torch.zeros_like(param, requires_grad=False)
            if param.grad is None:
                fresh.append(kept)
            elif param.grad is not kept:
                kept.copy_(param.grad)
            param.grad = kept
        if fresh:
            torch._foreach_zero_(fresh)

    def _params(self, phase: str) -> list[nn.Parameter]:
        return list(self._state.trained[phase[0]].values())

    def _seed_plugins(self) -> None:
        for plugin in self._state.plugins.active:
            for device in plugin.generators():
                plugin.rng(self._state.cur_nimg, device)

    def _place(self, tensor: Tensor) -> Hashable:
        """Return where a tensor is; of those on the host, whether anyone has written to it."""
        is_host = tensor.device.type == "cpu" != self._device.type
        return Same(tensor), tensor.data_ptr(), tensor._version if is_host else 0

    def _places(self) -> tuple[int, ...]:
        """Return where the networks are."""
        nets = (self._state.G, self._state.D)
        return tuple(x.data_ptr() for net in nets for x in (*net.parameters(), *net.buffers()))

    def _refuse_many(self, phase: str, python: _Python) -> None:
        """Raise where a phase would be captured over and over again."""
        moments = self._captured.setdefault(phase, set())
        moments.add(self._state.cur_nimg)
        if len(moments) > MOST_CAPTURES:
            others = [key[-1] for key, graphs in self._graphs[phase].items() if graphs]
            labels = {label for label, _ in others[-1] ^ python}
            what = min(labels, default="what Python goes by")
            raise ValueError(f"{what} was another in {MOST_CAPTURES} iterations")

    def _give_up(self, phase: str, error: Exception) -> None:
        self._given_up.add(phase)
        self._graphs.pop(phase, None)
        words = ", ".join([str(error).partition("\n")[0], *getattr(error, "__notes__", [])])
        self._say(f"{phase} runs without a CUDA graph: {words or type(error).__name__}")


def _refuse_attached(tensors: Iterable[Tensor]) -> None:
    if any(x.grad_fn is not None for x in tensors):
        raise ValueError("a plugin remembers a tensor that gradients could flow through")
