"""What people hand in as training data, and what `train.py` says to it."""

from __future__ import annotations

import json
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

import train
from tools import prepare
from training import images
from training.dataset import ImageDataset

ROOT = Path(__file__).parents[1]
TINY = ["--kimg=1", "--batch=4", "--metrics=none", "--device=cpu", "--ops=torch"]


def picture(seed=0, size=(16, 16), mode="RGB"):
    blocks = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).convert(mode)


def folder(path, names, **kwargs):
    for i, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i, **kwargs).save(path / name)
    return path


def label(path, rows):
    (path / "dataset.json").write_text(json.dumps({"labels": rows}))
    return path


def numbered(count, suffix=".png"):
    return [f"img{i:08d}{suffix}" for i in range(count)]


def dry_run(data, *args):
    """Return the exit status of `train.py --dry-run`, and what it says before its summary."""
    words = ["--outdir=never", f"--data={data}", "--dry-run", "--metrics=none", *args]
    result = CliRunner().invoke(train.main, words)
    assert result.exit_code in (0, 2), result.exception
    return result.exit_code, result.stderr.partition("Data      ")[0]


def command_in(text):
    """Return the arguments of the `prepare` command that ends a message."""
    return shlex.split(text.strip().rpartition("python -m tools.prepare ")[2])


def test_a_camera_roll_is_told_everything_and_the_command_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roll = tmp_path / "my photos"
    folder(roll, [f"Größe {i}.jpg" for i in range(4)], size=(60, 48))
    folder(roll, ["a square.jpg"], size=(30, 30))
    folder(roll, ["cutout.png"], size=(48, 64), mode="RGBA")
    folder(roll, ["print.jpg"], size=(64, 64), mode="CMYK")
    Image.new("I;16", (64, 64)).save(roll / "scan.png")
    (roll / "broken.jpg").write_bytes((roll / "Größe 0.jpg").read_bytes()[:400])
    status, said = dry_run(roll)
    assert status == 2
    for line in (
        "my photos: 9 images, but",
        "  1 unreadable: broken.jpg: cannot be read as an image (",
        "  1 16-bit, not 8-bit grey, RGB or RGBA: scan.png",
        "  1 CMYK, not 8-bit grey, RGB or RGBA: print.jpg",
        "  5 not square: Größe 0.jpg (60x48), Größe 1.jpg (60x48), Größe 2.jpg (60x48) and 2 more",
        "  1 with a side that is not one of 4, 8, 16, ... 4096: a square.jpg (30x30)",
        "  several sizes: 2 64x64 (print.jpg, scan.png); 1 30x30 (a square.jpg)",
        "  several modes: 5 RGB (",
    ):
        assert f"{line}" in said
    arguments = command_in(said)
    assert arguments == [str(roll), "my photos.zip", "--size=32"]
    assert CliRunner().invoke(prepare.main, arguments).exit_code == 0
    assert dry_run("my photos.zip") == (0, "")


def test_exif_turns_pictures_everywhere(tmp_path):
    for i in range(2):
        image = Image.new("RGB", (64, 64), "navy")
        ImageDraw.Draw(image).rectangle([0, 0, 63, 20], fill="yellow")
        exif = Image.Exif()
        if i:
            image, exif[0x0112] = image.rotate(90, expand=True), 6
        image.save(tmp_path / f"{i}.jpg", exif=exif, quality=95)
    data = ImageDataset(tmp_path)
    conditions = [images.pixels(images.rgba(tmp_path / f"{i}.jpg"), 64, 3) for i in range(2)]
    for pixels in (data[0][0], data[1][0], *conditions):
        assert pixels[0, :18].min() > 200 and pixels[0, 26:].max() < 60


