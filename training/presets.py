"""Base configurations of the original, and the plain dict of options that they expand to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What a base configuration decides, one field per option of the command line.

    Attributes:
        batch: Images per iteration over all GPUs.
        batch_gpu: Images per pass on each GPU; what is missing to `batch` accumulates.
        mbstd_group: Group size of the minibatch standard deviation.
        cbase: Feature maps times resolution, up to `cmax` feature maps.
        lr: Learning rate of G and D, unless `glr` or `dlr` is given.
        gamma: Weight of R1.
        ema_kimg: Half-life of the moving average of G, in thousands of images.
        ema_rampup: Bound of that half-life, as a share of the images shown so far.
        map_depth: Layers of the mapping network.
        kimg: Duration of training, in thousands of images shown to D.
        tick: Thousands of images between two status lines.
        pl_weight: Weight of the path length penalty.
        style_mixing_prob: Probability of style mixing.
        architecture: Architecture of D.
        zdim: Dimensions of z and of w.
        snap: Ticks between snapshots.
        metrics: Names of metrics, or none.
        patience: How many snapshots without improvement end training; None for any number.
        aug: Augmentation plugins.
    """

    batch: int
    batch_gpu: int
    mbstd_group: int
    cbase: int
    lr: float
    gamma: float
    ema_kimg: float
    ema_rampup: float | None = None
    map_depth: int = 8
    kimg: float = 25000
    tick: float = 4.0
    pl_weight: float = 2.0
    style_mixing_prob: float = 0.9
    architecture: str = "resnet"
    cmax: int = 512
    zdim: int = 512
    glr: float | None = None
    dlr: float | None = None
    snap: int = 50
    metrics: str = "fid50k_full"
    patience: int | None = None
    aug: str = "ada"


STYLEGAN2 = Settings(
    batch=32, batch_gpu=4, mbstd_group=4, cbase=32768, lr=0.002, gamma=10.0, ema_kimg=10.0
)
PAPER256 = Settings(
    batch=64, batch_gpu=8, mbstd_group=8, cbase=16384, lr=0.0025, gamma=1.0, ema_kimg=20.0
)
CIFAR = Settings(
    batch=64,
    batch_gpu=32,
    mbstd_group=32,
    cbase=32768,
    lr=0.0025,
    gamma=0.01,
    ema_kimg=500.0,
    ema_rampup=0.05,
    map_depth=2,
    kimg=100000,
    pl_weight=0.0,
    style_mixing_prob=0.0,
    architecture="orig",
)
PRESETS = {
    "stylegan2": STYLEGAN2,
    "paper256": PAPER256,
    "paper512": replace(PAPER256, cbase=32768, gamma=0.5),
    "paper1024": replace(STYLEGAN2, gamma=2.0),
    "cifar": CIFAR,
}
NAMES = ("auto", "fewshot", *PRESETS)
# Entries of the options that --resume takes from the pickle, by the option that would set them.
ARCHITECTURE = {
    "cfg": (
        "G.mapping_kwargs.num_layers",
        "G.synthesis_kwargs.channel_base",
        "D.channel_base",
        "D.architecture",
    ),
    "cbase": ("G.synthesis_kwargs.channel_base", "D.channel_base"),
    "cmax": ("G.synthesis_kwargs.channel_max", "D.channel_max"),
    "zdim": ("G.z_dim", "G.w_dim"),
    "map_depth": ("G.mapping_kwargs.num_layers",),
    "mbstd_group": ("D.epilogue_kwargs.mbstd_group_size",),
}
OPTIONS = tuple(field.name for field in fields(Settings))


