"""The plugin protocol: what a method may do to training, and what it is told of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from . import ahead, distributed, stats
from .drawing import DrawOptions
from .watched import plain

HOOKS = (
    "condition",
    "setup",
    "trainable",
    "synthesis",
    "real_images",
    "augment",
    "observe",
    "penalty",
    "before_step",
    "after_optimizer",
    "after_step",
    "rehearsed",
    "snapshot",
)
Phase = Literal["Gmain", "Gpl", "Dfake", "Dreal", "Dr1"]


@dataclass(frozen=True)
class Step:
    """One forward pass of training, as the hooks see it.

    Attributes:
        phase: Gmain, Gpl, Dfake, Dreal or Dr1. A pass that serves the main loss and its
            regulariser at once carries the name of the main one.
        cur_nimg: Real images shown to D before this iteration.
        c: Labels `[N, c_dim]` as handed to the network.
        ws: Latents `[N, num_ws, w_dim]`, where G ran.
        img: Images `[N, C, H, W]` in [-1, 1], before augmentation.
        logits: D's output `[N, 1]`, where D ran.
        z: Latents `[N, z_dim]`, where G ran.
    """

    phase: Phase
    cur_nimg: int = 0
    c: Tensor | None = None
    ws: Tensor | None = None
    img: Tensor | None = None
    logits: Tensor | None = None
    z: Tensor | None = None

    @property
    def is_real(self) -> bool:
        """Whether D sees real images in this pass."""
        return self.phase in ("Dreal", "Dr1")

    def detached(self) -> Step:
        """Return the same step with tensors that no gradient flows through."""
        tensors: dict[str, Any] = {
            key: x.detach() for key, x in vars(self).items() if isinstance(x, Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True)
class Run:
    """What a plugin may know of the training run when it is set up.

    Attributes:
        G: The generator that is trained, before any wrapping.
        D: The discriminator, likewise.
        dataset: The training set.
        device: Where training takes place.
        batch_size: Images per iteration over all ranks.
        seed: Seed of the run.
        resumed: Path of the source network's pickle, or None when training starts from scratch.
        resumed_from: Which generator of that pickle G starts as, G or G_ema.
        G_ema: The moving average of G, for those that change the networks themselves.
        source: G and D as they are in that pickle, where those that are trained have been widened.
        origins: What parameters of G were in the source, by name, where a plugin that rebuilds has
            added noise to them; it notes them here.
        names: What parameters of G are called in the source, by name, where a plugin that rebuilds
            has moved them, and None for those that it has added; it notes them here.
        estimates: Whether to estimate what takes long; otherwise nothing will be trained, or a
            checkpoint follows that holds it.
        optimizers: `lr`, `betas` and `eps` of Adam for G and for D, by network, corrected for lazy
            regularisation: for those that train more than the networks' own parameters.
    """

    G: torch.nn.Module
    D: torch.nn.Module
    dataset: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 1
    seed: int = 0
    resumed: str | None = None
    resumed_from: str = "G"
    G_ema: torch.nn.Module | None = None
    source: tuple[torch.nn.Module, torch.nn.Module] | None = None
    origins: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str | None] = field(default_factory=dict)
    estimates: bool = True
    optimizers: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {net: {"lr": 0.002, "betas": (0.0, 0.99)} for net in "GD"}
    )

    def needs_source(self, option: str, missing: str) -> Path:
        """Return the path of the source network's pickle.

        Args:
            option: What the user has given that needs one.
            missing: What there is none of without it, as `filters to keep`.

        Raises:
            ValueError: Training starts from scratch.
        """
        if self.resumed is None:
            raise ValueError(
                f"{option} needs --resume: without a source network there are no {missing}"
            )
        return Path(self.resumed)


class Plugin(torch.nn.Module):
    """A method for training with few images: a module whose buffers are its whole state.

    Override at least one hook. Hooks return values and change nothing that they were handed.
    The constructor is the command line: its parameters are keyword-only, annotated, defaulted,
    and described under `Args:` in the class's docstring.
    """

    name: ClassVar[str] = ""
    augmentation: ClassVar[bool] = False  # switched on by --aug, not by the first option
    option_names: ClassVar[Mapping[str, str]] = {}  # parameter -> option where not --NAME-PARAMETER
    neutral: ClassVar[Mapping[str, Any]] = {}  # settings that leave training as it is
    switches: ClassVar[tuple[str, ...]] = ()  # parameters that switch it on, besides the first
    rebuilds: ClassVar[bool] = False  # its setup changes the networks, so it comes first
    rewrites: ClassVar[bool] = False  # sets weights itself, before a step: one plugin at most
    resumes_from: ClassVar[str] = "G"  # generator of --resume that G starts as by default
    status: ClassVar[Mapping[str, str]] = {}  # label in the status line -> name of a statistic
    companion: ClassVar[str] = ""  # suffix of the file that `snapshot` writes beside a pickle
    network_key: ClassVar[str] = ""  # of G's `init_kwargs`, where it makes another G: `rebuild`
    tensor_counts: ClassVar[tuple[str, ...]] = ()  # those of its arguments that count tensors
    ordinary: ClassVar[str] = ""  # says how to make an ordinary network of such a G
    draws: ClassVar[type[DrawOptions] | None] = None  # its options of generate.py
    capturable: bool = True  # False: no CUDA graph can hold its hooks, though nothing shows
    rehearsal: int = 0  # iterations that it wants to see before training, which are taken back

    def __init__(self) -> None:
        super().__init__()
        self._seed = 0
        self._generators: dict[torch.device, tuple[torch.Generator, int]] = {}

    @classmethod
    def labels_beside(cls, network: Path, sampling: str = "train") -> Tensor | None:
        """Return labels `[M, c_dim]` to draw from for a network pickle, where this method keeps
        some in a file beside it.

        Args:
            network: The network pickle.
            sampling: `train` for those seen in training; others are a method's own.
        """
        return None

    @classmethod
    def derived(cls, *, kimg: float, resumed: bool, few_shot: bool) -> dict[str, Any]:
        """Return constructor arguments whose default follows from the run that is made.

        Args:
            kimg: Length of the run, in thousands of images.
            resumed: Whether it starts from a network.
            few_shot: Whether its base configuration is that for few images.
        """
        return {}

    def rng(self, step: Step | int, device: torch.device) -> torch.Generator:
        """Return this plugin's own generator, seeded anew in every iteration.

        The seed is a function of (run's seed, rank, cur_nimg, plugin's name): other plugins, z and
        noise never see what is drawn here, and a resumed run draws what the run would have drawn.
        """
        # The meta device, on which nothing is drawn, has no generators of its own.
        home = torch.device("cpu") if device.type == "meta" else device
        generator, drawn_at = self._generators.get(device) or (torch.Generator(home), -1)
        cur_nimg = plain(step.cur_nimg) if isinstance(step, Step) else step
        if drawn_at != cur_nimg:
            generator.manual_seed(seed_of(self._seed, distributed.rank(), cur_nimg, self.name))
        self._generators[device] = generator, cur_nimg
        return generator

    def ahead(
        self, step: Step, device: torch.device, make: Callable[[torch.Generator], Tensor]
    ) -> Tensor:
        """Return what `make` draws or computes on the CPU, on the device.

        A CUDA graph of the pass has it made anew before each replay. So it must have the same shape
        every time, and not depend on tensors of the pass.

        Args:
            step: The pass.
            device: Where it is needed.
            make: Is handed this plugin's generator of the CPU.
        """
        cpu = torch.device("cpu")
        return ahead.on_device(
            lambda cur_nimg: make(self.rng(cur_nimg, cpu)), plain(step.cur_nimg), device
        )

    def generators(self) -> dict[torch.device, torch.Generator]:
        """Return the generators of `rng` that have been asked for so far, by device."""
        return {device: generator for device, (generator, _) in self._generators.items()}

    def reseed(self, cur_nimg: int) -> None:
        """Seed the generators of `rng` as they are at the start of an iteration."""
        for device, generator in self.generators().items():
            self._generators[device] = generator, -1
            self.rng(cur_nimg, device)

    def augment_pipe(self) -> torch.nn.Module | None:
        """Return what a network pickle carries as its `augment_pipe`; one plugin at most may."""
        return None

    @classmethod
    def synthesis_of(cls, G: Any, z: Tensor) -> dict[str, Any]:
        """Return further arguments of `G.synthesis` for the latents `z`, for a network that this
        method has made, whether or not it is being trained."""
        return {}

    @classmethod
    def rebuild(cls, net: Any, **arguments: Any) -> None:
        """Turn an ordinary network into the one whose `init_kwargs[network_key]` are these."""

    def condition(self, dataset: Any) -> Any:
        """Return the training set with the labels that G and D take; no network is built yet."""
        return dataset

    def setup(self, run: Run) -> None:
        """Prepare for training; networks are built, no checkpoint is loaded yet."""

    def trainable(self, net: str, name: str) -> bool:
        """Return whether the parameter `name` of `net` ("G" or "D") is trained."""
        return True

    def synthesis(self, z: Tensor) -> dict[str, Any]:
        """Return further arguments of G's synthesis for images of the latents `z` `[N, z_dim]`."""
        return {}

    def real_images(self, img: Tensor, c: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Return the real images `[N, C, H, W]` and labels that D is shown."""
        return img, c

    def augment(self, img: Tensor, step: Step) -> Tensor:
        """Return the images `[N, C, H, W]` on their way into D, real or fake."""
        return img

    def observe(self, step: Step) -> None:
        """Look at a forward pass; no gradients."""

    def penalty(self, step: Step) -> Tensor | None:
        """Return a scalar to add to the loss of `step.phase`, or None."""
        return None

    def before_step(self, net: str, params: Mapping[str, torch.nn.Parameter]) -> None:
        """Mask or rewrite gradients of `net` ("G" or "D"): they are averaged over the ranks and
        finite, and its optimizer steps next.

        Args:
            net: Which network.
            params: Its trained parameters by name; `grad` is None where no loss reached one.
        """

    def after_optimizer(self, net: str, params: Mapping[str, torch.nn.Parameter]) -> None:
        """Correct what the optimizer of `net` ("G" or "D") has just done to its parameters, before
        any network runs again.

        Args:
            net: Which network.
            params: Its trained parameters by name.
        """

    def after_step(self, cur_nimg: int) -> None:
        """Update the state, once an iteration, when both optimizers are done.

        Args:
            cur_nimg: Real images shown to D before this iteration.
        """

    def rehearsed(self, moments: Mapping[str, stats.Moments]) -> None:
        """Decide what a rehearsal was needed for, once in a run, before it starts.

        Args:
            moments: Statistics over the last half of the rehearsal, of all ranks. Networks,
                optimizers, draws and the plugins' buffers are again as they were before it.
        """

    def snapshot(self, path: Path) -> None:
        """Write what generating needs beside the network pickle at `path`, on one rank alone."""


def seed_of(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, the same on every machine."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
