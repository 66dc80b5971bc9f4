"""How many operators PyTorch is asked for in an iteration: small batches wait for nothing else."""

from __future__ import annotations

import collections

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from training.training_loop import train

CEILING = 1750  # of 16x16 networks, one G and one D step without regularisation


class Counter(TorchDispatchMode):
    """Counts what reaches the dispatcher."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[str(function)] += 1
        return function(*args, **(kwargs or {}))


def calls_of(iterations, options, run_dir):
    run_dir.mkdir()
    options = {
        **options,
        "plugins": {},
        "total_kimg": iterations * options["batch_size"] / 1000,
        "batch_gpu": options["batch_size"],
        "kimg_per_tick": 1000,
        "G_reg_interval": 1000,
        "D_reg_interval": 1000,
    }
    with Counter() as counter:
        train(options, run_dir, torch.device("cpu"))
    return counter.calls


def test_an_iteration_stays_below_the_ceiling(tiny_options, tmp_path):
    """The difference between three iterations and one, of which the first is regularised."""
    long, short = (calls_of(n, tiny_options, tmp_path / str(n)) for n in (3, 1))
    total = sum(long.values()) - sum(short.values())
    assert 100 < total / 2 < CEILING, (long - short).most_common(20)
