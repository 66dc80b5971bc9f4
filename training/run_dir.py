"""Run directories: their names, and where to go on with an interrupted run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stylegan2_fewshot import options as plugin_options
from stylegan2_fewshot.files import write_text

OPTIONS_FILE = "training_options.json"


def name_of(
    options: Mapping[str, Any], given: Mapping[str, Any], plugins: Mapping[str, Any]
) -> str:
    """Return a run's description, `dataset[-cond][-subsetN][-mirror]-cfgG[-...]`.

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
    return "-".join(words)


def choose(outdir: Path, options: Mapping[str, Any], fresh: bool = False) -> tuple[Path, bool]:
    """Return the directory to train in, and whether an interrupted run goes on there.

    The newest unfinished run below `outdir` with equal options goes on, unless `fresh`; otherwise
    a directory with the next free number is made, and the options are written to it.
    """
    if not fresh and (found := unfinished(outdir, options)):
        return found, True
    return _create(outdir, options), False


def unfinished(outdir: Path, options: Mapping[str, Any]) -> Path | None:
    """Return the newest run directory with these options that has not come to its end."""
    from .training_loop import is_finished

    wanted = _text(options)
    for number in sorted(runs := _numbered(outdir), reverse=True):
        for run in runs[number]:
            if _recorded(run) == wanted and not is_finished(run):
                return run
    return None


def _numbered(outdir: Path) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = {}
    for path in outdir.glob("*") if outdir.is_dir() else ():
        if path.is_dir() and (match := re.match(r"\d+(?=-|$)", path.name)):
            found.setdefault(int(match[0]), []).append(path)
    return found


def _recorded(run: Path) -> str | None:
    """Return the options recorded in a run directory in their canonical text."""
    try:
        return _text(json.loads((run / OPTIONS_FILE).read_text()))
    except (OSError, ValueError):
        return None


def _create(outdir: Path, options: Mapping[str, Any]) -> Path:
    outdir.mkdir(parents=True, exist_ok=True)
    number = max(_numbered(outdir), default=-1) + 1
    run = outdir / f"{number:05d}-{options['name']}"
    try:
        run.mkdir()
    except FileExistsError:  # somebody else's run took the number in this moment
        return _create(outdir, options)
    write_text(run / OPTIONS_FILE, _text(options))
    return run


def _text(options: Mapping[str, Any]) -> str:
    # Keys stay in their order: that of the plugins is the order in which they are applied.
    return json.dumps(options, indent=2)


def _short(resume: str) -> str:
    return resume if re.fullmatch(r"[a-z]+\d+", resume) else "custom"
