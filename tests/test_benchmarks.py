"""The command `python -m benchmarks`, but for what it measures."""

from __future__ import annotations

import json

from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import methods
from stylegan2_fewshot.plugin import registry


def test_results_are_the_minima_and_are_kept(tmp_path, monkeypatch):
    times = iter([3.0, 2.0, 4.0])
    monkeypatch.setattr(command, "run", lambda side, arguments: {side: {"generator": next(times)}})
    path = tmp_path / "new" / "results.json"
    words = ["--what=tiny32", "--rounds=3", "--device=cpu", f"--json={path}"]
    outcome = CliRunner().invoke(command.main, words)
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(path.read_text())["results"] == {"tiny32": {"ours": {"generator": 2.0}}}
    assert outcome.stdout.splitlines()[-1].split() == ["generator", "2"]


def test_variants_and_the_original_stand_beside_this_code(tmp_path, monkeypatch):
    seen = []

    def measured(side, words):
        seen.append(words)
        return {side: {"Gmain": 1.0, "peak GiB": 2.0}} | (
            {"PyTorch": {"Gmain": 3.0}} if side == "ours" else {}
        )

    monkeypatch.setattr(command, "run", measured)
    words = ["--what=tiny32", "--rounds=1", "--device=cpu", "--variants", "--cpu-time", "--batch=4"]
    outcome = CliRunner().invoke(command.main, [*words, f"--against={tmp_path}"])
    assert outcome.exit_code == 0, outcome.output
    assert all({"--cpu-time", "--batch=4", "--variants"} <= set(words) for words in seen)
    assert seen[1][-1] == f"--root={tmp_path}"
    lines = [line.split() for line in outcome.stdout.splitlines()]
    assert lines[-2] == ["Gmain", "1", "3", "3.00", "1", "1.00"]
    assert lines[-1] == ["peak", "GiB", "2", "-", "-", "2", "1.00"]


def test_what_cannot_be_measured_is_refused():
    outcome = CliRunner().invoke(command.main, ["--what=tiny"])
    assert outcome.exit_code == 2 and "--what must be of ops, pipe, tiny32" in outcome.output


def test_a_method_costs_what_it_costs_beside_fine_tuning(monkeypatch):
    seconds = iter([0.2, 0.3, 0.1, 0.4])

    def run(words):
        assert ("--ewc-lambda=1" in words) == (len(asked) % 2 == 1)
        asked.append(words)
        return {"cpu_sec": next(seconds), "gib": 0.5}

    asked = []
    monkeypatch.setattr(methods, "run", run)
    words = ["--only=fine-tuning,mine", "--method=mine=--ewc-lambda=1 --ewc-samples=2"]
    outcome = CliRunner().invoke(methods.main, words)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.splitlines()[-2:] == [
        "| fine-tuning | 0.100 | 1.00 | 0.50 | 1.00 |",
        "| mine | 0.300 | 3.00 | 0.50 | 1.00 |",
    ]


def test_an_unknown_method_is_refused():
    outcome = CliRunner().invoke(methods.main, ["--only=ewc,nothing"])
    assert outcome.exit_code == 2 and "--only: there is no nothing" in outcome.output
    outcome = CliRunner().invoke(methods.main, ["--method=nothing"])
    assert outcome.exit_code == 2 and "write NAME=--OPTION=VALUE" in outcome.output


def test_every_method_is_measured_or_has_a_reason():
    named = {key for options in methods.METHODS.values() for key in registry() if key in options}
    assert set(registry()) - named == {"prior"}  # it needs a file of features
