"""Networks with a prior and with filter banks through projection, walks and mixing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from PIL import Image

import generate
from stylegan2_fewshot.methods.bank.filters import install
from stylegan2_fewshot.methods.prior import instances
from tools import mix, project, walk
from training import conditions, grids, pickles

LAYERS = ["b4.conv1", "b8.conv0", "b8.conv1"]
DIM = 6  # numbers that the backbone sees in an image


class Backbone(torch.nn.Module):
    """Mean colours of the left and the right half."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, [1, 2]).flatten(1)


def saved(path: Path, *, c_dim: int = 0, banks: bool = False) -> Path:
    G, D = tiny.networks(c_dim=c_dim)
    if banks:
        install(G, size=4, layers=LAYERS, jitter=1.0, seed=0)
    pickles.save(path, G=G, D=D, G_ema=G)
    return path


@pytest.fixture(scope="module")
def banked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("banks") / "net.pkl", banks=True)


@pytest.fixture(scope="module")
def with_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a network with a prior; its backbone lies beside it as backbone.pt."""
    folder = tmp_path_factory.mktemp("prior")
    torch.jit.script(Backbone()).save(str(folder / "backbone.pt"))
    sha256 = hashlib.sha256((folder / "backbone.pt").read_bytes()).hexdigest()
    rng = torch.Generator().manual_seed(0)
    features = instances.unit(torch.rand(2, 4, DIM, generator=rng))
    meta = {"backbone": "backbone.pt", "backbone_sha256": sha256, "resize": None}
    network = saved(folder / "net.pkl", c_dim=DIM)
    conditions = instances.Instances(features, meta).as_conditions()
    kept = instances.Instances(conditions.vectors[0], meta, conditions.center)
    instances.save(instances.companion(network), kept)
    return network


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.RandomState(1).randint(0, 256, [16, 16, 3], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(command: Any, network: Path, *arguments: object) -> str:
    words = [f"--network={network}", *map(str, arguments)]
    result = CliRunner().invoke(command.main, words)
    assert result.exit_code == 0, result.output
    return result.output


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def trusted(network: Path) -> tuple[str, ...]:
    return f"--backbone={network.parent / 'backbone.pt'}", "--trust-backbone"


def projected(network: Path, photo: Path, *options: str) -> tuple[np.ndarray, np.ndarray]:
    """Return w of a photo, and the picture of the projection on its sheet."""
    run(project, network, photo, "--num-steps=2", f"--outdir={photo.parent}/found", *options)
    with np.load(photo.parent / "found" / "photo.npz") as arrays:
        w = arrays["w"]
    return w, pixels(photo.parent / "found" / "photo.png")[grids.GAP :, -16:][:16]


def test_a_projection_is_conditioned_on_what_the_backbone_sees_in_the_image(
    with_prior: Path, photo: Path
) -> None:
    G = pickles.load(with_prior).G_ema
    own = {"backbone": str(with_prior.parent / "backbone.pt"), "trust": conditions.Trust(True)}
    kept = instances.load(instances.companion(with_prior))
    named = (kept.meta["backbone"], kept.meta["backbone_sha256"])
    c = kept.condition_of(conditions.see([str(photo)], *named, G, **own))
    w, made = projected(with_prior, photo, *trusted(with_prior))
    np.testing.assert_array_equal(w[0, 0], w[0, -1])
    starts = torch.stack([_mean_w(G, condition) for condition in (c, torch.zeros_like(c))])
    near, far = (starts - torch.from_numpy(w[0, 0])).norm(dim=1)
    assert near < far  # two steps are short
    out = photo.parent / "drawn"
    run(generate, with_prior, f"--projected-w={photo.parent}/found/photo.npz", f"--outdir={out}")
    np.testing.assert_array_equal(pixels(out / "proj00.png"), made)


def _mean_w(G: Any, c: torch.Tensor) -> torch.Tensor:
    z = torch.randn(2000, 8, generator=torch.Generator().manual_seed(1))
    return G.mapping(z, c.expand(2000, -1))[:, 0].mean(0)


@pytest.mark.parametrize("route", ["3,1,0", "mean"])
def test_a_projection_takes_its_route(banked: Path, photo: Path, route: str) -> None:
    _, made = projected(banked, photo, f"--route={route}")
    out = photo.parent / "drawn"
    latents = f"--projected-w={photo.parent}/found/photo.npz"
    run(generate, banked, latents, f"--route={route}", f"--outdir={out}")
    np.testing.assert_array_equal(pixels(out / "proj00.png"), made)
    run(generate, banked, latents, "--route=0,0,3", f"--outdir={out}")
    assert (pixels(out / "proj00.png") != made).any()


def test_tuning_keeps_the_conditions(with_prior: Path, photo: Path) -> None:
    projected(with_prior, photo, *trusted(with_prior), "--tune-g", "--tune-steps=1")
    kept = (photo.parent / "found" / "tuned.prior.npz").read_bytes()
    assert kept == instances.companion(with_prior).read_bytes()


CASES = [("banked", ()), ("banked", ("--route=3,1,0",)), ("with_prior", ("--prior-sample=train",))]


@pytest.mark.parametrize(("fixture", "options"), CASES)
def test_walks_and_mixtures_are_generate_s_at_their_sources(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, options: tuple[str, ...]
) -> None:
    network = request.getfixturevalue(fixture)
    run(generate, network, "--seeds=0-2", f"--outdir={tmp_path}", *options)
    seeds = [pixels(tmp_path / f"seed000{n}.png") for n in range(3)]
    run(walk, network, "--seeds=2,0", "--frames=2", f"--out={tmp_path / 'walk'}", *options)
    frames = [pixels(path) for path in sorted((tmp_path / "walk").iterdir())]
    np.testing.assert_array_equal([frames[0], frames[2]], [seeds[2], seeds[0]])
    mixing = ("--rows=0,1", "--cols=2", "--styles=0-2", f"--outdir={tmp_path / 'mix'}")
    assert "wrote 6 files" in run(mix, network, *mixing, *options)
    for seed in range(3):
        np.testing.assert_array_equal(pixels(tmp_path / "mix" / f"{seed}-{seed}.png"), seeds[seed])
    assert (pixels(tmp_path / "mix" / "0-2.png") != seeds[0]).any()
