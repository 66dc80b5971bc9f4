"""Where memory does not suffice, training ends in one line that says what to try."""

from __future__ import annotations

import pytest
import torch

from stylegan2_fewshot import Plugin, plugin
from training import memory
from training.training_loop import train


class Greedy(Plugin):
    """Run out of memory in the first regularisation of D."""

    def penalty(self, step):
        if step.phase == "Dr1":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def greedy():
    with plugin.isolated():
        yield plugin.register("greedy")(Greedy)


def test_training_ends_in_one_line_and_leaves_the_network(tiny_options, tmp_path, greedy):
    tiny_options["plugins"] = {"greedy": {}}
    tiny_options["D"]["epilogue_kwargs"] = {"mbstd_group_size": 1}
    with pytest.raises(ValueError, match=r"^out of memory with --batch-gpu=2; try --batch-gpu=1"):
        train(tiny_options, tmp_path, torch.device("cpu"))
    assert list(tmp_path.glob("network-snapshot-*.pkl"))


@pytest.mark.parametrize(
    "batch, per_gpu, group, expected",
    [
        (32, 32, 4, "try --batch-gpu=16"),
        (12, 12, 4, "try --batch-gpu=4"),  # 6 is not a multiple of the group
        (16, 4, 4, "which is the least; try --mbstd-group=1"),
    ],
)
def test_what_is_proposed_divides_the_batch_and_keeps_the_groups_whole(
    batch, per_gpu, group, expected
):
    options = dict(batch_size=batch, batch_gpu=per_gpu)
    options["D"] = dict(epilogue_kwargs=dict(mbstd_group_size=group))
    assert expected in memory.advice(options)


def test_only_memory_counts():
    assert memory.is_exhausted(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"))
    assert not memory.is_exhausted(RuntimeError("shapes do not match"))
