"""Check the documents: every table is made anew from the JSON files, and one row is measured anew.

    python examples/check.py [--measure]

docs/NAME.json holds what was measured; the tables of docs/NAME.md must be what comes out of it, and
no table may stand outside of the sections that are made so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import experiment
import few_shot
import filter_banks
import fisher_figure
import instance_prior
import limited_data
import tables

DOCUMENTS: dict[str, Callable[[Any], dict[str, str]]] = {
    module.EXPERIMENT.name: module.EXPERIMENT.sections
    for module in (few_shot, limited_data, filter_banks, instance_prior)
}
DOCUMENTS[fisher_figure.NAME] = fisher_figure.sections
TOLERANCE = 0.002  # of KID: other processors round features otherwise


def problems(name: str, docs: Path = experiment.DOCS) -> list[str]:
    """Return what a document says otherwise than its record, a line each."""
    document = docs / f"{name}.md"
    made = DOCUMENTS[name](experiment.load(name, docs))
    found = [
        f"docs/{name}.md: section {section} is not what docs/{name}.json gives"
        for section, text in made.items()
        if tables.section(document, section) != text.strip()
    ]
    rest = re.sub(r"<!-- begin: (.*?) -->.*?<!-- end: \1 -->", "", document.read_text(), flags=re.S)
    if re.search(r"^\|", rest, flags=re.M):
        found.append(f"docs/{name}.md: a table outside of the sections made from the record")
    return found


def measured_anew() -> tuple[float, float]:
    """Return KID of the embedded network to the embedded images: as recorded, and now."""
    row = experiment.load("few-shot")["references"]["lorelei"][few_shot.EMBEDDED]
    return row["kid1k_full@mobilenetv2"], few_shot.embedded("lorelei")


@click.command(help=__doc__.split("\n")[0])
@click.option("--measure", is_flag=True, help="Measure the row anew as well; needs MobileNetV2.")
def main(measure: bool) -> None:
    """Print what does not agree; status 1 if anything does not."""
    found = [line for name in DOCUMENTS for line in problems(name)]
    if measure:
        recorded, now = measured_anew()
        click.echo(f"KID of the source to examples/: recorded {recorded:.4f}, now {now:.4f}")
        if abs(recorded - now) > TOLERANCE:
            found.append(f"docs/few-shot.json: KID {recorded:.4f} was recorded, it is {now:.4f}")
    click.echo("\n".join(found) or f"{len(DOCUMENTS)} documents agree with their records")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
