"""EWC: elastic weight consolidation."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import distributed, files, patterns, stats
from .. import fisher as fisher_information
from ..fisher import Fisher
from ..networks import labels_beside
from ..plugin import Plugin, Run, Step, register

PHASES = {"Gmain": "G", "Dfake": "D"}


def consolidation(params: Tensor, anchor: Tensor, fisher: Tensor) -> Tensor:
    """Return `fisher * (params - anchor)^2`, element by element.

    Li et al., NeurIPS 2020 (arXiv 2012.02780), Eq. 4. Its sum is the penalty.
    """
    return fisher * (params - anchor).square()


def padded(fisher: Tensor, shape: torch.Size) -> Tensor:
    """Return `fisher` as the leading part of zeros of `shape`, for a parameter that has grown so.

    With more inputs, a weight of equalised learning rate has a smaller gain, and the source's
    weights were made larger by as much: d log p / d theta is smaller, and F by its square.
    """
    grown = fisher.new_zeros(shape)
    inputs = fisher.shape[1:].numel() / shape[1:].numel()
    grown[tuple(map(slice, fisher.shape))] = fisher * inputs
    return grown


def _renamed(fisher: Fisher, names: Mapping[str, str | None]) -> Fisher:
    """Return a source's Fisher information by the names that its parameters have in G now."""
    kept = fisher.values
    moved = {f"G.{name}": kept[f"G.{old}"] for name, old in names.items() if f"G.{old}" in kept}
    return Fisher({**kept, **moved}, fisher.meta)


def _unknown(run: Run) -> Fisher:
    """Return Fisher information of the right shapes, 1 everywhere: a checkpoint replaces it."""
    nets = zip("GD", run.source or (run.G, run.D), strict=True)
    named = ((f"{net}.{name}", p) for net, module in nets for name, p in module.named_parameters())
    return Fisher({name: torch.ones(p.shape, device="cpu") for name, p in named}, {})


