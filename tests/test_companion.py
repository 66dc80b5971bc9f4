"""A method from outside the repository that keeps a file beside its networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import generate
import train
from stylegan2_fewshot.external import load_external
from stylegan2_fewshot.options import options_of
from stylegan2_fewshot.plugin import find, isolated
from tools import convert, resize
from training import pickles

SIZE = "--cbase=64 --cmax=8 --zdim=8 --map-depth=1 --batch=4 --gamma=0.1 --pl-weight=0"
TONE = '''
"""Condition on a number for each image."""

import numpy as np
import torch

from stylegan2_fewshot import Plugin, npz
from stylegan2_fewshot.drawing import DrawOptions


class ToneDrawing(DrawOptions):
    """What networks are conditioned on.

    Args:
        level: The number.
    """

    def __init__(self, *, level: float | None = None):
        self.level = level

    def conditions(self, scene):
        return self.level and (lambda seed: torch.full([1, 1], self.level))


class Tone(Plugin):
    """Condition on a number for each image.

    Args:
        scale: The largest of them.
    """

    companion = ".tone.npz"
    draws = ToneDrawing

    def __init__(self, *, scale: float = 0.0):
        super().__init__()
        self.scale = scale

    @classmethod
    def labels_beside(cls, network, sampling="train"):
        file = network.with_suffix(cls.companion)
        return torch.from_numpy(npz.read(file)["tones"]) if file.is_file() else None

    def condition(self, dataset):
        self.tones = np.linspace(-1, 1, len(dataset.file_names), dtype=np.float32)[:, None]
        return dataset.with_labels(np.stack([self.scale * self.tones] * 2))

    def snapshot(self, path):
        np.savez(path.with_suffix(self.companion), tones=self.tones)
'''


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module", autouse=True)
def own_registry():
    with isolated():
        yield


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    (path := tmp_path_factory.mktemp("elsewhere") / "tone.py").write_text(TONE)
    return f"--plugin={path}:Tone"


@pytest.fixture(scope="module")
def network(tmp_path_factory, plugin):
    """Return a network that was trained with the plugin."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "data").mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number,) * 3).save(folder / "data" / f"{number}.png")
    where = (f"--data={folder / 'data'}", f"--outdir={folder}", plugin, "--tone-scale=1")
    length = ("--kimg=0.004", "--tick=0.004", "--snap=1", "--aug=noaug", "--metrics=none")
    device = ("--device=cpu", "--workers=0", "--ops=torch")
    done = run(train.main, *where, *length, *SIZE.split(), *device)
    assert done.exit_code == 0, done.output
    return next(folder.glob("*/network-snapshot-*.pkl"))


def test_generate_and_convert_know_what_it_keeps(network, plugin, tmp_path):
    def draw(*options):
        place = (f"--network={network}", "--seeds=1", f"--outdir={tmp_path / 'out'}")
        return run(generate.main, *place, *options)

    G = pickles.load(network).G_ema
    z = torch.from_numpy(np.random.RandomState(1).randn(1, 8)).float()
    for level in (0.5, -50):
        done = draw(plugin, f"--tone-level={level}")
        assert done.exit_code == 0, done.output
        img = G(z, torch.full([1, 1], float(level)), noise_mode="const")[0]
        expected = (img * 127.5 + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        with Image.open(tmp_path / "out" / "seed0001.png") as image:
            assert (np.asarray(image) == expected).all()
    for options, message in [
        ((plugin,), "takes conditions of the method tone instead of a class; give --tone-level"),
        ((plugin, "--class=0"), "instead of a class"),
        ((plugin, "--tone-level=x"), "not a valid float"),
        (("--tone-level=1",), "No such option"),
    ]:
        done = draw(*options)
        assert done.exit_code == 2 and message in done.output, done.output
    done = run(convert.main, network, tmp_path / "x.safetensors", plugin)
    assert done.exit_code == 0, done.output
    kept = network.with_suffix(".tone.npz").read_bytes()
    assert (tmp_path / "x.tone.npz").read_bytes() == kept


@pytest.mark.parametrize("given", [True, False])
def test_a_resized_network_has_what_it_keeps_where_the_plugin_is_named(
    network, plugin, tmp_path, given
):
    with isolated(empty=True):  # as in a new process
        options = [plugin] if given else []
        done = run(resize.main, network, tmp_path / "x.pkl", "--size=8", "--fit-steps=0", *options)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "x.tone.npz").is_file() == given


def test_without_options_of_its_own_conditions_are_those_of_training(
    network, plugin, tmp_path, monkeypatch
):
    monkeypatch.setattr(load_external(plugin.partition("=")[2]), "draws", None)
    out = tmp_path / "out"
    done = run(generate.main, f"--network={network}", "--seeds=1-2", f"--outdir={out}", plugin)
    assert done.exit_code == 0, done.output
    assert (out / "seed0001.png").read_bytes() != (out / "seed0002.png").read_bytes()


@pytest.mark.parametrize("name", ["prior", "bank"])
def test_the_command_has_the_options_for_drawing_of_our_own_methods(name):
    shown = {opt: param for param in generate.main.params for opt in param.opts}
    for option in options_of(find(name).draws):
        param = shown[f"--{option.flag}"]
        assert param.name == f"method_{option.key}"
        assert param.help.split("  [")[0] == option.help
        assert list(getattr(param.type, "choices", [])) == list(
            getattr(option.type, "__args__", [])
        )
