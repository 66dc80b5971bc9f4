"""The command `python -m benchmarks`, but for what it measures."""

from __future__ import annotations

import json

from click.testing import CliRunner

from benchmarks import __main__ as command


def test_results_are_the_minima_and_are_kept(tmp_path, monkeypatch):
    times = iter([3.0, 2.0, 4.0])
    monkeypatch.setattr(command, "run", lambda root, arguments: {"generator": next(times)})
    path = tmp_path / "new" / "results.json"
    words = ["--what=tiny32", "--rounds=3", "--device=cpu", f"--json={path}"]
    outcome = CliRunner().invoke(command.main, words)
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(path.read_text())["results"] == {"tiny32": {"ours": {"generator": 2.0}}}
    assert outcome.stdout.splitlines()[-1].split() == ["generator", "2"]


def test_what_cannot_be_measured_is_refused():
    outcome = CliRunner().invoke(command.main, ["--what=tiny"])
    assert outcome.exit_code == 2 and "--what must be of ops, pipe, tiny32" in outcome.output
