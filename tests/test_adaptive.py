"""How far p can go in a run, and what is said about it."""

from __future__ import annotations

import pytest
import torch

from stylegan2_fewshot import Plugins, Run, adaptive
from stylegan2_fewshot.options import resolve


@pytest.mark.parametrize(
    ("kimg", "resumed", "few_shot", "expected"),
    [
        (6, True, True, 0.3),
        (8000, True, True, 100),
        (6, True, False, 100),
        (6, False, True, 500),
        (25000, False, False, 500),
    ],
)
def test_p_can_act_in_a_short_run(kimg, resumed, few_shot, expected):
    given = {"ada": {"target": 0.5, "kimg": None}, "apa": {"kimg": 7.0}, "lecam": {"lambda_": 1.0}}
    found, places = resolve(given, kimg=kimg, resumed=resumed, few_shot=few_shot)
    assert found["ada"] == {"target": 0.5, "kimg": expected} and places == ["plugins.ada.kimg"]
    assert found["apa"] == {"kimg": 7.0} and found["lecam"] == given["lecam"]
    assert given["ada"]["kimg"] is None


def test_equal_targets_are_pointed_out():
    equal = Plugins.create({"ada": {}, "apa": {}})
    assert "ada and apa have equal targets" in adaptive.about_targets(equal)
    apart = Plugins.create({"ada": {"target": 0.4}, "apa": {}})
    assert (
        adaptive.about_targets(apart) == adaptive.about_targets(Plugins.create({"apa": {}})) == ""
    )


def test_the_p_that_was_reached_is_said():
    plugins = Plugins.create({"ada": {"target": -1.0, "kimg": 0.1}, "lecam": {}})
    net = torch.nn.Identity()
    plugins.setup(Run(net, net, batch_size=4))
    for index in range(8):
        plugins["ada"].probability.observe(torch.ones(4))
        plugins.after_step(4 * index)
    assert adaptive.reached(plugins) == "p reached: ada 0.320"
    assert adaptive.reached(Plugins.create({"lecam": {}})) == ""
