"""One way to turn a command line's words into images: network, seed, psi, condition, route."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan2_fewshot import distributed, npz, tensor_file
from stylegan2_fewshot.drawing import STRIP, Scene
from stylegan2_fewshot.files import refusing, replacing, sha256_of
from stylegan2_fewshot.networks import companions, synthesis_of
from stylegan2_fewshot.ops import select
from stylegan2_fewshot.options import drawing as drawing_options
from stylegan2_fewshot.options import options_of
from stylegan2_fewshot.plugin import seed_of
from stylegan2_fewshot.trust import Trust

from . import conditions, pickles, sources
from .pickles import NetworkPickle

DIRECTIONS = "file of directions"
_REMEDY = "make one with python -m tools.directions"


@dataclass(frozen=True)
class Latents:
    """What one or several images are made from.

    Attributes:
        ws: Latents `[n, num_ws, w_dim]`.
        synthesis: What the synthesis needs beside them, such as a route.
        seed: What random noise follows from.
    """

    ws: Tensor
    synthesis: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


class Subject:
    """A generator, and how images are drawn from it.

    Args:
        network: Path, URL, short name or run directory.
        drawing: How images are drawn: has the attributes of `tools.choices.Drawing`.
        option: What the command line calls the network, for messages.
        say: Takes remarks on what is allowed but may surprise.
        from_seeds: Images come from seeds, so that a conditional network needs a condition;
            otherwise none can be asked for.

    Attributes:
        nets: Everything the file holds.
        G: The averaged generator, on the device.
        path: The network's file, or its URL or short name.
        chosen: Further arguments of the synthesis that do not follow from z.
    """

    def __init__(
        self,
        network: str,
        drawing: Any,
        *,
        option: str = "--network",
        say: Callable[[str], None] = lambda text: None,
        from_seeds: bool = True,
    ) -> None:
        try:
            self.path = sources.newest_network(network)
            self.nets: NetworkPickle = pickles.load(self.path, needs=("G_ema",))
        except (ValueError, OSError) as error:
            raise ValueError(f"{option}: {error}") from error
        self.device = distributed.init()
        select("auto", self.device)
        self.G: Any = self.nets.G_ema.to(self.device)
        self.drawing = drawing
        self.psi = drawing.trunc
        if not hasattr(self.G.mapping, "w_avg") and self.psi != 1:
            raise ValueError(
                "truncation_psi must be 1 for a network without a mean of w (w_avg_beta None), "
                f"got --trunc={self.psi:g}"
            )
        self._methods = drawing_options(drawing.methods)
        found = [method.synthesis(self.G) for method in self._methods]
        self.chosen = {key: value for part in found if part for key, value in part.items()}
        self._shift = self._directions(drawing.direction, say)
        self._say = say
        if from_seeds:
            self._labels = self._conditions()
        elif any(method.conditions(self._scene) for method in self._methods):
            raise ValueError("latents have their condition in them; drop the option of another")

    def z(self, seed: int) -> Tensor:
        """Return the latent `[1, z_dim]` of a seed."""
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, self.G.z_dim))
        return z.to(self.device, torch.float32)

    def labels(self, seed: int) -> Tensor:
        """Return the conditions `[n, c_dim]` of a seed: one, or a strip between two."""
        return self._labels(seed).to(self.device)

    @torch.no_grad()
    def latents(self, seed: int, psi: float | None = None) -> Latents:
        """Return what the images of a seed are made from, one for each of its conditions."""
        c = self.labels(seed)
        z = self.z(seed).expand(len(c), -1)
        ws = self.G.mapping(z, c, truncation_psi=self.psi if psi is None else psi)
        return Latents(ws + self._shift, {**synthesis_of(self.G, z), **self.chosen}, seed)

    def projected(self, path: str, option: str = "--projected-w") -> list[Latents]:
        """Return latents out of an .npz file, the array `w` `[N, num_ws, w_dim]`."""
        ws = _load_ws(self.G, path, option).to(self.device)
        return [Latents(w + self._shift, self.chosen) for w in ws.split(1)]

    @torch.no_grad()
    def images(self, latents: Latents) -> Tensor:
        """Return images `[n, C, H, W]`, about [-1, 1]; random noise follows from the seed."""
        torch.manual_seed(latents.seed)
        options = {"noise_mode": self.drawing.noise_mode, **latents.synthesis}
        image: Tensor = self.G.synthesis(latents.ws, **options)
        return image

    def together(self, parts: Sequence[Latents]) -> Latents:
        """Return the latents of several seeds as those of one, the first."""
        first = parts[0]
        synthesis = {
            key: value if key in self.chosen else torch.cat([part.synthesis[key] for part in parts])
            for key, value in first.synthesis.items()
        }
        return replace(first, ws=torch.cat([part.ws for part in parts]), synthesis=synthesis)

    def through_routes(self, seed: int) -> Tensor:
        """Return images `[STRIP, C, H, W]` of a seed by the routes of the first seeds."""
        routes = synthesis_of(self.G, torch.cat([self.z(other) for other in range(STRIP)]))
        found = self.latents(seed)
        return self.images(replace(found, ws=found.ws[:1].expand(STRIP, -1, -1), synthesis=routes))

    @property
    def has_routes(self) -> bool:
        """Whether the synthesis depends on z beside the latents w."""
        return bool(synthesis_of(self.G, self.z(0)))

    def label_of(self, image: Path) -> Tensor:
        """Return the condition `[1, c_dim]` that belongs to an image, or else that of seed 0."""
        for method in self._methods:
            if (c := method.of_image(self._scene, str(image))) is not None:
                if self.drawing.class_idx is not None:
                    raise ValueError("--class: the network is conditioned on images; drop it")
                return c.to(self.device)
        return self._conditions()(0)[:1].to(self.device)

    @property
    def _scene(self) -> Scene:
        given = self.drawing
        trust = Trust(given.trust_backbone, given.backbone_sha256)

        def see(images: Sequence[str], *, backbone: str, sha256: str) -> Tensor:
            return conditions.see(
                images, backbone, sha256, self.G, backbone=given.backbone, trust=trust
            )

        return Scene(self.G, sources.fetch(self.path), see)

    def _conditions(self) -> Callable[[int], Tensor]:
        index = self.drawing.class_idx
        found = [c for method in self._methods if (c := method.conditions(self._scene))]
        if len(found) + (index is not None) > 1:
            raise ValueError("give only one of --class and the options that say other conditions")
        kept = None
        if found or self.G.c_dim:
            kept = conditions.beside(self.path, self.G.c_dim)
        if found:
            return found[0]
        if kept is None:
            return self._of_class(index)
        method, labels = kept
        if method.draws is None and index is None:  # one of those seen in training
            return lambda seed: labels[seed_of(method.name, seed) % len(labels)][None]
        flags = [f"--{option.flag}" for option in options_of(method.draws)] if method.draws else []
        listed = " or ".join([", ".join(flags[:-1]), *flags[-1:]] if flags[1:] else flags)
        remedy = f"give {listed}" if flags else "drop --class"
        raise ValueError(
            f"--network={self.path}: takes conditions of the method {method.name} instead of a "
            f"class; {remedy}"
        )

    def _of_class(self, index: int | None) -> Callable[[int], Tensor]:
        c_dim = self.G.c_dim
        if c_dim == 0 and index is not None:
            raise ValueError(f"--class={index}: the network has no classes; drop it")
        if c_dim > 0 and (index is None or index not in range(c_dim)):
            given = "" if index is None else f"={index}"
            raise ValueError(f"--class{given}: the network needs a class from 0 to {c_dim - 1}")
        if index in untrained_classes(self.nets):
            self._say(f"--class={index}: no training image had this class; its images mean nothing")
        c = torch.tensor([[float(number == index) for number in range(c_dim)]])
        return lambda seed: c

    def _directions(self, texts: Sequence[str], say: Callable[[str], None]) -> Tensor:
        """Return what all given directions add to latents, `[num_ws, w_dim]`."""
        shift = torch.zeros(self.G.num_ws, self.G.w_dim)
        for text in texts:
            match = re.fullmatch(r"(.+):(\d+)=(.+)", text)
            if not match:
                raise ValueError(f"--direction={text}: write FILE:3=2.5")
            found = Directions.read(Path(match[1]).expanduser())
            shift += found.shift(int(match[2]), _number(text, match[3]), self.G)
            if found.network != sha256_of(sources.fetch(self.path)):
                say(
                    f"--direction={text}: the directions are of another network; they still work "
                    "if one was trained from the other"
                )
        return shift.to(self.device)


@dataclass(frozen=True)
class Directions:
    """Directions in w, and where they came from.

    Attributes:
        vectors: `[K, w_dim]`, of length 1, the strongest first.
        deviations: Standard deviation of w along each, `[K]`.
        layers: The latents of these layers are moved.
        network: SHA-256 of the network's file.
    """

    vectors: Tensor
    deviations: Tensor
    layers: tuple[int, ...]
    network: str

    @classmethod
    def read(cls, path: Path) -> Directions:
        """Read what `write` has written; ValueError where it is anything else."""
        tensors, meta = tensor_file.read(path, DIRECTIONS, _REMEDY)
        with refusing(path, f"no {DIRECTIONS}", _REMEDY):
            vectors, deviations = tensors["directions"].float(), tensors["deviations"].float()
            layers, network = tuple(map(int, meta["layers"])), str(meta["network"])
            if vectors.ndim != 2 or deviations.shape != vectors.shape[:1]:
                raise ValueError("its arrays do not fit each other")
            if not (vectors.isfinite().all() and deviations.isfinite().all()):
                raise ValueError("its numbers are not finite")
            if min(layers, default=0) < 0:
                raise ValueError("a layer has a negative number")
        return cls(vectors, deviations, layers, network)

    def write(self, path: Path) -> None:
        """Write an .npz file, complete or not at all."""
        tensors = {"directions": self.vectors, "deviations": self.deviations}
        meta = {"layers": self.layers, "network": self.network}
        tensor_file.write(path, tensors, meta)

    def shift(self, index: int, amount: float, G: Any) -> Tensor:
        """Return what moves latents by `amount` deviations along a direction, `[num_ws, w_dim]`."""
        if self.vectors.shape[1] != G.w_dim or max(self.layers, default=0) >= G.num_ws:
            raise ValueError(
                f"--direction: the file is for {self.vectors.shape[1]} numbers in w, the network "
                f"has {G.w_dim}, in {G.num_ws} layers; make one of this network"
            )
        if index >= len(self.vectors):
            raise ValueError(
                f"--direction: no direction {index}; the last is {len(self.vectors) - 1}"
            )
        shift = torch.zeros(G.num_ws, G.w_dim)
        shift[list(self.layers)] = self.vectors[index] * self.deviations[index] * amount
        return shift


def untrained_classes(nets: NetworkPickle) -> set[int]:
    """Return the classes of which no image was drawn in training.

    What the label's embedding has for such a class never had a gradient, so that G and its average
    still agree in it to the last bit, though they differ in the other classes.
    """
    if nets.G is None or nets.G.c_dim == 0:
        return set()
    one, average = (net.mapping.embed.weight.cpu() for net in (nets.G, nets.G_ema))
    if one.shape != average.shape:
        return set()
    same = (one == average).all(0)
    return set() if same.all() else set(same.nonzero().flatten().tolist())


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"--direction={text}: {value} is not a finite number")
    return number


def _load_ws(G: Any, path: str, option: str) -> Tensor:
    """Read projected latents `[N, num_ws, w_dim]`, the array `w` of an .npz file."""
    with refusing(f"{option}={path}", "no .npz file with an array w", "project the image again"):
        ws = torch.from_numpy(npz.read(Path(path).expanduser())["w"]).float()
    if ws.ndim != 3 or ws.shape[1:] != (G.num_ws, G.w_dim):
        raise ValueError(
            f"{option}={path}: w must be [N, {G.num_ws}, {G.w_dim}] for this network, "
            f"got {list(ws.shape)}"
        )
    if not ws.isfinite().all():
        raise ValueError(f"{option}={path}: w must be finite; project the image again")
    return ws


def copy_companions(network: str, target: Path) -> list[Path]:
    """Copy what methods keep beside a network pickle to beside another; return what was written."""
    path = sources.fetch(network)
    copies = []
    for found in companions(path):
        copy = target.with_name(target.stem + found.name.removeprefix(path.stem))
        with replacing(copy) as stream:
            stream.write(found.read_bytes())
        copies.append(copy)
    return copies


def strips(
    subject: Subject, seeds: Sequence[int], *, batch: int = 1
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and images `[n, C, H, W]` of each seed, one for each of its n conditions.

    Args:
        subject: What is drawn from.
        seeds: The seeds, in their order.
        batch: Seeds to draw at a time; one where noise is random, which follows from the seed.
    """
    together = 1 if subject.drawing.noise_mode == "random" else batch
    for start in range(0, len(seeds), together):
        few = seeds[start : start + together]
        found = [subject.latents(seed) for seed in few]
        images = subject.images(subject.together(found))
        parts = images.split([len(latents.ws) for latents in found])
        for seed, own in zip(few, parts, strict=True):
            yield f"seed{seed:04d}", own
