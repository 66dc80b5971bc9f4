"""The runner: an experiment is a table of methods, its runs a JSON file, and that a document.

docs/NAME.json holds every run's numbers, with its commit, command and processor. All tables of
docs/NAME.md are made from that file alone, so `python examples/check.py` can make them again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import tables
import torch
from trials import ROOT, Trial, commit, finished, slug, train

from metrics import results
from stylegan2_fewshot.files import write_text
from stylegan2_fewshot.ops import select
from tools.command import Command
from training import environment
from training.run_dir import snapshots

DOCS = ROOT / "docs"
Row = dict[str, Any]
Record = dict[str, Any]  # what NAME.json holds
Runs = Mapping[Trial, Path]  # directories of finished runs
Settings = Mapping[str, Any]


class Experiment:
    """What experiments have in common; a subclass says how one differs.

    Attributes:
        name: Of its document, its JSON file and its folder of runs.
        methods: Options of `train.py` by method.
        settings: Options of the command that trials depend on, with their defaults.
        default: Methods that are run where none are named; all of them if empty.
        seeds: Seeds that are run where none are named.
    """

    name: str
    methods: Mapping[str, str]
    settings: Settings = {}
    default: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)

    def trial(self, method: str, options: str, seed: int, settings: Settings) -> Trial:
        """Return the run of a method, its options and a seed under the settings."""
        raise NotImplementedError

    def prepare(self, out: Path, settings: Settings) -> None:
        """Make what the runs need, below the folder of runs, or refuse what cannot be run."""

    def measure(self, trial: Trial, run_dir: Path) -> None:
        """Add further measures to a finished run's metrics."""

    def references(self, runs: Runs, out: Path, settings: Settings) -> Row:
        """Return rows to compare with."""
        return {}

    def paragraphs(self, record: Record) -> list[str]:
        """Return the document's text on runs, of which there are some."""
        raise NotImplementedError

    def pictures(self, runs: Runs, record: Record, docs: Path) -> None:
        """Draw the document's pictures from finished runs."""

    def sections(self, record: Record) -> dict[str, str]:
        """Return the document's sections by name: here a single one."""
        if not record["runs"]:
            return {self.name: f"0 of {len(self.seeds)} seeds were run."}
        return {self.name: "\n\n".join([*self.paragraphs(record), commands(record)])}


def processor() -> str:
    """Return the name of the processor or GPU that trains."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{environment.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def row(trial: Trial, run_dir: Path, out: Path) -> Row:
    """Return what the record says of a finished run."""
    known = ROOT / trial.folder(out) / "commit.txt"
    at: dict[float, Row] = {}
    for lines in results.read(run_dir).values():
        for line in lines:
            at.setdefault(line["kimg"], {}).update(rounded(line["results"]))
    return {
        "method": trial.method,
        "group": trial.group,
        "seed": trial.seed,
        "commit": known.read_text() if known.exists() else "",
        "command": f"python {trial.command(out)}",
        "snapshots": [{"kimg": kimg, **at[kimg]} for kimg in sorted(at)],
        "end": ends(run_dir),
    }


def rounded(found: Mapping[str, Any]) -> Row:
    """Return numbers with six significant digits, others as they are."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in found.items()}


STATISTICS = {
    "apa_p": "Augment/apa_p",
    "ada_p": "Augment/ada_p",
    "ewc_ratio": "EWC/ratio",
    "real": "Loss/scores/real",
    "fake": "Loss/scores/fake",
    "sign": "Loss/signs/real",
}


