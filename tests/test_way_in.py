"""From photos to a picture, and what is there when somebody presses Ctrl-C on the way."""

from __future__ import annotations

import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from PIL import Image

import generate
import train
from metrics import registry, weights
from metrics.evaluation import Sampled
from tests.photos import camera_photos
from tools import prepare
from training import run_dir


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in a folder with photos, and a network of 32x32 pixels to start from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "write_report", lambda *_, **__: None)  # it takes most of the time
    camera_photos(tmp_path / "PHOTOS", 20)
    tiny.save("source.pkl", 32, group=4)
    assert call(prepare, "PHOTOS my.zip --size=32")[0] == 0
    return tmp_path


def call(command, words):
    result = CliRunner().invoke(command.main, shlex.split(words))
    return result.exit_code, result.stdout + result.stderr


def train_on(words):
    common = (
        "--cfg=fewshot --outdir=runs --data=my.zip --resume=source.pkl --device=cpu --ops=torch"
    )
    return call(train, f"{common} --ops=torch --precision=fp32 {words}")


def is_a_picture(path):
    with Image.open(path) as image:
        return np.asarray(image).std() > 0


def test_photos_become_a_picture(place):
    with Image.open("my.contact.png") as sheet:
        assert sheet.width > 32
    status, said = train_on("--kimg=0.008")
    assert status == 0, said
    assert "--batch=4: 20 images" in said and "--aug=apa: " in said  # why it chose so
    (run,) = Path("runs").iterdir()
    assert run.name == "00000-my-fewshot-kimg0.008-resumecustom"
    assert call(generate, f"--network={run} --seeds=0-3 --outdir=out --grid")[0] == 0
    assert is_a_picture("out/seed0003.png")


@pytest.mark.parametrize("during", ["observe", "snapshot"])
def test_ctrl_c_leaves_a_network_and_a_picture(place, during):
    words = f"--plugin=tests.ctrl_c:Stop --stop-during={during} --tick=0.008 --snap=1 --kimg=1"
    status, said = train_on(words)
    assert status == 130, said
    (line,) = [line for line in said.splitlines() if "the same command resumes" in line]
    assert line.startswith("stopped at 0.0")
    (run,) = Path("runs").iterdir()
    assert call(generate, f"--network={run} --seeds=0 --outdir=out")[0] == 0
    assert is_a_picture("out/seed0000.png") and is_a_picture(max(run.glob("fakes0*.png")))


def test_ctrl_c_before_training_says_so(place):
    status, said = train_on("--plugin=tests.ctrl_c:Stop --stop-during=setup --kimg=1")
    assert status == 130 and "\nstopped before training began; " in said
    (run,) = Path("runs").iterdir()
    assert not run_dir.snapshots(run)


def test_ctrl_c_while_measuring_leaves_a_network_and_a_picture(place, monkeypatch):
    def press(evaluation, detector, metric):
        if not isinstance(evaluation, Sampled):  # which only asks how long it would take
            os.kill(os.getpid(), signal.SIGINT)
        return {"": 0.0}

    colors = torch.jit.trace(lambda x: x.mean([2, 3]), torch.zeros(1, 3, 224, 224))
    colors.save("colors.pt")
    monkeypatch.setenv(weights.SEARCH_PATH, str(place))
    metric = replace(registry.METRICS["kid1k_full"], function=press, detector="colors")
    monkeypatch.setitem(registry.METRICS, "kid1k_full", metric)
    words = "--metrics=kid1k_full --trust-backbone --tick=0.008 --snap=1 --kimg=1"
    status, said = train_on(words)
    assert status == 130 and "\nstopped while measuring; " in said
    (run,) = Path("runs").iterdir()
    assert run_dir.newest_network(run).name == "network-snapshot-000000-008.pkl"
    assert is_a_picture(run / "fakes000000-008.png")
