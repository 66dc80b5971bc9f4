"""What the experiments share: folders, spread, and the document's sections."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import experiment
import few_shot


def test_other_options_have_another_folder():
    one, other = (experiment.Trial("EWC + APA", f"--kimg={kimg}") for kimg in (1, 2))
    assert one.folder(Path("out")).parent == Path("out/ewc-apa")
    assert one.folder(Path("out")) != other.folder(Path("out"))
    assert one.kimg == 1 and one.command(Path("out")).endswith("--kimg=1 --seed=0")


def test_publish_replaces_its_section_alone(tmp_path):
    document = tmp_path / "doc.md"
    document.write_text("head\n<!-- begin: b -->\nold\n<!-- end: b -->\ntail\n")
    experiment.publish(document, "b", "new")
    experiment.publish(document, "b", "newer")
    expected = "head\n<!-- begin: b -->\nnewer\n<!-- end: b -->\ntail\n"
    assert document.read_text() == expected
    experiment.publish(document, "c", "more")
    assert document.read_text() == expected + "<!-- begin: c -->\nmore\n<!-- end: c -->\n"


def test_table_has_mean_and_spread_of_last_and_best():
    keys = (few_shot.JUDGE, few_shot.DIVERSITY, "nn1k_ratio", "nn1k_copies")
    at = [{"kimg": 6.0, **dict.fromkeys(keys, value)} for value in (1.0, 3.0, 5.0)]
    text = few_shot.table(at[0], {"EWC": [(at[0], at[1]), (at[1], at[2])]})
    assert "| EWC | 2 | last | 6.0 ± 0.0 | 2.000 ± 1.414 |" in text
    assert "| EWC | 2 | best | 6.0 ± 0.0 | 4.000 ± 1.414 |" in text


def test_choice_keeps_the_known_order_and_refuses_the_rest():
    chosen = few_shot.choice(few_shot.METHODS)
    assert chosen(None, None, "ewc-apa,fine-tuning") == ["fine-tuning", "EWC + APA"]
    with pytest.raises(few_shot.click.BadParameter, match="magic is none of fine-tuning"):
        chosen(None, None, "ewc,magic")
