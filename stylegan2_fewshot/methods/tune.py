"""Train only the parameters that patterns name."""

from __future__ import annotations

from typing import ClassVar

from .. import patterns
from ..plugin import Plugin, Run, register

RECIPES = {
    "affine-bias": "G.synthesis.*.affine.bias",
    "freeze-g": "G.synthesis.b[1-9][0-9]*",
    "scale-shift": "G.synthesis.*.affine.*,G.synthesis.*.bias",
}


@register("tune")
class Tune(Plugin):
    """Train only what patterns name; the rest of G stays as it is.

    Three recipes have names. `affine-bias`: the biases of the styles' affine layers. WeditGAN (Duan
    et al., AAAI 2024) learns a constant offset of w per layer, which folds exactly into these
    biases: the same generators, in an ordinary pickle; without its further loss terms. `freeze-g`
    (FreezeG, a published repository; remembered, not verified): mapping, constant and the blocks of
    4 and 8 pixels stay; that the boundary is at 8 pixels is our choice. `scale-shift`: the styles'
    affine layers and the biases of the convolutions, the analogue in StyleGAN2 of batch statistics
    adaptation (Noguchi and Harada, ICCV 2019), which has no discriminator and is not this.

    Args:
        tune: Patterns of parameters' names, such as `mapping.*,*.torgb.*`, and recipes
            (affine-bias, freeze-g, scale-shift), separated by commas. They are about G; those that
            begin with `D.` leave only what they name of D to train, which otherwise all trains.
            Empty trains everything.
    """

    neutral: ClassVar = {"tune": ""}

    def __init__(self, *, tune: str = "") -> None:
        super().__init__()
        self.tune = tune
        parts = [RECIPES.get(part, part) for part in patterns.split(tune)]
        given = patterns.split(",".join(parts))
        of_d = [pattern for pattern in given if pattern.startswith("D.")]
        self._patterns = {"D": of_d, "G": [pattern for pattern in given if pattern not in of_d]}

    def setup(self, run: Run) -> None:
        for net, wanted in self._patterns.items():
            patterns.refuse_unknown(f"--tune={self.tune}", wanted, **{net: getattr(run, net)})

    def trainable(self, net: str, name: str) -> bool:
        wanted = self._patterns[net]
        return not wanted or any(patterns.matches(pattern, net, name) for pattern in wanted)
