"""Does bfloat16 train as float32 does? Loss curves of both on the example, from two seeds each.

    python examples/precision.py [--kimg=20] [--out=out/precision]

Adapts the example network to ten images as the demo does, and adds curves, their distance and the
final KID to docs/performance.md. An interrupted experiment goes on where it stopped.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from experiment import (
    ROOT,
    Trial,
    by_method,
    commands,
    last_and_best,
    markdown,
    numbers,
    publish,
    save_figure,
    spread,
    train,
)

KID = "kid5k_full@mobilenetv2"
OPTIONS = (
    "--data=examples/twemoji-ten.zip --metricdata=examples/twemoji-heldout.zip "
    "--resume=examples/noto-portraits-64.pkl --mirror=1 --batch=4 --gamma=0.5 --pl-weight=0 "
    f"--aug=noaug --tick=1 --snap=1000 --metrics={KID}"
)
CURVES = {
    "G's loss": "Loss/G/loss",
    "D's loss": "Loss/D/loss",
    "D's logits, real": "Loss/scores/real",
    "D's logits, fake": "Loss/scores/fake",
}
PRECISIONS = ("fp32", "bf16")


def curves(run_dir: Path) -> np.ndarray:
    """Return the means of every tick, `[curves, ticks]`."""
    ticks = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    return np.array([[tick[key]["mean"] for tick in ticks] for key in CURVES.values()])


def distances(one: list[np.ndarray], two: list[np.ndarray]) -> np.ndarray:
    """Return, for each curve, the root mean square distance of runs of two kinds, or of one."""
    pairs = itertools.combinations(one, 2) if one is two else itertools.product(one, two)
    return np.sqrt(np.mean([(a - b) ** 2 for a, b in pairs], axis=(0, 2)))


def table(found: dict[str, list[np.ndarray]]) -> str:
    """Return how far apart the curves of two runs are, within a precision and between them."""
    pairs = [("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16")]
    rows = [
        [f"{one} and {two}", *(f"{x:.3f}" for x in distances(found[one], found[two]))]
        for one, two in pairs
    ]
    return markdown(["two runs", *CURVES], rows)


def draw(figure: Any, found: dict[str, list[np.ndarray]]) -> None:
    """Draw a panel for each curve, a colour for each precision."""
    for index, (panel, name) in enumerate(zip(figure.subplots(2, 2).flat, CURVES, strict=True)):
        for color, (precision, runs) in enumerate(found.items()):
            for number, run in enumerate(runs):
                label = None if number else precision
                panel.plot(range(1, run.shape[1] + 1), run[index], f"C{color}", label=label)
        panel.set(title=name, xlabel="kimg")
        panel.grid(alpha=0.3)
    panel.legend()


@click.command(help=__doc__.split("\n")[0])
@click.option("--kimg", type=click.IntRange(min=2), default=20, show_default=True)
@click.option("--seeds", default="0,1", callback=numbers, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="out/precision", show_default=True)
@click.option("--docs", type=click.Path(path_type=Path), default=ROOT / "docs", help="Report's.")
def main(kimg: int, seeds: list[int], out: Path, docs: Path) -> None:
    """Train with every precision and seed, and report."""
    trials = [
        Trial(precision, f"{OPTIONS} --kimg={kimg} --precision={precision}", seed)
        for precision in PRECISIONS
        for seed in seeds
    ]
    runs = train(trials, out)
    chosen = by_method(runs)
    found = {name: [curves(run) for run in of_one] for name, of_one in chosen.items()}
    save_figure(docs / "precision.png", (9, 6), lambda figure: draw(figure, found))
    kid = "; ".join(
        f"{name} {spread([last_and_best(run, KID)[0][KID] for run in of_one])}"
        for name, of_one in chosen.items()
    )
    parts = [table(found), f"KID after {kimg} kimg: {kid}.", "![Curves](precision.png)"]
    parts.append(commands(trials, out))
    publish(docs / "performance.md", "precision", "\n\n".join(parts))
    click.echo(docs / "performance.md")


if __name__ == "__main__":
    main()
