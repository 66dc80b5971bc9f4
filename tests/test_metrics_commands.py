"""The commands `python -m metrics` and `python -m tools.compare`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import metrics
from metrics import __main__ as command
from metrics import registry, weights
from tools import compare
from training import networks, pickles

ROOT = Path(__file__).parent.parent
TINY = {"img_resolution": 8, "img_channels": 3}


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """Make a run with one snapshot, two data sets, and a detector that averages colours."""
    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(weights.SEARCH_PATH, str(tmp_path))
    torch.manual_seed(0)
    G = networks.Generator(z_dim=4, c_dim=0, w_dim=4, **TINY).eval()
    D = networks.Discriminator(c_dim=0, **TINY).eval()
    run = tmp_path / "run"
    run.mkdir()
    (run / "training_options.json").write_text("{}")
    noted = {"path": str(tmp_path / "train"), "xflip": False}
    pickles.save(run / "network-snapshot-000012.pkl", G=G, D=D, G_ema=G, training_set_kwargs=noted)
    for name, size in (("train", 3), ("heldout", 6)):
        (tmp_path / name).mkdir()
        for i in range(size):
            color = (40 * i, 20 * size, 200 - 30 * i)
            Image.new("RGB", (8, 8), color).save(tmp_path / name / f"{i}.png")
    colors = torch.jit.trace(lambda x: x.mean([2, 3]), torch.zeros(1, 3, 224, 224))
    colors.save(str(tmp_path / "colors.pt"))
    few = {name: replace(metric, num_fakes=20) for name, metric in registry.METRICS.items()}
    monkeypatch.setattr(registry, "METRICS", few)
    return run


def arguments(run, *more):
    heldout = run.parent / "heldout"
    network = run / "network-snapshot-000012.pkl"
    return [str(network), f"--metricdata={heldout}", "--device=cpu", *more, "--trust-backbone"]


def lines_of(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_python_m_metrics_runs_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "metrics", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "Measure the generator in NETWORK" in done.stdout


def test_results_are_printed_and_kept_in_the_run(run_dir):
    outcome = CliRunner().invoke(command.main, arguments(run_dir, "--metrics=nn1k@colors"))
    assert outcome.exit_code == 0, outcome.output
    [printed] = lines_of(outcome.stdout)
    assert printed["kimg"] == 12 and printed["snapshot_pkl"] == "network-snapshot-000012.pkl"
    assert printed["num_train"] == 3 and printed["num_reals"] == 6 and printed["num_fakes"] == 20
    assert metrics.read(run_dir) == {"nn1k@colors": [{**printed, "nimg": 12000}]}


def test_one_missing_detector_does_not_stop_the_others(run_dir):
    names = "--metrics=kid5k_full@nowhere,nn1k@colors"
    outcome = CliRunner().invoke(command.main, arguments(run_dir, names))
    assert outcome.exit_code == 1
    assert "kid5k_full@nowhere is left out: nowhere.pt" in outcome.stderr
    assert [line["metric"] for line in lines_of(outcome.stdout)] == ["nn1k@colors"]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(run_dir, tmp_path):
    outputs = []
    for gpus in (1, 2):
        more = ["--metrics=nn1k@colors", f"--gpus={gpus}", f"--out={tmp_path / str(gpus)}"]
        process = [sys.executable, "-W", "ignore", "-m", "metrics", *arguments(run_dir, *more)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(process, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
        outputs.append(metrics.read(tmp_path / str(gpus))["nn1k@colors"][0]["results"])
    assert outputs[0] == outputs[1]


def test_training_images_have_to_be_somewhere(run_dir):
    (run_dir.parent / "train").rename(run_dir.parent / "moved")
    outcome = CliRunner().invoke(command.main, arguments(run_dir, "--metrics=nn1k@colors"))
    assert outcome.exit_code == 2 and "--data: say where the training images are" in outcome.stderr


def test_a_part_of_the_training_images_is_that_of_the_pickle(run_dir):
    path = run_dir / "network-snapshot-000012.pkl"
    nets = pickles.load(path)
    noted = {**nets.training_set_kwargs, "max_size": 2, "seed": 5}
    pickles.save(path, G=nets.G, D=nets.D, G_ema=nets.G_ema, training_set_kwargs=noted)
    for more, number in (([], 2), ([f"--data={noted['path']}"], 3)):
        words = arguments(run_dir, "--metrics=nn1k@colors", *more)
        outcome = CliRunner().invoke(command.main, words)
        assert [line["num_train"] for line in lines_of(outcome.stdout)] == [number]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics=fid"], "--metrics=fid: no such metric"),
        (["--data=DIR/large"], "--data: images must be of 8 pixels as the network's, got 16"),
        (["--data=DIR/broken"], "0.png: cannot be read as an image"),
        (["--metricdata=DIR/broken"], "0.png: cannot be read as an image"),
        (["--prior-sample=mixup"], "no file .prior.npz beside the network"),
        (["--seed=-1"], "'--seed': -1 is not in the range"),
    ],
)
def test_a_mistake_is_one_line(run_dir, words, message):
    folder = run_dir.parent
    for name in ("large", "broken"):
        (folder / name).mkdir()
    Image.new("RGB", (16, 16)).save(folder / "large" / "0.png")
    (folder / "broken" / "0.png").write_bytes(b"no image")
    words = [word.replace("DIR", str(folder)) for word in words]
    outcome = CliRunner().invoke(command.main, arguments(run_dir, *words))
    assert outcome.exit_code == 2 and message in outcome.stderr
    assert outcome.stderr.startswith("Error: ") and outcome.stderr.count("\n") == 1


def test_a_network_that_cannot_be_had_is_one_line(tmp_path):
    outcome = CliRunner().invoke(command.main, [str(tmp_path / "none.pkl"), "--device=cpu"])
    assert outcome.exit_code == 2 and "none.pkl: no such file" in outcome.stderr


def test_labels_have_to_fit_the_network(run_dir):
    torch.manual_seed(0)
    G = networks.Generator(z_dim=4, c_dim=3, w_dim=4, **TINY).eval()
    D = networks.Discriminator(c_dim=3, **TINY).eval()
    pickles.save(run_dir / "network-snapshot-000012.pkl", G=G, D=D, G_ema=G)
    data = run_dir.parent / "train"
    table = {"labels": [[f"{i}.png", i % 2] for i in range(3)]}
    (data / "dataset.json").write_text(json.dumps(table))
    outcome = CliRunner().invoke(command.main, arguments(run_dir, f"--data={data}"))
    assert outcome.exit_code == 2
    assert "labels must be of 3 numbers or classes as the network's, got 2" in outcome.stderr


def test_a_process_that_fails_ends_the_command_with_its_status(monkeypatch, capsys):
    def spawn(function, arguments, nprocs):
        with pytest.raises(SystemExit) as ended:
            function(1, *arguments)
        raise torch.multiprocessing.ProcessExitedException("", 1, 0, ended.value.code)

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # else of all later tests
    monkeypatch.setattr(command.os, "environ", dict(os.environ))
    monkeypatch.setattr(command.distributed, "init", lambda device: torch.device(device))
    outcome = CliRunner().invoke(command.main, ["none.pkl", "--device=cpu", "--gpus=2"])
    assert outcome.exit_code == 2 and outcome.stderr.startswith("Error: none.pkl: no such file")


def results(name, *numbers, better="lower"):
    return [
        {"metric": name, "results": {name: number}, "better": better, "kimg": 10 * i}
        for i, number in enumerate(numbers)
    ]


@pytest.fixture
def two_runs(tmp_path):
    runs = {"a": [*results("kid", 3, 1, 2), *results("div", 5, 4, better="higher")]}
    runs["b"] = results("kid", 7.0)
    for name, lines in runs.items():
        (tmp_path / name).mkdir()
        for line in lines:
            metrics.append(tmp_path / name, line)
    return [str(tmp_path / name) for name in runs]


def test_table_has_the_best_and_the_last_of_each_run(two_runs, tmp_path):
    plot = tmp_path / "new" / "plot.png"
    outcome = CliRunner().invoke(compare.main, [*two_runs, f"--plot={plot}"])
    assert outcome.exit_code == 0, outcome.output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in outcome.stdout.split("\n")]
    assert rows[0] == ["run", "div", "kid"] and set("".join(rows[1])) == {"-"}
    assert rows[2] == ["a", "5 at 0, last 4", "1 at 10, last 2"]
    assert rows[3] == ["b", "-", "7 at 0, last 7"]
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > 500


def test_run_without_metrics_is_refused(two_runs, tmp_path):
    outcome = CliRunner().invoke(compare.main, [*two_runs, str(tmp_path)])
    assert outcome.exit_code == 2 and "no metric-*.jsonl" in outcome.stderr


def test_labels_are_as_long_as_needed():
    assert compare.labels((Path("/r/x/1"), Path("/r/y/2"))) == ["1", "2"]
    assert compare.labels((Path("/r/x/1"), Path("/r/y/1"))) == ["x/1", "y/1"]
