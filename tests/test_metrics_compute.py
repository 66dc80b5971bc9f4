"""Metrics of a generator: names, results, independence of batches and ranks, caching."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import metrics
from metrics import detectors, evaluation, features, registry, sharpness
from metrics.detectors import Detector
from metrics.evaluation import Evaluation
from metrics.features import Subject
from metrics.perceptual_path import PathSteps
from stylegan2_fewshot import distributed
from training.dataset import ImageDataset

RESOLUTION = 8


class ToyGenerator(torch.nn.Module):
    """Images whose pixels are linear in z, with noise of the global generator."""

    z_dim, c_dim, img_resolution = 5, 0, RESOLUTION

    def __init__(self, *, spread: float = 0.3, noise: float = 0.05, c_dim: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(7)
        self.spread, self.noise, self.c_dim = spread, noise, c_dim
        self.register_buffer("matrix", torch.randn(5, 3 * RESOLUTION**2, generator=rng))
        self.register_buffer("noise_const", torch.zeros(3, RESOLUTION, RESOLUTION))

    def mapping(self, z, c):
        return z.unsqueeze(1)

    def synthesis(self, ws, **_):
        images = self.spread * (ws[:, 0] @ self.matrix)
        return images.view(-1, 3, RESOLUTION, RESOLUTION) + self.noise * self.noise_const

    def forward(self, z, c):
        images = self.synthesis(self.mapping(z, c))
        return images + self.noise * torch.randn_like(images) + c.sum(1).view(-1, 1, 1, 1)


extract = functools.partial(features.extract, device=torch.device("cpu"))


def flat(images):
    return images.flatten(1).float() / 127.5


@pytest.fixture(autouse=True)
def toy_detectors(tmp_path, monkeypatch):
    toy = {
        name: functools.partial(_toy, name)
        for name in ("mobilenetv2", "inception", "lpips-vgg16", "nvidia-lpips")
    }
    monkeypatch.setattr(detectors, "BUILDERS", toy)
    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path / "cache"))
    detectors.load.cache_clear()
    yield
    detectors.load.cache_clear()


def _toy(name, device):
    return Detector(name, f"hash of {name}", "none", flat)


def write_images(folder, generator, size, *, start=0):
    """Write images of a generator's as PNGs, and return them as a data set."""
    folder.mkdir()
    fakes = features.Fakes(Subject(generator, seed=1), start + size)
    images = extract(fakes, features.unchanged)
    for number, image in enumerate(images[start:]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:03d}.png")
    return ImageDataset(folder)


@pytest.fixture
def ten(tmp_path):
    return write_images(tmp_path / "ten", ToyGenerator(), 10)


@pytest.fixture
def heldout(tmp_path):
    return write_images(tmp_path / "heldout", ToyGenerator(), 50, start=10)


def few(monkeypatch, size=200):
    """Let metrics look at few fakes."""
    small = {
        name: registry.replace(metric, num_fakes=min(size, metric.num_fakes))
        for name, metric in registry.METRICS.items()
    }
    monkeypatch.setattr(registry, "METRICS", small)


FEW_SHOT = [
    "kid5k_full@mobilenetv2",
    "fd5k_full@mobilenetv2",
    "pr5k3_full@mobilenetv2",
    "dc5k5_full",
    "lpips1k_intra",
    "nn1k",
    "copying1k",
]


def values(names, G, *data, **options):
    results = metrics.compute(names, G, *data, show=False, **options)
    return {key: number for result in results for key, number in result["results"].items()}


# Names


def test_names_of_the_original_mean_its_computation():
    for name in ("fid50k_full", "kid50k_full", "fid50k", "kid50k"):
        assert registry.find(name).detector == "inception"
    for name in ("pr50k3_full", "pr50k3"):
        assert registry.find(name).detector == "nvidia-vgg16"
    originals = "fid50k_full kid50k_full pr50k3_full ppl2_wend is50k ppl_zfull ppl_wfull ppl_zend"
    assert {registry.find(name).num_fakes for name in originals.split()} == {50_000}
    assert registry.find("pr50k3_full").max_reals == 200_000
    assert registry.find("fid50k").max_reals == 50_000
    assert registry.find("fid50k").mirrored and not registry.find("fid50k_full").mirrored


