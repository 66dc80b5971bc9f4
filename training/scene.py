"""All that a pass through G and D changes: kept, put back, and compared."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stylegan2_fewshot import stats

from .remembered import Remembered, fingerprint
from .state import State

TOLERANCE = 1e-3  # of the norm of a gradient, or of a change
FLOOR = 1e-6  # of the norm of all gradients, or of what has changed: rounding
NOISE = 10  # times the difference between two runs of the same
MOST_NOISE = 0.02  # of the norm, for kernels that add in any order


class Result(NamedTuple):
    """What a pass has come to: what plugins remember, and by name, changes and their scale."""

    python: frozenset[tuple[str, Hashable]]
    changes: dict[str, Tensor]
    scales: dict[str, Tensor]


class Scene:
    """What a pass changes as it is now; the plugins' generators have their seed of the iteration.

    Args:
        state: What is trained.
        params: Parameters that have gradients.
        generators: PyTorch's own generators.
    """

    def __init__(
        self, state: State, params: Sequence[nn.Parameter], generators: Sequence[torch.Generator]
    ) -> None:
        self._state, self._params = state, params
        self._python = Remembered(state.plugins)
        self._values = [(x, x.detach().clone()) for x in self.tensors()]
        self._idle: set[int] = set()  # those that a pass does not change, by `id`
        self._gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in params]
        self._draws = [(rng, rng.get_state()) for rng in generators]
        self._own_draws = {
            (name, device): rng.get_state()
            for name, plugin in state.plugins.items()
            for device, rng in plugin.generators().items()
        }

    def tensors(self) -> list[Tensor]:
        """Return what a pass may write to: buffers, statistics, what plugins remember."""
        found = [x for _, x in self._named()] + self._python.tensors()
        return [x for x in {id(x): x for x in found}.values() if not isinstance(x, nn.Parameter)]

    @torch.no_grad()
    def forget_unchanged(self) -> None:
        """After a pass, free the memory of what it has not changed, and disregard that."""
        changed = [(x != value).any() for x, value in self._values]
        if not changed:
            return
        for (x, _), is_changed in zip(self._values, torch.stack(changed).tolist(), strict=True):
            if not is_changed:
                self._idle.add(id(x))
        self._values = [(x, value) for x, value in self._values if id(x) not in self._idle]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        self._python.restore()
        before = {id(x) for x, _ in self._values} | self._idle
        for sums in stats.accumulators().values():
            if id(sums) not in before:
                sums.zero_()
        for tensor, value in self._values:
            tensor.copy_(value)
        for param, gradient, numbers in self._gradients:
            param.grad = gradient
            if gradient is not None and numbers is not None:
                gradient.copy_(numbers)
        for rng, drawn in self._draws:
            rng.set_state(drawn)
        for name, plugin in self._state.plugins.items():
            plugin.reseed(self._state.cur_nimg)  # those that were not there
            for device, rng in plugin.generators().items():
                if (name, device) in self._own_draws:
                    rng.set_state(self._own_draws[name, device])

    @torch.no_grad()
    def result(self) -> Result:
        """Return what has come of everything since."""
        names = {p: name for part in self._state.trained.values() for name, p in part.items()}
        zero = torch.zeros([], device=self._state.loss.pl_mean.device)
        gradients = {f"gradient of {names[p]}": p.grad for p in self._params}
        changes = {key: _number(zero if x is None else x) for key, x in gradients.items()}
        scales = dict.fromkeys(
            changes, torch.stack(torch._foreach_norm([*changes.values()])).norm()
        )
        before = {id(x): value for x, value in self._values}
        remembered = enumerate(Remembered(self._state.plugins).tensors())
        others = {f"tensor {number} that plugins remember": x for number, x in remembered}
        for name, x in {**others, **dict(self._named())}.items():
            if id(x) in self._idle:
                continue
            start = before.get(id(x), zero)
            changes[name] = _number(x) - _number(start)
            scales[name] = _number(x).norm()
        return Result(fingerprint(self._state.plugins, _form), changes, scales)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        parts = {"G": self._state.G, "D": self._state.D, "plugins": self._state.plugins}
        for part, module in parts.items():
            for name, buffer in module.named_buffers():
                yield f"{part}.{name}", buffer
        yield "mean path length", self._state.loss.pl_mean
        for name, sums in stats.accumulators().items():
            yield f"statistic {name}", sums


def difference(one: Result, two: Result, other: Result) -> str:
    """Return in words how `other` is not what `one` and `two` are, but for rounding; else ''.

    Args:
        one: A result.
        two: Another one of the same work.
        other: What is to be the same.
    """
    if labels := {label for label, _ in two.python ^ other.python}:
        return f"a replay leaves another {min(labels)} than Python"
    if unlike := two.changes.keys() ^ other.changes.keys():
        return f"a replay and Python do not both come to a {min(unlike)}"
    for name, change in two.changes.items():
        if change.shape != other.changes[name].shape:
            return f"a replay comes to a {name} of another shape than Python"
    first, second, third = (list(result.changes.values()) for result in (one, two, other))
    names, scale = list(two.changes), torch.stack([*two.scales.values()])
    size, noise, off = (
        torch.stack(torch._foreach_norm(x))
        for x in (second, torch._foreach_sub(first, second), torch._foreach_sub(third, second))
    )
    if name := _beyond(noise, MOST_NOISE * (size + scale / 100), names):
        return f"Python itself does not come to {name} twice"
    if name := _beyond(off, TOLERANCE * size + NOISE * noise + FLOOR * scale, names):
        return f"a replay comes to another {name} than Python"
    return ""


def _beyond(values: Tensor, allowed: Tensor, names: Sequence[str]) -> str:
    """Return the name of what is farthest beyond what is allowed; empty where nothing is."""
    excess = (values - allowed).tolist()
    worst = max(range(len(excess)), key=excess.__getitem__)
    return names[worst] if excess[worst] > 0 else ""


def _number(x: Tensor) -> Tensor:
    """Return a copy that can be subtracted: a gradient of float16 may have overflowed."""
    return x.detach().float().nan_to_num(nan=0, posinf=1e5, neginf=-1e5)


def _form(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.dtype
