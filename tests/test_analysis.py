"""Fisher information beside change, layer by layer."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tools import analysis
from tools.analysis import Layer, compare, layer_of, rank_correlation
from training import pickles
from training.networks import Discriminator, Generator

approx = pytest.approx


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("mapping.fc0.weight", "mapping.fc0"),
        ("synthesis.b4.const", "synthesis.b4.const"),
        ("synthesis.b16.conv1.affine.bias", "synthesis.b16.conv1"),
        ("synthesis.b16.conv1.noise_strength", "synthesis.b16.conv1"),
    ],
)
def test_layer_of_a_parameter(parameter, layer):
    assert layer_of(parameter) == layer


@pytest.mark.parametrize(
    ("parameter", "part"),
    [
        ("mapping.fc0.weight", "mapping"),
        ("mapping.fc0.bias", "mapping"),
        ("synthesis.b4.const", "convolution"),
        ("synthesis.b16.conv1.weight", "convolution"),
        ("synthesis.b16.conv1.affine.weight", "styles"),
        ("synthesis.b16.conv1.affine.bias", "biases"),
        ("synthesis.b16.torgb.affine.weight", "torgb"),
        ("synthesis.b16.torgb.weight", "torgb"),
        ("synthesis.b16.torgb.bias", "biases"),
        ("synthesis.b16.conv1.noise_strength", "noise"),
    ],
)
def test_part_of_a_parameter(parameter, part):
    assert analysis.part_of(parameter) == part


def test_compare_by_hand():
    source = {
        "synthesis.b16.conv0.weight": torch.tensor([3.0, 4.0]),
        "synthesis.b16.conv0.bias": torch.tensor([4.0]),
        "synthesis.b16.conv0.noise_strength": torch.tensor(0.0),
        "synthesis.b8.conv0.weight": torch.tensor([1.0]),
        "synthesis.b8.torgb.weight": torch.tensor([2.0]),
        "mapping.fc0.weight": torch.tensor([1.0]),
    }
    adapted = {name: value + 1 for name, value in source.items()}
    null = {name: value + 0.5 for name, value in source.items()}
    fisher = {name: torch.tensor(6.0) for name in source}
    fisher["synthesis.b16.conv0.weight"] = torch.tensor([0.0, 3.0])
    layers = compare(source, adapted, fisher, null)
    assert layers == [
        Layer("convolution", "synthesis.b8.conv0", 1, 6.0, 1.0, 0.5),
        Layer(
            "convolution", "synthesis.b16.conv0", 2, 1.5, *map(approx, (2**0.5 / 5, 0.5**0.5 / 5))
        ),
        Layer("torgb", "synthesis.b8.torgb", 1, 6.0, 0.5, 0.25),
        Layer("biases", "synthesis.b16.conv0", 1, 6.0, 0.25, 0.125),
        Layer("noise", "synthesis.b16.conv0", 1, 6.0, None, None),
        Layer("mapping", "mapping.fc0", 1, 6.0, 1.0, 0.5),
    ]
    assert [layer.over_null for layer in layers] == [2, approx(2), 2, 2, None, 2]
    text = analysis.table(layers)
    assert "biases: 1 parameters, 18.2% of the Fisher information" in text and "over null" in text


def test_other_parameters_are_refused():
    one = {"mapping.fc0.weight": torch.ones(1)}
    wide = {"mapping.fc0.weight": torch.ones(2)}
    for source, adapted, fisher in (
        (one, {}, one),
        (one, one, {}),
        (one, wide, one),
        ({}, one, one),
    ):
        with pytest.raises(ValueError, match=r"mapping\.fc0\.weight: not alike"):
            compare(source, adapted, fisher)


def test_rank_correlation_by_hand():
    falling = [Layer("", str(i), 1, 10.0**i, -float(i)) for i in range(5)]
    assert rank_correlation(falling) == pytest.approx(-1)
    pairs = [(1, 2), (2, 1), (3, 3)]  # 1 - 6 * (1 + 1 + 0) / (3 * 8)
    assert rank_correlation([Layer("", "", 1, *pair) for pair in pairs]) == pytest.approx(0.5)
    tied = [(1, 0), (2, 0), (3, 0), (4, 1)]  # ranks 0 1 2 3 and 1 1 1 3
    for order in (tied, tied[::-1]):
        layers = [Layer("", "", 1, *pair) for pair in order]
        assert rank_correlation(layers) == pytest.approx(3 / 15**0.5)


@pytest.mark.filterwarnings("error")
def test_nothing_has_changed_and_so_nothing_correlates():
    assert math.isnan(rank_correlation([Layer("", "", 1, float(i), 0.0) for i in range(3)]))


def test_command(tmp_path):
    width = dict(channel_base=64, channel_max=8)
    G = Generator(8, 0, 8, 8, 3, mapping_kwargs=dict(num_layers=1), synthesis_kwargs=width)
    D = Discriminator(0, 8, 3, **width)
    runs = [tmp_path / name for name in ("source", "adapted", "null")]
    for run, factor in zip(runs, (1, 1.5, 1.25), strict=True):
        G_ema = copy.deepcopy(G)
        with torch.no_grad():
            G_ema.synthesis.b8.conv1.weight *= factor
        run.mkdir()
        (run / "network-snapshot-000000.pkl").write_bytes(b"an older one")
        path = run / "network-snapshot-000001.pkl"
        pickles.save(path, G=G, D=D, G_ema=G_ema)  # only what generates has changed
    out = tmp_path / "out"
    arguments = [*map(str, runs[:2]), f"--null={runs[2]}", f"--out={out}", "--samples=2"]
    done = CliRunner().invoke(analysis.main, arguments)
    assert done.exit_code == 0, done.output
    layers = json.loads((out / "analysis.json").read_text())["layers"]
    changed = {(x["part"], x["name"]): x["change"] for x in layers if x["change"]}
    assert changed == {("convolution", "synthesis.b8.conv1"): approx(0.5)}
    assert [x["over_null"] for x in layers if x["over_null"]] == [approx(2)]
    assert all(layer["fisher"] >= 0 for layer in layers)
    assert sum(layer["parameters"] for layer in layers) == sum(p.numel() for p in G.parameters())
    assert "synthesis.b8.conv1" in (out / "analysis.txt").read_text()
    with Image.open(out / "analysis.png") as image:
        assert image.format == "PNG"
