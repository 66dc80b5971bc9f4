"""From what the command line says to the options of a run: resolved once, stored, and kept."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stylegan2_fewshot import Plugins, trust
from stylegan2_fewshot.external import load_external
from stylegan2_fewshot.options import all_options, parse, switch
from stylegan2_fewshot.options import resolve as resolved

from . import fewshot, presets, run_dir

DERIVED = ["batch_gpu"]  # follow from the duration or the number of processes, unless given


@dataclass
class Resolved:
    """The options of a run.

    Attributes:
        options: A plain dict, as in the run's training_options.json.
        gpus: Number of processes.
        dataset: The training images, checked.
        notes: Lines to tell the user.
    """

    options: dict[str, Any]
    gpus: int
    dataset: Any
    notes: list[str] = field(default_factory=list)


def resolve(values: Mapping[str, Any]) -> Resolved:
    """Return the options of the run that a command line asks for.

    Args:
        values: What the command line says, by option; None where it says nothing.

    Raises:
        ValueError: A user's mistake.
    """
    given = {key: _plain(value) for key, value in values.items() if value not in (None, ())}
    gpus = _number_of_processes(given.get("gpus"))
    arguments, dataset = _dataset(values)
    source = _source(values["resume"])
    named = {"cfg": "auto", **given, "gpus": gpus}
    overrides = {key: given[key] for key in presets.OPTIONS if key in given}
    reasons: list[str] = []
    if named["cfg"] == "fewshot":
        images = len(dataset) // (2 if dataset.xflip else 1)
        situation = fewshot.Situation(
            images, dataset.resolution, bool(source), gpus, bool(given.get("metricdata"))
        )
        chosen, reasons = fewshot.settings(situation, **overrides)
    else:
        chosen = presets.settings(
            named["cfg"], resolution=dataset.resolution, gpus=gpus, **overrides
        )
        note = presets.about_batch(
            named["cfg"], resolution=dataset.resolution, gpus=gpus, **overrides
        )
        reasons += [note] if note else []
    known = {"aug", *all_options()}
    methods = {key: given[key] for key in given if key in known}
    plugins = parse(methods if "aug" in methods else {"aug": chosen.aug, **methods})
    few_shot = named["cfg"] == "fewshot"
    plugins, derived = resolved(plugins, kimg=chosen.kimg, resumed=bool(source), few_shot=few_shot)
    Plugins.create(plugins)  # a constructor refuses what it cannot do
    options = {
        "seed": values["seed"],
        "device": values["device"],
        "ops": values["ops"],
        "dataset": arguments,
        **presets.expand(chosen, precision=_precision(values), nhwc=values["nhwc"], resume=source),
        "resume_from": _resume_from(values, plugins),
        "plugins": plugins,
        "external": list(values["plugin"]),
        "explicit": presets.explicit(given),
        "metrics": _metrics(chosen.metrics),
        "metric_data": values["metricdata"],
        "workers": values["workers"],
        "threads": values["threads"],
        "graphs": values["graphs"],
        "allow_tf32": values["allow_tf32"],
        "benchmark": not values["nobench"],
        **_trust(values),
        "gpus": gpus,
        "derived": [*(key for key in DERIVED if key not in given), *derived],
        "given": given,
    }
    options = {"name": run_dir.name_of(options, named, methods), **options}
    return Resolved(options, gpus, dataset, [*reasons, *_unused_plugins(options)])


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _dataset(values: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Check the images; return the data set's arguments, and the data set."""
    from .dataset import ImageDataset

    arguments = {
        "path": values["data"],
        "use_labels": values["cond"],
        "max_size": values["subset"],
        "xflip": values["mirror"],
        "seed": values["seed"],
    }
    # One of torchrun's processes looks at every file.
    dataset = ImageDataset(**arguments, check=is_first())
    number = len(dataset.file_names)
    if values["subset"] and values["subset"] > number:
        raise ValueError(f"--subset={values['subset']}: there are {number} images; ask for fewer")
    return arguments, dataset


def is_first() -> bool:
    """Return whether this process is the one that speaks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _number_of_processes(gpus: int | None) -> int:
    """Return how many processes train together: as many as torchrun started, or --gpus."""
    started = _from_environment("WORLD_SIZE", 1, math.inf)
    _from_environment("RANK", 0, (started or 1) - 1)
    if started is None:
        return gpus or 1
    if gpus not in (None, started):
        raise ValueError(f"--gpus={gpus}, but torchrun started {started}; drop --gpus")
    return started


def _from_environment(name: str, least: int, most: float) -> int | None:
    """Return a number that torchrun sets, or None; one that it would not set is a mistake."""
    text = os.environ.get(name)
    if text is None:
        return None
    number = int(text) if text.lstrip("-").isdigit() else None
    if number is None or not least <= number <= most:
        rule = f"from {least}" + (f" to {most}" if math.isfinite(most) else "")
        raise ValueError(
            f"the environment's {name} must be a number {rule}, got {text!r}; unset it, or let "
            "torchrun set it"
        )
    return number


def _metrics(text: str) -> list[str]:
    """Return the names of the metrics; one that there is not is a mistake."""
    from metrics import registry

    names = [] if text == "none" else text.split(",")
    for name in names:
        registry.find(name)
    return names


def _trust(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said about detectors that are programs, if anything is."""
    said = trust.Trust(values["trust_backbone"], values["backbone_sha256"])
    return {"trust": vars(said)} if said != trust.NOBODY else {}


def _precision(values: Mapping[str, Any]) -> str:
    precision: str = values["precision"]
    if values["fp32"] and precision not in ("auto", "fp32"):
        raise ValueError(f"--fp32 contradicts --precision={precision}; drop one")
    return "fp32" if values["fp32"] else precision


def _source(resume: str | None) -> str | None:
    """Return the network to start from, of a run its newest; one that does not exist is refused."""
    if resume in (None, "noresume"):
        return None
    from .sources import SHORT_NAMES

    if resume in SHORT_NAMES or resume.startswith(("http://", "https://")):
        return resume
    path = Path(resume).expanduser()
    if path.is_dir():
        return str(run_dir.newest_network(path))
    if not path.is_file():
        names = ", ".join(SHORT_NAMES)
        raise ValueError(f"--resume={resume}: no such file; give a path, a URL, or one of {names}")
    return str(path)


def _resume_from(values: Mapping[str, Any], plugins: Mapping[str, Any]) -> str | None:
    """Return which generator of the source network G starts as, G or G_ema."""
    chosen, resume = values["resume_from"], values["resume"]
    if resume in (None, "noresume"):
        if chosen:
            raise ValueError(f"--resume-from={chosen} needs --resume, the network to start from")
        return None
    if chosen:
        return {"g": "G", "g_ema": "G_ema"}[chosen]
    return Plugins.create(plugins).resumes_from


def _unused_plugins(options: Mapping[str, Any]) -> list[str]:
    """Say which plugins of `--plugin` are loaded, but not switched on."""
    classes = {place: load_external(place) for place in options["external"]}
    return [
        f"--plugin={place} is loaded, but off; {switch(cls)} switches it on"
        for place, cls in classes.items()
        if cls.name not in options["plugins"]
    ]
