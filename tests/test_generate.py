from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner, Result
from PIL import Image

import generate
from stylegan2_fewshot import distributed
from tools.choices import SEEDS
from training import generation, grids, pickles


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("plain") / "net.pkl", noise=1)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("classes") / "net.pkl", c_dim=3, noise=1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(generate.main, [str(argument) for argument in arguments])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_images_are_those_of_the_seeds(network: Path, tmp_path: Path) -> None:
    result = run("--network", network, "--seeds", "3,5-6", "--trunc", 0.7, "--outdir", tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"seed000{seed}.png" for seed in (3, 5, 6)
    ]
    G = pickles.load(network).G_ema.to(distributed.init())
    z = torch.from_numpy(np.random.RandomState(5).randn(1, 8)).to(distributed.init(), torch.float32)
    img = G(z, torch.zeros(1, 0, device=z.device), truncation_psi=0.7, noise_mode="const")
    expected = (img[0] * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu()
    np.testing.assert_array_equal(pixels(tmp_path / "seed0005.png"), expected.numpy())


@pytest.mark.parametrize("mode", ["random", "none"])
def test_noise_modes_differ_and_repeat(network: Path, tmp_path: Path, mode: str) -> None:
    for folder, noise_mode in (("const", "const"), ("one", mode), ("two", mode)):
        place = tmp_path / folder
        options = ("--noise-mode", noise_mode, "--outdir", place)
        assert run("--network", network, "--seeds", 1, *options).exit_code == 0
    const, one, two = (pixels(tmp_path / f / "seed0001.png") for f in ("const", "one", "two"))
    np.testing.assert_array_equal(one, two)
    assert (one != const).any()


@pytest.mark.parametrize("mode", ["const", "random"])
def test_seeds_drawn_together_are_those_drawn_alone(
    network: Path, tmp_path: Path, mode: str
) -> None:
    for batch in (1, 3):
        out = ("--batch", batch, "--noise-mode", mode, "--outdir", tmp_path / str(batch))
        assert run("--network", network, "--seeds", "0-4", *out).exit_code == 0
    for seed in range(5):
        one, other = (pixels(tmp_path / f / f"seed000{seed}.png").astype(int) for f in "13")
        assert abs(one - other).max() <= 1


def test_classes_change_the_image(conditional: Path, tmp_path: Path) -> None:
    for index in (0, 2):
        options = ("--class", index, "--outdir", tmp_path / str(index))
        assert run("--network", conditional, "--seeds", 0, *options).exit_code == 0
    one, two = (pixels(tmp_path / str(index) / "seed0000.png") for index in (0, 2))
    assert (one != two).any()


def test_projected_latents(network: Path, tmp_path: Path) -> None:
    G = pickles.load(network).G_ema.to(distributed.init())
    z = torch.randn(2, 8, device=next(G.parameters()).device)
    ws = G.mapping(z, torch.zeros(2, 0, device=z.device))
    np.savez(tmp_path / "w.npz", w=ws.cpu().numpy())
    out = tmp_path / "out"
    result = run("--network", network, "--projected-w", tmp_path / "w.npz", "--outdir", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["proj00.png", "proj01.png"]
    expected = grids.to_pixels(G.synthesis(ws[1:], noise_mode="const"))[0]
    np.testing.assert_array_equal(pixels(out / "proj01.png"), expected)


def test_grid_shows_every_seed(network: Path, tmp_path: Path) -> None:
    run("--network", network, "--seeds", "0-9", "--grid", "--outdir", tmp_path)
    picture = pixels(tmp_path / "grid.png")
    # Two rows, of 8 and of 2 images, which start where the label ends.
    top = grids.GAP
    left = picture.shape[1] - 8 * 16
    np.testing.assert_array_equal(
        picture[top : top + 16, left + 48 : left + 64], pixels(tmp_path / "seed0003.png")
    )
    top += 16 + grids.GAP
    np.testing.assert_array_equal(
        picture[top : top + 16, left + 16 : left + 32], pixels(tmp_path / "seed0009.png")
    )
    assert (picture[:, :left] < 128).any()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels(tmp_path: Path, channels: int, mode: str) -> None:
    network = tiny.save(tmp_path / "net.pkl", noise=1, channels=channels)
    run("--network", network, "--seeds", 0, "--outdir", tmp_path, "--grid")
    with Image.open(tmp_path / "seed0000.png") as image:
        assert image.mode == mode
    assert (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("0-3,40", [0, 1, 2, 3, 40]), (" 7 , 5-5", [7, 5]), ("4294967295", [2**32 - 1])],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parsed(text) == seeds


def parsed(text: str) -> list[int]:
    return list(SEEDS.convert(text, None, None))


def test_all_seeds_take_no_memory() -> None:
    seeds = SEEDS.convert("7,0-4294967295", None, None)
    assert len(seeds) == 2**32 + 1
    assert (seeds[0], seeds[1], seeds[-1]) == (7, 0, 2**32 - 1)
    assert seeds[2**32 - 1 :] == [2**32 - 2, 2**32 - 1]
    with pytest.raises(IndexError):
        seeds[2**32 + 1]


@pytest.mark.parametrize("text", ["", "x", "3-1", "-1", "1,,2", "1.5", "4294967296", "0-"])
def test_bad_seeds(network: Path, tmp_path: Path, text: str) -> None:
    result = run("--network", network, f"--seeds={text}", "--outdir", tmp_path)
    assert_one_line(result, f"--seeds={text}: ")
    assert "is not a seed; write numbers" in result.output


def assert_one_line(result: Result, start: str) -> None:
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {start}")
    assert result.output.count("\n") == 1


def test_bad_networks(tmp_path: Path) -> None:
    options = ("--seeds", 0, "--outdir", tmp_path)
    assert_one_line(run("--network", tmp_path / "gone.pkl", *options), "--network: ")
    (tmp_path / "junk.pkl").write_bytes(b"junk")
    assert_one_line(run("--network", tmp_path / "junk.pkl", *options), "--network: ")
    assert_one_line(run("--network", tmp_path, *options), "--network: ")


def test_truncation_needs_a_mean(tmp_path: Path) -> None:
    options = (
        "--network",
        tiny.save(tmp_path / "net.pkl", mapping={"w_avg_beta": None}),
        "--seeds",
        0,
    )
    assert run(*options, "--outdir", tmp_path).exit_code == 0
    result = run(*options, "--outdir", tmp_path, "--trunc", 0.7)
    assert_one_line(result, "truncation_psi must be 1 for a network without a mean of w")


def test_a_folder_that_cannot_be_made(network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("--network", network, "--seeds", 0, "--outdir", tmp_path / "file" / "out")
    assert_one_line(result, f"{tmp_path / 'file' / 'out'}: Not a directory")


def test_bad_classes(network: Path, conditional: Path, tmp_path: Path) -> None:
    options = ("--seeds", 0, "--outdir", tmp_path)
    no_classes = run("--network", network, "--class", 1, *options)
    assert_one_line(no_classes, "--class=1: the network has no classes; drop it")
    missing = run("--network", conditional, *options)
    assert_one_line(missing, "--class: the network needs a class from 0 to 2")
    for index in (-1, 3):
        outside = run("--network", conditional, "--class", index, *options)
        assert_one_line(outside, f"--class={index}: the network needs a class from 0 to 2")
    assert not list(tmp_path.iterdir())


def test_bad_latents(network: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.npz"
    options = ("--network", network, "--projected-w", file, "--outdir", tmp_path / "out")
    assert_one_line(run(*options), f"--projected-w={file}: no .npz file with an array w")
    file.write_bytes(b"junk")
    assert_one_line(run(*options), f"--projected-w={file}: no .npz file with an array w")
    np.savez(file, x=np.zeros(3))
    assert_one_line(run(*options), f"--projected-w={file}: no .npz file with an array w")
    np.savez(file, w=np.array([{}], dtype=object))
    assert_one_line(run(*options), f"--projected-w={file}: no .npz file with an array w")
    np.savez(file, w=np.zeros((1, 3, 8)))
    result = run(*options)
    assert_one_line(result, f"--projected-w={file}: w must be [N, 6, 8] for this network, got [1, ")


def test_options_that_contradict_each_other(network: Path, tmp_path: Path) -> None:
    always = ("--network", network, "--outdir", tmp_path)
    either = "give either --seeds or --projected-w"
    assert_one_line(run(*always), either)
    assert_one_line(run(*always, "--seeds", 0, "--projected-w", "w.npz"), either)
    latents = (*always, "--projected-w", "w.npz")
    for extra in (("--grid",), ("--class", 0)):
        assert_one_line(run(*latents, *extra), "--projected-w goes with none of --grid")


@pytest.mark.parametrize("psi", ["nan", "inf", "x"])
def test_truncation_is_a_number(network: Path, tmp_path: Path, psi: str) -> None:
    result = run("--network", network, "--seeds", 0, "--trunc", psi, "--outdir", tmp_path)
    assert_one_line(result, f"--trunc={psi}: must be a finite number")


def test_many_seeds_are_streamed_and_what_is_done_stays(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(path: Path, picture: object, save: Any = grids.save_png) -> None:
        if path.name == "seed0003.png":
            raise KeyboardInterrupt
        save(path, picture)

    monkeypatch.setattr(grids, "save_png", save)
    result = run("--network", network, "--seeds=0-4294967295", "--outdir", tmp_path)
    assert result.exit_code == 130
    assert result.output == f"stopped: wrote 3 files to {tmp_path}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"seed000{n}.png" for n in range(3)]
    grid = run("--network", network, "--seeds=0-4294967295", "--grid", "--outdir", tmp_path)
    assert_one_line(grid, "--grid and --routes-grid take 4096 seeds at most, got 4294967296")


def test_a_run_stands_for_its_newest_network(network: Path, tmp_path: Path) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    run_dir.mkdir()
    empty = run("--network", run_dir, "--seeds=0", "--outdir", out)
    assert_one_line(empty, f"--network: {run_dir}: a folder without network-snapshot-*.pkl")
    for name in ("000009", "000010"):
        (run_dir / f"network-snapshot-{name}.pkl").write_bytes(b"junk")
    (run_dir / "network-snapshot-000010-400.pkl").write_bytes(network.read_bytes())
    result = run("--network", run_dir, "--seeds=0", "--outdir", out)
    assert (result.exit_code, result.output) == (0, f"wrote 1 file to {out}\n")


def test_a_class_without_training_images_is_said(tmp_path: Path) -> None:
    nets = pickles.load(tiny.save(tmp_path / "net.pkl", c_dim=3, noise=1))
    nets.G.mapping.embed.weight[:, 1:] += 0.1  # as training changes G, and its average less
    pickles.save(tmp_path / "net.pkl", **vars(nets))
    for index, said in ((0, True), (1, False)):
        options = ("--seeds=0", "--class", index, "--outdir", tmp_path / "out")
        result = run("--network", tmp_path / "net.pkl", *options)
        assert result.exit_code == 0
        assert ("no training image had this class" in result.output) == said


def test_directions_move_latents(network: Path, tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    vectors = torch.eye(8)[:2]
    generation.Directions(vectors, torch.tensor([1.0, 0.5]), (0, 2), "hash").write(file)
    options = ("--network", network, "--seeds=3", "--outdir", tmp_path)
    assert run(*options, f"--direction={file}:1=-3").exit_code == 0
    G = pickles.load(network).G_ema.to(distributed.init())
    z = torch.from_numpy(np.random.RandomState(3).randn(1, 8)).float().to(distributed.init())
    ws = G.mapping(z, None)
    ws[:, [0, 2], 1] -= 1.5
    expected = grids.to_pixels(G.synthesis(ws, noise_mode="const"))[0]
    np.testing.assert_array_equal(pixels(tmp_path / "seed0003.png"), expected)
    for text, message in {
        f"{file}:2=1": "no direction 2; the last is 1",
        f"{file}:1=nan": f"--direction={file}:1=nan",
        f"{file}": "write FILE:3=2.5",
        "gone.npz:0=1": "no such file of directions",
    }.items():
        result = run(*options, f"--direction={text}")
        assert result.exit_code == 2 and message in result.output
        assert result.output.count("\n") == 1


def test_help_does_not_import_torch() -> None:
    program = "import sys, generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_grid_fills_up_with_white() -> None:
    picture = grids.grid(-torch.ones(3, 3, 2, 2), columns=2)
    assert picture.size == (4, 4)
    np.testing.assert_array_equal(np.asarray(picture)[2:, 2:], 255)
    np.testing.assert_array_equal(np.asarray(picture)[:, :2], 0)
    assert grids.grid(torch.zeros(5, 1, 2, 2)).size == (6, 4)
    with pytest.raises(ValueError, match="1, 3 or 4 channels, got 2"):
        grids.grid(torch.zeros(1, 2, 4, 4))


def test_pixels_are_rounded_and_clipped() -> None:
    values = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).view(1, 1, 1, 5)
    assert grids.to_pixels(values).flatten().tolist() == [0, 0, 128, 255, 255]


def test_png_is_complete_or_absent(tmp_path: Path) -> None:
    class Broken:
        def save(self, stream: object, kind: str) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        grids.save_png(tmp_path / "a.png", Broken())  # type: ignore[arg-type]
    assert not (tmp_path / "a.png").exists()
