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


def test_compare_by_hand():
    source = {
        "synthesis.b16.conv0.weight": torch.tensor([3.0, 0.0]),
        "synthesis.b16.conv0.bias": torch.tensor([4.0]),
        "synthesis.b8.torgb.weight": torch.tensor([2.0]),
        "mapping.fc0.weight": torch.tensor([1.0]),
    }
    adapted = {name: value + 1 for name, value in source.items()}
    adapted["synthesis.b16.conv0.bias"] -= 1
    fisher = {name: torch.tensor(6.0) for name in source}
    fisher["synthesis.b16.conv0.weight"] = torch.tensor([0.0, 3.0])
    assert compare(source, adapted, fisher) == [
        Layer("mapping.fc0", 1, 6.0, 1.0),
        Layer("synthesis.b8.torgb", 1, 6.0, 0.5),
        Layer("synthesis.b16.conv0", 3, 3.0, pytest.approx(2**0.5 / 5)),
    ]


def test_other_parameters_are_refused():
    one = {"mapping.fc0.weight": torch.ones(1)}
    for adapted, fisher in (({}, one), (one, {}), ({"mapping.fc0.weight": torch.ones(2)}, one)):
        with pytest.raises(ValueError, match=r"mapping\.fc0\.weight: not alike"):
            compare(one, adapted, fisher)


def test_rank_correlation_by_hand():
    falling = [Layer(str(i), 1, 10.0**i, -float(i)) for i in range(5)]
    assert rank_correlation(falling) == pytest.approx(-1)
    pairs = [(1, 2), (2, 1), (3, 3)]  # 1 - 6 * (1 + 1 + 0) / (3 * 8)
    assert rank_correlation([Layer("", 1, *pair) for pair in pairs]) == pytest.approx(0.5)
    tied = [(1, 0), (2, 0), (3, 0), (4, 1)]  # ranks 0 1 2 3 and 1 1 1 3
    for order in (tied, tied[::-1]):
        layers = [Layer("", 1, *pair) for pair in order]
        assert rank_correlation(layers) == pytest.approx(3 / 15**0.5)


@pytest.mark.filterwarnings("error")
def test_nothing_has_changed_and_so_nothing_correlates():
    assert math.isnan(rank_correlation([Layer("", 1, float(i), 0.0) for i in range(3)]))


def test_command(tmp_path):
    width = dict(channel_base=64, channel_max=8)
    G = Generator(8, 0, 8, 8, 3, mapping_kwargs=dict(num_layers=1), synthesis_kwargs=width)
    D = Discriminator(0, 8, 3, **width)
    adapted = copy.deepcopy(G)
    with torch.no_grad():
        adapted.synthesis.b8.conv1.weight *= 1.5
    for name, net in (("source", G), ("adapted", adapted)):
        pickles.save(tmp_path / f"{name}.pkl", G=net, D=D, G_ema=net)
    paths = [str(tmp_path / f"{name}.pkl") for name in ("source", "adapted")]
    out = tmp_path / "out"
    done = CliRunner().invoke(analysis.main, [*paths, f"--out={out}", "--samples=2"])
    assert done.exit_code == 0, done.output
    layers = json.loads((out / "analysis.json").read_text())["layers"]
    changed = {layer["name"]: layer["change"] for layer in layers if layer["change"]}
    assert changed == {"synthesis.b8.conv1": pytest.approx(0.5, abs=0.1)}
    assert all(layer["fisher"] >= 0 for layer in layers)
    assert sum(layer["parameters"] for layer in layers) == sum(p.numel() for p in G.parameters())
    assert "synthesis.b8.conv1" in (out / "analysis.txt").read_text()
    with Image.open(out / "analysis.png") as image:
        assert image.format == "PNG"
