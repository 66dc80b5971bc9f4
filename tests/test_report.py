"""Reports on staged runs: the rules of the verdict, and the page in a real browser."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import browser
import numpy as np
import pytest
import staged_runs
from click.testing import CliRunner

from metrics import detectors, weights
from tools import report
from tools.report_files import charts, pictures, runs, verdict

HOSTILE = "<script>document.title = 'taken'<"


def judged(folder, nearest="pixels"):
    """Return the verdict of a run as its report says it."""
    text = report.write([folder], folder / "r.html", nearest=nearest).read_text()
    return re.search(r'class="headline">(.*?)</p>', text)[1], text


@pytest.mark.parametrize("seed", [0, 1, 2, 3])  # the thresholds were chosen on seed 0
@pytest.mark.parametrize("kind", staged_runs.KINDS)
def test_the_verdict_on_a_staged_run_is_right(tmp_path, kind, seed):
    headline, _ = judged(staged_runs.stage(kind, seed, tmp_path))
    titles = {"collapse": "Collapsed since ", "copy": "Copies its training images"}
    assert headline.startswith(titles.get(kind, "Still learning"))


@pytest.mark.parametrize("kind", ["copy", "well"])
def test_features_come_to_the_same_verdict_as_pixels(tmp_path, kind):
    if weights.on_disk(detectors.MOBILENETV2) is None:
        pytest.skip("needs the weights of MobileNetV2")
    headline, text = judged(staged_runs.stage(kind, 4, tmp_path), nearest="features")
    assert headline == {"copy": "Copies its training images", "well": "Still learning"}[kind]
    assert "as nn1k does" in text


def evidence(**changes):
    sound = dict(variety=[(1, 0.9), (2, 0.9)], nearness=1.0, kimg=2.0)
    return verdict.Evidence(**{**sound, **changes})


def metric(*values, name="kid", better="lower"):
    return {
        name: [
            {"results": {name: value}, "better": better, "kimg": kimg}
            for kimg, value in enumerate(values, 1)
        ]
    }


@pytest.mark.parametrize(
    ("changes", "kinds", "title"),
    [
        ({}, ["sound"], "Neither collapsed nor copying"),
        ({"variety": []}, ["unknown"], "Nothing to judge by yet"),
        ({"losses": [[(1, 0.5), (2, math.nan)]]}, ["diverged"], "Diverged at 2 kimg"),
        ({"variety": [(1, 0.3), (2, 0.4)]}, ["sound"], "Neither"),
        ({"variety": [(1, 0.4), (2, 0.3)]}, ["collapsed"], "Collapsed since 2 kimg"),
        ({"nearness": 0.39}, ["copies"], "Copies"),
        ({"nearness": 0.4}, ["sound"], "Neither"),
        ({"real_signs": [(1, 0.9), (2, 0.96)]}, ["sound", "knows"], "Neither"),
        ({"metrics": metric(3, 2)}, ["learning"], "Still learning"),
        ({"metrics": metric(3), "kimg": 1.0}, ["sound"], "Neither"),
        ({"metrics": metric(2, 3)}, ["past-best"], "Best at 1 kimg, worse since"),
        ({"metrics": metric(2, 3, better="higher")}, ["learning"], "Still learning"),
        ({"metrics": metric(2, 2.05)}, ["settled"], "Settled"),
        ({"metrics": metric(2, 2.05, math.nan), "kimg": 3.0}, ["settled"], "Settled"),
        ({"metrics": metric(2, math.nan)}, ["sound"], "Neither"),
        ({"metrics": metric(2), "kimg": 8.0}, ["sound"], "Neither"),
        ({"metrics": metric(2, 3), "nearness": 0.1}, ["copies", "past-best"], "Copies"),
    ],
)
def test_the_rules_at_their_edges(changes, kinds, title):
    found = verdict.judge(evidence(**changes))
    assert [finding.kind for finding in found] == kinds
    assert found[0].title.startswith(title)


@pytest.mark.parametrize(("share", "copies"), [(0.3, True), (0.2, False)])
def test_nn1k_has_the_last_word_on_copies_where_it_was_measured(share, copies):
    results = [{"results": {"nn1k_ratio": 0.5, "nn1k_copies": share}, "kimg": 2}]
    found = verdict.judge(evidence(metrics={"nn1k": results}, nearness=1.0 if copies else 0.1))
    assert (found[0].kind == "copies") == copies


def test_a_grid_comes_apart_into_the_pictures_that_it_was_made_of(tmp_path):
    rng = np.random.RandomState(0)
    images = staged_runs.drawings(48, rng)
    staged_runs.save_grid(tmp_path / "grid.png", images)
    np.testing.assert_array_equal(pictures.cells(tmp_path / "grid.png"), images)
    for size, columns in [(16, 16), (128, 15), (256, 7), (1024, 3)]:
        assert pictures.cell_size(size * columns, size * 2) == size
    with pytest.raises(ValueError, match="100 x 50 pixels"):
        pictures.cell_size(100, 50)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.2, 0.21), (-5, 5), (3, 3), (0, 0), (1e-7, 3e-7), (99, 12345)]
)
def test_ticks_are_few_and_hold_all_values(low, high):
    found = charts.ticks(low, high, 4)
    assert found[0] <= low and found[-1] >= high
    assert 2 <= len(found) <= 7


def test_a_run_that_is_being_written_can_be_read(tmp_path):
    run = staged_runs.stage("well", 0, tmp_path)
    with (run / "stats.jsonl").open("a") as stream:
        stream.write('{"Loss/G/loss": {"num": 1, "me')
    (run / "finished.json").unlink()
    (run / "metric-empty.jsonl").write_text("")
    _, text = judged(run)
    assert "16 of 16 kimg, not finished" in " ".join(text.split())
    for path in run.glob("*.png"):
        path.unlink()
    assert judged(run)[0] == "Still learning"


def test_every_statistic_of_a_plugin_is_drawn_whatever_its_name(tmp_path):
    run = staged_runs.stage("well", 0, tmp_path)
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        line["Mine/<signal>"] = {"num": 1, "mean": 0.5, "std": 0.0}
    (run / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, text = judged(run)
    assert "Mine/&lt;signal&gt; over kimg" in text
    assert "Augment/ada_p over kimg: Augment/ada_p ends at 0.16" in text
    assert list(runs.read(run).signals) == ["Augment/ada_p", "Mine/<signal>"]


def test_command_versions_and_machine_are_shown(tmp_path):
    run = staged_runs.stage("well", 0, tmp_path)
    assert "were not recorded" in judged(run)[1]
    (run / "environment.json").write_text(json.dumps({"command": "train.py --aug=<ada>"}))
    assert "<code>train.py --aug=&lt;ada&gt;</code>" in judged(run)[1]


def test_no_run_is_one_line(tmp_path):
    result = CliRunner().invoke(report.main, [str(tmp_path)])
    assert result.exit_code == 2
    assert "not a run directory" in result.output and "Traceback" not in result.output


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The reports on one run and on three; the first run has a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = {"well": HOSTILE, "copy": None, "collapse": None}
    found = [staged_runs.stage(kind, 0, folder, name=name) for kind, name in kinds.items()]
    options = ["--nearest=pixels", f"--out={folder / 'three.html'}"]
    for arguments in ([found[0], options[0]], [*found, *options]):
        result = CliRunner().invoke(report.main, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
    return found[0] / "report.html", folder / "three.html"


@pytest.fixture(scope="module")
def driver():
    with browser.chromium() as driver:
        yield driver


@pytest.fixture
def page(driver):
    """The browser; after each test no host was asked, and nothing complained of."""
    browser.view(driver)
    yield driver
    assert browser.complaints(driver) == []
    assert browser.hosts(driver) == set()


def shown(page):
    """Return the kimg of the snapshot that each run shows, and whether its picture is there."""
    return page.execute_script(
        "return [...document.querySelectorAll('.snapshots img:not([hidden])')]"
        ".map(i => [Number(i.dataset.kimg), i.naturalWidth > 0, i.src])"
    )


def test_it_opens_from_the_disk_and_its_slider_changes_the_picture(written, page):
    page.get(written[0].as_uri())
    [(last, there, picture)] = shown(page)
    assert last == 16 and there
    page.find_element("id", "step").send_keys("\ue012\ue012")  # arrow left
    [(earlier, there, other)] = shown(page)
    assert earlier == 8 and there and other != picture
    assert page.find_element("id", "kimg").text == "8 kimg"


def test_three_runs_stand_side_by_side(written, page):
    page.get(written[1].as_uri())
    headlines = [e.text for e in page.find_elements("css selector", ".headline")]
    assert [h.split()[0] for h in headlines] == ["Still", "Copies", "Collapsed"]
    assert len(shown(page)) == 3
    tops = [e.rect["y"] for e in page.find_elements("css selector", ".verdict")]
    assert len(set(tops)) == 1
    differing = [e.text for e in page.find_elements("css selector", ".differs th")]
    assert "name" in differing and "total_kimg" not in differing


def test_names_are_text(written, page):
    page.get(written[0].as_uri())
    assert page.find_element("css selector", "h1").text == HOSTILE
    assert page.title == f"{HOSTILE}: report"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [browser.PHONE, browser.DESKTOP], ids=["phone", "desktop"])
def test_everyone_can_read_it(written, page, scheme, size):
    browser.view(page, size=size, prefers_color_scheme=scheme)
    page.get(written[1].as_uri())
    assert browser.faults(page) == []
    assert page.execute_script("return document.documentElement.scrollWidth") <= size[0]


def test_it_prints_on_white_without_controls(written, page):
    page.get(written[0].as_uri())
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not page.find_element("id", "step").is_displayed()
    pdf = page.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert len(pdf) > 10_000


def test_training_ends_with_a_report_and_keeps_it_current(tmp_path):
    root = Path(report.__file__).parent.parent
    command = [
        sys.executable, "train.py", f"--outdir={tmp_path}", "--data=examples/lorelei-ten.zip",
        "--kimg=0.02", "--tick=0.01", "--snap=1", "--report", "--batch=4", "--cbase=128",
        "--cmax=8", "--zdim=8", "--map-depth=1", "--gamma=0.1", "--pl-weight=0", "--metrics=none",
        "--device=cpu", "--workers=0", "--precision=fp32",
    ]  # fmt: skip
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    [run] = tmp_path.iterdir()
    assert f"Report: {run / 'report.html'}" in ran.stdout
    text = (run / "report.html").read_text()
    assert "train.py --outdir=" in text and "PyTorch" in text
    assert "0.02 of 0.02 kimg, finished" in text