def test_detector_is_part_of_the_name_unless_usual():
    assert registry.find("kid5k_full@mobilenetv2").name == "kid5k_full@mobilenetv2"
    assert registry.find("kid5k_full@inception").name == "kid5k_full"
    assert registry.find("fid50k_full@inception").name == "fid50k_full"
    assert registry.find("nn1k@/my-lpips-nets/dinov2.pt").name == "nn1k@dinov2"
    assert registry.find("nn1k@/some/where/dinov2.pt").name == "nn1k@dinov2"
    assert registry.find("nn1k@/some/where/dinov2.pt").detector == "/some/where/dinov2.pt"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fid6k", "there are fid50k_full"),
        ("fid5k_full@mobilenetv2", "write fd5k_full@mobilenetv2"),
        ("fd5k_full@inception", "it is called fid5k_full"),
        ("fd5k_full", "name a detector, as fd5k_full@mobilenetv2"),
        ("lpips1k_intra@mobilenetv2", "does not give what this metric needs"),
        ("kid5k_full@lpips-vgg16", "does not give what this metric needs"),
        ("is50k@mobilenetv2", "does not give what this metric needs"),
    ],
)
def test_what_makes_no_sense_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        registry.find(name)


def test_unusable_metrics_are_named_and_the_others_remain(ten, heldout):
    names = ["nn1k", "kid5k_full@nowhere", "fd5k_full@mobilenetv2"]
    good, complaints = metrics.usable(names, ten)
    assert good == ["fd5k_full@mobilenetv2"]
    assert "nn1k is left out" in complaints[0] and "--metricdata" in complaints[0]
    assert "nowhere.pt" in complaints[1]
    assert metrics.usable(names, ten, heldout)[0] == ["nn1k", "fd5k_full@mobilenetv2"]
    with pytest.raises(ValueError, match="no such metric"):
        metrics.usable(["fid"], ten)


def test_images_of_another_size_are_refused(ten, tmp_path):
    (tmp_path / "large").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "large" / "0.png")
    _, [complaint] = metrics.usable(
        ["fd5k_full@mobilenetv2"], ten, ImageDataset(tmp_path / "large")
    )
    assert "must be of 8 pixels" in complaint


def test_too_few_images_to_measure_against_are_refused(ten, tmp_path):
    three = write_images(tmp_path / "three", ToyGenerator(), 3)
    _, [complaint] = metrics.usable(["fd5k_full@mobilenetv2"], ten, three)
    assert "images to measure against must be at least 6, got 3" in complaint


def test_what_one_rank_cannot_do_is_left_out_by_all(ten, heldout, monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda mine: [mine, {"nn1k": "no disk on rank 1"}])
    found = metrics.usable(["copying1k", "nn1k"], ten, heldout)
    assert found == (["copying1k"], ["no disk on rank 1"])


def test_intra_cluster_distance_is_for_few_images(tmp_path):
    many = write_images(tmp_path / "many", ToyGenerator(), 101)
    _, [complaint] = metrics.usable(["lpips1k_intra"], many)
    assert "training images must be at most 100, got 101" in complaint


# Results


def test_a_result_says_how_it_came_about(ten, heldout, monkeypatch):
    few(monkeypatch)
    [result] = metrics.compute(
        ["kid5k_full@mobilenetv2"],
        ToyGenerator(),
        ten,
        heldout,
        seed=3,
        kimg=12,
        snapshot="network-snapshot-000012.pkl",
        show=False,
    )
    number = result["results"]["kid5k_full@mobilenetv2"]
    parts = ("kid5k_full", "kid5k_full_std", "kid5k_full_floor")
    assert list(result["results"]) == [f"{part}@mobilenetv2" for part in parts]
    assert metrics.value(result) == number and result.pop("seconds") >= 0
    del result["results"]
    assert result == {
        "metric": "kid5k_full@mobilenetv2",
        "better": "lower",
        "detector": "mobilenetv2",
        "sha256": "hash of mobilenetv2",
        "resize": "none",
        "num_fakes": 200,
        "num_reals": 50,
        "num_train": 10,
        "seed": 3,
        "kimg": 12,
        "snapshot_pkl": "network-snapshot-000012.pkl",
    }


def test_every_few_shot_metric_gives_numbers_that_the_seed_fixes(ten, heldout, monkeypatch):
    few(monkeypatch)
    first, again, other = (
        values(FEW_SHOT, ToyGenerator(), ten, heldout, seed=seed) for seed in (0, 0, 1)
    )
    assert all(math.isfinite(number) for number in first.values())
    assert first == again
    assert {key for key in first if first[key] == other[key]} <= {
        "nn1k_heldout",
        "nn1k_blur_train",
        "nn1k_blur_heldout",
        "nn1k_blur_fake",
        "nn1k_control",
        "copying1k_blur_train",
        "copying1k_blur_heldout",
        "copying1k_blur_fake",
        "copying1k_control",
        "lpips1k_intra_clusters",
        "lpips1k_intra_empty",
        "nn1k_copies",
        "dc5k5_full_coverage",
        "pr5k3_full_recall@mobilenetv2",
    }


