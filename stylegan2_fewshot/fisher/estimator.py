"""The diagonal Fisher information of a source network's parameters, estimated from samples."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.overrides import TorchFunctionMode

from .. import distributed, tensor_file
from ..plugin import seed_of
from ..progress import progress
from .file import FORMAT, LIKELIHOOD, Fisher

BLOCK = 64  # samples between two sums over the ranks; a run resumes at the end of one
SAVE_EVERY_SEC = 30
MAX_BATCH = 32
VECTOR_BYTES = 256 * 2**20  # per-sample gradients held at once


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on, besides the networks and the labels.

    Attributes:
        samples: Number of images G draws.
        seed: Seed of latents, labels and noise; sample i is the same whatever the batch or rank.
        psi: Truncation.
        noise_mode: random (drawn for each sample), const or none.
        granularity: parameter, or layer for the mean over each tensor.
        discriminator: Whether D's parameters are included.
    """

    samples: int = 1000
    seed: int = 0
    psi: float = 1.0
    noise_mode: str = "random"
    granularity: str = "parameter"
    discriminator: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")


class LogLikelihood(torch.nn.Module):
    """log sigmoid(D(G(z))) of one sample, in float32, on frozen copies of the networks.

    D gets one image at a time, so its minibatch standard deviation compares nothing.
    """

    def __init__(self, G: torch.nn.Module, D: torch.nn.Module, settings: Settings) -> None:
        super().__init__()
        self.G, self.D = (copy.deepcopy(net).eval().requires_grad_(False) for net in (G, D))
        # Random noise enters as one set of constants per sample, so that it has the sample's seed.
        self.noise = {n: b.shape for n, b in self.named_buffers() if n.endswith(".noise_const")}
        if settings.noise_mode != "random":
            self.noise = {}
        mode = "none" if settings.noise_mode == "none" else "const"
        self.options = {"truncation_psi": settings.psi, "noise_mode": mode, "force_fp32": True}

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """Return the scalar for `z` `[z_dim]` and the label `c` `[c_dim]`."""
        img = self.G(z[None], c[None], **self.options)
        return F.logsigmoid(self.D(img, c[None], force_fp32=True)).sum()


