"""The rules by which a report says how a run went; docs/report.md has them in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .runs import Series

COLLAPSED_BELOW = 0.35  # variety of samples, that of the training images being 1
COPIES_BELOW = 0.4  # distance to the nearest training image, their own distances being 1
COPIES_ABOVE = 0.25  # nn1k's share of copies; 0.01 is usual
KNOWN_ABOVE = 0.95  # mean sign of D's logits for training images
WORSE_BY = 0.05  # relative loss against the best snapshot that counts
LATE = 0.9  # share of training after which the best snapshot is the end's


@dataclass(frozen=True)
class Evidence:
    """What the rules look at.

    Attributes:
        variety: Over snapshots, the mean distance between samples, relative to training images'.
        nearness: Median distance of the last samples to their nearest training image, relative to
            the median distance of training images to each other's nearest, by pixels; None if not
            known.
        real_signs: Mean sign of D's logits for training images, over ticks.
        losses: Means of the losses, over ticks.
        metrics: Results by metric; the first is the one to judge by.
        kimg: Training time so far.
    """

    variety: Series = field(default_factory=list)
    nearness: float | None = None
    real_signs: Series = field(default_factory=list)
    losses: Sequence[Series] = ()
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kimg: float = 0.0


@dataclass(frozen=True)
class Finding:
    """One thing that the rules found.

    Attributes:
        kind: diverged, collapsed, copies, past-best, knows, learning, settled, sound or unknown.
        title: A few words.
        reason: The numbers behind it, and what to do.
        grave: Whether the last network is not one to use.
    """

    kind: str
    title: str
    reason: str
    grave: bool = False


def judge(evidence: Evidence) -> list[Finding]:
    """Return what the rules find, the verdict first."""
    rules: list[Callable[[Evidence], Finding | None]] = [
        _diverged, _collapsed, _copies, _past_best, _knows, _learning, _settled
    ]  # fmt: skip
    found = [finding for rule in rules if (finding := rule(evidence))]
    if not any(f.kind not in ("knows",) for f in found):
        found.insert(0, _sound(evidence))
    return found


def _diverged(e: Evidence) -> Finding | None:
    ends = [kimg for series in e.losses for kimg, value in series if not math.isfinite(value)]
    if not ends:
        return None
    at = min(ends)
    reason = "A loss is not a number. Lower the learning rates or raise gamma."
    return Finding("diverged", f"Diverged at {at:g} kimg", reason, grave=True)


def _collapsed(e: Evidence) -> Finding | None:
    at = _since(e.variety, lambda value: value < COLLAPSED_BELOW)
    if at is None:
        return None
    share = e.variety[-1][1]
    reason = (
        f"Samples differ from one another by {share:.0%} of what training images do; below "
        f"{COLLAPSED_BELOW:.0%} counts as collapsed. Take an earlier snapshot; raise gamma, or "
        "lower the learning rates."
    )
    return Finding("collapsed", f"Collapsed since {at:g} kimg", reason, grave=True)


def _copies(e: Evidence) -> Finding | None:
    advice = "Stop earlier, or add images, augmentation or a method against forgetting."
    for name, results in e.metrics.items():
        values = results[-1]["results"]
        share = next((v for k, v in values.items() if k == f"{name}_copies"), None)
        if name.startswith("nn1k") and share is not None:
            if share <= COPIES_ABOVE:
                return None
            reason = (
                f"By {name}, {share:.0%} of samples are nearer to a training image than 99 % of "
                f"held-out images are; above {COPIES_ABOVE:.0%} counts as copying. {advice}"
            )
            return Finding("copies", "Copies its training images", reason, grave=True)
    if e.nearness is None or e.nearness >= COPIES_BELOW:
        return None
    reason = (
        f"Samples are {e.nearness:.2f} times as far from their nearest training image as training "
        f"images are from each other; below {COPIES_BELOW} counts as copying. {advice}"
    )
    return Finding("copies", "Copies its training images", reason, grave=True)


def _past_best(e: Evidence) -> Finding | None:
    found = best(e.metrics)
    if found is None or found.loss <= WORSE_BY:
        return None
    reason = (
        f"{found.name} was {found.value:.4g} there and is {found.last:.4g} now, "
        f"{found.loss:.0%} worse. Use that snapshot."
    )
    return Finding("past-best", f"Best at {found.kimg:g} kimg, worse since", reason)


def _knows(e: Evidence) -> Finding | None:
    at = _since(e.real_signs, lambda value: value > KNOWN_ABOVE)
    if at is None:
        return None
    reason = (
        f"The mean sign of its logits for them is {e.real_signs[-1][1]:.2f}; above {KNOWN_ABOVE} "
        "D hardly takes one for a sample. Augmentation (--aug=ada) or a larger gamma holds it back."
    )
    return Finding("knows", f"D knows the training images since {at:g} kimg", reason)


def _learning(e: Evidence) -> Finding | None:
    found = best(e.metrics)
    if not found or found.loss > WORSE_BY or found.kimg < LATE * e.kimg:
        return None
    reason = f"{found.name} is best, {found.value:.4g}, at {found.kimg:g} kimg. Train longer."
    return Finding("learning", "Still learning", reason)


def _settled(e: Evidence) -> Finding | None:
    found = best(e.metrics)
    if found is None or found.loss > WORSE_BY or found.kimg >= LATE * e.kimg:
        return None
    reason = (
        f"{found.name} was best, {found.value:.4g}, at {found.kimg:g} kimg, and is "
        f"{found.last:.4g} now. More training is unlikely to help."
    )
    return Finding("settled", "Settled", reason)


def _sound(e: Evidence) -> Finding:
    unmeasured = "No metric was measured twice, so no snapshot is known as the best; look at them."
    if not e.variety:
        reason = f"There are no pictures to judge by yet. {unmeasured}"
        return Finding("unknown", "Nothing to judge by yet", reason)
    facts = [
        f"Samples differ from one another by {e.variety[-1][1]:.0%} of what training images do"
    ]
    if e.nearness is not None:
        facts.append(
            f"and are {e.nearness:.2f} times as far from their nearest training image as training "
            "images are from each other"
        )
    reason = f"{' '.join(facts)}. {unmeasured}"
    return Finding("sound", "Neither collapsed nor copying", reason)


@dataclass(frozen=True)
class Best:
    """The best of several snapshots by a metric; `loss`: how much worse the last is."""

    name: str
    kimg: float
    value: float
    last: float
    loss: float


def best(metrics: dict[str, list[dict[str, Any]]]) -> Best | None:
    """Return the best snapshot by the first metric that was measured at two or more.

    The earliest of equal ones; None where there is no such metric: one alone is not the best.
    """
    for results in filter(None, metrics.values()):
        name = next(iter(results[0]["results"]))
        sign = 1 if results[0].get("better") == "higher" else -1
        values = [(_number(r["results"].get(name)), float(r["kimg"])) for r in results]
        known = [(value, kimg) for value, kimg in values if math.isfinite(value)]
        if len(known) > 1:
            value, kimg = max(known, key=lambda pair: (sign * pair[0], -pair[1]))
            last = known[-1][0]
            loss = sign * (value - last) / max(abs(value), 1e-12)
            return Best(name, kimg, value, last, loss)
    return None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _since(series: Series, holds: Callable[[float], bool]) -> float | None:
    """Return from when on a series keeps to a condition up to its end; None if it does not."""
    at = None
    for kimg, value in reversed(series):
        if not holds(value):
            break
        at = kimg
    return at
