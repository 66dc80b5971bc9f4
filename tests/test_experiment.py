"""What the experiments share: folders, spread, and the document's sections."""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future
from pathlib import Path

import click
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import experiment
import few_shot
import make_data


def test_other_options_have_another_folder():
    one, other = (experiment.Trial("EWC + APA", f"--kimg={kimg}") for kimg in (1, 2))
    assert one.folder(Path("out")).parent == Path("out/ewc-apa")
    assert one.folder(Path("out")) != other.folder(Path("out"))
    assert one.kimg == 1 and one.command(Path("out")).endswith("--kimg=1 --seed=0")


def test_commands_are_those_of_the_first_trials_in_their_order():
    named = [("A", 0), ("B", 0), ("A", 1)]
    trials = [experiment.Trial(method, "--kimg=1", seed) for method, seed in named]
    lines = experiment.commands(trials, Path("out")).splitlines()
    assert [line.split()[2].split("/")[1] for line in lines[2:]] == ["a", "b"]
    assert all(line.endswith("--seed=0") for line in lines[2:])


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
    with pytest.raises(click.BadParameter, match="magic is none of fine-tuning"):
        chosen(None, None, "ewc,magic")


def test_a_seed_that_is_named_twice_is_trained_once():
    assert experiment.numbers(None, None, "2,0,2") == [2, 0]


class FailsAfterAWhile(Future):
    """Fails when the progress bar asks for the second time, between two looks at the futures."""

    kimg = 1.0
    asked = 0

    def progress(self, out):
        self.asked += 1
        if self.asked == 2:
            self.set_exception(click.ClickException("no memory"))
        return 0.0


def test_a_run_that_fails_is_never_overlooked():
    failing = FailsAfterAWhile()
    with pytest.raises(click.ClickException, match="no memory"):
        experiment._watch([failing], Path("out"), [failing])


def test_machines_that_do_not_know_affinity_train_as_well(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert experiment.train([], tmp_path) == {}


def test_without_npm_the_data_are_not_made_and_it_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(click.ClickException, match=r"emoji@1: npm cannot fetch it.*install npm"):
        make_data.fetch("emoji@1", tmp_path)
