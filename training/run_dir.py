"""Run directories: their names, what lies in them, and which run a command means."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stylegan2_fewshot import options as plugin_options
from stylegan2_fewshot.files import json_object, without_secrets, write_text

OPTIONS_FILE = "training_options.json"
FINISHED_FILE = "finished.json"
_KINDS = {"dataset": dict, "plugins": dict, "given": dict, "metrics": list, "derived": list}
LOCK_FILE = ".lock"
NAME_LENGTH = 150  # file systems allow 255 bytes
SNAPSHOT = re.compile(r"network-snapshot-(\d+)(?:-(\d{3}))?\.pkl")
# Duration and reports: a run that differs in these alone is the same run, by the command's option.
REPORTING = {
    "total_kimg": "kimg",
    "kimg_per_tick": "tick",
    "snapshot_ticks": "snap",
    "metrics": "metrics",
    "metric_data": "metricdata",
    "patience": "patience",
    "workers": "workers",
    "threads": "threads",
    "graphs": "graphs",
    "gpus": "gpus",
}
FLAGS = {"trust_backbone"}  # options without a value
_OF_NO_WEIGHT = {*REPORTING, "name", "given", "explicit", "derived"}
_MOST_DIFFERENCES = 3  # a run that differs in more is another experiment


@dataclass
class Plan:
    """Which run a command means.

    Attributes:
        options: Options of the run, those that were resolved when it was made included.
        run: Its directory; None where one has to be made.
        finished: Whether it has come to its end.
        notes: Lines to say about it.
    """

    options: Mapping[str, Any]
    run: Path | None = None
    finished: bool = False
    notes: list[str] = field(default_factory=list)


def name_of(
    options: Mapping[str, Any], given: Mapping[str, Any], plugins: Mapping[str, Any]
) -> str:
    """Return a run's description, `dataset[-cond][-subsetN][-mirror]-cfgG[-...]`, safe in a shell.

    Args:
        options: All options of the run.
        given: Options of the original that were given, with `cfg` and `gpus` in any case.
        plugins: Options of plugins that were given, in the order of the command line.
    """
    cfg = given["cfg"] + (str(given["gpus"]) if given["cfg"] == "auto" else "")
    words = [Path(options["dataset"]["path"]).stem]
    words += ["cond"] if options["dataset"]["use_labels"] else []
    words += [f"subset{given['subset']}"] if given.get("subset") else []
    words += ["mirror"] if options["dataset"]["xflip"] else []
    words += [cfg]
    words += [f"{key}{given[key]:g}" for key in ("gamma", "kimg", "batch") if key in given]
    words += plugin_options.describe(plugins)
    words += [f"resume{_short(options['resume'])}"] if options["resume"] else []
    return re.sub(r"[^\w.,=+-]+", "_", "-".join(words))[:NAME_LENGTH]


def moment(cur_nimg: int) -> str:
    """Return a number of images as file names have it: `000012` kimg, `000012-400` between."""
    kimg, rest = divmod(cur_nimg, 1000)
    return f"{kimg:06d}" + (f"-{rest:03d}" if rest else "")


def snapshot_at(run: Path, cur_nimg: int) -> Path:
    """Return where the network after `cur_nimg` images lies."""
    return run / f"network-snapshot-{moment(cur_nimg)}.pkl"


def nimg_of(snapshot: Path) -> int:
    """Return after how many images a network snapshot was taken, -1 for another file."""
    found = SNAPSHOT.fullmatch(snapshot.name)
    return int(found[1]) * 1000 + int(found[2] or 0) if found else -1


def snapshots(run: Path) -> list[Path]:
    """Return the network snapshots of a run, the oldest first."""
    return sorted((p for p in run.glob("network-snapshot-*.pkl") if nimg_of(p) >= 0), key=nimg_of)


def newest_network(run: Path) -> Path:
    """Return the newest network of a run; ValueError where there is none."""
    found = snapshots(run)
    if not found:
        raise ValueError(f"{run}: a folder without network-snapshot-*.pkl; give a run's, or a file")
    return found[-1]


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Keep other processes from training in a run directory.

    Raises:
        ValueError: One does already.
    """
    try:
        with FileLock(run / LOCK_FILE, timeout=0):
            yield
    except Timeout:
        raise ValueError(
            f"{run}: another process trains in this run directory; wait for it or stop it, or "
            "start a run beside it with --fresh"
        ) from None


