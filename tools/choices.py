"""What generate.py and the tools ask for in the same words: seeds, psi, conditions, routes.

Nothing here needs PyTorch, so that `--help` is quick.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, overload

import click

from .command import FOLDER

Command = TypeVar("Command", bound=Callable[..., Any])


class Seeds(Sequence[int]):
    """Seeds in the order given, held as ranges: all 2^32 of them take no memory."""

    def __init__(self, ranges: Sequence[range]) -> None:
        self._ranges = list(ranges)
        self._total = sum(r.stop - r.start for r in self._ranges)

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(self._ranges)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index += len(self) if index < 0 else 0
        for part in self._ranges:
            if 0 <= index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


class SeedsType(click.ParamType[Any]):
    """Turns `0-3,40` into the seeds 0, 1, 2, 3 and 40."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Seeds):
            return value
        advice = "a seed; write numbers from 0 to 4294967295 and ranges, as 0-35,40"
        return Seeds(_ranges(value, param, 2**32, advice))


class NumberType(click.ParamType[Any]):
    """A finite number."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            option = param.opts[0] if param else "number"
            raise click.UsageError(f"{option}={value}: must be a finite number, such as 0.7")
        return number


class ListType(click.ParamType[Any]):
    """A list separated by commas, as a tuple; each element is of the type given."""

    def __init__(self, of: click.ParamType[Any] | None = None) -> None:
        self.of, self.name = of or click.STRING, "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        return tuple(self.of.convert(part.strip(), param, ctx) for part in value.split(","))


class LayersType(click.ParamType[Any]):
    """Turns `0-2,5` into the layers 0, 1, 2 and 5."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        ranges = _ranges(value, param, 1000, "a layer; write 0-6, or 0-2,5")
        return tuple(itertools.chain.from_iterable(ranges))


def _ranges(text: str, param: click.Parameter | None, end: int, what: str) -> list[range]:
    """Turn `0-3,40` into ranges of numbers below `end`; a message says `what` each has to be."""
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < end:
            option = param.opts[0] if param else "value"
            raise click.UsageError(f"{option}={text}: {part!r} is not {what}")
        ranges.append(range(first, last + 1))
    return ranges


SEEDS, NUMBER, LAYERS = SeedsType(), NumberType(), LayersType()


@dataclass(frozen=True)
class Drawing:
    """How images are drawn from a network, apart from the latent.

    Attributes:
        trunc: Truncation psi.
        class_idx: Class, or None.
        backbone: Where the user's copy of a backbone is that is not built in, or None.
        trust_backbone: That file may run.
        backbone_sha256: It may run if it has one of these hashes.
        noise_mode: const, random or none.
        direction: Directions to move along, each `FILE:3=2.5`.
        methods: What was given of methods' own options, by key: see `DrawOptions`.
    """

    trunc: float = 1.0
    class_idx: int | None = None
    backbone: str | None = None
    trust_backbone: bool = False
    backbone_sha256: tuple[str, ...] = ()
    noise_mode: str = "const"
    direction: tuple[str, ...] = ()
    methods: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def take(cls, options: dict[str, Any]) -> Drawing:
        """Take what belongs here out of a command's options."""
        own = {f.name: options.pop(f.name) for f in fields(cls) if f.name in options}
        keys = [key for key in options if key.startswith("method_")]
        given = {key.removeprefix("method_"): options.pop(key) for key in keys}
        return cls(**own, methods={key: v for key, v in given.items() if v is not None})


network_option = click.option(
    "--network", required=True, help="Network: path, URL, short name, or a run's directory."
)

outdir_option = click.option("--outdir", type=FOLDER, required=True, help="Folder to write to.")


def _load(ctx: click.Context, param: click.Parameter, places: Sequence[str]) -> None:
    if places:
        from stylegan2_fewshot.external import load_external

        for place in places:
            load_external(place)


plugin_option = click.option(
    "--plugin",
    multiple=True,
    expose_value=False,
    callback=_load,
    help="A method of your own that has made a network, as my_method.py:Class.",
)

# Those of our own methods, `method_...`, are written out here as their `DrawOptions` have them,
# since asking the methods would take PyTorch; a test compares.
_OPTIONS = {
    "trunc": click.option(
        "--trunc", type=NUMBER, default=1.0, show_default=True, help="Truncation psi."
    ),
    "class_idx": click.option(
        "--class", "class_idx", type=int, help="Class, for a network with classes."
    ),
    "prior_sample": click.option(
        "--prior-sample",
        "method_prior_sample",
        type=click.Choice(["train", "mixup", "kmeans", "gmm"]),
        help="Conditions of a network trained with --prior: those of training images, or near "
        "them.",
    ),
    "prior_image": click.option(
        "--prior-image", "method_prior_image", metavar="FILE", help="Condition on this image."
    ),
    "prior_mix": click.option(
        "--prior-mix",
        "method_prior_mix",
        metavar="A,B",
        help="A strip of images, from one's condition to another's.",
    ),
    "backbone": click.option(
        "--backbone",
        help="Where your copy of the backbone is, if the network's is not built in: a TorchScript "
        "file.",
    ),
    "trust_backbone": click.option(
        "--trust-backbone",
        is_flag=True,
        help="Run --backbone. Such a file is a program: it can do whatever you can.",
    ),
    "backbone_sha256": click.option(
        "--backbone-sha256",
        metavar="HEX",
        multiple=True,
        help="Run --backbone if it has this SHA-256; checked before the file is looked into.",
    ),
    "noise_mode": click.option(
        "--noise-mode",
        type=click.Choice(["const", "random", "none"]),
        default="const",
        show_default=True,
        help="Noise inputs of the network.",
    ),
    "route": click.option(
        "--route",
        "method_route",
        help="Filter set of each bank, such as 3,1,4; mean; or random, which follows from the "
        "seed.  [default: random]",
    ),
    "direction": click.option(
        "--direction",
        multiple=True,
        metavar="FILE:K=X",
        help="Move latents along direction K of a file of tools.directions by X standard "
        "deviations; can be given several times.",
    ),
    "plugin": click.option(
        "--plugin",
        multiple=True,
        expose_value=False,
        help="A method of your own that has made the network, as my_method.py:Class.",
    ),
}


def drawing_options(*names: str) -> Callable[[Command], Command]:
    """Give a command some of the options of `Drawing`, in the order of the class."""

    names = (*names, "plugin")
    if "backbone" in names:
        names = (*names, "trust_backbone", "backbone_sha256")

    def decorate(command: Command) -> Command:
        for name in reversed([name for name in _OPTIONS if name in names]):
            command = _OPTIONS[name](command)
        return command

    return decorate
