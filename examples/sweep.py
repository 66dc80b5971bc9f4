"""Find EWC's lambda for a source and a target: one training for each, distance and diversity.

    python examples/sweep.py                                      # 5e2 to 5e10 in steps of ten
    python examples/sweep.py --lambdas=100,300,1000 --target=fluent --kimg=12

Trains on the ten images of examples/few_shot.py with plain EWC, and adds what comes out to
docs/few-shot.md. It goes on where it was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from experiment import ROOT, Trial, last_and_best, markdown, publish, save_figure, train
from few_shot import (
    DIVERSITY,
    JUDGE,
    METHODS,
    NEARNESS,
    TARGETS,
    fisher_of_source,
    refuse_what_is_missing,
    setting,
)

RANGE = ",".join(f"5e{power}" for power in range(2, 11))
RATIO = "EWC/ratio"


def lambdas(ctx: click.Context, param: click.Parameter, value: str) -> list[float]:
    """Return the numbers that an option lists; 0 is plain fine-tuning."""
    try:
        found = sorted({float(part) for part in value.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"must be numbers with commas between, got {value}") from error
    if found[0] < 0:
        raise click.BadParameter(f"must not be negative, got {found[0]:g}")
    return found


def outcome(run_dir: Path) -> dict[str, float]:
    """Return a run's metrics at its end, and penalty over loss in its last quarter."""
    last, _ = last_and_best(run_dir, JUDGE)
    line = json.loads((run_dir / "stats.jsonl").read_text().splitlines()[-1])
    return {**last, RATIO: line[RATIO]["mean"] if RATIO in line else 0.0}


def table(found: Mapping[float, Mapping[str, float]]) -> str:
    """Return a line for each lambda."""
    header = ["lambda", "lambda * penalty / L_adv", "KID", "intra-LPIPS", "nearness"]
    keys = (JUDGE, DIVERSITY, f"{NEARNESS}_ratio")
    return markdown(
        header,
        [
            [f"{value:g}", f"{row[RATIO]:.3g}", *(f"{row[key]:.3f}" for key in keys)]
            for value, row in found.items()
        ],
    )


def draw(figure: Any, found: Mapping[float, Mapping[str, float]]) -> None:
    """Draw distance and diversity as one path along lambda."""
    panel = figure.subplots()
    place = [(row[JUDGE], row[DIVERSITY]) for row in found.values()]
    panel.plot(*zip(*place, strict=True), "o-")
    for value, point in zip(found, place, strict=True):
        panel.annotate(f"{value:g}", point, xytext=(4, 4), textcoords="offset points")
    panel.set(xlabel=f"{JUDGE} (lower: nearer)", ylabel=DIVERSITY, title="along lambda")
    panel.grid(alpha=0.3)


@click.command(help=__doc__.split("\n")[0])
@click.option("--lambdas", default=RANGE, callback=lambdas, show_default=True)
@click.option("--target", type=click.Choice(TARGETS), default=TARGETS[0], show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--kimg", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time.  [default: cores]")
@click.option("--out", type=click.Path(path_type=Path), default="out/few-shot", show_default=True)
@click.option("--docs", type=click.Path(path_type=Path), default=ROOT / "docs", help="Report's.")
def main(
    lambdas: list[float],
    target: str,
    seed: int,
    kimg: int,
    batch: int,
    jobs: int | None,
    out: Path,
    docs: Path,
) -> None:
    """Train once for every lambda, and report."""
    refuse_what_is_missing([target])
    shared = setting(target, kimg=kimg, snapshots=1, batch=batch)
    fisher = fisher_of_source(out)
    trials = {
        value: Trial(
            f"lambda {value:g}",
            f"{shared} {METHODS['EWC'].format(ewc_lambda=value, fisher=fisher)}",
            seed,
        )
        for value in lambdas
    }
    place = out / f"{target}-sweep"
    runs = train(list(trials.values()), place, jobs=jobs)
    found = {value: outcome(runs[trial]) for value, trial in trials.items()}
    plot = f"few-shot-lambda-{target}.png"
    save_figure(docs / plot, (6, 5), lambda figure: draw(figure, found))
    command = f"    python {next(iter(trials.values())).command(place)}"
    parts = [f"### Along lambda, ten {target}", table(found), f"![Along lambda]({plot})", command]
    publish(docs / "few-shot.md", f"lambda-{target}", "\n\n".join(parts))
    click.echo(f"{table(found)}\n{docs / plot}")


if __name__ == "__main__":
    main()