def test_other_files_are_counted_by_suffix(tmp_path):
    folder(tmp_path, [f"IMG_{i:04d}.JPG" for i in range(3)])
    folder(tmp_path, ["0.bmp", "1.gif", "2.tif"])
    for name in ("3.jfif", "IMG_0100.HEIC", "notes.txt", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    status, said = dry_run(tmp_path)
    assert status == 0
    assert "3 images; 6 other files left out: .bmp 1, .gif 1, .heic 1, .jfif 1, .tif 1" in said
    assert "python -m tools.prepare reads .bmp, .gif, .heic, .jfif, .tif" in said


def test_a_folder_of_other_formats_is_for_prepare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = dry_run(folder(tmp_path / "scans", ["0.bmp", "1.bmp", "2.bmp"]))
    assert status == 2 and "no images in it to train on" in said and ".bmp 3" in said
    assert command_in(said) == [str(tmp_path / "scans"), "scans.zip", "--size=16"]


def test_all_grey_ones_are_counted(tmp_path):
    folder(tmp_path, numbered(6, ".jpg"))
    for i in (2, 3):
        picture(i, mode="L").save(tmp_path / numbered(6, ".jpg")[i])
    _, said = dry_run(tmp_path)
    assert "several modes: 4 RGB (img00000000.jpg, " in said
    assert "; 2 L (img00000002.jpg, img00000003.jpg)" in said


def test_an_image_with_two_classes_is_refused(tmp_path):
    rows = [["img00000000.png", 0], ["img00000001.png", 1], ["img00000000.png", 2]]
    status, said = dry_run(label(folder(tmp_path, numbered(2)), rows), "--cond=1")
    assert status == 2 and said.count("\n") == 1
    assert "listed more than once: img00000000.png; img00000000.png as 0 and 2" in said
    assert '["name.png", [1, 0, 1]]' in said


@pytest.mark.parametrize("style", ["backslash", "nested", "nested.zip", "listed", "unlisted"])
def test_folders_may_be_written_in_several_ways(tmp_path, style):
    data, names = tmp_path / "data", [f"{pet}/{i}.png" for pet in ("cat", "dog") for i in "01"]
    base = data if style in ("backslash", "listed") else data / "pets"
    folder(base, names)
    form = {"backslash": lambda n: n.replace("/", "\\"), "listed": "pets/{}".format}.get(style, str)
    place = data if style == "unlisted" else base
    label(place, [[form(name), int("dog" in name)] for name in names])
    if style == "nested.zip":
        data = Path(shutil.make_archive(str(tmp_path / "nested"), "zip", data))
    assert dry_run(data, "--cond=1") == (0, "")
    found = ImageDataset(data, use_labels=True)
    assert [int(found.get_label(i).argmax()) for i in range(4)] == [0, 0, 1, 1]


def test_labels_of_other_suffixes_get_a_hint(tmp_path):
    names = ["cat/0.png", "dog/1.png"]
    rows = [[name.replace(".png", ".jpg"), i] for i, name in enumerate(names)]
    status, said = dry_run(label(folder(tmp_path, names), rows), "--cond=1")
    assert status == 2 and "no label for cat/0.png, dog/1.png" in said
    assert "Entries without image: cat/0.jpg, dog/1.jpg" in said
    assert "suffixes differ: cat/0.png is listed as cat/0.jpg" in said


def test_entries_without_image_are_named(tmp_path):
    rows = [[name, 0] for name in numbered(3)]
    status, said = dry_run(label(folder(tmp_path, numbered(2)), rows), "--cond=1")
    assert (status, said) == (0, "dataset.json: no image for img00000002.png\n")


def test_folders_of_classes_are_for_prepare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pets = folder(tmp_path / "pets", ["cat/0.png", "cat/1.png", "dog/2.png"])
    status, said = dry_run(pets, "--cond=1")
    assert status == 2
    arguments = command_in(said)
    assert arguments == [str(pets), "pets.zip", "--labels=folders", "--size=16"]
    assert CliRunner().invoke(prepare.main, arguments).exit_code == 0
    assert dry_run("pets.zip", "--cond=1") == (0, "")


def test_a_class_without_images_is_named(tmp_path):
    rows = [[name, 1 + i % 2] for i, name in enumerate(numbered(4))]
    status, said = dry_run(label(folder(tmp_path, numbered(4)), rows), "--cond=1")
    assert status == 0 and "class 0 has no images (3 classes in all)" in said


def test_labels_that_are_not_used_are_mentioned(tmp_path):
    rows = [[name, 0] for name in numbered(2)]
    status, said = dry_run(label(folder(tmp_path, numbered(2)), rows))
    assert status == 0 and "dataset.json is not used; --cond=1 learns its labels" in said
    label(tmp_path, None)  # as the original writes it
    assert dry_run(tmp_path) == (0, "")


def test_a_source_with_classes_asks_for_cond(tmp_path):
    rows = [[name, i % 2] for i, name in enumerate(numbered(8))]
    data = label(folder(tmp_path / "data", numbered(8)), rows)
    folder(data, numbered(8), size=(32, 32))
    words = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *TINY]
    source = ROOT / "tests" / "golden" / "c_cond32.pkl"
    result = CliRunner().invoke(train.main, [*words, f"--resume={source}"])
    assert result.exit_code == 2 and "give --cond=1" in result.stderr
    assert "convert" not in result.stderr


