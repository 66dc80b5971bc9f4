"""Methods of the field beside one another, on small networks of StyleGAN2's own classes."""

from __future__ import annotations

import few_steps
import pytest

from training.networks import Discriminator, Generator

WIDTHS = dict(channel_base=64, channel_max=8)


def networks():
    G = Generator(8, 0, 8, 8, 3, dict(num_layers=2), WIDTHS)
    D = Discriminator(0, 8, 3, **WIDTHS, epilogue_kwargs=dict(mbstd_group_size=2))
    return {"G": G, "D": D}


@pytest.mark.parametrize(
    "options",
    [
        {"cdc": {}, "dcl": {}, "bank": {"size": 2}, "fsgan": {}, "lecam": {"lambda_": 0.1}},
        {"rick": {"freeze": 50.0, "warmup": 2, "every": 2, "batches": 2}, "bank": {"size": 2}},
        {"adam": {"probe": 2, "batches": 2}, "cdc": {}, "freezed": {"freezed": 1}, "ada": {}},
        {"tune": {"tune": "scale-shift"}, "apa": {}},
    ],
    ids=lambda options: "-".join(options),
)
def test_a_resumed_run_of_several_methods_is_the_same(options):
    few_steps.assert_resumes(options, before=3, networks=networks)
