"""Which run a command means, and what a run that resumes takes up."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from training import checkpoint, pickles, run_dir, training_loop

CPU = torch.device("cpu")


def plan(outdir, options, **kwargs):
    return run_dir.plan(outdir, options, **kwargs)


@pytest.fixture
def options(tiny_options):
    return {**tiny_options, "gpus": 1, "given": {"gamma": 1.0}, "derived": []}


def test_run_directories_are_numbered(options, tmp_path):
    (tmp_path / "00041").mkdir()
    (tmp_path / "notes").mkdir()
    run = run_dir.create(tmp_path, options)
    assert run.name == "00042-tiny"
    assert json.loads((run / "training_options.json").read_text()) == options
    assert [path.name for path in run.iterdir()] == ["training_options.json"]
    assert run_dir.create(tmp_path / "new" / "place", options).name == "00000-tiny"


def test_the_newest_equal_run_is_meant(options, tmp_path):
    assert plan(tmp_path, options).run is None
    first = run_dir.create(tmp_path, options)
    assert plan(tmp_path, options).run == first
    assert plan(tmp_path, {**options, "seed": 1}).run is None
    swapped = {**options, "plugins": dict(reversed(options["plugins"].items()))}
    assert plan(tmp_path, swapped).run is None  # another order of augmentations
    assert plan(tmp_path, options, fresh=True).run is None
    second = run_dir.create(tmp_path, options)
    assert plan(tmp_path, options).run == second


@pytest.mark.parametrize(
    "change",
    [
        {"total_kimg": 9.0},
        {"snapshot_ticks": 7, "kimg_per_tick": 0.5},
        {"metrics": ["nn1k"], "metric_data": "other.zip", "patience": 3, "workers": 1},
        {"threads": 1},
        {"gpus": 2, "batch_gpu": 1, "derived": ["batch_gpu"], "name": "tiny2"},
    ],
)
def test_duration_and_reports_do_not_make_another_run(options, tmp_path, change):
    run = run_dir.create(tmp_path, {**options, "derived": ["batch_gpu"]})
    found = plan(tmp_path, {**options, "derived": ["batch_gpu"], **change})
    assert found.run == run
    assert {key: found.options[key] for key in change if key not in ("derived", "name")} == {
        key: value for key, value in change.items() if key not in ("derived", "name")
    }


def test_what_was_derived_is_kept(options, tmp_path):
    """A value that follows from the duration is that of the first command."""
    options["derived"] = ["plugins.ada.kimg"]
    run = run_dir.create(tmp_path, options)
    longer = {**options, "plugins": {**options["plugins"], "ada": {"target": -1.0, "kimg": 5.0}}}
    found = plan(tmp_path, {**longer, "total_kimg": 9.0})
    assert (found.run, found.options["plugins"]["ada"]["kimg"]) == (run, 0.1)
    assert plan(tmp_path, {**longer, "derived": []}).run is None  # asked for by the user


def test_the_nearest_run_and_the_option_are_named(options, tmp_path):
    run_dir.create(tmp_path, {**options, "seed": 5, "given": {"seed": 5, "gamma": 1.0}})
    other = {**options, "given": {"gamma": 2.0}, "loss": {**options["loss"], "r1_gamma": 2.0}}
    run_dir.create(tmp_path, options)
    assert plan(tmp_path, other).notes == [
        "run 00001 differs in --gamma (1.0, now 2.0); starting 00002"
    ]
    plain = {**options, "given": {}, "ema_kimg": 5}
    assert "run 00001 differs in --gamma (1.0, now default)" in plan(tmp_path, plain).notes[0]


@pytest.mark.parametrize("text", ['{"name": ', "[" * 100_000, "[]", "\udcff"])
def test_options_that_cannot_be_read_are_passed_by(options, tmp_path, text):
    run = run_dir.create(tmp_path, options)
    (run / "training_options.json").write_bytes(text.encode(errors="surrogateescape"))
    assert plan(tmp_path, options).run is None


def test_names_are_safe_in_a_shell(options):
    options["dataset"] = {**options["dataset"], "path": "photos/Foto Größe (1) $HOME;`x`.zip"}
    name = run_dir.name_of(options, {"cfg": "auto", "gpus": 1}, {})
    assert name == "Foto_Größe_1_HOME_x_-mirror-auto1"


def test_files_are_named_by_images(tmp_path):
    names = ["000012.pkl", "000012-400.pkl", "000009.pkl", "000012-040.pkl"]
    for name in names:
        (tmp_path / f"network-snapshot-{name}").touch()
    (tmp_path / "network-snapshot-none.pkl").touch()
    found = run_dir.snapshots(tmp_path)
    assert [path.name[17:] for path in found] == [names[2], names[0], names[3], names[1]]
    assert run_dir.snapshot_at(tmp_path, 12400) == found[-1] == run_dir.newest_network(tmp_path)
    assert run_dir.nimg_of(found[0]) == 9000


def tensors_of(path):
    state = checkpoint.load_newest(path)
    return {f"{part}.{k}": v for part in ("G", "D", "G_ema") for k, v in state[part].items()}


def test_longer_training_resumes_to_the_same_result(tiny_options, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        folder.mkdir()
    training_loop.train({**tiny_options, "total_kimg": 0.016}, once, CPU)
    for total in (0.008, 0.016):
        options = {**tiny_options, "total_kimg": total}
        assert not run_dir.is_finished(twice, options)
        training_loop.train(options, twice, CPU)
        assert run_dir.is_finished(twice, options)
    names = [path.name for path in run_dir.snapshots(once)]
    assert names == [path.name for path in run_dir.snapshots(twice)]
    mine = tensors_of(twice)
    assert all(torch.equal(mine[key], value) for key, value in tensors_of(once).items())
    one, two = ((f / "stats.jsonl").read_text().splitlines() for f in (once, twice))
    assert [comparable(line) for line in one] == [comparable(line) for line in two]


def comparable(line):
    """Return a line of stats.jsonl without what is about clock and memory."""
    entries = json.loads(line).items()
    return {k: v for k, v in entries if not k.startswith(("Timing/", "Resources/", "timestamp"))}


def repaint(data):
    Image.new("RGB", (16, 16), "red").save(data / "3.png")


def add(data):
    Image.new("RGB", (16, 16), "red").save(data / "more.png")


def enlarge(data):
    for path in data.iterdir():
        Image.new("RGB", (32, 32), "red").save(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (repaint, "other files;"),
        (add, "8 images then, 9 now, other files;"),
        (enlarge, "16 pixels a side then, 32 now"),
    ],
)
def test_data_that_has_changed_is_refused(tiny_options, tiny_data, tmp_path, change, words):
    folder = tmp_path / "run"
    folder.mkdir()
    training_loop.train({**tiny_options, "total_kimg": 0.004}, folder, CPU)
    change(tiny_data)
    with pytest.raises(ValueError, match="changed since the checkpoint of this run") as refused:
        training_loop.train(tiny_options, folder, CPU)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_source_that_is_gone_is_not_missed(tiny_options, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    short = {**tiny_options, "total_kimg": 0.004}
    training_loop.train(short, first, CPU)
    source = run_dir.newest_network(first)
    ewc = {"ewc": {"lambda_": 1.0, "samples": 2}}
    options = {**short, "resume": str(source), "resume_from": "G_ema", "plugins": ewc}
    training_loop.train(options, second, CPU)
    for path in first.iterdir():
        path.unlink()
    training_loop.train({**options, "total_kimg": 0.008}, second, CPU)
    assert run_dir.newest_network(second).name == "network-snapshot-000000-008.pkl"


def test_another_source_is_refused(tiny_options, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    short = {**tiny_options, "total_kimg": 0.004}
    training_loop.train(short, folder, CPU)
    source = run_dir.newest_network(folder)
    (second := tmp_path / "second").mkdir()
    options = {**short, "resume": str(source), "resume_from": "G"}
    training_loop.train(options, second, CPU)
    source.write_bytes(run_dir.newest_network(second).read_bytes())
    with pytest.raises(ValueError, match="is another network than when this run began"):
        training_loop.train({**options, "total_kimg": 0.008}, second, CPU)


def test_a_checkpoint_of_other_networks_is_one_line(tiny_options, tmp_path):
    training_loop.train({**tiny_options, "total_kimg": 0.008}, tmp_path, CPU)
    wider = {**tiny_options["G"], "z_dim": 4, "w_dim": 4}
    with pytest.raises(ValueError, match=r"^the checkpoint is not one of these .*--fresh$"):
        training_loop.train({**tiny_options, "G": wider}, tmp_path, CPU)


def test_snapshots_of_a_network_pickle_name_the_moment(tiny_options, tmp_path):
    training_loop.train({**tiny_options, "total_kimg": 0.008}, tmp_path, CPU)
    pickles.load(run_dir.newest_network(tmp_path))
    assert (tmp_path / "fakes000000-008.png").is_file()
