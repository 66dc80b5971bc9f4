"""One iteration: batches of images, and the steps of G and D that are due."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stylegan2_fewshot import distributed
from stylegan2_fewshot.pixels import to_float
from stylegan2_fewshot.plugin import seed_of

from .dataset import ImageDataset, InfiniteSampler
from .graphs import Graphs
from .state import State


class Phases:
    """Takes the steps of G and D, each with its regularisation at its interval.

    Args:
        options: Options of the run.
        state: What is trained.
        device: The device of this rank.
        graphs: What repeats the passes of a phase from its second time on; None for the loss alone.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        state: State,
        device: torch.device,
        graphs: Graphs | None = None,
    ) -> None:
        self._options, self._state, self._device = options, state, device
        self._graphs, self._warm = graphs, set[str]()
        self._seconds: dict[str, float] = {}  # of each phase's first time

    def iterate(self, images: Tensor, labels: Tensor) -> None:
        """Take one step of G and D, and whatever regularisation is due.

        Args:
            images: This rank's part of the batch, uint8 `[N, C, H, W]`, on the CPU.
            labels: Its labels `[N, c_dim]`.
        """
        state, options = self._state, self._options
        state.loss.cur_nimg = state.cur_nimg
        torch.manual_seed(seed_of(options["seed"], distributed.rank(), state.cur_nimg))
        real, real_c = self.prepare(images, labels)
        for phase, gain in self._due(state.cur_nimg // options["batch_size"]):
            if phase in self._seconds:
                self.run(phase, gain, real, real_c)
            else:
                start = now(self._device)
                self.run(phase, gain, real, real_c)
                self._seconds[phase] = now(self._device) - start
        self.update_ema()
        state.plugins.after_step(state.cur_nimg)
        state.cur_nimg += options["batch_size"]

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images in [-1, 1] and labels on the device."""
        return to_float(images.to(self._device)), labels.to(self._device)

    def run(self, phase: str, gain: float, real: Tensor, real_c: Tensor) -> None:
        """Accumulate the gradients of a phase, in parts of `batch_gpu`, and take its step.

        Args:
            phase: Gmain, Greg, Dmain or Dreg.
            gain: Factor of the loss.
            real: Images `[N, C, H, W]` in [-1, 1].
            real_c: Labels `[N, c_dim]`.
        """
        state, size = self._state, self._options["batch_gpu"]
        params = list(state.trained[phase[0]].values())
        loss = self._graphs if self._graphs and phase in self._warm else state.loss
        self._warm.add(phase)
        z = torch.randn(len(real), state.G.z_dim, device=self._device)
        picks = torch.randint(len(state.dataset), [len(real)])
        gen_c = labels_of(state.dataset, picks.tolist()).to(self._device)
        for param in params:
            param.requires_grad_(True)
        state.optimizers[phase[0]].zero_grad(set_to_none=True)
        split = (real.split(size), real_c.split(size), z.split(size), gen_c.split(size))
        parts = list(zip(*split, strict=True))
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            loss.accumulate_gradients(phase, *part, sync=last, gain=gain / len(parts))
        for param in params:
            param.requires_grad_(False)
        self.step(phase[0])

    def step(self, net: str) -> None:
        """Take the step of G or D that its gradients ask for; on a GPU, nothing waits for it."""
        state, named = self._state, self._state.trained[net]
        params = list(named.values())
        distributed.average_gradients(params)
        make_finite([param.grad for param in params if param.grad is not None])
        state.plugins.before_step(net, named)
        align(params)
        state.optimizers[net].step()
        state.plugins.after_optimizer(net, named)

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move G_ema towards G."""
        options, state = self._options, self._state
        half_life = options["ema_kimg"] * 1000
        if options["ema_rampup"] is not None:
            half_life = min(half_life, state.cur_nimg * options["ema_rampup"])
        beta = 0.5 ** (options["batch_size"] / max(half_life, 1e-8))
        means: list[Tensor] = list(state.G_ema.parameters())
        torch._foreach_lerp_(means, list(state.G.parameters()), 1 - beta)
        if buffers := list(state.G.buffers()):
            torch._foreach_copy_(list(state.G_ema.buffers()), buffers)

    def sec_per_kimg(self) -> float:
        """Return the seconds per thousand images, as each phase's first time would have them."""
        share: dict[str, int] = {
            "Greg": self._options["G_reg_interval"],
            "Dreg": self._options["D_reg_interval"],
        }
        seconds = sum(sec / share.get(phase, 1) for phase, sec in self._seconds.items())
        return seconds * 1000 / float(self._options["batch_size"])

    def _due(self, index: int) -> list[tuple[str, float]]:
        """Return the phases of an iteration, with the factor that makes up for lazy ones."""
        phases = []
        for net in "GD":
            phases.append((f"{net}main", 1.0))
            interval = self._options[f"{net}_reg_interval"]
            if index % interval == 0:
                phases.append((f"{net}reg", float(interval)))
        return phases


def batches(
    options: Mapping[str, Any], dataset: ImageDataset, cur_nimg: int, device: torch.device
) -> Iterable[tuple[Tensor, Tensor]]:
    """Return this rank's part of each batch from `cur_nimg` on: uint8 images and labels."""
    sampler = InfiniteSampler(
        len(dataset),
        seed=options["seed"],
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_index=cur_nimg,
    )
    return torch.utils.data.DataLoader(
        dataset,
        sampler=sampler,
        batch_size=options["batch_size"] // distributed.world_size(),
        num_workers=0 if dataset.is_in_memory else options["workers"],
        pin_memory=device.type == "cuda",
    )


def about_loading(error: Exception) -> str | None:
    """Return what to say of an error in the processes that load images; None of any other.

    When one is killed, PyTorch says so, or else what it was handing over breaks off.
    """
    text = str(error)
    if text.startswith("Caught ") and isinstance(error, (ValueError, OSError)):
        return text.rstrip().rpartition("\n")[2].partition(": ")[2]  # after a traceback of theirs
    if "DataLoader worker" in text or isinstance(error, (ConnectionError, EOFError)):
        return (
            f"a process that loads images died ({text.partition('. ')[0]}); the same command "
            "resumes from the last checkpoint, --workers=0 does without such processes"
        )
    return None


def labels_of(dataset: ImageDataset, indices: Sequence[int]) -> Tensor:
    """Return the labels `[N, label_dim]` of items of a data set."""
    return torch.from_numpy(np.stack([dataset.get_label(i) for i in indices])).float()


def make_finite(grads: list[Tensor]) -> None:
    """Replace what is NaN by 0, and what is infinite by 1e5, in place."""
    if not grads:
        return
    is_near = grads[0].device.type == "cpu"  # a GPU would have to be waited for
    if is_near and torch.stack(torch._foreach_norm(grads)).isfinite().all():
        return
    distributed.rewrite(grads, lambda flat: flat.nan_to_num_(nan=0, posinf=1e5, neginf=-1e5))


def align(params: Iterable[nn.Parameter]) -> None:
    """Give each gradient its parameter's layout: the fused Adam of the CPU takes it for granted."""
    for param in params:
        if param.grad is not None and param.grad.stride() != param.stride():
            param.grad = torch.empty_like(param).copy_(param.grad)


def now(device: torch.device) -> float:
    """Return the seconds of a clock, once the device has done what it was given."""
    distributed.synchronize(device)
    return time.monotonic()
