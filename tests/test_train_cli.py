"""The command line of training: against what the original prints, run directories, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from PIL import Image

import train
from training import presets

# What the original's `train.py --dry-run` printed, six images of each size given.
RECORDED = json.loads((Path(__file__).parent / "golden" / "original_cli.json").read_text())


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Return a function from a resolution to a folder of six labelled images."""
    root = tmp_path_factory.mktemp("data")

    def folder(resolution=64):
        path = root / f"data{resolution}"
        if not path.exists():
            path.mkdir()
            for i in range(6):
                pixels = np.full((resolution, resolution, 3), i, np.uint8)
                Image.fromarray(pixels).save(path / f"{i}.png", compress_level=1)
            labels = {"labels": [[f"{i}.png", i % 3] for i in range(6)]}
            (path / "dataset.json").write_text(json.dumps(labels))
        return path

    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Return a network pickle of 64x64 pixels."""
    return tiny.save(
        tmp_path_factory.mktemp("source") / "source.pkl", 64, group=8, channel_base=256
    )


@pytest.fixture
def dry_run(data, source, tmp_path, monkeypatch):
    """Return a function that runs train.py --dry-run: the options, or the message of a mistake."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").symlink_to(source)

    def run(*args, resolution=64):
        args = ["--outdir=runs", f"--data={data(resolution)}", "--dry-run", *args]
        result = CliRunner().invoke(train.main, args)
        assert not (tmp_path / "runs").exists()
        if result.exit_code == 0:
            run.notes = result.stderr
            return json.loads(result.stdout)
        assert result.exit_code == 2, result.exception
        lines = result.output.splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("Error: "))
        assert all("dataset.json" in x or x.startswith("--batch=") for x in lines[:first])  # notes
        return "\n".join(lines[first:])[7:]

    return run


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda r: f"{r['resolution']} {r['args']}")
def test_options_are_those_of_the_original(recorded, dry_run):
    ours = dry_run(*recorded["args"], resolution=recorded["resolution"])
    recorded["D"] = {"architecture": "resnet", **recorded["D"]}
    recorded["loss"] = {"pl_weight": 2, "style_mixing_prob": 0.9, **recorded["loss"]}
    if frozen := recorded["D"]["block_kwargs"].pop("freeze_layers", None):
        assert ours["plugins"]["freezed"] == {"freezed": frozen}
    if "--batch=16" in recorded["args"]:
        recorded["ema_kimg"] = 16 * 10 / 32  # the original computes it for a batch of 32
    for key in recorded.keys() - {"resolution", "args", "augment", "use_labels", "xflip"}:
        assert ours[key] == recorded[key], key
    for key in ("use_labels", "xflip"):
        assert ours["dataset"][key] == recorded[key]
    assert bool({"ada", "fixed"} & set(ours["plugins"])) == bool(recorded["augment"])


def test_defaults_of_auto_follow_the_actual_batch(dry_run):
    options = dry_run("--batch=8")
    assert options["loss"]["r1_gamma"] == 0.0002 * 64**2 / 8
    assert options["ema_kimg"] == 8 * 10 / 32
    assert "--batch=8: --gamma=0.1024 (not 0.0256) and --ema-kimg=2.5 (not 10)" in dry_run.notes
    dry_run("--batch=8", "--gamma=1", "--ema-kimg=5")
    assert "--batch" not in dry_run.notes
    dry_run("--batch=8", "--cfg=paper256")
    assert "--batch" not in dry_run.notes
    assert (options["batch_size"], options["batch_gpu"]) == (8, 8)
    assert dry_run("--batch=2")["D"]["epilogue_kwargs"] == {"mbstd_group_size": 2}


def test_overrides(dry_run):
    networks = "--cbase=2048 --cmax=96 --zdim=64 --map-depth=3 --mbstd-group=2"
    losses = "--glr=1e-3 --dlr=4e-3 --ema-kimg=3 --pl-weight=0 --gamma=0.4"
    times = "--tick=0.5 --batch=16 --batch-gpu=8"
    options = dry_run(*f"{networks} {losses} {times}".split())
    widths = {"channel_base": 2048, "channel_max": 96}
    assert (options["G"]["z_dim"], options["G"]["w_dim"]) == (64, 64)
    assert options["G"]["mapping_kwargs"] == {"num_layers": 3}
    assert widths.items() <= options["G"]["synthesis_kwargs"].items()
    assert widths.items() <= options["D"].items()
    assert options["D"]["epilogue_kwargs"] == {"mbstd_group_size": 2}
    assert (options["G_opt"]["lr"], options["D_opt"]["lr"]) == (1e-3, 4e-3)
    assert (options["ema_kimg"], options["kimg_per_tick"]) == (3, 0.5)
    assert (options["batch_size"], options["batch_gpu"]) == (16, 8)
    assert (options["loss"]["pl_weight"], options["loss"]["r1_gamma"]) == (0, 0.4)


