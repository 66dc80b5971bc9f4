"""Which parameters --tune trains, and that the others stay, bit for bit."""

from __future__ import annotations

import few_steps
import pytest

from stylegan2_fewshot.methods.tune import Tune
from stylegan2_fewshot.plugin import Plugins, Run
from training.networks import Discriminator, Generator

WIDTHS = dict(channel_base=64, channel_max=4)


@pytest.fixture(scope="module")
def networks():
    G = Generator(4, 0, 4, 16, 3, dict(num_layers=1), WIDTHS)
    return G, Discriminator(0, 16, 3, **WIDTHS)


def trained(text, networks, net="G"):
    plugin = Tune(tune=text)
    plugin.setup(Run(*networks))
    names = [name for name, _ in networks["GD".index(net)].named_parameters()]
    return [name for name in names if plugin.trainable(net, name)]


def test_recipes(networks):
    bias = trained("affine-bias", networks)
    assert bias[0] == "synthesis.b4.conv1.affine.bias" and len(bias) == 5 + 3
    assert {name.split(".")[1] for name in trained("freeze-g", networks)} == {"b16"}
    both = trained("scale-shift", networks)
    assert set(bias) < set(both) and "synthesis.b4.conv1.bias" in both
    assert not [name for name in both if "noise" in name or name.startswith("mapping")]
    assert all(name.endswith(("affine.weight", "bias")) for name in both)


def test_patterns_are_of_g_unless_they_say_d(networks):
    every_d = trained("", networks, "D")
    assert trained("*.bias", networks, "D") == every_d
    assert trained("D.b4.*", networks, "D") == [n for n in every_d if n.startswith("b4.")]
    assert trained("D.b4.*", networks) == trained("", networks)
    assert trained("G.mapping.*", networks) == ["mapping.fc0.weight", "mapping.fc0.bias"]


@pytest.mark.parametrize("text", ["nothing.*", "mapping.*,D.mapping.*"])
def test_a_pattern_that_names_nothing_is_refused(text, networks):
    with pytest.raises(ValueError, match=f"--tune={text[:7]}.*is the name of no parameter of"):
        trained(text, networks)


def test_the_rest_stays_and_a_resumed_run_is_the_same():
    options = {"tune": {"tune": "affine-bias,D.b4.*"}}
    start = few_steps.begin(options)
    before = few_steps.parameters(start)
    changed = few_steps.moved(before, few_steps.parameters(few_steps.iterate(start, 2)))
    assert changed == {n for n in before if n.endswith("affine.bias") or n.startswith("D.b4.")}
    few_steps.assert_resumes(options)


def test_it_is_combined_with_other_ways_to_freeze(networks):
    plugins = Plugins.create({"tune": {"tune": "affine-bias,D.*.bias"}, "freezed": {"freezed": 2}})
    plugins.setup(Run(*networks))
    assert not plugins.trainable("D", "b16.conv0.bias") and plugins.trainable("D", "b4.fc.bias")
    assert not plugins.trainable("G", "mapping.fc0.bias")
