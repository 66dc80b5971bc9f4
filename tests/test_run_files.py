"""What runs write, read when it is damaged or somebody else's: passed over, or one line."""

from __future__ import annotations

import json

import pytest
import staged_runs
from click.testing import CliRunner

import metrics
from stylegan2_fewshot import files
from tools import compare, report
from training import run_dir, run_log

HUGE = b"9" * 4000  # digits
MALFORMED = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "rather deep": b'{"nimg":' * 600 + b"1" + b"}" * 600,
    "not UTF-8": b'{"nimg": 1, "\xff',
    "list": b"[1]",
    "text": b'"x"',
    "number": b"7",
    "nothing": b"",
    "damaged": b'{"nimg": 1, "results": {"kid": 1}, "kimg": 1',
    "odd types": b'{"nimg": [], "kimg": {}, "results": "x"}',
    "odd results": b'{"nimg": null, "kimg": 1, "results": {"kid": "x"}}',
    "no results": b'{"nimg": "x", "kimg": 1, "results": {}}',
    "separators": b'{"a": "\xe2\x80\xa8\x0c"',
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_lines_are_passed_over(tmp_path, name):
    """And those before and after them are not."""
    lines = [{"nimg": n * 1000, "kimg": n, "results": {"kid": 1 / n}} for n in (1, 2, 3)]
    good = [json.dumps(line).encode() for line in lines]
    data = b"\n".join([MALFORMED[name], good[0], MALFORMED[name], good[1], good[2], b'{"half'])
    (tmp_path / "metric-kid.jsonl").write_bytes(data)
    (tmp_path / "stats.jsonl").write_bytes(data)
    assert metrics.read(tmp_path) == {"kid": lines}
    run_log.RunLog(tmp_path, 2000)
    for path in tmp_path.glob("*.jsonl"):
        assert files.json_lines(path) == lines[:2]


def test_tools_read_what_others_have_damaged(tmp_path):
    whole, other = (staged_runs.stage("well", 0, tmp_path / name) for name in "ab")
    verdicts = []
    for run in (whole, other):
        bad = b"\n".join([*MALFORMED.values(), b'{"nimg": %s, "kimg": %s}' % (HUGE, HUGE), b""])
        null = b'{"results": {"kid5k_full": null}, "kimg": 17}\n'
        if run is other:
            for path in run.glob("*.jsonl"):
                path.write_bytes(bad + path.read_bytes())
            (run / "environment.json").write_bytes(MALFORMED["deep"])
            with (run / "metric-kid5k_full.jsonl").open("ab") as stream:
                stream.write(null)
        out = report.write([run], tmp_path / "r.html", nearest="pixels")
        verdicts.append(out.read_text().partition('class="headline">')[2].partition("<")[0])
    assert verdicts[0] == verdicts[1] != ""
    table = [str(whole), str(other), f"--plot={tmp_path / 'plot.png'}"]
    result = CliRunner().invoke(compare.main, table)
    assert result.exit_code == 0, result.output


ODD_OPTIONS = [
    *(MALFORMED[name] for name in ("deep", "rather deep", "not UTF-8", "list", "nothing")),
    b'{"dataset": [1]}',
    b'{"plugins": "x"}',
    b'{"given": [1]}',
    b'{"derived": [{}]}',
    b'{"metrics": 7}',
]


@pytest.mark.parametrize("data", ODD_OPTIONS)
def test_options_that_are_none_are_passed_over(tmp_path, tiny_options, data):
    run = run_dir.create(tmp_path, tiny_options)
    (run / run_dir.OPTIONS_FILE).write_bytes(data)
    (run / "network-snapshot-000001.pkl").write_bytes(b"")
    options = {**tiny_options, "resume": str(run / "network-snapshot-000001.pkl")}
    plan = run_dir.plan(tmp_path, options)
    assert plan.run is None and plan.notes == []
    result = CliRunner().invoke(report.main, [str(run)])
    assert result.exit_code == 2 and "not a run directory" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("data", [b'{"kimg": "x"}', b'{"kimg": []}', b"[", b'{"kimg": 1}'])
def test_a_damaged_note_of_the_end_says_nothing(tmp_path, data):
    (tmp_path / run_dir.FINISHED_FILE).write_bytes(data)
    assert not run_dir.is_finished(tmp_path, {"total_kimg": 1, "patience": None})


def test_what_cannot_be_written_is_named_by_its_own_name(tmp_path):
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(OSError) as error, files.replacing(tmp_path / "a.npz") as stream:
        stream.write(b"x")
    assert files.legible(error.value) == f"{tmp_path / 'a.npz'}: Is a directory"
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
