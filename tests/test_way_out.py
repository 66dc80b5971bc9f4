"""Walks, mixtures, sheets, directions and blends of tiny networks."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner, Result
from PIL import Image

import generate
from tools import blend, directions, mix, sheet, walk
from training import grids, pickles


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("one") / "one.pkl")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("two") / "two.pkl", seed=1)


@pytest.fixture(scope="module")
def seeds(network: Path, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Return what generate.py makes of the seeds 0 to 3."""
    out = tmp_path_factory.mktemp("seeds")
    run(generate, "--network", network, "--seeds=0-3", "--trunc=0.7", "--outdir", out)
    return [pixels(out / f"seed000{n}.png") for n in range(4)]


def run(command: Any, *arguments: object) -> Result:
    result = CliRunner().invoke(command.main, [str(argument) for argument in arguments])
    assert result.exit_code in (0, 2), result.output
    return result


def refused(command: Any, *arguments: object) -> str:
    result = run(command, *arguments)
    assert result.exit_code == 2 and result.output.count("\n") == 1, result.output
    return result.output


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def animation(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        frames = []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
        return frames


def test_a_walk_visits_the_seeds(network: Path, seeds: list[np.ndarray], tmp_path: Path) -> None:
    options = ("--network", network, "--seeds=0,2,1", "--trunc=0.7", "--frames=3")
    done = run(walk, *options, "--out", tmp_path / "frames")
    assert done.output == f"wrote 9 files to {tmp_path / 'frames'}\n"
    frames = [pixels(path) for path in sorted((tmp_path / "frames").iterdir())]
    run(walk, *options, "--out", tmp_path / "walk.webp")
    for made in (frames, animation(tmp_path / "walk.webp")):
        assert len(made) == 9
        for place, seed in ((0, 0), (3, 2), (6, 1)):
            np.testing.assert_array_equal(made[place], seeds[seed])
        assert all((a != b).any() for a, b in zip(made, [*made[1:], made[0]], strict=True))
    run(walk, *options, "--no-loop", "--pause=2", "--out", tmp_path / "one-way")
    one_way = [pixels(path) for path in sorted((tmp_path / "one-way").iterdir())]
    assert len(one_way) == 2 * 3 + 1 + 3 * 2
    for place, seed in ((0, 0), (2, 0), (5, 2), (12, 1)):
        np.testing.assert_array_equal(one_way[place], seeds[seed])


def test_a_walk_is_straight_in_w_unless_eased(network: Path, tmp_path: Path) -> None:
    options = ("--network", network, "--seeds=0,1", "--frames=4", "--out")
    run(walk, *options, tmp_path / "linear")
    run(walk, *options, tmp_path / "smooth", "--easing=smooth")
    G = pickles.load(network).G_ema
    ws = [G.mapping(torch.from_numpy(np.random.RandomState(s).randn(1, 8)), None) for s in (0, 1)]
    for easing, share in (("linear", 0.25), ("smooth", 0.15625)):
        expected = grids.to_pixels(G.synthesis(ws[0].lerp(ws[1], share), noise_mode="const"))[0]
        got = pixels(tmp_path / easing / "frame00001.png")
        assert np.abs(got.astype(int) - expected).max() <= 1
    middle = [pixels(tmp_path / easing / "frame00002.png") for easing in ("linear", "smooth")]
    np.testing.assert_array_equal(*middle)


def test_movies_decode_with_the_right_count(network: Path, other: Path, tmp_path: Path) -> None:
    options = ("--network", f"{network},{other}", "--seeds=0,1", "--frames=5", "--labels")
    for name in ("walk.mp4", "walk.gif"):
        run(walk, *options, "--fps=10", "--out", tmp_path / name)
    with av.open(str(tmp_path / "walk.mp4")) as movie:
        frames = list(movie.decode(video=0))
        assert movie.streams.video[0].average_rate == 10
    assert len(frames) == 10 == len(animation(tmp_path / "walk.gif"))
    assert (frames[0].width, frames[0].height) == (32, 40)


def test_a_truncation_walk(network: Path, seeds: list[np.ndarray], tmp_path: Path) -> None:
    options = ("--network", network, "--seeds=2", "--frames=2", "--no-loop", "--out", tmp_path)
    run(walk, *options, "--truncation-walk=0,0.7")
    np.testing.assert_array_equal(pixels(tmp_path / "frame00002.png"), seeds[2])
    assert (pixels(tmp_path / "frame00000.png") != seeds[2]).any()


def test_walks_that_cannot_be(network: Path, tmp_path: Path) -> None:
    options = ("--network", network, "--out", tmp_path / "x.webp")
    assert "give either --seeds or --w" in refused(walk, *options)
    assert "is not a seed" in refused(walk, *options, "--seeds=a")
    assert "--out" in refused(walk, "--network", network, "--seeds=0", "--out", tmp_path / "x.avi")
    np.savez(tmp_path / "w.npz", w=np.zeros((1, 3, 8)))
    assert "--w=" in refused(walk, *options, "--w", tmp_path / "w.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


def test_a_matrix_of_styles(network: Path, seeds: list[np.ndarray], tmp_path: Path) -> None:
    options = (
        "--network",
        network,
        "--rows=0,1",
        "--cols=2,3",
        "--trunc=0.7",
        "--outdir",
        tmp_path,
    )
    assert run(mix, *options, "--styles=0-2").output == f"wrote 9 files to {tmp_path}\n"
    for seed in range(4):
        np.testing.assert_array_equal(pixels(tmp_path / f"{seed}-{seed}.png"), seeds[seed])
    mixed, grid = pixels(tmp_path / "0-3.png"), pixels(tmp_path / "grid.png")
    assert (mixed != seeds[0]).any() and (mixed != seeds[3]).any()
    np.testing.assert_array_equal(grid[16:32, 32:48], mixed)
    np.testing.assert_array_equal(grid[:16, 16:32], seeds[2])
    np.testing.assert_array_equal(grid[32:, :16], seeds[1])
    run(mix, *options, "--styles=0-5")
    np.testing.assert_array_equal(pixels(tmp_path / "1-2.png"), seeds[2])
    assert "the network's layers are 0 to 5" in refused(mix, *options, "--styles=3-6")


def test_sheets(network: Path, other: Path, seeds: list[np.ndarray], tmp_path: Path) -> None:
    run(sheet, "--network", network, "--seeds=0-2", "--psi=0.7,0", "--out", tmp_path / "psi.png")
    picture = pixels(tmp_path / "psi.png")
    left, top = picture.shape[1] - 3 * 16, grids.GAP
    np.testing.assert_array_equal(picture[top : top + 16, left + 16 : left + 32], seeds[1])
    second = picture[2 * top + 16 : 2 * top + 32, left:]
    np.testing.assert_array_equal(second[:, :16], second[:, 16:32])  # psi 0 is one image
    place = tmp_path / "run"
    place.mkdir()
    for name, source in (("000004", other), ("000010", network)):
        (place / f"network-snapshot-{name}.pkl").write_bytes(source.read_bytes())
    options = ("--network", place, "--seeds=0-1", "--trunc=0.7", "--out", tmp_path / "run.png")
    run(sheet, *options, "--snapshots")
    picture = pixels(tmp_path / "run.png")
    left, top = picture.shape[1] - 2 * 16, 2 * grids.GAP + 16
    np.testing.assert_array_equal(picture[top : top + 16, left : left + 16], seeds[0])
    assert "give either --psi or --snapshots" in refused(sheet, *options)


def test_directions(network: Path, other: Path, seeds: list[np.ndarray], tmp_path: Path) -> None:
    file, picture = tmp_path / "d.npz", tmp_path / "d.png"
    options = ("--network", network, "--count=4", "--trunc=0.7", "--seed=1")
    run(directions, *options, "--layers=0-2", "--out", file, "--sheet", picture)
    with np.load(file) as arrays:
        vectors = arrays["directions"]
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-5)
    drawn = pixels(picture)
    left = drawn.shape[1] - directions.COLUMNS * 16
    np.testing.assert_array_equal(drawn[8:24, left + 48 : left + 64], seeds[1])  # the middle
    out = ("--seeds=1", "--trunc=0.7", "--outdir", tmp_path)
    done = run(generate, "--network", network, f"--direction={file}:0=3", *out)
    assert done.output == f"wrote 1 file to {tmp_path}\n"
    np.testing.assert_array_equal(pixels(tmp_path / "seed0001.png"), drawn[8:24, -16:])
    foreign = run(generate, "--network", other, f"--direction={file}:0=3", *out)
    assert "the directions are of another network" in foreign.output


def test_blends(network: Path, other: Path, tmp_path: Path) -> None:
    out, place = tmp_path / "blend.pkl", ("--outdir", tmp_path)
    for split, parent in ((16, network), (0, other)):
        run(blend, network, other, out, f"--split={split}")
        for key in ("G", "D", "G_ema"):
            state, want = (getattr(pickles.load(p), key).state_dict() for p in (out, parent))
            assert all(state[name].equal(want[name]) for name in want)
    run(blend, network, other, out, "--split=8")
    made, one, two = (pickles.load(p).G_ema.state_dict() for p in (out, network, other))
    for name in ("synthesis.b8.conv1.weight", "mapping.fc0.weight"):
        assert made[name].equal(one[name])
    assert made["synthesis.b16.conv1.weight"].equal(two["synthesis.b16.conv1.weight"])
    assert run(generate, "--network", out, "--seeds=0", *place).exit_code == 0
    run(blend, network, other, out, "--split=8", "--smooth=3")
    name = "synthesis.b8.conv1.weight"
    mixed = pickles.load(out).G_ema.state_dict()[name]
    torch.testing.assert_close(mixed, one[name].lerp(two[name], 1 / 3))


def test_blends_that_cannot_be(network: Path, tmp_path: Path) -> None:
    out, large = tmp_path / "blend.pkl", tiny.save(tmp_path / "large.pkl", size=32)
    message = refused(blend, network, large, out, "--split=8")
    assert "only the second network has the tensor G.synthesis.b32" in message
    classes = tiny.save(tmp_path / "classes.pkl", c_dim=2)
    assert "trained from one source" in refused(blend, network, classes, out, "--split=8")
    assert "--split=12: must be" in refused(blend, network, network, out, "--split=12")
    assert not out.exists()


@pytest.mark.parametrize("name", ["walk", "mix", "sheet", "directions"])
def test_a_missing_network_is_one_line(name: str, tmp_path: Path) -> None:
    command = importlib.import_module(f"tools.{name}")
    needed = {"walk": ["--seeds=0"], "mix": ["--rows=0", "--cols=1"], "sheet": ["--psi=1"]}
    place = "--outdir" if name == "mix" else "--out"
    suffix = {"walk": "x.gif", "mix": "x", "sheet": "x.png", "directions": "x.npz"}[name]
    options = [*needed.get(name, []), place, tmp_path / suffix]
    assert "--network: gone.pkl: no such file" in refused(command, "--network=gone.pkl", *options)
