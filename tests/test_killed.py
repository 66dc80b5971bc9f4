"""Processes that are killed, and disks that are full: one line, and nothing half written."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from stylegan2_fewshot import distributed, files, tensor_file
from training import checkpoint, grids, launch, phases, run_dir, training_loop
from training.dataset import ImageDataset

ROOT = Path(__file__).parent.parent


def die_on_rank_1() -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def test_a_killed_rank_is_one_line(capfd):
    with pytest.raises(SystemExit) as ended:
        distributed.spawn(die_on_rank_1, (), 2)
    assert ended.value.code == 1
    assert capfd.readouterr().err == (
        "Error: process 1 was killed by SIGKILL (out of memory?); the same command resumes from "
        "the last checkpoint\n"
    )


def have_the_parent_terminated(folder: Path) -> None:
    """Leave with a status of its own when SIGTERM comes; rank 0 sends one to the parent."""
    rank = os.environ["RANK"]

    def leave(*_: object) -> None:
        (folder / f"asked{rank}").touch()
        raise SystemExit(130)

    signal.signal(signal.SIGTERM, leave)
    (folder / f"ready{rank}").touch()
    if rank == "0":
        while not (folder / "ready1").exists():
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGTERM)
    while True:
        signal.pause()


def test_sigterm_to_the_parent_reaches_every_rank(tmp_path):
    with distributed.passing_on_signals() as received, pytest.raises(SystemExit) as ended:
        distributed.spawn(have_the_parent_terminated, (tmp_path,), 2)
    assert (received, ended.value.code) == ([signal.SIGTERM], 130)
    assert {path.name for path in tmp_path.iterdir()} == {"ready0", "ready1", "asked0", "asked1"}


@pytest.mark.slow
def test_sigterm_to_the_parent_saves(tiny_options, tmp_path):
    options = {**tiny_options, "total_kimg": 1000, "kimg_per_tick": 0.004, "snapshot_ticks": 10**6}
    code = (
        "import json, sys; from pathlib import Path; from training.launch import launch\n"
        "if __name__ == '__main__':\n"
        "    launch(json.loads(sys.argv[1]), outdir=Path(sys.argv[2]), fresh=False, gpus=2)\n"
    )
    (tmp_path / "start.py").write_text(code)
    command = [sys.executable, tmp_path / "start.py", json.dumps(options), tmp_path / "runs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as training:
        while not training.stdout.readline().startswith("tick 1 "):
            assert training.poll() is None, training.stderr.read()
        training.send_signal(signal.SIGTERM)
        said, errors = training.communicate()
    assert training.returncode == 130, errors
    assert said.count("the same command resumes from there") == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert run_dir.snapshots(run) and checkpoint.all_of(run)


def kill_what_loads(run: Path, done: bool) -> None:
    (loader,) = multiprocessing.active_children()
    os.kill(loader.pid, signal.SIGKILL)


def test_a_killed_loader_is_one_line(tiny_options, tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "IN_MEMORY_BYTES", 0)  # read by a process instead
    options = {**tiny_options, "total_kimg": 1000, "kimg_per_tick": 0.004, "workers": 1}
    with pytest.raises(ValueError) as ended:
        launch.launch(options, outdir=tmp_path, fresh=True, gpus=1, watch=kill_what_loads)
    words = str(ended.value)
    assert words.startswith("a process that loads images died (") and "\n" not in words
    assert words.endswith("the last checkpoint, --workers=0 does without such processes")
    (run,) = (path for path in tmp_path.iterdir() if path.name[:5].isdigit())
    assert run_dir.snapshots(run) and checkpoint.all_of(run)


def test_a_damaged_image_is_named_by_what_loads(tiny_options, tiny_data):
    picture = tiny_data / "3.png"
    picture.write_bytes(picture.read_bytes()[:300])
    options = {**tiny_options, "batch_size": 8, "workers": 1}
    images = ImageDataset(tiny_data, check=False)
    with pytest.raises(ValueError) as ended:
        next(iter(phases.batches(options, images, 0, torch.device("cpu"))))
    words = phases.about_loading(ended.value)
    assert words.startswith("3.png: cannot be read as an image (") and "\n" not in words


WRITERS = {
    "checkpoint-000001.pt": lambda path: checkpoint.save(path, {"a": torch.zeros(1 << 16)}),
    "x.npz": lambda path: tensor_file.write(path, {"a": torch.zeros(1 << 16)}, {}),
    "x.png": lambda path: grids.save_png(path, Image.new("RGB", (64, 64))),
    "x.json": lambda path: files.write_text(path, "{}"),
    "x.jsonl": lambda path: files.append_json(path, {"a": 1}),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_by_every_writer(tmp_path, name, monkeypatch):
    path, opened = tmp_path / name, Path.open
    if path.suffix == ".jsonl":
        path.symlink_to("/dev/full")

    def full(self, mode="r", *rest, **others):
        if self.suffix == ".part":
            return open("/dev/full", "wb")
        return opened(self, mode, *rest, **others)

    with monkeypatch.context() as patch, pytest.raises(OSError) as ended:
        patch.setattr(Path, "open", full)
        WRITERS[name](path)
    assert str(ended.value) == (
        f"{path}: No space left on device; the same command resumes once there is room"
    )
    path.unlink(missing_ok=True)
    assert not any(tmp_path.iterdir())
    WRITERS[name](path)
    assert path.stat().st_size > 0