@register("ewc")
class EWC(Plugin):
    """Hold on to the source's weights, each as firmly as it matters there (EWC).

    Li, Zhang, Lu and Shechtman, NeurIPS 2020 (arXiv 2012.02780): adds
    `lambda * sum_i F_i (theta_i - theta_S,i)^2` to G's loss, where theta_S are the source's weights
    and F is their diagonal Fisher information. theta_S is what G starts as: the source's G_ema,
    which makes its samples, unless --resume-from=g. The right lambda depends on the source: watch
    EWC/ratio, which is the penalty, with lambda, relative to the adversarial loss; 0.1 to 1 is
    the range to aim at. EWC/ratio/weights, /biases and /noise say where it comes from.

    Args:
        lambda_: Strength of the penalty; 0 switches it off. The published 5e8 is unverified here.
        fisher: File of `python -m tools.fisher`; without it, F is estimated once and
            kept beside the source network.
        normalize: Divide F by its mean, that of weights, of biases and of noise strengths each by
            its own, so that lambda carries over between sources and none drowns the others.
        network: Which networks to hold: G, or D as well.
        skip: Parameters to leave free: patterns, separated by commas, such as
            `mapping.*,*.torgb.*`, of their names with or without the network in front.
        samples: Images that F is estimated from where no file is given.
        per_layer: Report EWC/ratio for every layer as well.
        ratio: Find lambda in a rehearsal instead: training from the source under a first guess,
            which is then scaled so that the mean EWC/ratio of the last half would have been this.
        rehearsal: Iterations of that rehearsal.
    """

    neutral: ClassVar = {"lambda_": 0.0}
    switches: ClassVar = ("ratio",)
    resumes_from: ClassVar = "G_ema"
    status: ClassVar = {"ewc/adv": "EWC/ratio"}

    def __init__(
        self,
        *,
        lambda_: float = 0.0,
        fisher: str | None = None,
        normalize: bool = False,
        network: Literal["G", "GD"] = "G",
        skip: str = "",
        samples: int = 1000,
        per_layer: bool = False,
        ratio: float | None = None,
        rehearsal: int = 100,
    ) -> None:
        super().__init__()
        if not lambda_ >= 0:
            raise ValueError(f"--ewc-lambda must not be negative, got {lambda_}")
        if samples < 1:
            raise ValueError(f"--ewc-samples must be at least 1, got {samples}")
        if ratio is not None and not 0 < ratio < math.inf:
            raise ValueError(f"--ewc-ratio must be positive, got {ratio}")
        if ratio is not None and lambda_:
            raise ValueError(f"--ewc-ratio={ratio:g} finds lambda; drop --ewc-lambda={lambda_:g}")
        if rehearsal < 2:
            raise ValueError(f"--ewc-rehearsal must be at least 2, got {rehearsal}")
        self.ratio, self.rehearsal = ratio, rehearsal if ratio else 0
        self.lambda_, self.fisher, self.normalize = lambda_, fisher, normalize
        self.network, self.samples, self.per_layer = network, samples, per_layer
        self.skip = patterns.split(skip)
        # Held parameters by network and name; a plain dict, for they belong to the networks.
        self._held: dict[str, dict[str, torch.nn.Parameter]] = {}

    def setup(self, run: Run) -> None:
        if not self.lambda_ and self.ratio is None:
            return
        option = f"lambda={self.lambda_:g}" if self.ratio is None else f"ratio={self.ratio:g}"
        path = run.needs_source(f"--ewc-{option}", "parameters to hold on to")
        patterns.refuse_unknown("--ewc-skip", self.skip, G=run.G, D=run.D)
        fisher = self._fisher(run, path) if run.estimates or self.fisher else _unknown(run)
        for net, source in zip("GD", run.source or (run.G, run.D), strict=True):
            if net not in self.network:
                continue
            shapes = {name: p.shape for name, p in source.named_parameters()}
            added = {name for name, old in run.names.items() if old is None and net == "G"}
            held = self._choose(net, getattr(run, net), shapes, fisher, added)
            values = [
                padded(fisher.values[f"{net}.{name}"].expand(shapes[name]), p.shape)
                for name, p in held.items()
            ]
            self._held[net] = held
            origins = run.origins if net == "G" else {}
            anchors = _flat(origins.get(name, p) for name, p in held.items())
            self.register_buffer(f"anchor_{net}", anchors.detach().clone())
            self.register_buffer(f"fisher_{net}", self._scaled(net, _flat(values)))
        if self.ratio is not None:
            self.register_buffer("found_lambda", self._first_guess(self.ratio))

    def penalty(self, step: Step) -> Tensor | None:
        net = PHASES.get(step.phase, "")
        if net not in self._held or step.logits is None:
            return None
        params = _flat(self._held[net].values()).float()
        anchor, fisher = (self.get_buffer(f"{key}_{net}") for key in ("anchor", "fisher"))
        terms = consolidation(params, anchor, fisher)
        penalty = terms.sum()
        self._report(net, terms, penalty, step.logits)
        return self._strength * penalty

    def rehearsed(self, moments: Mapping[str, stats.Moments]) -> None:
        assert self.ratio is not None
        reached = moments["EWC/ratio"].mean
        if not 0 < reached < math.inf:
            raise ValueError(
                f"--ewc-ratio={self.ratio:g}: the rehearsal reached a ratio of {reached:g}, which "
                "no factor makes that; give --ewc-lambda"
            )
        guess = float(self._strength)
        self.get_buffer("found_lambda").mul_(self.ratio / reached)
        if distributed.rank() == 0:
            print(
                f"EWC: lambda {guess:.3g} gave a ratio of {reached:.3g}; "
                f"--ewc-ratio={self.ratio:g} makes it {float(self._strength):.6g}"
            )

    @property
    def _strength(self) -> float | Tensor:
        return self.lambda_ if self.ratio is None else self.get_buffer("found_lambda")

    def _first_guess(self, ratio: float) -> Tensor:
        """Return the lambda at which a displacement of 0.01 throughout would cost as much as is
        asked for, beside the adversarial loss of a D that knows nothing."""
        total = self.get_buffer("fisher_G").double().sum()
        if not total:
            raise ValueError(f"--ewc-ratio={ratio:g}: the Fisher information is 0 throughout")
        return (ratio * math.log(2) / (total * 0.01**2)).float()

    def _fisher(self, run: Run, source: Path) -> Fisher:
        """Return what the given file holds, or else what an earlier run or this one estimates."""
        if self.fisher:
            found = fisher_information.load(Path(self.fisher), source, run.resumed_from)
            return _renamed(found, run.names)
        sha256 = files.sha256_of(source)
        settings = fisher_information.Settings(
            samples=self.samples, discriminator="D" in self.network
        )
        G, D = run.source or (run.G, run.D)
        params = (*G.named_parameters(), *D.named_parameters())
        names = [(name, *p.shape) for name, p in params]  # plugins may have added some
        facts = repr((sha256, run.resumed_from, settings, names))
        key = hashlib.sha256(facts.encode()).hexdigest()[:12]
        path = fisher_information.writable_folder(source) / f"{source.stem}.fisher-{key}.npz"
        if all(distributed.gather(path.is_file())):  # the ranks may not see the same disk
            return fisher_information.load(path)
        partial, labels = path.with_suffix(".partial.npz"), labels_beside(source)
        fisher = fisher_information.estimate(
            G,
            D,
            settings,
            labels=labels,
            source=sha256,
            network=run.resumed_from,
            partial=partial,
        )
        if distributed.rank() == 0:
            fisher_information.save(path, fisher)
            partial.unlink(missing_ok=True)
        return fisher

    def _choose(
        self,
        net: str,
        module: torch.nn.Module,
        shapes: Mapping[str, torch.Size],
        fisher: Fisher,
        added: Collection[str],
    ) -> dict[str, torch.nn.Parameter]:
        """Return the parameters to hold: those that the source has and `skip` does not name."""
        params = dict(module.named_parameters())
        fits = {n for n, shape in shapes.items() if _fits(shape, fisher.values.get(f"{net}.{n}"))}
        known = {name: p for name, p in params.items() if name in fits and name not in added}
        held = {name: p for name, p in known.items() if not self._skipped(net, name)}
        if not held:
            reason = "--ewc-skip names them all" if known else "the Fisher file has none of them"
            raise ValueError(
                f"--ewc-network={self.network}: no parameter of {net} to hold; {reason}"
            )
        if (others := [name for name in params if name not in known]) and distributed.rank() == 0:
            print(f"EWC: not in the source's {net}, so left free: {', '.join(others)}")
        return held

    def _skipped(self, net: str, name: str) -> bool:
        return any(patterns.matches(pattern, net, name) for pattern in self.skip)

    def _scaled(self, net: str, fisher: Tensor) -> Tensor:
        if not self.normalize:
            return fisher
        if not fisher.any():
            raise ValueError("--ewc-normalize: the Fisher information is 0 throughout")
        parts = self._parts(net, fisher)
        means = {kind: _flat(p for k, p in parts if k == kind).mean() for kind, _ in parts}
        return _flat(part / (means[kind] if means[kind] else 1) for kind, part in parts)

    def _parts(self, net: str, flat: Tensor) -> list[tuple[str, Tensor]]:
        """Return the kind and the part of `flat` of each parameter that is held."""
        sizes = [p.numel() for p in self._held[net].values()]
        kinds = map(fisher_information.kind_of, self._held[net])
        return list(zip(kinds, torch.split(flat, sizes), strict=True))

    @torch.no_grad()
    def _report(self, net: str, terms: Tensor, penalty: Tensor, logits: Tensor) -> None:
        end = "" if net == "G" else f"_{net}"
        adversarial = F.softplus(-logits if net == "G" else logits).mean()
        stats.report(f"EWC/penalty{end}", penalty)
        stats.report(f"EWC/ratio{end}", self._strength * penalty / adversarial)
        stats.report("EWC/lambda", self._strength * torch.ones_like(penalty))
        parts, sums = self._parts(net, terms), defaultdict[str, Tensor](lambda: terms.new_zeros([]))
        for name, (kind, part) in zip(self._held[net], parts, strict=True):
            share = self._strength * part.sum() / adversarial
            sums[kind] = sums[kind] + share
            if self.per_layer:
                stats.report(f"EWC/ratio{end}/{name}", share)
        for kind, share in sums.items():
            stats.report(f"EWC/ratio{end}/{kind}", share)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _fits(shape: torch.Size, fisher: Tensor | None) -> bool:
    """Return whether `fisher` is of a parameter of that shape: one per element, or one in all."""
    return fisher is not None and fisher.shape in (shape, torch.Size())