def auto(*, resolution: int, gpus: int, batch: int | None = None) -> Settings:
    """Return settings that fit a resolution in pixels, a number of GPUs and the actual batch."""
    batch = batch or max(min(gpus * min(4096 // resolution, 32), 64), gpus)
    return Settings(
        batch=batch,
        batch_gpu=batch // gpus,
        mbstd_group=min(batch // gpus, 4),
        cbase=32768 if resolution >= 512 else 16384,
        lr=0.002 if resolution >= 1024 else 0.0025,
        gamma=0.0002 * resolution**2 / batch,
        ema_kimg=batch * 10 / 32,
        ema_rampup=0.05,
        map_depth=2,
    )


def settings(cfg: str = "auto", *, resolution: int, gpus: int = 1, **given: Any) -> Settings:
    """Return a base configuration with the fields in `given` instead of its own.

    A batch that is given is spread over the GPUs unless `batch_gpu` is given, too.

    Raises:
        ValueError: The sizes of batches do not fit one another.
    """
    batch = given.get("batch")
    base = PRESETS.get(cfg) or auto(resolution=resolution, gpus=gpus, batch=batch)
    spread = {"batch_gpu": batch // gpus} if batch else {}
    result = replace(base, **{**spread, **given})
    check_batches(result, gpus)
    return result


def about_batch(cfg: str, *, resolution: int, gpus: int, **given: Any) -> str:
    """Return a line about what `batch` changes in cfg=auto beside itself, or nothing."""
    if cfg != "auto" or "batch" not in given:
        return ""
    chosen = auto(resolution=resolution, gpus=gpus, batch=given["batch"])
    usual = auto(resolution=resolution, gpus=gpus)
    changed = [
        f"--{name.replace('_', '-')}={getattr(chosen, name):g} (not {getattr(usual, name):g})"
        for name in ("gamma", "ema_kimg")
        if name not in given and getattr(chosen, name) != getattr(usual, name)
    ]
    if not changed:
        return ""
    return (
        f"--batch={given['batch']}: {' and '.join(changed)}, which --cfg=auto derives from "
        f"the batch; the original derives them from its default, {usual.batch}"
    )


def expand(
    chosen: Settings, *, precision: str = "auto", nhwc: bool = False, resume: str | None = None
) -> dict[str, Any]:
    """Return the part of the training options that is about networks, losses and batches.

    Args:
        chosen: The settings.
        precision: auto, fp32, fp16 or bf16.
        nhwc: Whether layers of reduced precision hold their tensors channels-last.
        resume: Where the source network comes from; its moving average needs no ramp-up.
    """
    return {
        **_networks(chosen, half=precision != "fp32", nhwc=nhwc),
        "G_opt": {"lr": chosen.glr or chosen.lr, "betas": [0, 0.99], "eps": 1e-8},
        "D_opt": {"lr": chosen.dlr or chosen.lr, "betas": [0, 0.99], "eps": 1e-8},
        "loss": {
            "r1_gamma": chosen.gamma,
            "style_mixing_prob": chosen.style_mixing_prob,
            "pl_weight": chosen.pl_weight,
        },
        "G_reg_interval": 4,
        "D_reg_interval": 16,
        "batch_size": chosen.batch,
        "batch_gpu": chosen.batch_gpu,
        "total_kimg": chosen.kimg,
        "kimg_per_tick": chosen.tick,
        "snapshot_ticks": chosen.snap,
        "patience": chosen.patience,
        "ema_kimg": chosen.ema_kimg,
        "ema_rampup": None if resume else chosen.ema_rampup,
        "resume": resume,
        "precision": precision,
        "nhwc": nhwc,
    }


def explicit(given: Mapping[str, Any]) -> dict[str, str]:
    """Return which entries of G and D the user asked for, and with what option.

    Args:
        given: Options that were given on the command line.
    """
    return {
        path: f"--{option.replace('_', '-')}={given[option]}"
        for option, paths in ARCHITECTURE.items()
        if option in given and given[option] not in ("auto", "fewshot")  # these fit what there is
        for path in paths
    }


def _networks(chosen: Settings, *, half: bool, nhwc: bool) -> dict[str, Any]:
    """Return the constructor arguments of G and D."""
    shared = {
        "channel_base": chosen.cbase,
        "channel_max": chosen.cmax,
        "num_fp16_res": 4 if half else 0,
        "conv_clamp": 256 if half else None,
    }
    layout = {"fp16_channels_last": True} if nhwc else {}
    return {
        "G": {
            "z_dim": chosen.zdim,
            "w_dim": chosen.zdim,
            "mapping_kwargs": {"num_layers": chosen.map_depth},
            "synthesis_kwargs": {**shared, **layout},
        },
        "D": {
            "architecture": chosen.architecture,
            **shared,
            "block_kwargs": layout,
            "mapping_kwargs": {},
            "epilogue_kwargs": {"mbstd_group_size": chosen.mbstd_group},
        },
    }


def check_batches(chosen: Settings, gpus: int) -> None:
    """Raise ValueError unless batch, batch per GPU and group fit one another."""
    batch, per_gpu, group = chosen.batch, chosen.batch_gpu, chosen.mbstd_group
    if batch % gpus:
        raise ValueError(f"--batch={batch} must be a multiple of the {gpus} GPUs; change either")
    if batch % (per_gpu * gpus):
        raise ValueError(
            f"--batch={batch} must be a multiple of {per_gpu} images on each of {gpus} GPUs; "
            "change it or --batch-gpu"
        )
    if per_gpu % min(group, per_gpu):
        raise ValueError(
            f"--mbstd-group={group} must divide the {per_gpu} images per GPU; "
            "change it, --batch or --batch-gpu"
        )
