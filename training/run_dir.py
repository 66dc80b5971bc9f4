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
    from .training_loop import is_finished

    for _, run in () if fresh else _numbered(outdir):
        if _recorded(run) == _text(options) and not is_finished(run):
            return run, True
    return _create(outdir, options), False


def _numbered(outdir: Path) -> list[tuple[int, Path]]:
    """Return the run directories with their numbers, the newest first."""
    matches = ((re.match(r"\d+(?=-|$)", path.name), path) for path in outdir.glob("*"))
    return sorted(((int(m[0]), path) for m, path in matches if m and path.is_dir()), reverse=True)


def _recorded(run: Path) -> str | None:
    """Return the options recorded in a run directory in their canonical text."""
    try:
        return _text(json.loads((run / OPTIONS_FILE).read_text()))
    except (OSError, ValueError):
        return None


def _create(outdir: Path, options: Mapping[str, Any]) -> Path:
    outdir.mkdir(parents=True, exist_ok=True)
    number = max((number for number, _ in _numbered(outdir)), default=-1) + 1
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
