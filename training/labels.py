"""Labels of images in `dataset.json`, whatever the program that wrote it calls the images."""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from stylegan2_fewshot.files import printable, refusing

from .archive import Source

FILE = "dataset.json"
MOST_CLASSES = 100_000
MOST_BYTES = 2**26  # of JSON, whose values take up to 24 times as much memory
_LARGEST = float(np.finfo(np.float32).max)
_FORM = 'must read {"labels": [["name.png", label], ...]}'


def find(source: Source) -> int | None:
    """Return the number of the file of labels: at the top, or in the one folder that is there."""
    top = common_folder([name for name in source.names if PurePosixPath(name).name != FILE])
    for place in (FILE, top + FILE):
        if place in source.names:
            return source.names.index(place)
    return None


def is_empty(source: Source, number: int) -> bool:
    """Return whether a file of labels is the one that the original writes where there are none."""
    return source.size(number) < 100 and b"null" in source.read(number)


def read(source: Source, number: int, images: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the labels of images, and what is to be said about them.

    Args:
        source: Where the file of labels is.
        number: Which of its files that is.
        images: Names of the images.

    Returns:
        Classes, int64 `[N]`, or float32 `[N, label_dim]`; and lines of text.

    Raises:
        ValueError: The file is not of that form, or does not fit the images.
    """
    if (size := source.size(number)) > MOST_BYTES:
        raise ValueError(f"{FILE}: {size >> 20} MiB; at most {MOST_BYTES >> 20} MiB of it are read")
    with refusing(FILE, _FORM, "write it anew"):
        rows = json.loads(source.read(number))["labels"]
        rows = [(_plain(name), label) for name, label in rows]
    _refuse_twice(rows)
    table = dict(rows)
    keys = _matching(images, table)
    missing = [image for image, key in zip(images, keys, strict=True) if table.get(key) is None]
    spare = sorted(table.keys() - set(keys))
    if missing:
        raise ValueError(
            f"{FILE}: no label for {_some(missing)}; label every image or none"
            + _about_spare(spare, images)
        )
    labels = _array(images, [table[key] for key in keys])
    notes = [f"{FILE}: no image for {_some(spare)}"] if spare else []
    return labels, notes + _about_classes(labels)


def common_folder(names: Iterable[str]) -> str:
    """Return the folder, with its slash, that all names are in, or an empty text."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    first, last = min(folders, default=()), max(folders, default=())
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return "".join(f"{part}/" for part in first[:same])


def _plain(name: str) -> str:
    return re.sub(r"^(\./)+", "", name.replace("\\", "/"))


def _refuse_twice(rows: Sequence[tuple[str, Any]]) -> None:
    counts = Counter(name for name, _ in rows)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        given = " and ".join(reprlib.repr(label) for name, label in rows if name == twice[0])
        raise ValueError(
            f"{FILE}: listed more than once: {_some(twice)}; {printable(twice[0])} as {given}. "
            "An image has one class; to give it several, label every image with a list of numbers, "
            'one per class, as ["name.png", [1, 0, 1]]'
        )


def _matching(images: Sequence[str], table: dict[str, Any]) -> list[str]:
    """Return what the table calls each image: the folder that all are in may be left out or not."""
    names = [_plain(image) for image in images]
    folder, listed = common_folder(names), common_folder(table)
    bare = [name.removeprefix(folder) for name in names]
    forms = (names, bare, [listed + name for name in bare], [listed + name for name in names])
    return max(forms, key=lambda form: sum(name in table for name in form))


def _about_spare(spare: Sequence[str], images: Sequence[str]) -> str:
    if not spare:
        return ""
    text = f". Entries without image: {_some(spare)}"
    found = _alike(spare, images, _without_suffix) or _alike(spare, images, _stem)
    if found is None:
        return text
    entry, image = map(printable, found)
    return f"{text}; suffixes differ: {image} is listed as {entry}"


def _alike(
    spare: Sequence[str], images: Sequence[str], key: Callable[[str], str]
) -> tuple[str, str] | None:
    """Return the first entry whose key is that of an image, and that image."""
    known = {key(image): image for image in images}
    return next(((entry, known[key(entry)]) for entry in spare if key(entry) in known), None)


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(_plain(name)).with_suffix(""))


def _stem(name: str) -> str:
    return PurePosixPath(_plain(name)).stem


def _array(images: Sequence[str], labels: Sequence[Any]) -> np.ndarray:
    kind = _kind(images[0], labels[0])
    for image, label in zip(images, labels, strict=True):
        found = _kind(image, label)
        if found != kind:
            raise ValueError(
                f"{FILE}: {printable(image)} has {found}, but {printable(images[0])} has {kind}; "
                "give all images labels of one kind and length"
            )
    return np.array(labels, np.int64 if kind == "a class" else np.float32)


def _kind(image: str, label: Any) -> str:
    if type(label) is int and 0 <= label < MOST_CLASSES:
        return "a class"
    if isinstance(label, list) and label and all(map(_is_number, label)):
        return f"a list of {len(label)}"
    raise ValueError(
        f"{FILE}: the label of {printable(image)} is {printable(reprlib.repr(label))}; it must be "
        f"a class from 0 to {MOST_CLASSES - 1} or a list of finite numbers"
    )


def _is_number(value: Any) -> bool:
    if type(value) not in (int, float):
        return False
    return bool(abs(value) <= _LARGEST)  # False for NaN, too


def _about_classes(labels: np.ndarray) -> list[str]:
    if labels.dtype != np.int64:
        return []
    empty = empty_classes(labels)
    if not empty:
        return []
    which = ", ".join(map(str, empty[:3])) + (", ..." if len(empty) > 3 else "")
    are = "class {} has no images" if len(empty) == 1 else f"{len(empty)} classes have none: {{}}"
    advice = "number classes from 0 on, or its pictures will mean nothing"
    return [f"{FILE}: {are.format(which)} ({int(labels.max()) + 1} classes in all); {advice}"]


def empty_classes(labels: np.ndarray) -> list[int]:
    """Return the classes below the highest that none of the labels, int64 `[N]`, names."""
    return [int(c) for c in np.flatnonzero(np.bincount(labels) == 0)]


def _some(names: Sequence[str]) -> str:
    """Return up to three names, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
