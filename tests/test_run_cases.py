"""What people do with runs, and what `train.py` and the commands after it say to it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from PIL import Image

import generate
import train
from metrics import __main__ as metrics_command
from tools import convert
from training import checkpoint, run_dir

ROOT = Path(__file__).parents[1]
SIZES = "--cbase=256 --cmax=16 --zdim=16 --map-depth=2 --gamma=0.1 --pl-weight=0"
TINY = f"{SIZES} --metrics=none --device=cpu --batch=4 --ops=torch --aug=noaug --precision=fp32"
TICKS = "--tick=0.008 --snap=1"


def images(folder, count=12, size=16, labels=None):
    folder.mkdir(parents=True)
    for i in range(count):
        blocks = np.random.RandomState(i).randint(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(blocks).resize((size, size)).save(folder / f"img{i:08d}.png")
    if labels:
        rows = [[f"img{i:08d}.png", labels[i % len(labels)]] for i in range(count)]
        (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in a folder that holds twelve images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "write_report", lambda *_, **__: None)  # it takes most of the time
    images(tmp_path / "twelve")
    return tmp_path


def call(command, words):
    result = CliRunner().invoke(command.main, shlex.split(words))
    assert result.exit_code in (0, 2, 3), result.exception
    return result.exit_code, result.stdout + result.stderr


def train_on(words, data="twelve", sizes=TINY):
    return call(train, f"--outdir=runs --data={data} {sizes} {TICKS} {words}")


def runs():
    return sorted(Path("runs").iterdir()) if Path("runs").exists() else []


def weights(run):
    saved = checkpoint.load_newest(run)
    return {f"{net}.{k}": v for net in ("G", "D", "G_ema") for k, v in saved[net].items()}


def test_a_longer_run_trains_on_to_what_it_would_have_become_at_once(place):
    for kimg in (0.008, 0.016):
        assert train_on(f"--kimg={kimg}")[0] == 0
    (run,) = runs()
    train_on("--kimg=0.016 --fresh")
    at_once = runs()[-1]
    assert at_once != run
    names = [[path.name for path in run_dir.snapshots(place / x)] for x in (run, at_once)]
    assert names[0] == names[1] and len(names[0]) == 2
    mine = weights(run)
    assert all(torch.equal(mine[key], value) for key, value in weights(at_once).items())


def test_a_finished_run_other_options_and_a_snapshot_of_one_s_own(place):
    train_on("--kimg=0.004")
    status, said = train_on("--kimg=0.004")
    assert status == 0 and "finished in runs/00000-twelve-" in said and "--kimg=N" in said
    assert "Training in" not in said and len(runs()) == 1

    status, said = train_on("--kimg=0.004 --gamma=0.2")
    assert status == 0 and "run 00000 differs in --gamma (0.1, now 0.2); starting 00001" in said
    assert len(runs()) == 2

    snapshot = run_dir.newest_network(runs()[0])
    status, said = train_on(f"--kimg=0.004 --resume={snapshot}")
    assert status == 0 and "without its optimizers, p and best snapshot" in said
    command = re.search(r"This continues that run: python train.py (.*)", said)[1]
    status, said = call(train, f"{command} --kimg=0.008")
    assert status == 0 and f"Resuming in {runs()[0]}" in said, said


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (dict(size=32), "16 pixels a side then, 32 now"),
        (dict(count=8, labels=[0, 1, 2]), "12 images then, 8 now"),
    ],
)
def test_other_images_in_their_place_are_one_line(place, others, words):
    train_on("--kimg=0.004")
    shutil.rmtree("twelve")
    images(Path("twelve"), **others)
    status, said = train_on("--kimg=0.008")
    (line,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert status == 2 and "changed since the checkpoint of this run" in line and words in line


def test_a_run_that_diverges_stops_at_that_tick(place):
    status, said = train_on("--glr=1e30 --dlr=1e30 --kimg=1")
    assert status == 3 and "at 0.008 kimg" in said and "try lower --glr and --dlr" in said
    assert not run_dir.snapshots(runs()[0])  # nothing that is not finite is saved


def test_training_images_cannot_be_held_out(place):
    train_on("--kimg=0.004")
    options = "--data=twelve --metricdata=twelve --device=cpu"
    result = CliRunner().invoke(
        metrics_command.main, [str(runs()[0]), *options.split(), "--metrics=nn1k,copying1k"]
    )
    assert result.exit_code == 1
    for name in ("nn1k", "copying1k"):
        refusal = f"{name} is left out: 12 of the 12 images of --metricdata are training"
        assert refusal in result.stderr


def test_a_class_that_was_not_trained(place):
    images(place / "from-one", 8, labels=[1, 2])
    status, said = train_on("--kimg=0.008 --cond=1", data="from-one")
    assert status == 0 and "class 0 has no images (3 classes in all)" in said
    for index, mentioned in ((0, True), (1, False)):
        words = f"--network={runs()[0]} --class={index} --seeds=0 --outdir=out"
        status, said = call(generate, words)
        assert status == 0 and ("no training image had this class" in said) == mentioned


def test_an_average_alone_draws_and_does_not_train(place):
    pytest.importorskip("onnx")
    source = ROOT / "examples" / "toon-heads-32.pkl"
    call(convert, f"{source} all.pt")
    state = torch.load("all.pt", weights_only=True)
    torch.save({"g_ema": state["g_ema"]}, "ema.pt")
    status, said = call(generate, "--network=ema.pt --seeds=0 --outdir=out")
    assert status == 0 and Path("out/seed0000.png").is_file(), said
    status, said = call(convert, "ema.pt ema.onnx")
    assert status == 0 and Path("ema.onnx").is_file(), said
    ten = ROOT / "examples" / "lorelei-ten.zip"
    status, said = train_on("--kimg=1 --resume=ema.pt", data=ten, sizes="--metrics=none")
    assert status == 2 and "enough to draw images, not to train" in said
    assert runs() == []


@pytest.mark.parametrize("dry", ["", "--dry-run"])
def test_what_cannot_be_trained_leaves_no_folder(place, dry):
    tiny.save("source.pkl", group=8)
    sizes = "--metrics=none --device=cpu --ops=torch --resume=source.pkl"
    for words, message in (
        ("--batch=12", "--batch=12: D compares images in groups of 8, which must divide the 12"),
        ("--batch=8 --freezed=100", "--freezed=100: this D has 7 layers to freeze"),
    ):
        status, said = train_on(f"--kimg=1 {words} {dry}", sizes=sizes)
        assert status == 2 and message in said, said
        assert runs() == []


def test_a_reader_that_goes_away_is_as_ctrl_c(place):
    command = f"{sys.executable} {ROOT / 'train.py'} --outdir=runs --data=twelve {TINY} {TICKS}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = f"set -o pipefail; {command} --kimg=1000 | head -3"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    (run,) = runs()
    assert run_dir.snapshots(run) and list(run.glob("fakes0*.png"))
    assert list(run.glob("checkpoint-*.pt"))


@pytest.mark.slow
def test_two_processes_begin_from_a_network(place):
    """Rank 0 looks at what a run would refuse while the others wait: it must not wait for them."""
    images(place / "large", size=32)
    source = ROOT / "examples" / "toon-heads-32.pkl"
    words = f"--outdir=runs --data=large --resume={source} --kimg=0.008 --batch=4 --gpus=2"
    common = "--metrics=none --device=cpu --aug=noaug --pl-weight=0"
    command = [sys.executable, str(ROOT / "train.py"), *words.split(), *common.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(runs()) == 1 and run_dir.snapshots(runs()[0])