def finish(run: Path, options: Mapping[str, Any], cur_nimg: int) -> None:
    """Note that training in a run directory has come to its end."""
    done = {key: options[key] for key in ("total_kimg", "patience")}
    write_text(run / FINISHED_FILE, json.dumps({"kimg": cur_nimg / 1000, **done}))


def is_finished(run: Path, options: Mapping[str, Any] | None = None) -> bool:
    """Return whether training in a run directory has come to its end, that of `options` if given.

    A run that ended for want of patience has, unless the patience is another one now.
    """
    done = json_object(run / FINISHED_FILE)
    if options is None or done is None:
        return done is not None
    reached, wanted = (done.get(key) for key in ("kimg", "total_kimg"))
    if not (isinstance(reached, (int, float)) and isinstance(wanted, (int, float))):
        return False
    if reached >= options["total_kimg"]:
        return True
    gave_up = reached < wanted
    return gave_up and done.get("patience") == options["patience"]


def plan(outdir: Path, options: Mapping[str, Any], fresh: bool = False) -> Plan:
    """Return which run is meant: the newest below `outdir` that differs in duration and reports
    alone, unless `fresh`, or else a new one; nothing is written."""
    known = [] if fresh else [(n, run, stored_options(run)) for n, run in _numbered(outdir)]
    runs = [(number, run, stored) for number, run, stored in known if stored is not None]
    for _, run, stored in runs:
        if not differences(stored, options):
            merged = _with_reports_of(stored, options)
            return Plan(merged, run, is_finished(run, merged))
    about = [*_about_nearest(runs, options, _next_number(outdir)), *_about_own_source(options)]
    return Plan(options, notes=about)


def about_finished(plan: Plan) -> str:
    """Return what to say where the run that a command means has come to its end."""
    done = json_object(plan.run / FINISHED_FILE) if plan.run else None
    reached = float((done or {}).get("kimg") or 0)
    longer = "--kimg=N trains on"
    if reached < plan.options["total_kimg"]:
        longer = f"it ended after --patience={plan.options['patience']}, a larger one trains on"
    return f"finished in {plan.run} at {reached:g} kimg: {longer}, --fresh starts anew"


def create(outdir: Path, options: Mapping[str, Any]) -> Path:
    """Make a directory with the next free number, and write the options to it."""
    outdir.mkdir(parents=True, exist_ok=True)
    run = outdir / f"{_next_number(outdir):05d}-{options['name']}"
    try:
        run.mkdir()
    except FileExistsError:  # somebody else's run took the number in this moment
        return create(outdir, options)
    write_options(run, options)
    return run


def _next_number(outdir: Path) -> int:
    return max((number for number, _ in _numbered(outdir)), default=-1) + 1


def write_options(run: Path, options: Mapping[str, Any]) -> None:
    """Write the options of a run to its directory."""
    # Keys stay in their order: that of the plugins is the order in which they are applied.
    write_text(run / OPTIONS_FILE, json.dumps(options, indent=2))


