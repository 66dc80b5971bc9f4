"""How long a run would take, said before it begins."""

from __future__ import annotations

import pytest
import torch

from stylegan2_fewshot.ops.dispatch import SELECTED, Kernels
from training.dataset import ImageDataset
from training.estimate import estimate


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_an_estimate_is_of_the_operations_and_threads_of_the_run(
    tiny_options, two_threads, monkeypatch
):
    monkeypatch.setattr(SELECTED, "kernels", {"cpu": Kernels()})
    options = {**tiny_options, "ops": "torch", "threads": 1}
    words = estimate(options, ImageDataset(**options["dataset"]))
    assert [line.split()[0] for line in words.splitlines()] == ["Time", "Memory", "Disk"]
    assert "2 snapshots" in words or "3 snapshots" in words
    assert SELECTED.kernels == {} and torch.get_num_threads() == 1
