"""Freeze-D: the lower layers of the discriminator stay as they are in the source."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

from ..plugin import Plugin, Run, register

WITHIN_BLOCK = ("fromrgb", "conv0", "conv1", "skip")
LAYER = re.compile(rf"b(\d+)\.({'|'.join(WITHIN_BLOCK)})\.")


def layers_from_image(names: Iterable[str]) -> list[str]:
    """Return the prefixes of D's convolutional layers, the one at the image first.

    Args:
        names: Names of D's tensors. Frozen layers of a source pickle are buffers, so give
            those of the state rather than those of the parameters. The 4x4 epilogue has
            none of these layers but, in the skip architecture, a fromrgb, which is not counted.
    """
    found = {(-int(m[1]), WITHIN_BLOCK.index(m[2])) for m in map(LAYER.match, names) if m}
    return [f"b{-res}.{WITHIN_BLOCK[place]}." for res, place in sorted(found) if res < -4]


@register("freezed")
class FreezeD(Plugin):
    """Keep the first layers of D, those at the image, as they are (Freeze-D).

    Mo, Cho and Shin, CVPR AI4CC workshop 2020 (arXiv 2002.10964). Layers are counted as fromrgb,
    conv0, conv1, skip of the block of highest resolution, then those of the next; the epilogue
    at 4x4 and the mapping of labels always learn.

    Args:
        freezed: Number of layers to keep; 0 trains all of D.
    """

    neutral: ClassVar = {"freezed": 0}

    def __init__(self, *, freezed: int = 0) -> None:
        super().__init__()
        if freezed < 0:
            raise ValueError(f"--freezed must not be negative, got {freezed}")
        self.freezed = freezed
        self._frozen: tuple[str, ...] = ()

    def setup(self, run: Run) -> None:
        layers = layers_from_image(run.D.state_dict())
        if self.freezed > len(layers):
            raise ValueError(f"--freezed={self.freezed}: this D has {len(layers)} layers to freeze")
        self._frozen = tuple(layers[: self.freezed])

    def trainable(self, net: str, name: str) -> bool:
        return not (net == "D" and name.startswith(self._frozen))
