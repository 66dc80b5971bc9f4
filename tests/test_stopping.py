"""What stops training before its end, and what is there to look at then."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal

import pytest
import torch

from stylegan2_fewshot import files, stats
from stylegan2_fewshot.methods.ada import ADA
from training import checkpoint, run_dir, snapshots, training_loop
from training.launch import launch
from training.stopping import Diverged, Interrupted, Requests

CPU = torch.device("cpu")


def test_moments_survive_a_stop():
    stats.restore([])
    stats.report("a", torch.tensor([1.0, 2.5]))
    kept = stats.pending()
    stats.restore([kept, kept])  # of two ranks
    stats.report("a", 3.0)
    found = stats.collect()["a"]
    assert (found.num, found.mean) == (5, 2.0)
    assert stats.pending() == {}


def test_numbers_that_are_not_finite_are_not_saved(tiny_options, tmp_path):
    options = {**tiny_options, "total_kimg": 0.016}
    training_loop.train({**options, "total_kimg": 0.008}, tmp_path, CPU)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.p[kt]*")}
    wild = {**options, "ema_kimg": float("nan")}
    with pytest.raises(Diverged) as stopped:
        training_loop.train(wild, tmp_path, CPU)
    assert "at 0.016 kimg; the last good snapshot is" in str(stopped.value)
    assert "network-snapshot-000000-008.pkl" in str(stopped.value)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.p[kt]*")} == before


def test_a_run_that_diverges_ends_with_status_3(tiny_options, tmp_path, capsys):
    wild = {**tiny_options, "G_opt": {**tiny_options["G_opt"], "lr": 1e30}}
    with pytest.raises(SystemExit) as ended:
        launch(wild, outdir=tmp_path, fresh=False, gpus=1)
    assert ended.value.code == 3
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if line.startswith("Error: ")] == errors
    assert "no snapshot was saved yet; try lower --glr" in errors[-1]


def test_large_scores_are_a_warning(tiny_options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training_loop, "LARGE_SCORE", 0.0)
    training_loop.train({**tiny_options, "total_kimg": 0.008}, tmp_path, CPU)
    assert "Warning: Loss/scores/fake is " in capsys.readouterr().out


def test_json_is_strict(tmp_path):
    files.append_json(tmp_path / "a.jsonl", {"x": [float("nan"), 1.0], "y": {"z": float("inf")}})
    assert (tmp_path / "a.jsonl").read_text() == '{"x": [null, 1.0], "y": {"z": null}}\n'


def hold(run, ready, leave):
    with run_dir.lock(run):
        ready.set()
        leave.wait(30)


def test_one_process_at_a_time_trains_in_a_run_directory(tiny_options, tmp_path):
    run = run_dir.create(tmp_path, tiny_options)
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=hold, args=(run, ready, leave))
    other.start()
    try:
        assert ready.wait(30)
        before = sorted(run.iterdir())
        with pytest.raises(ValueError, match="another process trains in this run directory"):
            launch(tiny_options, outdir=tmp_path, fresh=False, gpus=1)
        assert sorted(run.iterdir()) == before
    finally:
        leave.set()
        other.join()
    with run_dir.lock(run):  # it ends with the process
        pass


def test_the_newest_network_and_pictures_are_there(tiny_options, tmp_path, stop_after):
    stop_after(1)
    with pytest.raises(Interrupted):
        training_loop.train({**tiny_options, "snapshot_ticks": 100}, tmp_path, CPU)
    assert run_dir.newest_network(tmp_path).name == "network-snapshot-000000-004.pkl"
    assert (tmp_path / "fakes000000-004.png").is_file()


@pytest.mark.parametrize("left", [0, 1, 2])
def test_what_a_killed_process_left_out_is_saved_on_resume(tiny_options, tmp_path, left):
    """The checkpoint is written first, the network after it, its pictures last."""
    training_loop.train({**tiny_options, "total_kimg": 0.008}, tmp_path, CPU)
    files = [tmp_path / f"{name}-008.{kind}" for name, kind in
             (("network-snapshot-000000", "pkl"), ("fakes000000", "png"))]  # fmt: skip
    before = [path.read_bytes() for path in files]
    for path in files[left:]:
        path.unlink()
    training_loop.train({**tiny_options, "total_kimg": 0.016}, tmp_path, CPU)
    assert [path.read_bytes() for path in files] == before


def test_where_training_fails_the_network_is_saved(tiny_options, tmp_path, monkeypatch):
    augment = ADA.augment

    def fails(self, img, step):
        if step.cur_nimg == 8:
            raise RuntimeError("out of luck")
        return augment(self, img, step)

    monkeypatch.setattr(ADA, "augment", fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        training_loop.train({**tiny_options, "snapshot_ticks": 100}, tmp_path, CPU)
    assert run_dir.newest_network(tmp_path).name == "network-snapshot-000000-008.pkl"


@pytest.mark.parametrize("named", [None, "../elsewhere/x.pkl"])
def test_metrics_are_stopped_at_once_and_made_up_for(tiny_options, tmp_path, monkeypatch, named):
    """The checkpoint is there before them; a run that resumes computes what is missing.

    A stranger's checkpoint may name any file as what is missing; none but the run's is touched.
    """
    calls = []
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "x.pkl").touch()
    (run := tmp_path / "run").mkdir()

    def compute(names, G, *_, snapshot, kimg, **notes):
        calls.append(snapshot)
        for part, name in enumerate(names):
            if len(calls) == 1 and part == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield {"metric": name, "results": {name: kimg}, "better": "lower", "kimg": kimg}

    monkeypatch.setattr(snapshots.metrics, "usable", lambda names, *_, **__: (names, []))
    monkeypatch.setattr(snapshots.metrics, "compute", compute)
    seconds = snapshots.metrics.Seconds(1.0, 0.0)
    monkeypatch.setattr(snapshots.metrics, "seconds", lambda *_, **__: seconds)
    options = {**tiny_options, "metrics": ["one", "two"], "total_kimg": 0.016}
    with pytest.raises(Interrupted, match="while measuring"):
        training_loop.train(options, run, CPU)
    assert run_dir.newest_network(run).name == "network-snapshot-000000-008.pkl"
    if named:
        path = checkpoint.path_at(run, 8)
        checkpoint.save(path, {**checkpoint.load_newest(run), "unmeasured": named})
    training_loop.train(options, run, CPU)
    assert [path.name for path in elsewhere.iterdir()] == ["x.pkl"]
    eight, sixteen = (f"network-snapshot-000000-{number}.pkl" for number in ("008", "016"))
    assert calls == [eight, eight, sixteen]
    for name in ("one", "two"):
        lines = (run / f"metric-{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["nimg"] for line in lines] == [8, 16]


def test_the_second_signal_takes_its_usual_course():
    with Requests() as requests:
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.asked
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with pytest.raises(Interrupted), requests.at_once("late"):
            raise AssertionError("not reached")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.pkl").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error, files.replacing(tmp_path / "a.pkl") as stream:
        stream.write(b"x")
    assert str(error.value) == (
        f"{tmp_path / 'a.pkl'}: No space left on device; the same command resumes once there is "
        "room"
    )
    assert (tmp_path / "a.pkl").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]
