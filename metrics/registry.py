"""Metrics by name: what each computes, with which detector, on how many images.

A name says which computation it is, as `kid5k_full`, and after an @ the detector, where it is not
the usual one: `kid5k_full@mobilenetv2`. Without @, `fid50k_full`, `kid50k_full`, `pr50k3_full`,
`is50k` and `ppl2_wend` are those of Karras et al.'s published numbers. FID is the Frechet distance
with Inception and nothing else; with another detector it is called `fd`.
`lpips1k_intra@256` enlarges smaller images to 256 x 256 first, the size of published numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from stylegan2_fewshot import distributed

from . import distances, diversity, manifold, memorisation, sharpness
from .detectors import Detector, to_rgb
from .evaluation import Evaluation
from .features import InMemory, Reals, unchanged
from .perceptual_path import PathSteps, Sampling, Space, trimmed_mean

Values = dict[str, float]  # the first is the one to judge by; "" is the metric itself


@dataclass(frozen=True)
class Metric:
    """A computation on a number of images.

    Attributes:
        function: Takes evaluation, detector and this; returns values by the end of their name.
        detector: The usual one; empty where one has to be named.
        num_fakes: Number of fakes.
        max_reals: Most real images, the first ones; None for all.
        mirrored: Whether mirror images count as real ones, if they do in training.
        better: "lower" or "higher": which of two first values is the better one.
        unseen: Whether real images are needed that G was not trained on.
        name: Full name, with the detector if it is not the usual one.
    """

    function: Callable[[Evaluation, Detector, Metric], Values]
    detector: str
    num_fakes: int
    max_reals: int | None = None
    mirrored: bool = False
    better: str = "lower"
    unseen: bool = False
    name: str = ""


def _frechet(e: Evaluation, d: Detector, m: Metric) -> Values:
    real, fake = (distances.moments(x) for x in _both(e, d, m))
    return {"": distances.frechet_distance(real, fake)}


def _kernel(e: Evaluation, d: Detector, m: Metric) -> Values:
    mean, std = distances.kernel_distance(*_both(e, d, m), seed=e.subject.seed)
    return {"": mean, "std": std}


def _kernel_of_few(e: Evaluation, d: Detector, m: Metric) -> Values:
    real, fake = _both(e, d, m)
    size = min(1000, len(real) // 2)  # subsets of all real images would all be the same
    mean, std = distances.kernel_distance(real, fake, subset_size=size, seed=e.subject.seed)
    floor = distances.kernel_floor(real, size=size, seed=e.subject.seed)
    return {"": mean, "std": std, "floor": floor}


def _precision_recall(e: Evaluation, d: Detector, m: Metric, *, half: bool = False) -> Values:
    precision, recall = manifold.precision_recall(*_both(e, d, m), k=3, half=half)
    return {"precision": precision, "recall": recall}


def _density_coverage(e: Evaluation, d: Detector, m: Metric) -> Values:
    density, coverage = manifold.density_coverage(*_both(e, d, m), k=5)
    return {"coverage": coverage, "density": density}


def _inception_score(e: Evaluation, d: Detector, m: Metric) -> Values:
    mean, std = distances.inception_score(e.fake_features(d, m.num_fakes))
    return {"mean": mean, "std": std}


def _path_length(
    e: Evaluation, d: Detector, m: Metric, *, space: Space, sampling: Sampling, crop: bool
) -> Values:
    steps = PathSteps(e.subject, m.num_fakes, lpips=d, space=space, sampling=sampling, crop=crop)
    return {"": trimmed_mean(e.extract(steps, unchanged, "path lengths"))}


def _nearness(e: Evaluation, d: Detector, m: Metric) -> Values:
    train, fake, unseen, control, notes = _equally_sharp(e, d, m)
    ours, usual, copied = (memorisation.nearest(x, train) for x in (fake, unseen, control))
    power = memorisation.nearness(copied, usual).copies
    _warn_of_no_power(m, power)
    return {**memorisation.nearness(ours, usual)._asdict(), "control": power, **notes}


def _copying(e: Evaluation, d: Detector, m: Metric) -> Values:
    train, fake, unseen, control, notes = _equally_sharp(e, d, m)
    cells = max(1, len(train) // 500)  # a cell of a few images is noise
    found, power = (
        memorisation.copying_test(train, x, unseen, cells=cells, seed=e.subject.seed)
        for x in (fake, control)
    )
    _warn_of_no_power(m, power.nearer)
    return {**found._asdict(), "control": power.nearer, **notes}


def _equally_sharp(
    e: Evaluation, d: Detector, m: Metric
) -> tuple[Tensor, Tensor, Tensor, Tensor, Values]:
    """Return features of training images, fakes and held-out images, blurred until all are as sharp
    as the least sharp of them, of training images a little softer still, and the blur in pixels.
    """
    sources = {"train": e.train_images(), "fake": e.fakes(m.num_fakes), "heldout": e.real_images()}
    curves = [e.sharpness(source) for source in sources.values()]
    blurs = dict(zip(sources, sharpness.matching(curves), strict=True))
    train, fake, unseen = (e.blurred(sources[key], d, blurs[key]) for key in sources)
    # Copies that are softer by as much as half a pixel of blur have to be caught as such.
    control = e.blurred(sources["train"], d, math.hypot(blurs["train"], _CONTROL_BLUR))
    return train, fake, unseen, control, {f"blur_{key}": sigma for key, sigma in blurs.items()}


def _warn_of_no_power(m: Metric, power: float) -> None:
    if power < _LEAST_POWER and distributed.rank() == 0:
        tqdm.write(
            f"{m.name}: has no power here: of blurred training images it takes {power:.0%} for "
            "copies, where it should take all; do not conclude from it that nothing is copied"
        )


def _intra_cluster(e: Evaluation, d: Detector, m: Metric, *, smallest: int | None = None) -> Values:
    def embed(images: Tensor) -> Tensor:
        return d(_at_least(images.to(e.device), smallest))

    train = Reals(e.dataset)
    centres = embed(_at_most_256(train.load(0, train.size)))
    fakes = InMemory(e.extract(e.fakes(m.num_fakes), _at_most_256, "fakes"))

    def nearest(images: Tensor) -> Tensor:
        return diversity.assign(embed(images), centres)

    assigned = e.extract(fakes, nearest, f"clusters, {d.name}")
    members = diversity.choose_members(assigned, train.size)
    mean, clusters, empty = diversity.intra_cluster(
        embed(fakes.images[chosen]) for chosen in members
    )
    return {"": mean, "clusters": clusters, "empty": empty}


def _at_most_256(images: Tensor) -> Tensor:
    """Return uint8 RGB images, averaged down to 256 x 256 if they are larger."""
    images = to_rgb(images)
    if images.shape[-1] <= 256:
        return images
    return nn.functional.avg_pool2d(images.float(), images.shape[-1] // 256).round().byte()


def _at_least(images: Tensor, size: int | None) -> Tensor:
    """Return images of 0 to 255, enlarged bilinearly to `size` if they are smaller."""
    if size is None or images.shape[-1] >= size:
        return images
    return nn.functional.interpolate(images.float(), (size, size), mode="bilinear")


def _both(e: Evaluation, d: Detector, m: Metric) -> tuple[Tensor, Tensor]:
    real = e.real_features(d, mirrored=m.mirrored, limit=m.max_reals)
    return real, e.fake_features(d, m.num_fakes)


def _path(space: Space, sampling: Sampling, *, crop: bool = True) -> Metric:
    function = functools.partial(_path_length, space=space, sampling=sampling, crop=crop)
    return Metric(function, "nvidia-lpips", 50_000)


_INTRA_AT_256 = functools.partial(_intra_cluster, smallest=256)  # published numbers are of 256
_FID = Metric(_frechet, "inception", 50_000)
_KID = Metric(_kernel, "inception", 50_000)
_PR_AS_PUBLISHED = Metric(
    functools.partial(_precision_recall, half=True), "nvidia-vgg16", 50_000, better="higher"
)
_PR = Metric(_precision_recall, "nvidia-vgg16", 50_000, better="higher")
_DC = Metric(_density_coverage, "mobilenetv2", 50_000, better="higher")

METRICS = {
    # Against the whole reference set, without mirror images.
    "fid50k_full": _FID,
    "kid50k_full": replace(_KID, max_reals=1_000_000),
    "pr50k3_full": replace(_PR_AS_PUBLISHED, max_reals=200_000),
    "fd50k_full": replace(_FID, detector=""),
    "dc50k5_full": replace(_DC, max_reals=200_000),
    "is50k": Metric(_inception_score, "inception-probabilities", 50_000, better="higher"),
    "ppl2_wend": _path("w", "end", crop=False),
    # Few shots: 5,000 fakes against all held-out images; copies of the training images.
    "fid5k_full": replace(_FID, num_fakes=5_000),
    "fd5k_full": replace(_FID, detector="", num_fakes=5_000),
    "kid5k_full": replace(_KID, function=_kernel_of_few, num_fakes=5_000),
    "kid1k_full": replace(_KID, function=_kernel_of_few, num_fakes=1_000),
    "pr5k3_full": replace(_PR, num_fakes=5_000),
    "dc5k5_full": replace(_DC, num_fakes=5_000),
    "lpips1k_intra": Metric(_intra_cluster, "lpips-vgg16", 1_000, better="higher"),
    "lpips1k_intra@256": Metric(_INTRA_AT_256, "lpips-vgg16", 1_000, better="higher"),
    "nn1k": Metric(_nearness, "mobilenetv2", 1_000, better="higher", unseen=True),
    "copying1k": Metric(_copying, "mobilenetv2", 1_000, better="higher", unseen=True),
    # Of older papers: at most 50,000 real images, mirrored as in training; path lengths of faces.
    "fid50k": replace(_FID, max_reals=50_000, mirrored=True),
    "kid50k": replace(_KID, max_reals=50_000, mirrored=True),
    "pr50k3": replace(_PR_AS_PUBLISHED, max_reals=50_000, mirrored=True),
    "ppl_zfull": _path("z", "full"),
    "ppl_wfull": _path("w", "full"),
    "ppl_zend": _path("z", "end"),
    "ppl_wend": _path("w", "end"),
}
_MOST_CLUSTERS = 100
_CONTROL_BLUR = 0.5  # pixels
_LEAST_POWER = 0.9
_FEWEST_REALS = 6  # five neighbours


def find(text: str) -> Metric:
    """Return the metric of a name, with the detector that it names after an @.

    Raises:
        ValueError: There is no such metric, or it does not go with that detector.
    """
    if text in METRICS and "@" in text:
        return replace(METRICS[text], name=text)
    name, _, chosen = text.partition("@")
    if name not in METRICS:
        raise ValueError(f"--metrics={text}: no such metric; there are {', '.join(METRICS)}")
    metric = METRICS[name]
    detector = chosen or metric.detector
    if not detector:
        raise ValueError(f"--metrics={text}: name a detector, as {text}@mobilenetv2")
    if detector == metric.detector:
        return replace(metric, name=name)
    if metric.function is _frechet and metric.detector:
        raise ValueError(f"--metrics={text}: FID is Inception's; write fd{text[3:]}")
    if metric.function is _frechet and chosen == "inception":
        raise ValueError(f"--metrics={text}: with Inception it is called fi{name[1:]}")
    if _family(detector) != _family(metric.detector):
        raise ValueError(f"--metrics={text}: {detector} does not give what this metric needs")
    return replace(metric, detector=chosen, name=f"{name}@{Path(chosen).stem}")


def _family(detector: str) -> str:
    """Return what a detector gives: features, lpips, or probabilities."""
    parts = Path(detector).stem.split("-")
    return next((part for part in parts if part in ("lpips", "probabilities")), "features")


def check(metric: Metric, dataset: Any, reference: Any) -> None:
    """Refuse a metric that these images cannot give.

    Raises:
        ValueError: Says what is needed.
    """
    if metric.unseen and reference is None:
        raise ValueError(
            f"{metric.name}: needs images that G is not trained on; give them as --metricdata"
        )
    if metric.unseen and (seen := memorisation.shared_images(dataset, reference)):
        raise ValueError(
            f"{metric.name}: {seen} of the {len(reference.file_names)} images of --metricdata are "
            "training images, pixel for pixel; remove them"
        )
    if reference is not None and reference.resolution != dataset.resolution:
        raise ValueError(
            f"--metricdata: images must be of {dataset.resolution} pixels as the training set's, "
            f"got {reference.resolution}; resize them"
        )
    trained = Reals(dataset).size
    if metric.function in (_intra_cluster, _INTRA_AT_256) and trained > _MOST_CLUSTERS:
        raise ValueError(
            f"{metric.name}: training images must be at most {_MOST_CLUSTERS}, got {trained}; "
            "drop this metric"
        )
    number = len((dataset if reference is None else reference).file_names)
    if number < _FEWEST_REALS:
        raise ValueError(
            f"{metric.name}: images to measure against must be at least {_FEWEST_REALS}, "
            f"got {number}; add some"
        )