def test_explicit_names_what_the_user_asked_of_the_architecture(dry_run):
    assert dry_run("--batch=8", "--resume=ffhq256")["explicit"] == {}
    explicit = dry_run("--cfg=paper256", "--zdim=64", "--resume=ffhq256")["explicit"]
    assert explicit["G.mapping_kwargs.num_layers"] == "--cfg=paper256"
    assert explicit["G.z_dim"] == explicit["G.w_dim"] == "--zdim=64"


def test_every_explicit_entry_is_there(dry_run):
    options = dry_run("--cfg=auto", "--cbase=512", "--cmax=8", "--zdim=8", "--map-depth=1")
    for path in options["explicit"]:
        entry = options
        for key in path.split("."):
            entry = entry[key]
        assert entry is not None


def test_methods_and_name(dry_run):
    options = dry_run("--aug=apa", "--target=0.8", "--lecam-lambda=3e-7", "--resume=x.pkl")
    assert options["name"] == "data64-auto1-apa-target0.8-lecam-resumecustom"
    assert list(options["plugins"]) == ["apa", "lecam"]
    assert options["plugins"]["apa"]["target"] == 0.8
    assert options["resume"] == "x.pkl" and options["ema_rampup"] is None
    assert dry_run("--gamma=0")["name"] == "data64-auto1-gamma0"