def test_random_numbers_of_training_are_left_alone(ten, heldout, monkeypatch):
    few(monkeypatch)
    torch.manual_seed(5)
    np.random.seed(5)
    values(FEW_SHOT, ToyGenerator(), ten, heldout)
    drawn = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    assert drawn == (torch.rand(1), np.random.rand())


def test_a_metric_does_not_depend_on_its_company(ten, heldout, monkeypatch):
    few(monkeypatch)
    together = values(FEW_SHOT, ToyGenerator(), ten, heldout)
    alone = [values([name], ToyGenerator(), ten, heldout) for name in reversed(FEW_SHOT)]
    assert together == {key: number for one in alone for key, number in one.items()}


def test_the_better_of_two_results():
    low, high = ({"results": {"x": v}, "better": "lower"} for v in (1.0, 2.0))
    assert metrics.is_better(low, high) and not metrics.is_better(high, low)
    assert metrics.is_better(high, None) and not metrics.is_better(low, low)
    broken = {"results": {"x": float("nan")}, "better": "lower"}
    assert not metrics.is_better(broken, None) and metrics.is_better(high, broken)
    assert metrics.is_better({**high, "better": "higher"}, low)


def test_results_are_kept_by_metric_and_the_latest_of_a_kimg_counts(tmp_path):
    for kimg, number in ((8, 1.0), (0, 2.0), (8, 3.0)):
        path = metrics.append(tmp_path, {"metric": "a@b", "results": {"a@b": number}, "kimg": kimg})
    assert path.name == "metric-a@b.jsonl" and len(path.read_text().splitlines()) == 3
    assert [json.loads(line)["kimg"] for line in path.read_text().splitlines()] == [8, 0, 8]
    assert [metrics.value(r) for r in metrics.read(tmp_path)["a@b"]] == [2, 3]
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_line_at_the_end_does_not_count(tmp_path):
    result = {"metric": "a", "results": {"a": 1.0}, "kimg": 1}
    path = metrics.append(tmp_path, result)
    with path.open("a") as stream:
        stream.write('{"metric": "a", "resu')
    assert metrics.read(tmp_path) == {"a": [result]}
    metrics.append(tmp_path, {**result, "kimg": 2})
    assert len(path.read_text().splitlines()) == 2


# Right direction


def test_a_generator_of_the_same_images_beats_another(ten, heldout, monkeypatch):
    few(monkeypatch)
    same = values(FEW_SHOT, ToyGenerator(), ten, heldout)
    other = values(FEW_SHOT, ToyGenerator(spread=0.03), ten, heldout)
    for name in ("kid5k_full@mobilenetv2", "fd5k_full@mobilenetv2"):
        assert same[name] < other[name]
    assert same["dc5k5_full_coverage"] > 0.9 > other["dc5k5_full_coverage"]
    assert abs(same["nn1k_ratio"] - 1) < 0.2
    assert abs(same["copying1k_score"]) < 3 and same["copying1k_p_value"] > 0.01


class Repeater(ToyGenerator):
    """Gives back training images, almost."""

    def __init__(self, dataset):
        super().__init__()
        self.images = torch.from_numpy(np.stack([image for image, _ in dataset])) / 127.5 - 1

    def forward(self, z, c):
        return self.images[(z[:, 0] * 1e4).long() % len(self.images)] + 1e-3 * torch.rand(1)


def test_a_repeater_is_precise_and_caught(ten, heldout, monkeypatch):
    few(monkeypatch)
    found = values(FEW_SHOT, Repeater(ten), ten, heldout)
    assert (
        values(["pr5k3_full@mobilenetv2"], Repeater(ten), ten)["pr5k3_full_precision@mobilenetv2"]
        == 1
    )
    assert found["copying1k_score"] < -5 and found["copying1k_p_value"] < 1e-6
    assert found["nn1k_ratio"] < 0.1 and found["nn1k_copies"] == 1
    assert found["lpips1k_intra"] < 1e-3 and found["lpips1k_intra_clusters"] == 10


class BlurredRepeater(Repeater):
    def __init__(self, dataset):
        super().__init__(dataset)
        self.images = sharpness.blur(self.images, 1.0)


