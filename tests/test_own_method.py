"""A method in a file outside the repository, as docs/your-own-method.md shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylegan2_fewshot import laws
from stylegan2_fewshot.external import load_external
from stylegan2_fewshot.plugin import isolated

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "your-own-method.md").read_text()
SIZE = "--cbase=64 --cmax=8 --zdim=8 --map-depth=1 --batch=4 --gamma=0.1 --pl-weight=0 --ops=torch"


@pytest.fixture(scope="module", autouse=True)
def own_registry():
    with isolated():
        yield


@pytest.fixture
def method(tmp_path):
    """Return the file of the page's example, with an attribute that older versions would read."""
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    path = tmp_path / "elsewhere" / "my_method.py"
    path.parent.mkdir()
    path.write_text(code + '\n    pipe = "means nothing"\n')
    return path


def train(data, outdir, method, *options):
    arguments = [
        *("train.py", f"--data={data}", f"--outdir={outdir}", f"--plugin={method}:Damp"),
        *(
            "--damp-factor=0.5",
            "--aug=noaug",
            "--metrics=none",
            "--device=cpu",
            "--ops=torch",
            *SIZE.split(),
        ),
        *options,
    ]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_obeys_the_laws_that_the_page_names(method):
    laws.check(load_external(f"{method}:Damp"))


def test_it_trains_to_two_snapshots_shows_in_the_status_line_and_resumes(
    tiny_data, tmp_path, method
):
    timing = ["--tick=0.02", "--snap=1"]
    whole = train(tiny_data, tmp_path / "whole", method, "--kimg=0.04", *timing)
    assert "damped 10.5" in whole  # the mean of 6 to ... is not a whole number by chance
    train(tiny_data, tmp_path / "parts", method, "--kimg=0.02", *timing)
    train(tiny_data, tmp_path / "parts", method, "--kimg=0.04", *timing)
    runs = [next((tmp_path / name).iterdir()) for name in ("whole", "parts")]
    one, two = (torch.load(max(run.glob("checkpoint-*.pt")), weights_only=True) for run in runs)
    assert one["plugins"]["damp.steps"] == two["plugins"]["damp.steps"] > 0
    for net in ("G", "D", "G_ema"):
        assert all(torch.equal(value, two[net][key]) for key, value in one[net].items())


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"--plugin=.*nowhere.py:Damp: no such file"):
        load_external(f"{tmp_path}/nowhere.py:Damp")