def test_world_size_of_torchrun_counts(dry_run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert dry_run("--batch=32")["batch_gpu"] == 16
    assert dry_run("--gpus=4") == "--gpus=4, but torchrun started 2; drop --gpus"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (f"--outdir={__file__}", "'--outdir': Directory"),
        ("--kimg=0", "'--kimg': 0.0 is not in the range x>0."),
        ("--gamma=nan", "'--gamma': nan is not a finite number."),
        ("--glr=inf", "'--glr': inf is not a finite number."),
        ("--ema-kimg=nan", "'--ema-kimg': nan is not a finite number."),
        ("--aug=apa --apa-max=nan", "'--apa-max': nan is not a finite number."),
        ("--freezed=100", "--freezed=100: this D has 13 layers to freeze"),
        (
            "--resume=x.pkl --batch=12",
            "--batch=12: D compares images in groups of 8, which must divide the 12 images of",
        ),
        ("--resume=x.pkl --zdim=9", "--zdim=9: the network of --resume=x.pkl has G.z_dim=8"),
        ("--gpus=3", "--batch=64 must be a multiple of the 3 GPUs; change either"),
        ("--gpus=2 --batch=7", "--batch=7 must be a multiple of the 2 GPUs; change either"),
        ("--gpus=8 --batch=4", "--batch=4 must be a multiple of the 8 GPUs; change either"),
        ("--batch=12 --batch-gpu=8", "a multiple of 8 images on each of 1 GPUs; change it or"),
        ("--batch=6", "--mbstd-group=4 must divide the 6 images per GPU; change it, --batch"),
        ("--resume=nowhere.pkl", "--resume=nowhere.pkl: no such file; give a path, a URL, or one"),
        ("--seed=-1", "'--seed': -1 is not in the range 0<=x<=2147483647"),
        ("--subset=7", "--subset=7: there are 6 images; ask for fewer"),
        ("--fp32=1 --precision=bf16", "--fp32 contradicts --precision=bf16; drop one"),
        ("--aug=fixed", "--p"),
        ("--aug=ada --p=0.3", "--p=0.3 needs fixed, which is off; add --aug=ada,fixed"),
        ("--aug=noaug --augpipe=bg", "--augpipe=bg needs ada or fixed, which is off"),
        ("--aug=apa --apa-max=2", "--apa-max must be in [0, 1], got 2.0"),
        ("--lecam-decay=0.5", "--lecam-decay=0.5 needs lecam, which is off; add --lecam-lambda"),
        ("--plugin=nowhere:Mine", "--plugin=nowhere:Mine: No module named 'nowhere'"),
        ("--colour=1", "No such option"),
        ("--metrics=", "--metrics="),
        ("--metrics=fid50k_full,fid50", "--metrics=fid50: "),
    ],
)
def test_mistakes_are_one_line_that_names_the_option(args, message, dry_run):
    assert message in dry_run(*args.split())


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE must be a number from 1, got '-1'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a number from 1, got '0'"),
        ({"WORLD_SIZE": "2", "RANK": "5"}, "RANK must be a number from 0 to 1, got '5'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number from 1, got 'two'"),
    ],
)
def test_an_environment_that_torchrun_would_not_make(variables, message, dry_run, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert message in dry_run()


def test_a_home_directory_is_expanded(dry_run, data, monkeypatch):
    monkeypatch.setenv("HOME", str(data().parent))
    assert dry_run("--data=~/data64")["dataset"]["path"] == str(data())
    assert dry_run("--kimg=0.5")["total_kimg"] == 0.5


def test_defaults_for_few_images(dry_run):
    options = dry_run("--cfg=fewshot", "--resume=x.pkl", "--gamma=3")
    assert options["batch_size"] == 4 and options["loss"]["r1_gamma"] == 3
    assert list(options["plugins"]) == ["apa"] and options["metrics"] == []
    assert options["plugins"]["apa"]["kimg"] == options["total_kimg"] / 20 < 1
    assert "plugins.apa.kimg" in options["derived"]
    longer = dry_run("--cfg=fewshot", "--resume=x.pkl", "--kimg=40", "--aug=noaug")
    assert (longer["kimg_per_tick"], longer["snapshot_ticks"]) == (1.0, 5)
    assert longer["plugins"] == {}
    assert "--snap=5: status lines from one snapshot to the next" in dry_run.notes
    assert "6 images, 64x64x3, no labels" in dry_run.notes


def test_mistakes_about_data_name_the_file(dry_run, tmp_path):
    assert "'--data'" in dry_run("--data=nowhere.zip")
    (tmp_path / "images").mkdir()
    assert "no images" in dry_run("--data=images")
    Image.new("RGB", (16, 8)).save(tmp_path / "images" / "wide.png")
    assert "1 not square: wide.png (16x8); make" in dry_run("--data=images")


def test_a_network_of_another_size_names_both_ways_out(dry_run):
    said = dry_run("--resume=x.pkl", resolution=32)
    assert (
        "the network has 64 pixels a side" in said and "prepare the images with --size=64" in said
    )
    assert "or convert the network: python -m tools.resize x.pkl OUT.pkl --size=32" in said


def test_launch_gets_the_options(data, monkeypatch, tmp_path):
    calls = []
    launch = SimpleNamespace(launch=lambda options, **kwargs: calls.append((options, kwargs)))
    monkeypatch.setitem(sys.modules, "training.launch", launch)
    args = [f"--outdir={tmp_path}", f"--data={data()}", "--gpus=2", "--fresh", "--metrics=none"]
    assert CliRunner().invoke(train.main, args).exit_code == 0
    ((options, kwargs),) = calls
    assert callable(kwargs.pop("watch"))  # writes the report
    assert kwargs == {"outdir": tmp_path, "fresh": True, "gpus": 2}
    assert options["metrics"] == [] and options == json.loads(json.dumps(options))


def test_kernels_without_a_gpu_are_refused_before_a_run_directory_is_made(data, tmp_path):
    args = [f"--outdir={tmp_path}", f"--data={data()}", "--metrics=none", "--device=cpu"]
    result = CliRunner().invoke(train.main, [*args, "--ops=cuda"])
    assert result.exit_code == 2
    message = "Error: --ops=cuda needs a CUDA device, got cpu; use --ops=auto\n"
    assert result.output.endswith(message) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_process_without_a_gpu_is_a_mistake_of_one_line(data, tmp_path, monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "2")
    args = [f"--outdir={tmp_path}", f"--data={data()}", "--metrics=none", "--device=cuda"]
    result = CliRunner().invoke(train.main, args)
    assert result.exit_code == 2 and not list(tmp_path.iterdir())
    needed = f"process 3 needs a GPU of its own, but PyTorch finds {gpus}; start fewer"
    assert f"\nError: --device=cuda: {needed}" in result.output


@pytest.mark.parametrize("cfg", presets.NAMES)
def test_presets_fit_one_gpu_and_eight(cfg):
    for gpus in (1, 2):
        chosen = presets.settings(cfg, resolution=256, gpus=gpus)
        assert chosen.batch % (chosen.batch_gpu * gpus) == 0


def test_help_shows_no_empty_default_and_no_bound_that_is_none():
    words = CliRunner().invoke(train.main, ["--help"]).output
    assert "--bank-layers" in words and "default: ]" not in " ".join(words.split())
    assert "None]" not in words


def test_help_is_there_at_once():
    """What takes long to import is not needed for it; torch is, for options are constructors'."""
    late = "training.networks metrics PIL requests scipy pandas sklearn matplotlib onnx tensorboard"
    code = f"import sys, train; print(*{{*{late.split()}}} & {{*sys.modules}})"
    root = Path(train.__file__).parent
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert found.stdout == "\n", found.stderr
