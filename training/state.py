"""What training changes: networks, optimizers, plugins; how it begins, and what is saved of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from metrics import results
from stylegan2_fewshot import Plugins, Run, distributed, stats
from stylegan2_fewshot.loss import StyleGAN2Loss
from stylegan2_fewshot.plugin import seed_of

from . import construction
from .dataset import ImageDataset
from .networks import Discriminator, Generator


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


# What a checkpoint holds besides tensors, and which values it may have.
_NUMBERS: dict[str, Callable[[Any], bool]] = {
    "cur_nimg": _is_count,
    "best": lambda value: value is None or results.is_result(value),
    "snapshots_since_best": _is_count,
    "unmeasured": lambda value: value is None or isinstance(value, str),
    "inputs": lambda value: value is None or isinstance(value, Mapping),
}


@dataclass
class State:
    """What training changes, and what a checkpoint holds.

    Attributes:
        cur_nimg: Real images shown to D so far.
        best: Result of the first metric at the best snapshot.
        snapshots_since_best: How many snapshots that one lies back.
        unmeasured: Name of a snapshot whose metrics are still to be computed.
        inputs: What tells whether images and source network are still the same.
        trained: Parameters that are trained, by network and name.
    """

    G: Generator
    D: Discriminator
    G_ema: Generator
    optimizers: dict[str, torch.optim.Optimizer]
    plugins: Plugins
    loss: StyleGAN2Loss
    dataset: ImageDataset
    cur_nimg: int = 0
    best: dict[str, Any] | None = None
    snapshots_since_best: int = 0
    unmeasured: str | None = None
    inputs: Mapping[str, Any] | None = None
    trained: dict[str, dict[str, nn.Parameter]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Any]:
        """Return the content of a checkpoint; every rank has to call this."""
        parts = {"G": self.G, "D": self.D, "G_ema": self.G_ema, "plugins": self.plugins}
        return {
            **{name: part.state_dict() for name, part in parts.items()},
            **{f"{name}_opt": opt.state_dict() for name, opt in self.optimizers.items()},
            "pl_mean": self.loss.pl_mean,
            "pl_means": distributed.gather(self.loss.pl_mean.item()),  # every rank has its own
            "moments": distributed.gather(stats.pending()),  # likewise
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take over the content of a checkpoint.

        Raises:
            ValueError: It is that of other networks or plugins.
        """
        try:
            self._load(saved)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"the checkpoint is not one of these networks, plugins and optimizers ({reason}); "
                "start anew with --fresh"
            ) from error

    def _load(self, saved: Mapping[str, Any]) -> None:
        for name in ("G", "D", "G_ema", "plugins"):
            getattr(self, name).load_state_dict(saved[name])
        for name, opt in self.optimizers.items():
            _load_adam(opt, saved[f"{name}_opt"])
        rank, world = distributed.rank(), distributed.world_size()
        means = saved.get("pl_means", ())
        own = means[rank] if len(means) == world else saved["pl_mean"].item()
        self.loss.pl_mean.fill_(own)
        moments = saved.get("moments", [])
        if len(moments) == world:
            stats.restore(moments[rank : rank + 1])
        else:  # another number of ranks: what they all hold together counts
            stats.restore(moments if rank == 0 else [])
        for name, allows in _NUMBERS.items():
            value = saved.get(name, getattr(self, name))
            if not allows(value):
                raise ValueError(f"{name} is {value!r}")
            setattr(self, name, value)

    @torch.no_grad()
    def not_finite(self) -> str | None:
        """Return which weight, buffer or optimizer state holds NaN or infinity, in words."""
        named = {name: x for name, x in self._numbers() if x.is_floating_point()}
        if not named:
            return None
        finite = torch.stack([x.isfinite().all() for x in named.values()]).tolist()
        bad = (name for name, good in zip(named, finite, strict=True) if not good)
        return next((f"{name} is not finite" for name in bad), None)

    def _numbers(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("G", "D", "G_ema", "plugins"):
            for key, tensor in getattr(self, name).state_dict().items():
                yield f"{name}.{key}", tensor
        for name, opt in self.optimizers.items():
            for number, entry in enumerate(opt.state.values()):
                for key, tensor in entry.items():
                    yield f"{name}'s optimizer, {key} {number}", tensor.to(self.loss.pl_mean.device)


def construct(
    options: Mapping[str, Any],
    dataset: ImageDataset,
    device: torch.device,
    *,
    estimates: bool = True,
) -> tuple[State, str | None]:
    """Build networks, plugins and optimizers; return them and the source network's path.

    Args:
        options: Options of the run.
        dataset: The training images.
        device: The device of this rank.
        estimates: Whether plugins should estimate what takes long; a checkpoint may hold it.
    """
    torch.manual_seed(seed_of(options["seed"], "init"))
    plugins = Plugins.create(options["plugins"])
    dataset = plugins.condition(dataset)
    G, D, G_ema, path, source = construction.networks(options, dataset, device)
    rest = dict(batch_size=options["batch_size"], seed=options["seed"], source=source)
    start = dict(resumed=path, resumed_from=options["resume_from"]) if path else {}
    construction.refuse_groups(options, D)
    adam = {net: _adam(options[f"{net}_opt"], options[f"{net}_reg_interval"]) for net in "GD"}
    rest |= dict(dataset=dataset, device=device, estimates=estimates, optimizers=adam)
    plugins.setup(Run(G, D, G_ema=G_ema, **rest, **start))
    distributed.broadcast_([t for net in (G, D, G_ema, plugins) for t in net.state_dict().values()])
    loss = StyleGAN2Loss(device, G.mapping, G.synthesis, D, plugins, **options["loss"])
    trained: dict[str, dict[str, nn.Parameter]] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, net in (("G", G), ("D", D)):
        net.requires_grad_(False)
        named = net.named_parameters()
        trained[name] = {key: param for key, param in named if plugins.trainable(name, key)}
        if not trained[name]:
            raise ValueError(f"no parameter of {name} is left to train; freeze fewer layers")
        optimizers[name] = torch.optim.Adam(trained[name].values(), fused=True, **adam[name])
    return State(G, D, G_ema, optimizers, plugins, loss, dataset, trained=trained), path


def _load_adam(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Take over an Adam's averages; the rest of what a checkpoint says of it follows from options.

    Its kernel trusts their shapes and strides, and would write past the end of smaller ones.
    """
    groups: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
    sizes, saved_sizes = ([len(g["params"]) for g in gs] for gs in (groups, saved["param_groups"]))
    if sizes != saved_sizes:
        raise ValueError(f"an optimizer of {saved_sizes} parameters, not {sizes}")
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = {
        i: _averages(p, saved["state"][i]) for i, p in enumerate(params) if i in saved["state"]
    }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _averages(param: Tensor, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {
        "step": torch.zeros([]),
        "exp_avg": torch.zeros_like(param),
        "exp_avg_sq": torch.zeros_like(param),
    }
    for name, tensor in found.items():
        if saved[name].shape != tensor.shape:
            raise ValueError(f"{name} of shape {[*saved[name].shape]}, not {[*tensor.shape]}")
        tensor.copy_(saved[name])
    return found


def _adam(kwargs: Mapping[str, Any], interval: int) -> dict[str, Any]:
    """Return the settings of Adam, corrected for the extra steps of lazy regularisation.

    Karras et al. 2020 (arXiv 1912.04958), appendix B.
    """
    ratio = interval / (interval + 1)
    betas = tuple(float(beta) ** ratio for beta in kwargs["betas"])
    return {"lr": kwargs["lr"] * ratio, "betas": betas, "eps": kwargs["eps"]}
