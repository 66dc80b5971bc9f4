"""A run folder of a stranger: training on in it, and reporting on it, stays in its place."""

from __future__ import annotations

import json
import os
import shutil
import zipfile

import pytest
import staged_runs
import torch
from click.testing import CliRunner
from PIL import Image

from stylegan2_fewshot import files
from tests import interruptions, readers
from tools import compare, report
from training import archive, checkpoint, run_dir
from training.dataset import ImageDataset
from training.state import construct
from training.stopping import Requests
from training.training_loop import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Options of a run to train on in, and the folder of runs that it is in."""
    folder = tmp_path_factory.mktemp("made")
    options = {
        **interruptions.make_inputs(folder),
        **dict(plugins={"ada": {"kimg": 0.1}}, resume=None, total_kimg=0.004, kimg_per_tick=0.004),
        **dict(gpus=1, given={}, derived=["plugins.ada.kimg"]),
    }
    train(options, run_dir.create(folder / "runs", options), CPU)
    return {**options, "total_kimg": 0.008}, folder / "runs"


@pytest.fixture
def theirs(made, tmp_path):
    """Options, and the folder of a run that a stranger may change."""
    options, runs = made
    shutil.copytree(runs, tmp_path / "runs")
    return options, next((tmp_path / "runs").iterdir())


def saved_in(run):
    return checkpoint.load_newest(run)


def save(run, state):
    checkpoint.save(checkpoint.all_of(run)[-1], state)


def loaded(options, state):
    """Return what training has taken over of a checkpoint."""
    taken = construct(options, ImageDataset(**options["dataset"]), CPU)[0]
    taken.load(state)
    return taken


@pytest.mark.parametrize(("name", "shape"), [("exp_avg", [3]), ("exp_avg_sq", []), ("step", [2])])
def test_averages_of_another_shape_are_refused(theirs, name, shape):
    """Adam's kernel would write past their end."""
    options, run = theirs
    state = saved_in(run)
    state["G_opt"]["state"][0][name] = torch.ones(shape)
    save(run, state)
    with pytest.raises(ValueError, match=f"{name} of shape .*; start anew with --fresh"):
        train(options, run, CPU)


def test_averages_have_memory_of_their_own(theirs):
    """A single number that stands for all would be written past, too."""
    options, run = theirs
    state = saved_in(run)
    average = state["G_opt"]["state"][0]["exp_avg"]
    state["G_opt"]["state"][0]["exp_avg"] = torch.ones([1] * average.ndim).expand_as(average)
    taken = next(iter(loaded(options, state).optimizers["G"].state.values()))["exp_avg"]
    assert torch.equal(taken, torch.ones_like(taken)) and taken.stride() == average.stride()


def test_how_adam_steps_follows_from_the_options(theirs):
    options, run = theirs
    state = saved_in(run)
    state["G_opt"]["param_groups"][0].update(lr="x", weight_decay=1e9, fused=False)
    adam = loaded(options, state).optimizers["G"].state_dict()
    assert adam["param_groups"] == saved_in(run)["G_opt"]["param_groups"]


@pytest.mark.parametrize(
    "changes",
    [
        {"cur_nimg": "x"},
        {"cur_nimg": -4},
        {"best": {"results": {}}},
        {"snapshots_since_best": None},
        {"unmeasured": 5},
        {"inputs": 5},
        {"inputs": {"data": 5}},
        {"inputs": {"data": {"a\x1b": 1}}},
        {"moments": [{"a": 5}]},
        {"moments": [{5: [1.0, 2.0, 3.0]}]},
    ],
)
def test_values_of_other_kinds_are_one_line(theirs, changes):
    options, run = theirs
    save(run, {**saved_in(run), **changes})
    with pytest.raises(ValueError, match=r"start anew with --fresh$"):
        train(options, run, CPU)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", ["log.txt", "stats.jsonl", "metric-x.jsonl"])
def test_lines_are_not_written_through_links(theirs, tmp_path, name, exists):
    options, run = theirs
    victim = tmp_path / "victim"
    if exists:
        victim.write_text("mine\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    with pytest.raises(ValueError, match=f"{name}: not a plain file"):
        train(options, run, CPU)
    assert victim.read_text() == "mine\n" if exists else not victim.exists()


def test_a_link_where_a_file_is_being_written_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".new.{os.getpid()}.part").symlink_to(victim)
    files.write_text(tmp_path / "new", "theirs")
    assert (victim.read_text(), (tmp_path / "new").read_text()) == ("mine", "theirs")


