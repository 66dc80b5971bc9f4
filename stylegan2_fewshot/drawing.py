"""What a method adds to the commands that draw images from a network which it has made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

STRIP = 8  # images in a row from one condition to another


class See(Protocol):
    """Shows images to a pretrained network."""

    def __call__(self, images: Sequence[str], *, backbone: str, sha256: str) -> Tensor:
        """Return features `[n, F]` of image files, brought to the size of the generator's.

        Args:
            images: Paths.
            backbone: Name of the network, as a companion has it; the user may give a copy.
            sha256: What its file must have; a file that is a program needs the user's trust too.
        """


@dataclass(frozen=True)
class Scene:
    """A network that images are drawn from, and what a method may ask for there.

    Attributes:
        G: The generator.
        network: Its file, beside which companions are.
        see: Shows images to a pretrained network.
    """

    G: Any
    network: Path
    see: See


class DrawOptions:
    """A method's options of `generate.py` and other commands that draw images.

    As a plugin's, the constructor is the command line: its parameters are keyword-only, annotated,
    defaulted, and described under `Args:` in the docstring. `image` of the method `prior` becomes
    `--prior-image`. What cannot be done is a ValueError that starts with the option.
    """

    name: ClassVar[str] = ""  # the plugin's
    option_names: ClassVar[Mapping[str, str]] = {}  # parameter -> option where not --NAME-PARAMETER

    def conditions(self, scene: Scene) -> Callable[[int], Tensor] | None:
        """Return what gives the conditions `[n, c_dim]` of a seed: one, or those of a strip; None
        where the options ask for none."""
        return None

    def of_image(self, scene: Scene, image: str) -> Tensor | None:
        """Return the condition `[1, c_dim]` that belongs to an image, or None if none does."""
        return None

    def synthesis(self, G: Any) -> dict[str, Any] | None:
        """Return further arguments of `G.synthesis`; None: those that follow from z."""
        return None