def test_blurred_copies_are_caught_and_the_control_says_that_they_would_be(
    ten, heldout, monkeypatch
):
    few(monkeypatch)
    found = values(["nn1k", "copying1k"], BlurredRepeater(ten), ten, heldout)
    assert found["nn1k_copies"] > 0.9 and found["nn1k_control"] > 0.9
    assert found["copying1k_nearer"] > 0.9 and found["copying1k_control"] > 0.9
    assert found["nn1k_blur_fake"] == 0 < found["nn1k_blur_train"]
    assert found["nn1k_blur_train"] == pytest.approx(1, abs=0.3)


def test_heldout_images_that_are_training_images_are_refused(ten):
    _, [complaint] = metrics.usable(["nn1k"], ten, ten)
    assert "10 of the 10 images of --metricdata are training images" in complaint


def test_a_collapse_has_no_diversity_and_no_coverage(ten, heldout, monkeypatch):
    few(monkeypatch)
    found = values(FEW_SHOT, ToyGenerator(spread=0, noise=0), ten, heldout)
    assert found["lpips1k_intra"] < 1e-6 and found["lpips1k_intra_empty"] == 9
    assert found["dc5k5_full_coverage"] < 0.3
    assert found["pr5k3_full_recall@mobilenetv2"] == 0


# Shares, batches, cache


def test_the_batch_of_a_detector_changes_nothing():
    parts = []

    def network(images):
        parts.append(len(images))
        return flat(images)

    detector = Detector("toy", "hash", "none", network)
    images = torch.arange(90 * 3 * 4).view(90, 3, 2, 2)
    assert torch.equal(detector(images), flat(images)) and len(parts) > 1 and sum(parts) == 90


def test_fakes_are_made_once_for_all_detectors_unless_they_are_large(ten, heldout, monkeypatch):
    few(monkeypatch)
    made = []
    load = features.Fakes.load
    monkeypatch.setattr(features.Fakes, "load", lambda *a: made.append(a[1:]) or load(*a))
    kept = values(FEW_SHOT, ToyGenerator(), ten, heldout)
    assert made == [(0, 64), (64, 128), (128, 192), (192, 200)]
    monkeypatch.setattr(evaluation, "IN_MEMORY_BYTES", 1)
    assert values(FEW_SHOT, ToyGenerator(), ten, heldout) == kept and len(made) == 20


@pytest.mark.parametrize("world_size", [2, 3, 11])
def test_ranks_share_the_work_and_get_the_same_features(monkeypatch, world_size):
    monkeypatch.setattr(features, "group_size", lambda resolution: 16)
    source = features.Fakes(Subject(ToyGenerator()), 150)
    alone = extract(source, flat)
    shares = []
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    monkeypatch.setattr(distributed, "gather", lambda mine: shares.append(mine) or [mine, *empty])
    empty = [[(999, torch.zeros(0, 3 * RESOLUTION**2))]]
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        extract(source, flat)
    assert max(map(len, shares)) <= math.ceil(10 / world_size)
    monkeypatch.setattr(distributed, "gather", lambda mine: shares)
    assert torch.equal(extract(source, flat), alone)


class TwoLayers(ToyGenerator):
    """Draws noise twice, as the layers of a network do."""

    def forward(self, z, c):
        return super().forward(z, c) + super().forward(z, c)


def test_fewer_fakes_are_the_first_of_more():
    long, short = (features.Fakes(Subject(TwoLayers()), size) for size in (150, 100))
    assert torch.equal(extract(long, flat)[:100], extract(short, flat))


def test_labels_are_drawn_from_the_data_set(tmp_path):
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    table = {"labels": [[f"{number}.png", number % 2] for number in range(4)]}
    (tmp_path / "dataset.json").write_text(json.dumps(table))
    dataset = ImageDataset(tmp_path, use_labels=True)
    subject = Subject(ToyGenerator(c_dim=2), dataset)
    labels = subject.draw_labels(100, torch.Generator().manual_seed(0))
    assert labels.shape == (100, 2) and labels.sum(1).eq(1).all()
    assert 30 < labels[:, 0].sum() < 70


def test_intra_cluster_distance_at_the_published_size_enlarges_small_images(ten, monkeypatch):
    few(monkeypatch)
    sizes = []
    embed = Detector.__call__

    def recorded(self, images):
        sizes.append(images.shape[-1])
        return embed(self, images)

    monkeypatch.setattr(Detector, "__call__", recorded)
    found = values(["lpips1k_intra@256"], ToyGenerator(), ten)
    assert set(sizes) == {256} and "lpips1k_intra_clusters@256" in found


