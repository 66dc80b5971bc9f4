from __future__ import annotations

import io
import json
import pickle
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from training.dataset import ImageDataset, InfiniteSampler


def image(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)


def encoded(picture: Image.Image, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, files: dict[str, bytes]) -> Path:
    """Write `files` as a folder or, where the path says so, a ZIP."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


FILES = {f"{'sub/' * (i % 2)}{i}.png": encoded(image(i)) for i in range(5)}
ORDER = ["0.png", "2.png", "4.png", "sub/1.png", "sub/3.png"]


def with_labels(labels: object) -> dict[str, bytes]:
    return {**FILES, "dataset.json": json.dumps({"labels": labels}).encode()}


@pytest.fixture(params=["set", "set.zip"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def test_items_are_the_pixels_in_order_of_names(place: Path) -> None:
    data = ImageDataset(write(place, FILES))
    assert data.file_names == ORDER
    assert data.image_shape == [3, 8, 8]
    for index, seed in enumerate([0, 2, 4, 1, 3]):
        img, label = data[index]
        assert img.dtype == np.uint8
        np.testing.assert_array_equal(img.transpose(1, 2, 0), np.asarray(image(seed)))
        assert label.shape == (0,)
        assert label.dtype == np.float32
    assert len(list(data)) == 5


@pytest.mark.parametrize(
    ("source", "mode", "channels"),
    [
        ("RGB", "L", 1),
        ("RGB", "1", 1),
        ("RGB", "RGB", 3),
        ("RGB", "P", 3),
        ("RGBA", "P", 4),
        ("RGBA", "LA", 4),
        ("RGBA", "RGBA", 4),
    ],
)
def test_channels_follow_from_what_the_files_show(
    place: Path, source: str, mode: str, channels: int
) -> None:
    picture = image(mode=source).convert(mode)
    data = ImageDataset(write(place, {"a.png": encoded(picture)}))
    assert data.num_channels == channels
    expected = np.asarray(picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    np.testing.assert_array_equal(data[0][0].transpose(1, 2, 0).squeeze(), expected)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats(place: Path, kind: str) -> None:
    data = ImageDataset(write(place, {f"a.{kind}": encoded(image(), kind)}))
    assert data[0][0].shape == (3, 8, 8)


def test_mirror_appends_flipped_copies(place: Path) -> None:
    data = ImageDataset(write(place, FILES), xflip=True)
    assert len(data) == 10
    for index in range(5):
        np.testing.assert_array_equal(data[index + 5][0], data[index][0][:, :, ::-1])
        assert data.locate(index + 5) == (index, True)
        assert data.locate(index) == (index, False)


def test_subset_is_the_seeds_choice(place: Path) -> None:
    write(place, FILES)
    shuffled = np.arange(5)
    np.random.RandomState(7).shuffle(shuffled)
    data = ImageDataset(place, max_size=3, seed=7)
    assert [data.locate(i)[0] for i in range(3)] == sorted(shuffled[:3])
    assert len(ImageDataset(place, max_size=9)) == 5
    assert len(ImageDataset(place, max_size=3, xflip=True)) == 6
    with pytest.raises(ValueError, match="max_size must be at least 1, got 0"):
        ImageDataset(place, max_size=0)


def test_large_sets_are_read_file_by_file(place: Path) -> None:
    stored = ImageDataset(write(place, FILES), xflip=True)
    assert stored.keep_decoded() and stored.is_in_memory
    streamed = ImageDataset(place, xflip=True)
    assert not streamed.keep_decoded(5 * 3 * 8 * 8 - 1) and not streamed.is_in_memory
    for (ours, _), (theirs, _) in zip(stored, streamed, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    loader = DataLoader(streamed, batch_size=5, num_workers=2)
    images = torch.cat([img for img, _ in loader])
    torch.testing.assert_close(images, torch.stack([torch.tensor(img) for img, _ in stored]))


def test_pickles(place: Path) -> None:
    data = ImageDataset(write(place, FILES))
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again[3][0], data[3][0])
    assert again.content_hash() == data.content_hash()


def test_items_are_the_callers_own(place: Path) -> None:
    data = ImageDataset(write(place, FILES))
    before = data[0][0].copy()
    data[0][0][:] = 0
    np.testing.assert_array_equal(data[0][0], before)


def test_hidden_files_are_passed_over(place: Path) -> None:
    hidden = {"__MACOSX/._0.png": b"x", ".thumbs/0.png": b"x", "notes.txt": b"x"}
    assert ImageDataset(write(place, {**FILES, **hidden})).file_names == ORDER


def test_classes_become_one_hot(place: Path) -> None:
    write(place, with_labels([[name, i % 3] for i, name in enumerate(ORDER)]))
    data = ImageDataset(place, use_labels=True, xflip=True)
    assert data.has_onehot_labels
    assert data.label_dim == 3
    np.testing.assert_array_equal(data.get_label(4), [0, 1, 0])
    np.testing.assert_array_equal(data[9][1], [0, 1, 0])
    assert data.get_label(0).dtype == np.float32
    assert ImageDataset(place).label_dim == 0


def test_vectors_stay_as_they_are(place: Path) -> None:
    write(place, with_labels([[name, [i, 0.5]] for i, name in enumerate(ORDER)]))
    data = ImageDataset(place, use_labels=True)
    assert data.label_dim == 2
    assert not data.has_onehot_labels
    np.testing.assert_array_equal(data.get_label(3), np.float32([3, 0.5]))


PNG = encoded(image())
BAD_FILES = {
    "wide": (image(size=(8, 4)), "1 not square: b.png (8x4)"),
    "odd": (
        image(size=(12, 12)),
        "1 with a side that is not one of 4, 8, 16, ... 4096: b.png (12x",
    ),
    "tiny": (
        image(size=(2, 2)),
        "1 with a side that is not one of 4, 8, 16, ... 4096: b.png (2x2)",
    ),
    "huge": (
        Image.new("1", (8192, 8192)),
        "1 with a side that is not one of 4, 8, 16, ... 4096: b",
    ),
    "size": (image(size=(16, 16)), "several sizes: 2 8x8 (a.png, c.png); 1 16x16 (b.png)"),
    "grey": (image(mode="L"), "several modes: 2 RGB (a.png, c.png); 1 L (b.png)"),
    "alpha": (image(mode="RGBA"), "several modes: 2 RGB (a.png, c.png); 1 RGBA (b.png)"),
    "deep": (Image.new("I;16", (8, 8)), "1 16-bit, not 8-bit grey, RGB or RGBA: b.png"),
    "junk": (b"no image", "1 unreadable: b.png: cannot be read as an image (not a PNG, JPEG or"),
    "empty": (b"", "1 unreadable: b.png: cannot be read as an image (not a PNG, JPEG or WEBP"),
    "cut": (PNG[: len(PNG) // 2], "1 unreadable: b.png: cannot be read as an image ("),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named(place: Path, case: str) -> None:
    bad, message = BAD_FILES[case]
    data = bad if isinstance(bad, bytes) else encoded(bad)
    write(place, {"a.png": PNG, "b.png": data, "c.png": PNG})
    with pytest.raises(ValueError) as caught:
        ImageDataset(place)
    text = str(caught.value)
    assert text.startswith(f"{place}: 3 images, but")
    assert f" {message}" in text
    assert f"make a data set of them: python -m tools.prepare {place} set" in text


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_cut_off_file_is_found_in_every_format(place: Path, kind: str) -> None:
    data = encoded(image(size=(64, 64)), kind)
    write(place, {f"a.{kind}": data[: len(data) * 2 // 3]})
    with pytest.raises(ValueError, match=rf"a\.{kind}: cannot be read as an image"):
        ImageDataset(place)


def test_a_jpeg_with_a_trailer_is_fine(place: Path) -> None:
    data = encoded(image(), "jpeg") + b"written by a camera"
    assert len(ImageDataset(write(place, {"a.jpg": data}))) == 1


def test_bytes_damaged_in_a_zip_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "set.zip", FILES)
    damaged = path.read_bytes().replace(FILES["2.png"][60:80], bytes(20))
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"1 unreadable: 2\.png: damaged in .*its checksum"):
        ImageDataset(path)


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone: no such folder or ZIP"):
        ImageDataset(tmp_path / "gone")
    write(tmp_path, {"text.zip.txt": b"text"})
    with pytest.raises(ValueError, match="neither a folder nor a complete ZIP"):
        ImageDataset(tmp_path / "text.zip.txt")
    cut = write(tmp_path / "cut.zip", FILES)
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(ValueError, match="neither a folder nor a complete ZIP; name one of images"):
        ImageDataset(cut)
    with pytest.raises(ValueError, match="no images in it"):
        ImageDataset(write(tmp_path / "none.zip", {"notes.txt": b"text"}))


ALL = [[name, 0] for name in ORDER]
BAD_LABELS = {
    "none": (None, "dataset.json: must read"),
    "number": (3, "dataset.json: must read"),
    "flat": (["0.png", 3], "dataset.json: must read"),
    "missing": (ALL[:-2], "dataset.json: no label for sub/1.png, sub/3.png; label every"),
    "null": ([*ALL[:-1], [ORDER[-1], None]], "dataset.json: no label for sub/3.png; label every"),
    "negative": ([[n, -1] for n in ORDER], "dataset.json: the label of 0.png is -1; it must be"),
    "real": ([[n, 0.5] for n in ORDER], "dataset.json: the label of 0.png is 0.5; it must be"),
    "text": ([[n, "cat"] for n in ORDER], "dataset.json: the label of 0.png is 'cat'; it must be"),
    "nan": ([[n, [float("nan")]] for n in ORDER], "dataset.json: the label of 0.png is [nan]; it"),
    "kinds": (
        [*ALL[:-1], [ORDER[-1], [0.5]]],
        "dataset.json: sub/3.png has a list of 1, but 0.png has a class; give all",
    ),
    "lengths": (
        [[n, [0] * (1 + (n == "4.png"))] for n in ORDER],
        "dataset.json: 4.png has a list of 2, but 0.png has a list of 1; give all",
    ),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_named(place: Path, case: str) -> None:
    labels, message = BAD_LABELS[case]
    write(place, with_labels(labels))
    with pytest.raises(ValueError) as caught:
        ImageDataset(place, use_labels=True)
    assert str(caught.value).startswith(message)
    assert len(ImageDataset(place)) == 5


def test_labels_that_are_not_there(place: Path) -> None:
    with pytest.raises(ValueError, match=r"has no dataset\.json, so there are no labels to use"):
        ImageDataset(write(place, FILES), use_labels=True)
    write(place, {**FILES, "dataset.json": b"{"})
    with pytest.raises(ValueError, match=r"dataset\.json: must read"):
        ImageDataset(place, use_labels=True)


def test_hash_depends_on_names_bytes_and_mirror_only(tmp_path: Path) -> None:
    one = ImageDataset(write(tmp_path / "one", FILES))
    assert one.content_hash() == ImageDataset(write(tmp_path / "two.zip", FILES)).content_hash()
    others = [
        ImageDataset(tmp_path / "one", xflip=True),
        ImageDataset(tmp_path / "one", max_size=4),
        ImageDataset(write(tmp_path / "three.zip", {**FILES, "0.png": encoded(image(9))})),
        ImageDataset(write(tmp_path / "four.zip", {f"x{n}": d for n, d in FILES.items()})),
    ]
    hashes = [other.content_hash() for other in (one, *others)]
    assert len(set(hashes)) == 5
    assert all(len(value) == 64 for value in hashes)


def draw(count: int, **arguments: int) -> list[int]:
    return list(islice(InfiniteSampler(10, **arguments), count))


def test_each_epoch_shows_every_index_once_in_an_order_of_its_own() -> None:
    epochs = np.array(draw(50)).reshape(5, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (5, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert draw(50, seed=1) != draw(50)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_one_stream_out(world_size: int) -> None:
    streams = [draw(12, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [i for turn in zip(*streams, strict=True) for i in turn] == draw(12 * world_size)


@pytest.mark.parametrize("start", [0, 1, 10, 32, 64])
def test_a_stream_resumed_is_the_rest_of_the_stream(start: int) -> None:
    assert draw(40, start_index=start) == draw(40 + start)[start:]
    half = draw(20, start_index=start, rank=1, world_size=2)
    assert half == draw(40 + start)[start + 1 :: 2]


def test_the_order_never_changes_between_releases() -> None:
    assert draw(10) == [7, 1, 0, 6, 8, 2, 5, 3, 4, 9]


def test_feeds_a_loader(place: Path) -> None:
    data = ImageDataset(write(place, FILES))
    sampler = InfiniteSampler(len(data), seed=3)
    batches = DataLoader(data, batch_size=4, sampler=sampler, num_workers=2)
    images = torch.cat([img for img, _ in islice(batches, 3)])
    expected = [torch.tensor(data[i][0]) for i in islice(sampler, 12)]
    torch.testing.assert_close(images, torch.stack(expected))


def test_identity_changes_with_what_training_sees(tmp_path: Path) -> None:
    rows = [[name, 0] for name in ORDER]
    files = with_labels(rows)
    one = ImageDataset(write(tmp_path / "one", files)).identity()
    assert one == ImageDataset(write(tmp_path / "two.zip", files)).identity()
    assert json.loads(json.dumps(one)) == one
    assert (one["images"], one["resolution"], one["channels"], one["label_dim"]) == (5, 8, 3, 0)
    other_pixels = {**files, "0.png": encoded(image(9))}
    other_name = {("9.png" if n == "0.png" else n): d for n, d in FILES.items()}
    for name, changed in (("three.zip", other_pixels), ("four", other_name)):
        other = ImageDataset(write(tmp_path / name, changed)).identity()
        assert {key for key in one if one[key] != other[key]} == {"files"}
    labelled = ImageDataset(tmp_path / "one", use_labels=True).identity()
    write(tmp_path / "one", with_labels([*rows[1:], [ORDER[0], 1]]))
    relabelled = ImageDataset(tmp_path / "one", use_labels=True).identity()
    differing = {key for key in one if labelled[key] != relabelled[key]}
    assert differing == {"labels", "label_dim"}
