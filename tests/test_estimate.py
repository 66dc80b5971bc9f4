"""What `--estimate` says, and how it times what it does not do in full."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

import metrics
from metrics import detectors, registry, weights
from stylegan2_fewshot.ops.dispatch import SELECTED, Kernels
from training import networks
from training.dataset import ImageDataset
from training.estimate import estimate


@pytest.fixture
def colors(tmp_path, monkeypatch):
    """Make a metric of 1,000 fakes whose detector averages colours, and a cache of its own."""
    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(weights.SEARCH_PATH, str(tmp_path))
    detectors.load.cache_clear()
    traced = torch.jit.trace(lambda x: x.mean([2, 3]), torch.zeros(1, 3, 16, 16))
    traced.save(str(tmp_path / "colors.pt"))
    return "kid1k_full@colors"


TRUST = metrics.Trust(everything=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_estimate_covers_all_parts_of_a_run(
    colors, tiny_options, tiny_data, heldout_data, tmp_path
):
    options = {
        **tiny_options,
        "gpus": 1,
        "metrics": [colors],
        "metric_data": str(heldout_data),
        "trust": vars(TRUST),
    }
    before = sorted(tmp_path.rglob("*.p[kt]*"))
    said = estimate(options, ImageDataset(tiny_data))
    assert re.search(
        r"^Time    [\dhms ]+: [\d.]+ s/kimg, 3 snapshots of [\d.]+ s and \d+ s of", said
    )
    assert re.search(r"^Memory  [\d.]+ GiB on cpu$", said, re.M)
    assert re.search(r"^Disk    [\d.]+ GiB for 3 networks", said, re.M)
    assert sorted(tmp_path.rglob("*.p[kt]*")) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_metrics_are_timed_on_a_few_fakes(colors, tiny_data, heldout_data, monkeypatch):
    widths = dict(channel_base=64, channel_max=8)
    G = networks.Generator(4, 0, 4, 16, 3, dict(num_layers=1), widths).eval()
    made, seen = [], []
    G.register_forward_hook(lambda *_: made.append(1))

    def function(evaluation, detector, metric):
        real = evaluation.real_features(detector)
        seen.append((real, evaluation.fake_features(detector, metric.num_fakes)))
        return {"": 0.0}

    small = registry.Metric(function, "colors", 1000)
    monkeypatch.setitem(registry.METRICS, "kid1k_full", small)
    images = ImageDataset(tiny_data), ImageDataset(heldout_data)
    assert metrics.seconds(["kid1k_full"], G, *images, trust=TRUST).each > 0
    few = len(made)
    list(metrics.compute(["kid1k_full"], G, *images, trust=TRUST, show=False))
    assert 0 < few < (len(made) - few) / 3
    (real, sampled), (same, full) = seen
    assert torch.equal(real, same)  # features of real images are kept, and must be true
    assert sampled.shape == full.shape and torch.equal(sampled[:64], full[:64])


class Counting(ImageDataset):
    """A data set that counts how often an image of it is read."""

    read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


def test_a_glimpse_reads_a_few_real_images_and_keeps_nothing(colors, tmp_path):
    widths = dict(channel_base=64, channel_max=8)
    G = networks.Generator(4, 0, 4, 16, 3, dict(num_layers=1), widths).eval()
    for index in range(400):
        Image.new("RGB", (16, 16), (index % 256, index // 256, 0)).save(tmp_path / f"{index}.png")
    images = Counting(tmp_path)
    glimpse = metrics.seconds([colors], G, images, trust=TRUST, quick=True)
    assert glimpse.each > 0 and glimpse.once > 0
    assert 0 < images.read < 400
    images.read = 0
    assert metrics.seconds([colors], G, images, trust=TRUST).once == 0
    assert images.read >= 400  # nothing was kept by the glimpse
    images.read = 0
    assert metrics.seconds([colors], G, images, trust=TRUST, quick=True).once == 0
    assert images.read == 0


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
    assert [x.split()[0] for x in words.splitlines()[:3]] == ["Time", "Memory", "Disk"]
    assert "2 snapshots" in words or "3 snapshots" in words
    assert SELECTED.kernels == {} and torch.get_num_threads() == 1
