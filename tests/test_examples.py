"""The experiments: their data, runs, measures, and documents that say what was measured."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from concurrent.futures import Future
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import check
import experiment
import few_shot
import filter_banks
import fisher_figure
import limited_data
import make_data
import measures
import tables
import trials

import train
from metrics import detectors
from stylegan2_fewshot.pixels import to_uint8
from training.dataset import ImageDataset

ROOT = trials.ROOT
TARGETS = few_shot.TARGETS


def random_images(count, size=32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, [count, 3, size, size], generator=rng, dtype=torch.uint8)


# Data


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_s_sets_share_no_image(target):
    parts = make_data.parts(target)
    tens = [set(parts[f"ten{i}"]) for i in range(5)]
    groups = [*tens, set(parts["hundred"]), set(parts["heldout"])]
    assert [len(group) for group in groups] == [10] * 5 + [100, 5000]
    assert len(set.union(*groups)) == sum(map(len, groups))


@pytest.mark.parametrize("target", TARGETS)
def test_embedded_images_are_those_of_the_record(target):
    record = json.loads(make_data.RECORD.read_text())
    ten = measures.real_images(Path(f"examples/{target}-ten.zip"))
    assert ten.shape == (10, 3, 32, 32)
    pixels = np.ascontiguousarray(ten.permute(0, 2, 3, 1).numpy())
    assert make_data.sha256(pixels) == record[f"{target}-32-ten0.zip"]["sha256"]
    heldout = ImageDataset(ROOT / f"examples/{target}-heldout.zip")
    assert heldout.image_shape == [3, 32, 32] and len(heldout) == 300


def test_drawings_that_look_alike_count_once():
    drawings = [np.full([2, 2, 3], value, np.uint8) for value in (1, 2, 1, 3, 4)]
    images, numbers = make_data.distinct(drawings, 3)
    assert numbers.tolist() == [0, 1, 3] and images[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_other_pixels_than_recorded_are_refused():
    pixels = np.zeros([1, 2, 2, 3], np.uint8)
    known = {"x.zip": {"sha256": make_data.sha256(pixels)}}
    make_data.check("x.zip", pixels, known)
    make_data.check("unknown.zip", pixels + 1, known)
    with pytest.raises(click.ClickException, match=r"x\.zip: other pixels than in data\.json"):
        make_data.check("x.zip", pixels + 1, known)


def test_equal_images_give_equal_archives(tmp_path):
    pngs = {f"{name}.png": make_data.encode(np.eye(3, dtype=np.uint8)) for name in "bca"}
    for name, files in (("one.zip", pngs), ("two.zip", dict(reversed(pngs.items())))):
        make_data.write_zip(tmp_path / name, files)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["a.png", "b.png", "c.png"]


def test_portraits_are_drawn_from_their_numbers():
    pytest.importorskip("dicebear")
    with zipfile.ZipFile(ROOT / "examples/lorelei-heldout.zip") as archive:
        name = archive.namelist()[0]
    drawn = make_data.reduced(make_data.draw("lorelei", int(Path(name).stem))[None], 32)[0]
    stored = measures.real_images(Path("examples/lorelei-heldout.zip"), 1)[0]
    assert (drawn == stored.permute(1, 2, 0).numpy()).all()


def test_without_npm_the_digits_are_not_fetched_and_it_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path))
    monkeypatch.setattr(filter_banks, "OUT", tmp_path)
    done = CliRunner().invoke(experiment.command(filter_banks.EXPERIMENT, "Digits"), [])
    assert done.exit_code == 2 and "npm, which is not installed" in done.output


# Runs


def test_other_options_have_another_folder():
    one, other = (trials.Trial("EWC + APA", f"--kimg={kimg}", 0, "t") for kimg in (1, 2))
    assert one.folder(Path("out")).parent == Path("out/t/ewc-apa")
    assert one.folder(Path("out")) != other.folder(Path("out"))
    assert one.kimg == 1 and one.command(Path("out")).endswith("--kimg=1 --seed=0")


def test_methods_of_one_s_own_are_chosen_beside_the_known_ones():
    known = {"EWC + APA": "", "fine-tuning": "", "mine": "--plugin=my.py:Mine"}
    assert experiment.chosen(known, "mine,ewc-apa") == ["EWC + APA", "mine"]
    with pytest.raises(click.UsageError, match="magic is none of ewc-apa"):
        experiment.chosen(known, "magic")


def test_a_seed_that_is_named_twice_is_trained_once():
    assert experiment.numbers(None, None, "2,0,2") == [2, 0]


def test_seeds_are_paired_and_have_their_own_ten():
    settings = few_shot.FewShot.settings
    runs = [
        few_shot.EXPERIMENT.trial(m, few_shot.FewShot.methods[m], 3, settings)
        for m in few_shot.FewShot.default
    ]
    assert all("lorelei-32-ten3.zip" in run.options and run.seed == 3 for run in runs)
    assert len({run.folder(Path("out")) for run in runs}) == len(runs)


@pytest.mark.parametrize("method", few_shot.FewShot.methods)
def test_the_methods_options_are_those_of_train_py(method):
    own = few_shot.FewShot.methods[method].format(p_kimg=0.4, ewc=few_shot.FewShot.settings["ewc"])
    words = [f"--data={ROOT / 'examples/lorelei-ten.zip'}", "--outdir=out", *own.split()]
    given = train.main.make_context("train.py", words).params
    assert given["aug"] in ("noaug", "ada", "apa")


def test_another_size_is_another_experiment():
    settings = {**few_shot.FewShot.settings, "size": 64, "source": "runs/grown.pkl"}
    run = few_shot.EXPERIMENT.trial("EWC", few_shot.FewShot.methods["EWC"], 0, settings)
    assert "lorelei-64-ten0.zip" in run.options and "--resume=runs/grown.pkl" in run.options
    assert run.folder(Path("out")).parent == Path("out/lorelei-64/ewc")
    assert few_shot.enlarged([("a", torch.zeros(1, 3, 32, 32))])[0][1].shape == (1, 3, 64, 64)


class FailsAfterAWhile(Future):
    """Fails when the progress bar asks for the second time, between two looks at the futures."""

    kimg = 1.0
    asked = 0

    def doing(self, out):
        return ""

    def progress(self, out):
        self.asked += 1
        if self.asked == 2:
            self.set_exception(click.ClickException("no memory"))
        return 0.0


def test_a_run_that_fails_is_never_overlooked():
    failing = FailsAfterAWhile()
    with pytest.raises(click.ClickException, match="no memory"):
        trials.watch([failing], Path("out"), [failing])


@pytest.mark.parametrize(
    ("last", "shown"),
    [
        ("Fisher: 96 of 300, about 11 s left", "EWC: Fisher: 96 of 300, about 11 s left"),
        ("tick 3    kimg 0.3      time 4s", ""),
        ("", ""),
    ],
)
def test_the_bar_says_what_a_run_does_between_its_iterations(last, shown, tmp_path):
    trial = trials.Trial("EWC", "--kimg=1")
    assert trial.doing(tmp_path) == ""
    trial.folder(tmp_path).mkdir(parents=True)
    (trial.folder(tmp_path) / "output.txt").write_text(f"Training in out/00000\n{last}\n")
    assert trial.doing(tmp_path) == shown


def test_machines_that_do_not_know_affinity_train_as_well(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert trials.train([], tmp_path) == {}


# Measures


def test_images_are_measured_as_a_generator_s():
    images = random_images(3)
    replay = measures.Replay(images)
    again = torch.cat([replay(torch.zeros(n, 1), torch.zeros(n, 0)) for n in (2, 4)])
    assert (to_uint8(again) == images[[0, 1, 2, 0, 1, 2]]).all()


def test_images_are_blurred_until_they_are_as_sharp_as_wanted():
    images = random_images(20)
    wanted = measures.sharpness(measures.blurred(images, 1.3))
    soft = measures.blurred_to(images, wanted)
    assert measures.sharpness(soft) == pytest.approx(wanted, rel=0.02)
    assert measures.blurred_to(soft, 1000) is soft


def test_blurred_copies_are_found_and_other_portraits_are_not():
    try:
        detectors.load(measures.DETECTOR)
    except ValueError as error:
        pytest.skip(str(error))
    heldout = measures.real_images(Path("examples/lorelei-heldout.zip"), 80)
    train = measures.real_images(Path("examples/lorelei-ten.zip"))
    assert measures.copies(measures.blurred(train, 1.5), train, heldout[40:])["copies"] > 0.9
    assert measures.copies(heldout[:40], train, heldout[40:])["copies"] < 0.1


def test_overfitting_is_where_unseen_images_stand_between_seen_and_generated(monkeypatch):
    class Nets:
        D = staticmethod(lambda img, c: img.mean([1, 2, 3])[:, None])

    monkeypatch.setattr(limited_data.pickles, "load", lambda path: Nets)
    monkeypatch.setattr(measures, "samples", lambda path, seeds: constant(-1))
    found = [limited_data.overfitting(Path(), constant(3), constant(x)) for x in (3, -1, 2)]
    assert found == [0, 1, pytest.approx(0.25)]


def constant(value, n=40):
    return torch.full([n, 3, 4, 4], float(value))


def test_the_dcgan_has_five_layers_and_its_measures_tell_them_apart():
    G, D = fisher_figure.generator(2, 32), fisher_figure.discriminator(2, 32)
    assert G(torch.zeros(2, fisher_figure.LATENT, 1, 1)).shape == (2, 3, 32, 32)
    assert D(torch.zeros(3, 3, 32, 32)).shape == (3,)
    before = {k: w.detach().clone() for k, w in fisher_figure.convolutions(G).items()}
    assert len(before) == 5
    after = {**before, "layer 2": before["layer 2"] * 1.5}
    changed = fisher_figure.change(before, after)
    assert changed == {**dict.fromkeys(before, 0), "layer 2": pytest.approx(0.5)}


# Documents


def test_publish_replaces_its_section_alone(tmp_path):
    document = tmp_path / "doc.md"
    document.write_text("head\n<!-- begin: b -->\nold\n<!-- end: b -->\ntail\n")
    tables.publish(document, {"b": "new"})
    tables.publish(document, {"b": "newer"})
    expected = "head\n<!-- begin: b -->\nnewer\n<!-- end: b -->\ntail\n"
    assert document.read_text() == expected
    tables.publish(document, {"c": "more"})
    assert document.read_text() == expected + "<!-- begin: c -->\nmore\n<!-- end: c -->\n"
    assert tables.section(document, "b") == "newer" and tables.section(document, "d") is None


def test_nothing_is_not_negative():
    assert tables.spread([-1e-9]) == "0.000" and tables.spread([-0.1]) == "-0.100"
    assert tables.spread([None]) == "" and tables.spread([1.0, None, 3.0], 1) == "2.0 ± 1.4"


def run_of(method, seed, kid, diversity=0.5):
    measured = {few_shot.KID: kid, few_shot.DIVERSITY: diversity}
    snapshots = [{"kimg": 4, few_shot.KID: 0.4}, {"kimg": 8, **measured}]
    command = f"python train.py --seed={seed}"
    return dict(
        method=method, seed=seed, group="lorelei", snapshots=snapshots, end={}, command=command
    )


def record_of(runs):
    rows = {"source": {few_shot.KID: 0.9}, few_shot.EMBEDDED: {"kid1k_full@mobilenetv2": 0.8}}
    return {"experiment": "few-shot", "references": {"lorelei": rows}, "runs": runs}


def test_methods_are_compared_seed_by_seed():
    tuned, ewc = (0.5, 0.8, 0.6, 0.7, 0.4), (0.4, 0.6, 0.5, 0.5, 0.3)
    runs = [run_of("fine-tuning", s, x) for s, x in enumerate(tuned)]
    runs += [run_of("EWC", s, x, 0.5 + s / 50) for s, x in enumerate(ewc)]
    text = few_shot.EXPERIMENT.sections(record_of(runs))["lorelei"]
    assert "| EWC | 5 | 0.460 ± 0.114 |" in text
    # Differences -0.1, -0.2, -0.1, -0.2, -0.1: t = -5.7155 with 4 degrees of freedom.
    assert "5 paired seeds" in text and "KID \N{MINUS SIGN}0.140 ± 0.055, p = 0.00464" in text
    assert "after Holm 0.00927" in text
    assert "| EWC | 5 | \N{MINUS SIGN}0.140 ± 0.055 | 0.040 ± 0.032 | FID 87.4" in text


def test_fewer_seeds_than_planned_are_not_tested():
    runs = [run_of(m, s, x + s) for m, x in (("fine-tuning", 0.5), ("EWC", 0.4)) for s in range(3)]
    text = few_shot.EXPERIMENT.sections(record_of(runs))["lorelei"]
    assert "KID \N{MINUS SIGN}0.100 ± 0.000; intra" in text and "p =" not in text
    assert "Not tested: that takes 5 seeds." in text


def test_holm_s_values_never_fall():
    assert few_shot.holm({"a": 0.04, "b": 0.03}) == {"b": 0.06, "a": 0.06}
    assert few_shot.holm({"a": 0.6, "b": 0.01}) == {"b": 0.02, "a": 0.6}


def test_a_number_that_was_not_measured_is_found(tmp_path):
    record = record_of([run_of("EWC", 0, 0.5)])
    (tmp_path / "few-shot.json").write_text(json.dumps(record))
    document = tmp_path / "few-shot.md"
    document.write_text("# Ten images\n")
    tables.publish(document, few_shot.EXPERIMENT.sections(record))
    assert check.problems("few-shot", tmp_path) == []
    document.write_text(document.read_text().replace("0.500", "0.400"))
    assert "section lorelei is not what" in check.problems("few-shot", tmp_path)[0]
    tables.publish(document, few_shot.EXPERIMENT.sections(record))
    document.write_text(document.read_text() + "\n| a | b |\n")
    assert "a table outside" in check.problems("few-shot", tmp_path)[0]


@pytest.mark.parametrize("name", check.DOCUMENTS)
def test_every_table_of_a_document_comes_from_its_record(name):
    assert check.problems(name) == []


def test_a_row_is_measured_anew():
    try:
        detectors.load(measures.DETECTOR)
    except ValueError as error:
        pytest.skip(str(error))
    recorded, now = check.measured_anew()
    assert now == pytest.approx(recorded, abs=check.TOLERANCE)
