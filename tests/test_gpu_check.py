"""The command for whoever has a GPU for a few minutes, at toy size on the CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

import train
from benchmarks import __main__ as benchmarks
from benchmarks import gpu_check


@pytest.mark.slow
def test_every_part_runs_at_toy_size():
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--toy", "--device=cpu"]
    done = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = done.stdout.split("\n\n")[-1]
    assert summary.count("done, ") == 7 and "job16: APA and EWC on 1" in summary
    assert done.stdout.count("means of losses differ by 0 with graphs") == 2


def test_a_part_that_fails_or_hangs_hides_nothing(monkeypatch):
    def parts(device, folder, **settings):
        yield gpu_check.Part("fails", lambda: ["-S", "-c", "raise SystemExit(3)"], 60)
        yield gpu_check.Part("hangs", lambda: ["-S", "-c", "import time; time.sleep(99)"], 0.5)
        yield from list(gpu_check.job("job", gpu_check.TOY, device, folder))[1:]
        yield gpu_check.Part("works", lambda: ["-S", "-c", ""], 60)

    monkeypatch.setattr(gpu_check, "parts", parts)
    outcome = CliRunner().invoke(gpu_check.main, [])
    assert outcome.exit_code == 1
    ends = outcome.output.split("\n\n")[-1]
    for line in (
        "failed, exit status 3",
        "stopped at its limit of 0.5 seconds",
        "skipped: job has no source network",
        "done",
    ):
        assert line in ends


def test_the_whole_check_names_every_part(tmp_path):
    def names(**settings):
        given = dict(quick=False, against=None, gpus=1, toy=False) | settings
        return [part.name for part in gpu_check.parts("cuda", tmp_path, **given)]

    whole = names(gpus=2)
    assert (
        "job256: without and with graphs" in whole
        and "job64: ADA without and with graphs" in whole
        and "train256, fp16, channels last" in whole
        and "train1024, fp16" in whole
        and "job64-gpus: APA and EWC on 2" in whole
    )
    assert set(names(quick=True)) < set(names()) < set(whole)
    assert len(whole) == len(set(whole))
    against = [
        part.arguments()
        for part in gpu_check.parts(
            "cuda", tmp_path, quick=True, against="there", gpus=1, toy=False
        )
        if part.name == "train256, fp16"
    ]
    assert against[0][-1] == "--against=there"


@pytest.mark.parametrize("toy", [False, True])
def test_every_command_is_one_that_there_is(tmp_path, toy):
    commands = {"train.py": train.main, "benchmarks": benchmarks.main}
    settings = dict(quick=False, against=str(tmp_path), gpus=2, toy=toy)
    parsed = 0
    for part in gpu_check.parts("cpu", tmp_path, **settings):
        place = tmp_path / part.name.split(":")[0] / "source" / "00000-run"
        place.mkdir(parents=True, exist_ok=True)
        (place / "network-snapshot-000000.pkl").touch()
        words = [word for word in part.arguments() if word != "-m"]
        if words[0] == "benchmarks.graphs":  # a number, and options of train.py
            words = ["train.py", *words[2:]]
        if words[0] in commands:
            commands[words[0]].make_context(words[0], words[1:])
            parsed += 1
    assert parsed >= 5
    assert (gpu_check.ROOT / "tests" / "test_cuda_ops.py").is_file()
