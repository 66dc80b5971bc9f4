"""From a folder of photos to a data set: what is written, what is said, and what survives."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from tests import forking
from tools import duplicates, packing, photos, prepare
from tools.journal import Entry
from training.dataset import ImageDataset

ROOT = Path(__file__).parents[1]


def photo(seed=0, size=(120, 80), mode="RGB"):
    """Return a picture that differs from every other seed's in its large shapes."""
    blocks = np.random.RandomState(seed).randint(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).convert(mode)


def run(*args):
    """Return what `tools.prepare` prints; its exit status is 0."""
    result = CliRunner().invoke(prepare.main, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.output


def mistake(*args):
    result = CliRunner().invoke(prepare.main, [str(arg) for arg in args])
    assert result.exit_code == 2 and result.output.count("\n") == 1, result.output
    return result.output


@pytest.fixture
def roll(tmp_path):
    """Return a folder as a telephone has it."""
    folder = tmp_path / "roll"
    folder.mkdir()
    for i in range(4):
        photo(i).save(folder / f"Größe {i}.jpg")
    photo(1).resize((60, 40)).save(folder / "smaller.jpg", quality=70)
    photo(12, (30, 20)).save(folder / "tiny.jpg")
    photo(5, mode="CMYK").save(folder / "print.jpg")
    photo(6, mode="P").save(folder / "palette.png")
    photo(7, mode="L").save(folder / "grey.tif")
    cut = photo(8)
    cut.putalpha(Image.linear_gradient("L").resize(cut.size))
    cut.save(folder / "cut.webp", lossless=True)
    photo(9).save(folder / "anim.gif", save_all=True, append_images=[photo(10)])
    deep = np.asarray(photo(11, mode="L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    (folder / "broken.jpg").write_bytes((folder / "Größe 0.jpg").read_bytes()[:300])
    (folder / "\x1b[31mred.png").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("not a photo")
    return folder


def test_everything_is_taken_or_named(roll, tmp_path):
    out = tmp_path / "set.zip"
    said = run(roll, out, "--size=32", "--dedupe")
    for line in (
        "12 of 14 photos; other files left out: .txt 1 (notes.txt)",
        "CMYK turned to RGB: 1 (print.jpg)",
        "16 bits reduced to 8: 1 (deep.png)",
        "animated, first frame taken: 1 (anim.gif)",
        "grey turned to RGB: 2 (deep.png, grey.tif)",
        "transparency laid on white: 1 (cut.webp)",
        "smaller than 32 pixels, enlarged: 1 (tiny.jpg)",
        "near duplicates, dropped: 1 (smaller.jpg is like Größe 1.jpg (distance ",
        "set.zip: 11 pictures of 32x32, RGB",
        "\\x1b[31mred.png: cannot be read as an image (not a PNG, JPEG",
        "broken.jpg: cannot be read as an image (",
    ):
        assert line in said
    assert "\x1b" not in said
    data = ImageDataset(out)
    assert (len(data), data.image_shape, data.notes) == (11, [3, 32, 32], [])
    assert data.file_names[3] == "00000/img00000003.png"
    record = json.loads((tmp_path / "set.json").read_text())
    assert len(record["images"]) == 11 and record["other_files"] == ["notes.txt"]
    sources = {row["from"]: row for row in record["images"]}
    assert sources["cut.webp"]["done"] == ["transparency laid on white"]
    assert sources["Größe 0.jpg"]["size"] == [120, 80]
    assert {row["from"] for row in record["dropped"]} >= {"smaller.jpg", "broken.jpg"}
    with Image.open(tmp_path / "set.contact.png") as sheet:
        assert sheet.width > 4 * 128 and sheet.height > 2 * 128
    assert not list(tmp_path.glob(".*"))


def test_pictures_that_share_a_shape_are_not_near_duplicates(tmp_path):
    (tmp_path / "in").mkdir()
    for i, colour in enumerate(["red", "maroon"]):
        drawing = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(drawing).ellipse([16, 16, 48, 48], fill=colour)
        drawing.save(tmp_path / "in" / f"{i}.png")
    said = run(tmp_path / "in", tmp_path / "out.zip", "--size=32", "--dedupe")
    assert "near duplicates" not in said and "2 pictures" in said


def test_near_duplicates_are_kept_and_named_by_default(roll, tmp_path):
    said = run(roll, tmp_path / "set.zip", "--size=32")
    assert "near duplicates, kept; --dedupe drops them: 1 (smaller.jpg" in said
    assert "12 pictures" in said


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path, orientation):
    (tmp_path / "in").mkdir()
    image = Image.new("RGB", (64, 64), "navy")
    ImageDraw.Draw(image).rectangle([0, 0, 63, 20], fill="yellow")
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = image.transpose(stored[orientation]) if orientation > 1 else image
    image.save(tmp_path / "in" / "a.jpg", exif=exif)
    run(tmp_path / "in", tmp_path / "out.zip", "--size=16")
    for path in (tmp_path / "out.zip", tmp_path / "in"):  # as a data set itself is turned, too
        pixels = ImageDataset(path)[0][0].astype(int)
        assert (pixels[0, 1] - pixels[2, 1] > 150).all()
        assert (pixels[2, -1] > pixels[0, -1]).all()


def test_fits(tmp_path):
    image = Image.new("RGB", (90, 30), "red")
    ImageDraw.Draw(image).rectangle([30, 0, 59, 29], fill="blue")
    file = io.BytesIO()
    image.save(file, "png")

    def middle_column_and_row(fit):
        made = photos.picture(file.getvalue(), "a.png", photos.Wanted(30, fit)).png
        with Image.open(io.BytesIO(made)) as picture:
            return picture.getpixel((15, 1)), picture.getpixel((1, 15)), picture.getpixel((15, 15))

    red, blue, white = (255, 0, 0), (0, 0, 255), (255, 255, 255)
    assert middle_column_and_row("cover") == (blue, blue, blue)
    assert middle_column_and_row("pad") == (white, red, blue)
    assert middle_column_and_row("stretch") == (blue, red, blue)


def test_keep_mode_takes_the_mode_that_holds_all(tmp_path):
    (tmp_path / "in").mkdir()
    photo(0, (32, 32), "L").save(tmp_path / "in" / "a.png")
    run(tmp_path / "in", tmp_path / "grey.zip", "--size=16", "--keep-mode")
    assert ImageDataset(tmp_path / "grey.zip").num_channels == 1
    clear = photo(1, (32, 32))
    clear.putalpha(100)
    clear.save(tmp_path / "in" / "b.png")
    run(tmp_path / "in", tmp_path / "all.zip", "--size=16", "--keep-mode")
    data = ImageDataset(tmp_path / "all.zip")
    assert data.num_channels == 4 and [data[i][0][3].max() for i in range(2)] == [255, 100]


def test_colours_become_srgb(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    file = io.BytesIO()
    photo(0, (32, 32)).save(file, "png", icc_profile=profile)
    made = photos.picture(file.getvalue(), "a.png", photos.Wanted(16))
    assert made.notes == ["colour profile unreadable, ignored"]  # not one of RGB


def test_folders_become_classes(tmp_path):
    for i, name in enumerate(["pets/cat/a", "pets/cat/old/b", "pets/dog/c"]):
        path = tmp_path / "in" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(path)
    said = run(tmp_path / "in", tmp_path / "out.zip", "--size=16", "--labels=folders")
    assert "classes: 0 cat (2), 1 dog (1)" in said and "--cond=1" in said
    data = ImageDataset(tmp_path / "out.zip", use_labels=True)
    assert [int(data.get_label(i).argmax()) for i in range(3)] == [0, 0, 1]
    assert data.notes == []
    photo(4).save(tmp_path / "in" / "pets" / "stray.jpg")
    text = mistake(tmp_path / "in", tmp_path / "b.zip", "--size=16", "--labels=folders")
    assert "pets/stray.jpg and others are in no folder" in text


def test_heldout_pictures_have_no_near_duplicate_in_training(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(12):
        photo(i % 6).save(tmp_path / "in" / f"{i}.jpg", quality=95 - 30 * (i > 5))
    said = run(tmp_path / "in", tmp_path / "out.zip", "--size=16", "--heldout=4")
    assert "out-heldout.zip: 4 pictures set aside" in said and "--metricdata=" in said
    rows = json.loads((tmp_path / "out.json").read_text())["images"]
    aside = {int(row["from"][:-4]) for row in rows if row["archive"] == "out-heldout.zip"}
    assert len(aside) == 4 and {(i + 6) % 12 for i in aside} == aside
    assert len(ImageDataset(tmp_path / "out-heldout.zip")) == 4
    assert len(ImageDataset(tmp_path / "out.zip")) == 8


@pytest.mark.parametrize("distance", [0, 3, 10])
def test_near_duplicates_are_those_of_a_comparison_of_all_with_all(distance):
    rng = np.random.RandomState(0)
    hashes = rng.randint(0, 2**63, 120, dtype=np.uint64)
    for i in range(40, 120):  # chains of small changes
        flips = rng.randint(0, 64, rng.randint(0, 5))
        hashes[i] = hashes[i - 40]
        for bit in flips:
            hashes[i] ^= np.uint64(1 << int(bit))
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= distance
    found = list(duplicates.pairs(hashes, distance))
    assert len(found) == len({pair[:2] for pair in found}) == (near.sum() - 120) // 2
    gone = duplicates.dropped(found, [(i,) for i in range(120)])
    stay = [i for i in range(120) if i not in gone]
    assert near[np.ix_(stay, stay)].sum() == len(stay)
    assert all(near[i, j] and j in stay for i, (j, _) in gone.items())
    group = duplicates.groups(found, 120)
    assert (group[:, None] == group)[near].all()
    aside = duplicates.split(group, 30)
    assert 0 < aside.sum() <= 30 and not near[np.ix_(aside, ~aside)].any()


def test_the_result_is_the_same_every_time_and_from_a_zip(roll, tmp_path):
    run(roll, tmp_path / "one.zip", "--size=16")
    with zipfile.ZipFile(tmp_path / "roll.zip", "w") as archive:
        for path in roll.iterdir():
            archive.write(path, path.name)
    run(tmp_path / "roll.zip", tmp_path / "two.zip", "--size=16", "--workers=2")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_mistakes_are_one_line(roll, tmp_path):
    out = tmp_path / "set.zip"
    assert "--size=48: must be a power of two" in mistake(roll, out, "--size=48")
    assert "must end with .zip" in mistake(roll, tmp_path / "set.tar")
    assert "--heldout=99: must be less than the number of pictures, 12" in mistake(
        roll, out, "--heldout=99"
    )
    out.touch()
    assert f"{out} exists; give another name" in mistake(roll, out)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").touch()
    assert "no photos in it, but .txt 1" in mistake(tmp_path / "none", tmp_path / "b.zip")
    (tmp_path / "none" / "a.txt").unlink()
    assert "none: there is nothing in it" in mistake(tmp_path / "none", tmp_path / "b.zip")


def test_a_killed_run_is_resumed(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(150):
        photo(i).save(tmp_path / "in" / f"{i:03d}.png")
    out, unfinished = tmp_path / "out.zip", tmp_path / ".out.zip.unfinished"
    command = [sys.executable, "-m", "tools.prepare", tmp_path / "in", out, "--size=16"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    while process.poll() is None and not (unfinished.exists() and unfinished.stat().st_size > 9e4):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130 and "the same command resumes" in said and not out.exists()
    photo(500).save(tmp_path / "in" / "000.png")  # changed in the meantime
    (tmp_path / "in" / "001.png").unlink()
    run(tmp_path / "in", out, "--size=16")
    run(tmp_path / "in", tmp_path / "at-once.zip", "--size=16")
    assert out.read_bytes() == (tmp_path / "at-once.zip").read_bytes()
    assert len(ImageDataset(out)) == 149 and not unfinished.exists()


def test_an_eps_named_png_starts_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    photo(0).save(tmp_path / "in" / "a.png", "eps")
    photo(0).save(tmp_path / "in" / "b.jpg")
    said = run(tmp_path / "in", tmp_path / "out.zip", "--size=16")
    assert "unreadable, left out: 1 (a.png: cannot be read as an image (not a PNG" in said


def test_endless_names_take_no_endless_time():
    file = io.BytesIO()
    photo(0).save(file, "png")
    journal = types.SimpleNamespace(png=lambda name: (file.getvalue(), "RGB"))
    entry = Entry("a" * 60_000 + ".png", 120, 80, [])
    found = forking.outcome(lambda: packing.contact_sheet([entry], journal))
    assert found.kind == "returned"


def test_heic_is_read_where_pi_heif_is_installed(tmp_path):
    pytest.importorskip("pi_heif")
    turned = (ROOT / "tests" / "golden" / "turned.heic").read_bytes()  # by EXIF, 48x64 as stored
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IMG_0001.HEIC").write_bytes(turned)
    run(tmp_path / "in", tmp_path / "out.zip", "--size=32")
    assert json.loads((tmp_path / "out.json").read_text())["images"][0]["size"] == [64, 48]
    pixels = ImageDataset(tmp_path / "out.zip")[0][0].astype(int)
    assert (pixels[0, 1] > 200).all() and (pixels[2, -1] > pixels[0, -1]).all()


def test_heic_without_pi_heif_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    photos.formats.cache_clear()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    photo().save(tmp_path / "in" / "a.jpg")
    said = run(tmp_path / "in", tmp_path / "out.zip", "--size=16")
    assert "unreadable, left out: 1 (IMG_0001.HEIC: needs pi-heif: pip install pi-heif)" in said
    photos.formats.cache_clear()