class AnyLayout(TorchFunctionMode):
    """Drop requests for a memory format, which vmap cannot honour; they change no number."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rest = {key: value for key, value in (kwargs or {}).items() if key != "memory_format"}
        return func(*args, **rest)


class Estimator:
    """Gradients of the log-likelihood, one of each parameter per sample.

    Args:
        G: Generator, called as `G(z, c, truncation_psi=, noise_mode=, force_fp32=)`.
        D: Discriminator, called as `D(img, c, force_fp32=)`.
        settings: What to estimate.
        labels: Labels `[M, c_dim]` to draw from; default: every class alike, as one-hot vectors.

    Raises:
        ValueError: The labels do not have this shape.
    """

    def __init__(
        self, G: torch.nn.Module, D: torch.nn.Module, settings: Settings, labels: Tensor | None
    ) -> None:
        self.settings = settings
        self.model = LogLikelihood(G, D, settings)
        heads = ("G.", "D.") if settings.discriminator else ("G.",)
        named = self.model.named_parameters()
        self.params = {n: p.detach() for n, p in named if n.startswith(heads)}
        self.sizes = [p.numel() for p in self.params.values()]
        self.device = next(iter(self.params.values())).device
        self.z_dim = int(G.z_dim)  # type: ignore[arg-type]
        c_dim = int(G.c_dim)  # type: ignore[arg-type]
        every = torch.eye(c_dim) if c_dim else torch.zeros(1, 0)
        self.labels = every if labels is None else labels.cpu().float()
        if self.labels.ndim != 2 or not len(self.labels) or self.labels.shape[1] != c_dim:
            shape = list(self.labels.shape)
            raise ValueError(f"labels must be [M, {c_dim}] for this network, got {shape}")

    def gradients(self, indices: Iterable[int], *, vectorized: bool = True) -> list[Tensor]:
        """Return the gradients of the samples with these numbers, `[n, *shape]` by parameter."""
        drawn = [self._draw(index) for index in indices]
        z, c = (torch.stack([d[key] for d in drawn]).to(self.device) for key in "zc")
        noise = {n: torch.stack([d[n] for d in drawn]).to(self.device) for n in self.model.noise}
        if vectorized:
            with AnyLayout():
                grads = vmap(grad(self._value), in_dims=(None, 0, 0, 0))(self.params, noise, z, c)
            return list(grads.values())
        rows = [{name: value[i] for name, value in noise.items()} for i in range(len(z))]
        samples = [self._gradient(*sample) for sample in zip(rows, z, c, strict=True)]
        return [torch.stack(parts) for parts in zip(*samples, strict=True)]

    def _draw(self, index: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(seed_of("fisher", self.settings.seed, index))
        label = torch.randint(len(self.labels), [], generator=rng)
        drawn = {"z": torch.randn(self.z_dim, generator=rng), "c": self.labels[label]}
        return drawn | {n: torch.randn(s, generator=rng) for n, s in self.model.noise.items()}

    def _value(
        self, params: Mapping[str, Tensor], noise: Mapping[str, Tensor], z: Tensor, c: Tensor
    ) -> Tensor:
        value: Tensor = functional_call(self.model, {**params, **noise}, (z, c))
        return value

    def _gradient(self, noise: Mapping[str, Tensor], z: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """The plain way, one sample and one backward pass: what the vectorised one must equal."""
        leaves = {name: p.clone().requires_grad_() for name, p in self.params.items()}
        value = self._value(leaves, noise, z, c)
        return torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)


class Sums:
    """Sums of squared gradients over samples, and of what the standard errors need.

    Squares are taken per sample. The square of a batch's mean gradient is another number, which
    shrinks with the batch.
    """

    def __init__(self, sizes: list[int], device: torch.device) -> None:
        self.sizes = sizes
        self.squares = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        # Of every layer's mean square: first and second moment over samples.
        self.moments = torch.zeros(2, len(sizes), dtype=torch.float64, device=device)
        self.done = torch.zeros([], dtype=torch.int64, device=device)

    def tensors(self) -> dict[str, Tensor]:
        return {"squares": self.squares, "moments": self.moments, "done": self.done}

    def add(self, gradients: Iterable[Tensor]) -> None:
        """Take in the gradients of further samples, `[n, *shape]` for each parameter."""
        means = []
        for total, gradient in zip(torch.split(self.squares, self.sizes), gradients, strict=True):
            squares = gradient.float().square().reshape(len(gradient), -1)
            total += squares.sum(0)
            means.append(squares.mean(1).double())
        by_layer = torch.stack(means)
        self.moments += torch.stack([by_layer.sum(1), by_layer.square().sum(1)])
        self.done += len(means[0])

    def merge(self, others: Sums) -> None:
        """Take in what all ranks have in `others`."""
        for total, part in zip(self.tensors().values(), others.tensors().values(), strict=True):
            total += distributed.sum_(part)

    def mean(self) -> list[Tensor]:
        """Return the Fisher information of every tensor, flat."""
        return [part.float() for part in torch.split(self.squares / self.done, self.sizes)]

    def standard_error(self) -> list[float | None]:
        """Return the standard error of every layer's mean; None after a single sample."""
        n = int(self.done)
        first, second = self.moments / n
        variance = (second - first.square()).clamp(min=0) * n / max(n - 1, 1)
        return [None if n < 2 else v for v in (variance / n).sqrt().tolist()]