PNG_NAMES = numbered(3)
HOSTILE_LABELS = {
    "huge class": (f"[['{PNG_NAMES[0]}', 1{'0' * 30}]]", "it must be a class from 0 to 99999"),
    "class too high": (f"[['{PNG_NAMES[0]}', 1000000000]]", "it must be a class from 0 to 99999"),
    "huge number": (f"[['{PNG_NAMES[0]}', [1{'0' * 400}]]]", "or a list of finite numbers"),
    "past float32": (f"[['{PNG_NAMES[0]}', [1e39]]]", "or a list of finite numbers"),
    "infinite": (f"[['{PNG_NAMES[0]}', [Infinity]]]", "or a list of finite numbers"),
    "too many digits": (f"[['{PNG_NAMES[0]}', 1{'0' * 5000}]]", 'must read {"labels"'),
    "deep": ("[" * 100000, 'must read {"labels"'),
    "deep label": (f"[['{PNG_NAMES[0]}', {'[' * 500}{']' * 500}]]", "or a list of finite"),
    "no text": ("[[1, 2]]", 'must read {"labels"'),
}


@pytest.mark.parametrize("case", HOSTILE_LABELS)
def test_hostile_labels_are_one_line(tmp_path, case):
    text, message = HOSTILE_LABELS[case]
    folder(tmp_path, PNG_NAMES[:1])
    (tmp_path / "dataset.json").write_text('{"labels": ' + text.replace("'", '"') + "}")
    status, said = dry_run(tmp_path, "--cond=1")
    assert status == 2 and message in said and said.count("\n") == 1


def archive(path, method=zipfile.ZIP_DEFLATED, names=PNG_NAMES):
    picture().save(path.parent / "pixels.png")
    with zipfile.ZipFile(path, "w", method) as target:
        for name in names:
            target.write(path.parent / "pixels.png", name)
    return path


def damage(path, what):
    """Damage a ZIP of three images."""
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\1\2")
    if what == "checksum":
        data[directory + 16] ^= 1
    elif what == "size":
        data[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    elif what == "declares 4 GB":
        data[directory + 24 : directory + 28] = b"\xf0\xff\xff\xff"
    elif what == "encrypted":
        data[directory + 8] |= 1
    elif what == "offset":
        data[directory + 42 : directory + 46] = (50).to_bytes(4, "little")
    elif what == "directory":
        data[directory : directory + 4] = b"PK\0\0"
    elif what == "method":
        data[directory + 10 : directory + 12] = (97).to_bytes(2, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("checksum", "1 unreadable: img00000000.png: damaged in "),
        ("size", "1 unreadable: img00000000.png: damaged in "),
        ("declares 4 GB", "MiB, more than the 256 MiB that are read of a file"),
        ("encrypted", "1 unreadable: img00000000.png: encrypted in "),
        ("offset", "1 unreadable: img00000000.png: damaged in "),
        ("directory", "not a complete ZIP"),
        ("method", "1 unreadable: img00000000.png: compressed in a rare way"),
    ],
)
def test_damaged_archives_are_one_line(tmp_path, what, message):
    damage(archive(tmp_path / "a.zip"), what)
    status, said = dry_run(tmp_path / "a.zip")
    assert status == 2 and message in said and said.count("\n") == 1


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_of_rare_compression_are_refused(tmp_path, method):
    status, said = dry_run(archive(tmp_path / "a.zip", method))
    assert status == 2 and "3 unreadable: img00000000.png: compressed in a rare way" in said


def test_names_do_not_steer_the_terminal(tmp_path):
    name = "a\x1b[2J\u202e.png"
    folder(tmp_path, [name, "b.png"])
    (tmp_path / name).write_bytes(b"x")
    status, said = dry_run(tmp_path)
    assert status == 2 and "1 unreadable: a\\x1b[2J\\u202e.png: " in said
    assert "\x1b" not in said and "\u202e" not in said


def test_an_eps_named_png_starts_nothing(tmp_path):
    picture().save(tmp_path / "a.png", "eps")
    status, said = dry_run(tmp_path)
    assert status == 2 and "not a PNG, JPEG or WEBP file" in said
    with pytest.raises(ValueError, match="not a PNG, JPEG or WEBP file"):
        images.rgba(tmp_path / "a.png")


def test_a_dry_run_decodes_nothing(tmp_path):
    path = archive(tmp_path / "a.zip", zipfile.ZIP_STORED)
    data = ImageDataset(path)
    assert not data.is_in_memory
    assert data.keep_decoded() and data.is_in_memory
