"""What training does with metrics: it keeps the best snapshot, and knows when to stop."""

from __future__ import annotations

import copy

import pytest
import torch

from training import pickles, snapshots, training_loop

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch):
    """Let the metric of the snapshots be 3, 1, 2, 4, ..., and list the networks measured."""
    networks = []

    def compute(names, G, *_, **notes):
        networks.append(copy.deepcopy(G))
        number = [3.0, 1.0, 2.0, 4.0, 5.0, 6.0][len(networks) - 1]
        yield {"metric": "toy", "results": {"toy": number}, "better": "lower", "kimg": 0}

    monkeypatch.setattr(snapshots.metrics, "usable", lambda names, *_, **__: (names, []))
    monkeypatch.setattr(snapshots.metrics, "compute", compute)
    seconds = snapshots.metrics.Seconds(1.0, 0.0)
    monkeypatch.setattr(snapshots.metrics, "seconds", lambda *_, **__: seconds)
    return networks


def test_the_best_snapshot_is_kept_and_patience_ends_the_run(tiny_options, tmp_path, measured):
    options = {**tiny_options, "metrics": ["toy"], "patience": 2, "total_kimg": 0.08}
    training_loop.train(options, tmp_path, CPU)
    assert len(measured) == 4  # the second was the best, and two more brought nothing
    best = pickles.load(tmp_path / "network-best.pkl").G_ema.state_dict()
    same = [all(torch.equal(best[k], v) for k, v in G.state_dict().items()) for G in measured]
    assert same == [False, True, False, False]
    assert len((tmp_path / "metric-toy.jsonl").read_text().splitlines()) == 4


def test_without_patience_the_run_goes_on(tiny_options, tmp_path, measured):
    training_loop.train({**tiny_options, "metrics": ["toy"]}, tmp_path, CPU)
    assert (tmp_path / "finished.json").is_file() and len(measured) >= 3