def test_labels_may_come_from_elsewhere(ten):
    pool = features.Pool(torch.eye(2)[1:])
    names = ["lpips1k_intra"]
    results = metrics.compute(names, ToyGenerator(c_dim=2), ten, show=False, labels=pool)
    assert [result["metric"] for result in results] == names
    labels = Subject(ToyGenerator(c_dim=2), pool).draw_labels(5, torch.Generator())
    assert labels.tolist() == [[0, 1]] * 5


def test_group_size_falls_with_the_resolution():
    sizes = [features.group_size(r) for r in (32, 256, 512, 1024, 2048)]
    assert sizes == [64, 64, 16, 4, 4]


def test_features_of_real_images_are_computed_once(ten, heldout, monkeypatch, tmp_path):
    few(monkeypatch)
    first = values(FEW_SHOT, ToyGenerator(), ten, heldout)
    kept = sorted((tmp_path / "cache" / "features").iterdir())
    assert len(kept) == 6 and all(path.suffix == ".npy" for path in kept)
    monkeypatch.setattr(features.Reals, "load", _refuse)
    without = [name for name in FEW_SHOT if name != "lpips1k_intra"]
    again = values(without, ToyGenerator(), ten, heldout)
    assert again == {key: first[key] for key in again}


def _refuse(*_):
    raise AssertionError("real images are looked at again")


def test_cache_knows_images_by_content(tmp_path, ten):
    before_and_after = Evaluation(Subject(ToyGenerator()), ten, show=False)
    detector = detectors.load("mobilenetv2")
    before = before_and_after.features_of(ten, detector)
    Image.new("RGB", (8, 8)).save(tmp_path / "ten" / "000.png")
    changed = before_and_after.features_of(ImageDataset(tmp_path / "ten"), detector)
    assert changed[0].eq(0).all() and torch.equal(changed[1:], before[1:])


def test_mirror_images_count_where_the_metric_says_so(tmp_path, ten):
    mirrored = ImageDataset(tmp_path / "ten", xflip=True)
    assert features.Reals(mirrored).size == 10
    assert features.Reals(mirrored, mirrored=True).size == 20
    assert features.Reals(mirrored, mirrored=True, limit=15).size == 15
    np.testing.assert_array_equal(features.Reals(mirrored).load(3, 4)[0], mirrored[3][0])


def test_without_a_reference_all_files_count(tmp_path, ten):
    part = ImageDataset(tmp_path / "ten", max_size=4)
    few_shots = Evaluation(Subject(ToyGenerator()), part, show=False)
    assert few_shots.num_reals() == 10 and len(few_shots.dataset) == 4


# Path length


def steps(**options):
    generator = ToyGenerator(spread=0.01, noise=0)
    return PathSteps(Subject(generator), 64, lpips=_toy("lpips", None), **options)


def test_path_length_of_a_linear_generator():
    # Pixels move by spread * (z1 - z0) M per path: the squared length of that, on average.
    generator = ToyGenerator(spread=0.01)
    expected = 2 * 1e-4 * float(generator.matrix.square().sum())
    found = extract(steps(), features.unchanged)
    assert found.shape == (64,)
    assert float(found.mean()) == pytest.approx(expected, rel=0.25)
    longer = extract(steps(epsilon=1e-2), features.unchanged)
    torch.testing.assert_close(longer, found, rtol=0.05, atol=0)


def test_path_is_along_the_sphere_in_z():
    found = extract(steps(space="z", sampling="full", epsilon=1e-2), features.unchanged)
    # Unit vectors an angle apart: at most pi, along the direction that stretches most.
    norm = torch.linalg.matrix_norm(ToyGenerator().matrix, 2)
    assert 0 < float(found.max()) < (0.01 * math.pi * float(norm)) ** 2


def test_cropped_path_looks_at_the_middle():
    shapes = []

    def record(images):
        shapes.append(tuple(images.shape))
        return flat(images)

    lpips = Detector("x", "", "none", record)
    PathSteps(Subject(ToyGenerator()), 2, lpips=lpips, crop=True).load(0, 2)
    assert shapes == [(4, 3, 4, 4)]


def test_path_length_leaves_the_generator_alone(ten):
    generator = ToyGenerator()
    values_before = {k: v.clone() for k, v in generator.state_dict().items()}
    few_steps = PathSteps(Subject(generator), 4, lpips=_toy("lpips", None))
    few_steps.load(0, 4)
    for key, before in values_before.items():
        assert torch.equal(generator.state_dict()[key], before)
    assert few_steps.G.noise_const.abs().sum() > 0