HIDING = [
    {"external": ["evil.py:Evil"], "": {"external": []}},
    {"trust": {"everything": True}, "trust.everything": None},
    {"plugins": {}, "plugins (order)": ["ada"], "plugins.ada.kimg": 0.1},
    {"plugins": {"ada": {"kimg": "x"}}},
    {"plugins": {"ada": {"kimg": [1]}}},
]


@pytest.mark.parametrize("changes", HIDING)
def test_a_run_with_other_options_is_another_run(theirs, changes):
    """However its file of options is made."""
    options, run = theirs
    assert run_dir.plan(run.parent, options).run == run
    (run / run_dir.OPTIONS_FILE).write_text(json.dumps({**options, **changes}))
    assert run_dir.plan(run.parent, options).run is None


def test_pipes_are_passed_over(theirs):
    """Reading one would wait for ever."""
    options, run = theirs
    newest = checkpoint.path_at(run, 2000)
    os.mkfifo(newest)
    assert saved_in(run)["cur_nimg"] == 4
    (run / run_dir.OPTIONS_FILE).unlink()
    os.mkfifo(run / run_dir.OPTIONS_FILE)
    assert run_dir.plan(run.parent, options).run is None
    with pytest.raises(ValueError, match="neither a folder nor a complete ZIP"):
        archive.open_source(newest)


def test_what_is_said_does_not_steer_a_terminal(capsys):
    Requests().say("run 00000 differs in \x1b[31m")
    assert capsys.readouterr().out == "run 00000 differs in \\x1b[31m\n"


def test_files_of_a_zip_do_not_share_their_bytes(tmp_path):
    """Each of a million could expand to as much as the one that is there."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("0.png", readers.png())
        for number in range(1, 20):
            info = zipfile.ZipInfo(f"{number}.png")
            file.filelist.append(info)
            for key in ("header_offset", "compress_size", "file_size", "CRC"):
                setattr(info, key, getattr(file.filelist[0], key))
    with pytest.raises(ValueError, match="share bytes"):
        ImageDataset(path)


def test_a_picture_of_a_run_is_of_a_format_that_starts_nothing(tmp_path):
    run = staged_runs.stage("well", 0, tmp_path)
    Image.new("RGB", (512, 96)).save(run / "fakes_init.png", "eps")
    result = CliRunner().invoke(report.main, [str(run)])
    assert result.exit_code == 2 and "not a PNG, JPEG or WEBP file" in result.output


@pytest.mark.parametrize("number", ["1e308", "-1e308", "5e-324", "Infinity", "-Infinity", "NaN"])
def test_reports_bear_any_number(tmp_path, number):
    run = staged_runs.stage("well", 0, tmp_path)
    lines = [(number, 1000), ("-1", 2000), ("0", number)]
    with (run / "stats.jsonl").open("a") as stream:
        for mean, nimg in lines:
            stream.write(f'{{"Signal/x": {{"mean": {mean}}}, "nimg": {nimg}}}\n')
    with (run / "metric-kid.jsonl").open("a") as stream:
        for value, kimg in lines:
            stream.write(f'{{"results": {{"kid": {value}}}, "kimg": {kimg}}}\n')
    text = report.write([run], nearest="pixels").read_text()
    assert "Signal/x" in text


def test_names_of_files_are_shown_as_text(tmp_path):
    run = staged_runs.stage("well", 0, tmp_path, name="a\udcff")
    (run / "metric-\x1b[31m.jsonl").write_text('{"results": {"kid": 1}, "kimg": 1}\n')
    (run / "training_options.json").write_text('{"name": "\\ud800", "dataset": {"path": "x"}}')
    plot = tmp_path / "plot.png"
    result = CliRunner().invoke(compare.main, [str(run), f"--plot={plot}"])
    assert result.exit_code == 0 and plot.is_file() and "\x1b" not in result.output
    assert "\\x1b[31m" in result.output and "a\\udcff" in result.output
    assert "\\ud800" in report.write([run], nearest="pixels").read_text()
