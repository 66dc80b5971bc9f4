"""The limited-data experiment: its images and its measure of overfitting."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training.dataset import ImageDataset

ROOT = Path(__file__).parent.parent


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("limited_data")


def test_a_reduced_archive_holds_means_of_squares_and_is_always_the_same(experiment, tmp_path):
    paths = [experiment.reduced(experiment.SOURCE, 32, tmp_path / name) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    full, small = ImageDataset(experiment.SOURCE), ImageDataset(paths[0])
    assert full.file_names == small.file_names
    mean = full[7][0].reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
    assert np.abs(small[7][0] - mean).max() <= 0.5


def test_images_of_a_run_are_found_from_any_folder(experiment, tmp_path, monkeypatch):
    options = {"path": "examples/noto-portraits.zip", "max_size": 9, "seed": 0}
    (tmp_path / "training_options.json").write_text(json.dumps({"dataset": options}))
    monkeypatch.chdir(tmp_path)
    seen, unseen = experiment._seen_and_unseen(tmp_path)
    assert seen.shape == unseen.shape == (8, 3, 64, 64)


def test_overfitting_is_where_unseen_images_stand_between_seen_and_generated(
    experiment, monkeypatch
):
    class G:
        z_dim = 2

        def __call__(self, z, c, **_):
            return images(-1, len(z))

    nets = SimpleNamespace(G=G(), D=lambda img, c: img.mean([1, 2, 3])[:, None])
    monkeypatch.setattr(experiment.pickles, "load", lambda path: nets)
    assert experiment.overfitting(Path(), images(3), images(3)) == 0
    assert experiment.overfitting(Path(), images(3), images(-1)) == 1
    assert experiment.overfitting(Path(), images(3), images(2)) == pytest.approx(0.25)


def images(value, n=40):
    return torch.full([n, 3, 4, 4], float(value))