def differences(stored: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Return in what two runs differ, as `--gamma (0.5, now 1)`; nothing where they are the same.

    Duration and reports make no difference, nor does what was derived from them on both sides.
    """
    derived = {*stored.get("derived", ()), "batch_gpu"} & {*options.get("derived", ())}
    if stored.get("gpus") == options.get("gpus"):
        derived -= {"batch_gpu"}
    wanted, have = (_flat({k: v for k, v in o.items() if k not in _OF_NO_WEIGHT})
                    for o in (options, stored))  # fmt: skip
    differing = [place for place in {**have, **wanted} if wanted.get(place) != have.get(place)]
    named = {place: ".".join(place) for place in differing}
    numbers = (int, float)  # a stranger's run may hold anything in place of what was derived
    kept = {p for p, n in named.items() if n in derived and isinstance(have.get(p), numbers)}
    places = {place: name for place, name in named.items() if place not in kept}
    if not places:
        return []
    before, now = (o.get("given") or {} for o in (stored, options))
    keys = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    keys = [key for key in keys if key not in REPORTING.values()]
    if keys:
        pairs = [(f"--{k.replace('_', '-')}", before.get(k), now.get(k)) for k in keys]
    else:
        pairs = [(name, have.get(place), wanted.get(place)) for place, name in places.items()]
    return [f"{name} ({_shown(old)}, now {_shown(new)})" for name, old, new in pairs]


def stored_options(run: Path) -> dict[str, Any] | None:
    """Return the options in a run directory; None where there are none that can be read."""
    found = json_object(run / OPTIONS_FILE)
    if found is None or not all(isinstance(found.get(k) or t(), t) for k, t in _KINDS.items()):
        return None
    return found if all(isinstance(name, str) for name in found.get("derived") or ()) else None


def command_of(run: Path) -> str:
    """Return the command that a run was started with, as far as it is recorded."""
    given = (stored_options(run) or {}).get("given") or {}
    words = [f"--outdir={run.parent}"]
    for key, value in given.items():
        flag = f"--{key.replace('_', '-')}"
        if key in FLAGS or value is False:  # which is every switch's default
            words += [flag] if value else []
        else:
            words += [f"{flag}={v}" for v in (value if isinstance(value, list) else [value])]
    return shlex.join(["python", "train.py", *words])


def _about_nearest(
    runs: list[tuple[int, Path, dict[str, Any]]], options: Mapping[str, Any], new: int
) -> list[str]:
    same_data = [r for r in runs if (r[2].get("dataset") or {}) == options["dataset"]]
    found = [(differences(stored, options), number) for number, _, stored in same_data or runs]
    if not found:
        return []
    nearest, number = min(found, key=lambda pair: len(pair[0]))
    if len(nearest) > _MOST_DIFFERENCES:
        return []
    return [f"run {number:05d} differs in {' and '.join(nearest)}; starting {new:05d}"]


def _about_own_source(options: Mapping[str, Any]) -> list[str]:
    """Say what is lost where a run starts from the snapshot of one on the same images."""
    if not options.get("resume") or not (path := Path(options["resume"])).is_file():
        return []
    stored = stored_options(path.parent) or {}
    if (stored.get("dataset") or {}).get("path") != options["dataset"]["path"]:
        return []
    return [
        f"--resume={path} is a snapshot of a run on the same images: a new run starts from its "
        "networks alone, without its optimizers, p and best snapshot. This continues that run: "
        + command_of(path.parent)
    ]


def _with_reports_of(stored: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run with the duration and the reports that are asked for now."""
    now = {key: options[key] for key in REPORTING if key in options}
    if stored.get("gpus") != options.get("gpus"):
        now["batch_gpu"] = options["batch_gpu"]
    return {**stored, **now, "given": options.get("given", {})}


def _numbered(outdir: Path) -> list[tuple[int, Path]]:
    """Return the run directories with their numbers, the newest first."""
    matches = ((re.match(r"\d+(?=-|$)", path.name), path) for path in outdir.glob("*"))
    return sorted(((int(m[0]), path) for m, path in matches if m and path.is_dir()), reverse=True)


def _flat(value: Any, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the leaves of nested objects by their place; the plugins' order is a leaf."""
    if not isinstance(value, Mapping):
        return {place: value}
    leaves: dict[tuple[str, ...], Any] = {}
    for key, inner in value.items():
        leaves |= _flat(inner, (*place, key))
    return leaves | ({(*place, "(order)"): list(value)} if place == ("plugins",) else {})


def _shown(value: Any) -> str:
    return "default" if value is None else without_secrets(str(value))


def _short(resume: str) -> str:
    return resume if re.fullmatch(r"[a-z]+\d+", resume) else "custom"