def estimate(
    G: torch.nn.Module,
    D: torch.nn.Module,
    settings: Settings,
    *,
    labels: Tensor | None = None,
    source: str = "",
    network: str = "G",
    batch: int | None = None,
    vectorized: bool = True,
    partial: Path | None = None,
) -> Fisher:
    """Return the diagonal Fisher information of G's parameters (and D's, if asked for).

    Li et al., NeurIPS 2020 (arXiv 2012.02780), Eq. 3: `F_i = E[(d log p / d theta_i)^2]` with
    log p = log sigmoid(D(G(z))). All ranks take part; each computes its share of the samples.

    Args:
        G: Source generator; it is not touched.
        D: Source discriminator, frozen, which serves as the likelihood.
        settings: Number of samples, seed and the like.
        labels: Labels `[M, c_dim]` to draw from; default: every class alike, as one-hot vectors.
        source: SHA-256 of the source pickle, for the file's stamp.
        network: Name in the pickle of what is given as G.
        batch: Samples whose gradients are held at once; None for what fits into 256 MiB.
        vectorized: Differentiate a batch at once instead of sample by sample.
        partial: Where an interrupted estimate is kept, to resume from.
    """
    job = Estimator(G, D, settings, labels)
    meta = _stamp(job, source, network)
    sums = _resume(partial, Sums(job.sizes, job.device), meta)
    vectorized = vectorized and _vectorizes(job)
    batch = batch or max(1, min(MAX_BATCH, VECTOR_BYTES // (4 * sum(job.sizes))))
    main, saved = distributed.rank() == 0, time.monotonic()
    start = int(sums.done)
    with progress(desc="Fisher", total=settings.samples, initial=start, show=main) as bar:
        while (done := int(sums.done)) < settings.samples:
            sums.merge(_block(job, done, batch, vectorized, bar))
            if partial and main and time.monotonic() - saved > SAVE_EVERY_SEC:
                tensor_file.write(partial, sums.tensors(), meta)
                saved = time.monotonic()
    return _finish(job, sums, meta)


def _block(job: Estimator, done: int, batch: int, vectorized: bool, bar: Any) -> Sums:
    """Return the sums over this rank's share of the next block of samples."""
    sums = Sums(job.sizes, job.device)
    end = min(done + BLOCK, job.settings.samples)
    mine = range(done + distributed.rank(), end, distributed.world_size())
    for first in range(0, len(mine), batch):
        sums.add(job.gradients(mine[first : first + batch], vectorized=vectorized))
        bar.update(min(done + (first + batch) * distributed.world_size(), end) - bar.n)
    return sums


def _vectorizes(job: Estimator) -> bool:
    """Try it on two samples; an operation of the networks may not know how."""
    try:
        job.gradients(range(2))
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        if distributed.rank() == 0:
            print(f"Fisher: one sample at a time; torch.func cannot batch this network: {reason}")
        return False
    return True


def _stamp(job: Estimator, source: str, network: str) -> dict[str, Any]:
    labels = hashlib.sha256(job.labels.numpy().tobytes()).hexdigest()
    stamp = {"format": FORMAT, "source_sha256": source, "network": network}
    return stamp | asdict(job.settings) | {"likelihood": LIKELIHOOD, "labels_sha256": labels}


def _resume(partial: Path | None, sums: Sums, meta: Mapping[str, Any]) -> Sums:
    """Fill `sums` from an interrupted estimate of the same kind, if rank 0 finds one."""
    if partial and partial.exists() and distributed.rank() == 0:
        kept, stamp = tensor_file.read(partial, "unfinished estimate", "remove it")
        if all(stamp.get(key) == value for key, value in meta.items()):
            for name, tensor in sums.tensors().items():
                tensor.copy_(kept[name])
    distributed.broadcast_(sums.tensors().values())
    return sums


def _finish(job: Estimator, sums: Sums, meta: Mapping[str, Any]) -> Fisher:
    by_layer = job.settings.granularity == "layer"
    values = {
        name: (mean.mean() if by_layer else mean.view_as(param)).cpu()
        for (name, param), mean in zip(job.params.items(), sums.mean(), strict=True)
    }
    errors = dict(zip(job.params, sums.standard_error(), strict=True))
    return Fisher(values, {**meta, "standard_error": errors})


def summary(fisher: Fisher) -> str:
    """Return a table: every layer's mean Fisher information, with its standard error."""
    errors = fisher.meta["standard_error"]
    width = max(map(len, fisher.values))
    rows = [f"{'layer':{width}}  mean F     standard error"]
    for name, value in fisher.values.items():
        error = "-" if errors[name] is None else f"{errors[name]:.2e}"
        rows.append(f"{name:{width}}  {value.mean():.2e}   {error}")
    return "\n".join(rows)
