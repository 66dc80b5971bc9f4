"""Every reader of files that strangers write, and a small valid file for each."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import tf_writer

import metrics
from metrics import backbones, weights
from stylegan2_fewshot import npz
from stylegan2_fewshot.augment import AugmentPipe
from stylegan2_fewshot.files import refusing
from stylegan2_fewshot.fisher import file as fisher_file
from stylegan2_fewshot.methods.prior import instances
from training import archive, checkpoint, conditions, images, pickles
from training.dataset import ImageDataset
from training.formats import rosinality, safetensors_file
from training.generation import Directions
from training.networks import Discriminator, Generator

OURS = {"ValueError", "PickleError", "SourceError", "DetectorMissing"}
Reader = Callable[[Path], object]


def _network(path: Path) -> object:
    return pickles.load(path)


def _companion(path: Path) -> object:
    network = path.with_name("net.pkl")
    network.write_bytes(b"")
    path.rename(instances.companion(network))
    return conditions.beside(network)


def _latents(path: Path) -> object:
    with refusing(path, "no .npz file with an array w", "project the image again"):
        return npz.read(path)["w"]


def _labels(path: Path) -> object:
    with refusing(path, "no .npy file of numbers", "write it anew"):
        return npz.read_array(path)


def _checkpoint(path: Path) -> object:
    """A damaged one is passed over, and said to be."""
    path.rename(path.with_name("checkpoint-000001.pt"))
    if (found := checkpoint.load_newest(path.parent)) is None:
        raise ValueError(f"{path}: passed over")
    return found


def _image(path: Path) -> object:
    with images.opened(path, path) as image:
        return images.upright(image).convert("RGB")


def _dataset(path: Path) -> object:
    return ImageDataset(path, use_labels=True)[0]


def _labelled(path: Path) -> object:
    """A folder with this dataset.json."""
    folder = path.with_suffix(".folder")
    folder.mkdir()
    path.rename(folder / "dataset.json")
    (folder / "0.png").write_bytes(png())
    return ImageDataset(folder, use_labels=True)[0]


def _results(path: Path) -> object:
    path.rename(path.with_name("metric-kid1k.jsonl"))
    return metrics.read(path.parent)


READERS: dict[str, Reader] = {
    "network": _network,
    "companion": _companion,
    "features": instances.load,
    "fisher": fisher_file.load,
    "directions": Directions.read,
    "latents": _latents,
    "labels": _labels,
    "checkpoint": _checkpoint,
    "image": _image,
    "dataset": _dataset,
    "labelled": _labelled,
    "results": _results,
    "arrays": weights.read_arrays,
    "weights": backbones.read,
}
SUFFIXES = {"dataset": ".zip", "image": ".png", "labels": ".npy"}  # others: by content


def png(size: int = 16, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.RandomState(0).randint(0, 256, [size, size, 3], dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def networks() -> dict[str, torch.nn.Module]:
    """Return a trio for images of 8x8, of a few kilobytes."""
    torch.manual_seed(0)
    shape = {"c_dim": 0, "img_resolution": 8, "img_channels": 3}
    widths = {"channel_base": 32, "channel_max": 4}
    parts = {"mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": widths}
    G, G_ema = (Generator(z_dim=4, w_dim=4, **parts, **shape) for _ in range(2))
    return {"G": G, "D": Discriminator(**widths, **shape), "G_ema": G_ema}


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how, compresslevel=1) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


def npz_of(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def valid(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return a valid file of every kind by name: its reader and its bytes."""
    nets, found = networks(), {}
    writers = {
        "pkl": lambda p: pickles.save(p, **nets, augment_pipe=AugmentPipe(xflip=1)),
        "pt": lambda p: rosinality.write(p, nets),
        "safetensors": lambda p: safetensors_file.write(p, nets, {"path": "x"}),
    }
    for suffix, write in writers.items():
        write(folder / f"net.{suffix}")
        found[suffix] = "network", (folder / f"net.{suffix}").read_bytes()
    old = torch.load(folder / "net.pt", weights_only=True)
    stream = io.BytesIO()
    torch.save(old, stream, _use_new_zipfile_serialization=False)
    found["old pt"] = "network", stream.getvalue()
    loaded = pickles.load(folder / "net.pkl")
    found["tensorflow"] = "network", tf_writer.tf_pickle(loaded)

    vectors = torch.nn.functional.normalize(torch.randn(4, 6), dim=1)
    meta = {"backbone": "vgg16", "backbone_sha256": "0" * 64}
    kept = instances.Instances(vectors, meta, vectors.mean(0))
    instances.save(folder / "x", kept)
    found["companion"] = "companion", (folder / "x").read_bytes()
    both = instances.Instances(torch.stack([vectors] * 2), {**meta, "files": dict.fromkeys("abcd")})
    instances.save(folder / "x", both)
    found["features"] = "features", (folder / "x").read_bytes()
    about = {"likelihood": fisher_file.LIKELIHOOD, "standard_error": {}, "source_sha256": "0"}
    fisher_file.save(folder / "x", fisher_file.Fisher({"G.a": torch.ones(3)}, about))
    found["fisher"] = "fisher", (folder / "x").read_bytes()
    Directions(vectors, torch.ones(4), (0, 1), "0").write(folder / "x")
    found["directions"] = "directions", (folder / "x").read_bytes()
    found["latents"] = "latents", npz_of(w=np.zeros((1, 4, 8), np.float32))
    stream = io.BytesIO()
    np.save(stream, np.eye(3, dtype=np.float32))
    found["labels"] = "labels", stream.getvalue()
    stream = io.BytesIO()
    torch.save({"G": nets["G"].state_dict(), "cur_nimg": 4, "step": {0: torch.ones(2)}}, stream)
    found["checkpoint"] = "checkpoint", stream.getvalue()
    for kind in ("PNG", "JPEG", "WEBP"):
        found[kind.lower()] = "image", png(kind=kind)
    listed = json.dumps({"labels": [["0.png", 1], ["1.png", 0]]}).encode()
    members = {"0.png": png(), "1.png": png(), "dataset.json": listed}
    found["stored zip"] = "dataset", zipped(members)
    found["deflated zip"] = "dataset", zipped(members, zipfile.ZIP_DEFLATED)
    found["dataset.json"] = "labelled", json.dumps({"labels": [["0.png", [0.5, 1]]]}).encode()
    line = {"results": {"kid1k": 0.5}, "kimg": 1.0, "better": "lower", "metric": "kid1k"}
    found["results"] = "results", json.dumps(line).encode() + b"\n"
    found["arrays"] = "arrays", pickle.dumps({"a": {"kernel": np.ones((2, 3), np.float32)}})
    stream = io.BytesIO()
    torch.save({"features.0.weight": torch.ones(2)}, stream)
    found["weights"] = "weights", stream.getvalue()
    return found


def path_for(folder: Path, reader: str, data: bytes) -> Path:
    """Write a file into a folder of its own, under a name that the reader takes."""
    folder.mkdir()
    path = folder / f"file{SUFFIXES.get(reader, '.bin')}"
    path.write_bytes(data)
    return path


def most_bytes(reader: str, data: bytes) -> int:
    """Return how much memory reading a file may take at its peak; docs/files.md states it."""
    return (64 << 20) + _believed(reader, data) + 8 * len(data)


def _believed(reader: str, data: bytes) -> int:
    """Return the bytes that a header claims, which reading may take, up to the reader's limit."""
    if reader == "dataset":
        return archive.MOST_BYTES
    if reader == "image":
        with contextlib.suppress(ValueError):
            header = images.header(data, "")
            return 16 * header.width * header.height
    return 0