def ends(run_dir: Path) -> Row:
    """Return means of a run's statistics over the last tenth of its ticks."""
    ticks = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    last = ticks[-max(len(ticks) // 10, 1) :]
    found = {
        short: sum(tick[name]["mean"] for tick in last) / len(last)
        for short, name in STATISTICS.items()
        if all(name in tick for tick in last)
    }
    return rounded(found)


def load(name: str, docs: Path = DOCS) -> Record:
    """Return the record of an experiment."""
    record: Record = json.loads((docs / f"{name}.json").read_text())
    return record


def save(record: Record, docs: Path) -> None:
    """Write the record of an experiment."""
    write_text(docs / f"{record['experiment']}.json", json.dumps(record, indent=1) + "\n")


def by_method(record: Record, group: str = "") -> dict[str, list[Row]]:
    """Return a group's runs by method, in the order of the record."""
    found: dict[str, list[Row]] = {}
    for run in record["runs"]:
        if run["group"] == group:
            found.setdefault(run["method"], []).append(run)
    return found


def commands(record: Record, group: str = "") -> str:
    """Return for a document the command line of each method's first run."""
    lines = [f"    {runs[0]['command']}" for runs in by_method(record, group).values()]
    return "\n".join(["The commands, those of other seeds alike:", "", *lines])


def networks(runs: Runs) -> dict[str, Path]:
    """Return the last network of every method's first run."""
    found: dict[str, Path] = {}
    for trial, run_dir in runs.items():
        found.setdefault(trial.method, snapshots(run_dir)[-1])
    return found


def report(
    experiment: Experiment, trials: Sequence[Trial], settings: Settings, out: Path, docs: Path
) -> None:
    """Write record, pictures and document from the runs that are finished.

    What an earlier record says of groups that have no run now stays.
    """
    runs, name = finished(trials, out), experiment.name
    for trial, run_dir in runs.items():
        experiment.measure(trial, run_dir)
    record: Record = {
        "experiment": name,
        "settings": dict(settings),
        "processor": processor(),
        "commit": commit(),
        "references": experiment.references(runs, out, settings) if runs else {},
        "runs": [row(trial, run_dir, out) for trial, run_dir in runs.items()],
    }
    if (docs / f"{name}.json").exists():
        old, groups = load(name, docs), {run["group"] for run in record["runs"]}
        record["references"] = {**old["references"], **record["references"]}
        record["runs"] += [run for run in old["runs"] if run["group"] not in groups]
    docs.mkdir(parents=True, exist_ok=True)
    save(record, docs)
    experiment.pictures(runs, record, docs)
    tables.publish(docs / f"{name}.md", experiment.sections(record))


def remembered(path: Path, make: Callable[[], Row]) -> Row:
    """Return what `make` returned the first time, kept as JSON below the project's root."""
    if not (ROOT / path).exists():
        write_text(ROOT / path, json.dumps(make(), indent=1) + "\n")
    found: Row = json.loads((ROOT / path).read_text())
    return found


def chosen(known: Mapping[str, str], asked: str) -> list[str]:
    """Return the methods that an option names, in their own order.

    Raises:
        click.UsageError: One is unknown.
    """
    names = {slug(name): name for name in known}
    wanted = [name for name in asked.split(",") if name]
    if unknown := [name for name in wanted if name not in names]:
        raise click.UsageError(f"--methods: {unknown[0]} is none of {', '.join(names)}")
    return [name for short, name in names.items() if short in wanted]


def numbers(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """Return the seeds that an option names, as `0,1,2`, each of them once."""
    try:
        return list(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"must be numbers with commas between, got {value}") from error


def command(experiment: Experiment, help_: str) -> click.Command:
    """Return the command line of an experiment."""
    name, known = experiment.name, dict(experiment.methods)
    default = ",".join(map(slug, experiment.default or known))
    seeds = ",".join(map(str, experiment.seeds))
    folder = click.Path(path_type=Path)

    @click.command(cls=Command, help=help_.split("\n")[0], context_settings={"show_default": True})
    @click.option("--methods", default=default, help="Which to run.")
    @click.option("--method", "more", multiple=True, metavar="NAME=OPTIONS", help="One of yours.")
    @click.option("--seeds", default=seeds, callback=numbers)
    @click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time.  [default: cores]")
    @click.option("--report", "reports", is_flag=True, help="Only report what there is.")
    @click.option("--out", type=folder, default=f"out/{name}", help="Folder of the runs.")
    @click.option("--docs", type=folder, default=DOCS, help="Folder of the report.")
    def main(
        methods: str,
        more: tuple[str, ...],
        seeds: list[int],
        jobs: int | None,
        reports: bool,
        out: Path,
        docs: Path,
        **settings: Any,
    ) -> None:
        start = time.time()
        select("auto", torch.device("cpu"))
        own = dict(text.split("=", 1) for text in more)
        known.update(own)
        names = chosen(known, ",".join([methods, *map(slug, own)]))
        everything = [
            experiment.trial(name, known[name], seed, settings) for seed in seeds for name in known
        ]
        experiment.prepare(out, settings)
        if not reports:
            train([trial for trial in everything if trial.method in names], out, jobs=jobs)
        everything.sort(key=lambda trial: list(known).index(trial.method))
        report(experiment, everything, settings, out, docs)
        click.echo(f"{time.time() - start:.0f} s\n{docs / name}.md")

    for option, value in experiment.settings.items():
        main.params.append(click.Option([f"--{option.replace('_', '-')}"], default=value))
    return main
