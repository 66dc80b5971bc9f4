"""CUDA graphs on the CPU: operations are recorded with their memory, and repeated without Python.

As a GPU's, a replay repeats operations alone, on the same memory; draws go on where generators are;
and the memory of one graph may be another's, which is why it is filled with NaN between replays.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stylegan2_fewshot.capture import NotCapturable


class _Tape(TorchDispatchMode):
    """Records operations; what would wait for a GPU is refused."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in func.tags or func is torch.ops.aten.nonzero.default:
            raise NotCapturable(f"the CPU waits for a value of the device ({func})")
        results = func(*args, **kwargs)
        known = {_memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = enumerate([results] if isinstance(results, Tensor) else results or ())
        fresh = [(n, x) for n, x in made if isinstance(x, Tensor) and _memory(x) not in known]
        if fresh or func._schema.is_mutable:  # a view needs no repeating
            self.calls.append((func, args, kwargs, fresh))
        return results


class _NoLists(TorchFunctionMode):
    """Refuses what the dispatcher is not told of where a tensor is on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.tolist:
            raise NotCapturable("the CPU waits for values of the device (tolist)")
        return func(*args, **(kwargs or {}))


class EmulatedGraphs:
    """Stands in for `distributed.CUDAGraphs`.

    Attributes:
        captures: How many graphs were captured.
        replays: How many replays there were.
    """

    def __init__(self):
        self.captures = self.replays = 0
        self._last = []  # what the graph that ran last has made

    def generators(self):
        return [torch.default_generator]

    def aside(self):
        return contextlib.nullcontext()

    def capture(self, work, generators):
        tape = _Tape()
        with _NoLists(), tape:
            work()
        self.captures += 1
        calls, fresh = tape.calls, [x.detach() for *_, made in tape.calls for _, x in made]

        def replay():
            self.replays += 1
            if self._last is not fresh:  # this graph's memory is in part that one's
                for tensor in self._last:
                    tensor.fill_(math.nan if tensor.is_floating_point() else 0)
            self._last = fresh
            for func, args, kwargs, made in calls:
                again = func(*args, **kwargs)
                results = (again,) if isinstance(again, Tensor) else again
                for number, x in made:
                    x.copy_(results[number])

        self._last = fresh
        return torch.no_grad()(replay)


def _memory(x):
    return x.untyped_storage().data_ptr()
