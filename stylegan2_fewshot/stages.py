"""Methods whose work around an optimizer's step depends on how many iterations are done."""

from __future__ import annotations

import torch
from torch import Tensor

from .plugin import Plugin, Run


class Staged(Plugin):
    """A plugin that is told before every iteration how many it has seen.

    The buffer `done` counts them, so that a checkpoint holds the number. To read it would mean to
    wait for the GPU that holds it; only loading a checkpoint does.
    """

    done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("done", torch.zeros([], dtype=torch.int64))
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            lambda plugin, _: plugin.enter(int(plugin.done))
        )
        self._batch_size = 1

    def setup(self, run: Run) -> None:
        self._batch_size = run.batch_size
        self.enter(0)

    def after_step(self, cur_nimg: int) -> None:
        self.done += 1
        self.enter(cur_nimg // self._batch_size + 1)

    def enter(self, done: int) -> None:
        """Note what the next iteration is for.

        Args:
            done: Iterations before it.
        """
        raise NotImplementedError
