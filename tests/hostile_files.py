"""Hostile files over every reader: `python -m tests.hostile_files` says what becomes of each."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from stylegan2_fewshot import tensor_file
from tests import forking, readers
from tests.readers import npz_of, zipped

sys.path.insert(0, str(Path(__file__).parent))
import test_pickles as assembler
from test_pickles import Code, Evil, call, code, legacy, snapshot, storage, with_parameter

Case = tuple[str, str, bytes]  # name, reader, content
GIB = 1 << 30
DEEP = b"[" * 100_000


def cases(marker: Path) -> Iterator[Case]:
    """Yield hostile files; what runs in one of them makes the file `marker`."""
    yield from _networks(marker)
    yield from _archives(marker)
    yield from _tensorflow_and_safetensors()
    for reader in ("companion", "features", "fisher", "directions", "latents"):
        for name, data in _npz(reader):
            yield f"{reader}: {name}", reader, data
    yield from _datasets()
    yield from _images()
    yield from _lines()
    yield from _weights(marker)


# Network pickles


def _networks(marker: Path) -> Iterator[Case]:
    for name, payload in assembler.hostile_files(marker).items():
        yield f"pickle: {name}", "network", snapshot(protocol=4, G=payload)
    for name, (_, make) in assembler.BOMBS.items():
        yield f"pickle: {name}", "network", make()
    for name, payload in _bombs().items():
        yield f"pickle: {name}", "network", snapshot(protocol=4, x=payload)
    arguments = {
        "fp16 layers": {"synthesis_kwargs": {**_WIDTHS, "num_fp16_res": (1 << 31) - 1}},
        "negative fp16 layers": {"synthesis_kwargs": {**_WIDTHS, "num_fp16_res": -(1 << 31) + 1}},
        "clamp of text": {"synthesis_kwargs": {**_WIDTHS, "conv_clamp": "x"}},
        "activation of none": {"mapping_kwargs": {"num_layers": 2, "activation": "x"}},
        "number for arguments": {"synthesis_kwargs": 7},
        "class of 10^9": {"c_dim": 10**9},
        "bank": {"bank": {"size": 10**9, "layers": 5}},
        "bank of text": {"bank": "x"},
        "filter of text": {"synthesis_kwargs": {**_WIDTHS, "resample_filter": "xyz"}},
    }
    for name, changed in arguments.items():
        yield f"arguments: {name}", "network", with_parameter(None, **changed)


_WIDTHS = {"channel_base": 32, "channel_max": 4}


def _bombs() -> dict[str, Code]:
    many = code([0] * 100_000)
    again = b"q\x05" + b"h\x05" * 1000  # puts what is on top of the stack there often
    floats = [1.0] * 100
    for _ in range(5):
        floats = Code(b"](" + code(floats) + again[:200] + b"e")
    numbers = legacy(assembler.numbers(torch.zeros(1000)))
    shared = Code(b"](" + code(numbers) + b"q\x05" + (_from_memo() * 5000) + b"e")
    return {
        "storage of a bytearray": storage(legacy(Evil(bytearray, 3 * GIB))),
        "storage of punycode": storage(legacy(Evil(_encode, "\u0431" * 100_000, "punycode"))),
        "storage of what is none": storage(legacy([1, 2])),
        "storages in storages": call("torch.FloatStorage", floats),
        "list of text as storage": call("torch.FloatStorage", ["1"] * 10),
        "one list as many storages": Code(
            b"](" + many + b"q\x05" + b"ctorch\nFloatStorage\nh\x05\x85R" * 1000 + b"e"
        ),
        "one storage read often": shared,
        "wide tuple as a shape": call(
            "torch._utils._rebuild_tensor_v2", storage(numbers), 0, (1,) * 900, (1,) * 900
        ),
        "tuple of a million": Code(b"(" + b"N" * 900_000 + b"t"),
        "text as a shape": call("torch._utils._rebuild_tensor_v2", storage(numbers), 0, "a", "b"),
        "type of tuples": call("numpy.dtype", _doubled_tuples(60)),
        "type of bytes": call("numpy.dtype", b"f4"),
        "negative offset": call(
            "torch._utils._rebuild_tensor_v2", storage(numbers), -1, (1,), (1,)
        ),
        "huge": call(
            "torch._utils._rebuild_tensor_v2", storage(numbers), 0, (1 << 62,), (1 << 62,)
        ),
    }


def _encode(text: str, name: str) -> bytes:
    return text.encode(name)


_encode.__module__, _encode.__qualname__ = "_codecs", "encode"
if "_codecs" in sys.modules:
    import _codecs

    _encode = _codecs.encode  # type: ignore[assignment]


def _from_memo() -> bytes:
    return b"ctorch.storage\n_load_from_bytes\nh\x05\x85R"


def _doubled_tuples(levels: int) -> Code:
    return Code(b")" + b"q\xfah\xfa\x86" * levels)


# Archives of torch.save: networks of rosinality, checkpoints, weights


def _archives(marker: Path) -> Iterator[Case]:
    evil = Evil(os.system, f"touch {marker}")
    contents = {
        "program": evil,
        "bytearray": {"a": Evil(bytearray, 3 * GIB)},
        "punycode": {"a": Evil(_encode, "\u0431" * 100_000, "punycode")},
        "counter": {"a": collections.Counter({"a": 1})},
        "nothing": None,
        "list": [torch.ones(1)],
        "numbers": {"g_ema": {"a": 1}},
        "no tensors": {"g_ema": {}, "d": {}},
        "resolution": {"g_ema": {}, "d": {}, "init_kwargs": {"G_ema": {"img_resolution": 1 << 40}}},
        "levels": {"g_ema": {f"to_rgbs.{i}.bias": torch.ones(1) for i in range(300)}},
        "one storage": {"g_ema": _views(1000)},
    }
    for name, content in contents.items():
        for reader in ("network", "checkpoint"):
            data = assembler.archive(content)
            yield f"archive for {reader}: {name}", reader, data
        yield f"old format: {name}", "network", legacy(content)
    good = assembler.archive({"g_ema": {"a": torch.zeros(1 << 20)}, "d": {}})
    for reader in ("network", "checkpoint"):
        for name, data in _repacked(good):
            yield f"archive for {reader}: {name}", reader, data
    size = b"J\x00\x00\x10\x00"
    assert size in good
    yield "archive: sizes", "network", good.replace(size, b"J\xff\xff\xff\x7f")


def _views(count: int) -> dict[str, torch.Tensor]:
    base = torch.zeros(512, 512)
    return {f"convs.{i}.conv.weight": base.t() for i in range(count)}


def _repacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    methods = {"deflated": zipfile.ZIP_DEFLATED, "bz2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
    for name, how in methods.items():
        yield name, zipped(members, how)
    large = {n: bytes(1 << 27) if n.endswith("data.pkl") else d for n, d in members.items()}
    yield "index of zeros", zipped(large, zipfile.ZIP_DEFLATED)
    yield "index of zeros that lies", _lying(zipped(large, zipfile.ZIP_DEFLATED), 100)
    yield "encrypted", _flagged(data)
    yield "truncated", data[: len(data) // 2]
    yield "without index", zipped({n: d for n, d in members.items() if "pkl" not in n})
    yield "two indices", zipped({**members, "b/data.pkl": b"N."})


def _lying(data: bytes, size: int) -> bytes:
    """Have every member of a ZIP claim another size."""
    data = bytearray(data)
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        struct.pack_into("<L", data, place + 24, size)
        place = data.find(b"PK\x01\x02", place + 4)
    return bytes(data)


def _flagged(data: bytes) -> bytes:
    """Have every member of a ZIP claim to be encrypted."""
    data = bytearray(data)
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = data.find(mark)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(mark, place + 4)
    return bytes(data)


# TensorFlow's and safetensors


def _tensorflow_and_safetensors() -> Iterator[Case]:
    network = "dnnlib.tflib.network.Network"
    for name, state in {
        "version of lists": {"version": assembler.doubled(60)},
        "no arguments": {"version": 4},
        "arguments of lists": {"version": 4, "static_kwargs": assembler.doubled(60)},
        "variables": {"version": 4, "static_kwargs": {}, "variables": 7, "components": {}},
    }.items():
        one = Code(b"c" + b"\n".join([b"dnnlib.tflib.network", b"Network", b""]) + b")\x81")
        built = assembler.build(one, state)
        data = b"\x80\x03" + code((built, built, built)) + b"."
        yield f"tensorflow: {name}", "network", data
    yield "tensorflow: number", "network", b"\x80\x03" + call(network) + b"."
    names = {str(i): 0 for i in range(30_000)}
    for name, header in {
        "deep": b'{"a":' + DEEP,
        "not of ours": b'{"__metadata__":{}}',
        "networks of a list": _described("[]"),
        "networks of text": _described('"x"'),
        "networks of numbers": _described('{"G": 1}'),
        "deep networks": _described('{"G": ' + "[" * 20_000 + "]" * 20_000 + "}"),
        "many networks": _described(json.dumps(names)),
        "huge number": _described('{"G": {"z_dim": ' + "9" * 4000 + "}}"),
        "infinite": _described('{"G": {"z_dim": 1e999}}'),
        "offsets": b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}',
    }.items():
        yield f"safetensors: {name}", "network", struct.pack("<Q", len(header)) + header
    yield "safetensors: size", "network", struct.pack("<Q", 1 << 62) + b'{"a":1}'


def _described(networks: str) -> bytes:
    metadata = {"format": "stylegan2-fewshot", "networks": networks}
    return json.dumps({"__metadata__": metadata}).encode()


# .npz


def _npz(reader: str) -> Iterator[tuple[str, bytes]]:
    key = {"fisher": "G.a", "latents": "w", "directions": "directions"}.get(reader, "vectors")
    good = npz_of(**{key: np.ones((2, 3), np.float32)}, meta=np.array("{}"))
    yield "junk", b"junk"
    yield "empty", b""
    yield "truncated", good[:-30]
    yield "object", npz_of(**{key: np.array([{}], object)}, meta=np.array("{}"))
    yield "structured", npz_of(**{key: np.zeros(3, [("a", "f4")])}, meta=np.array("{}"))
    headers = {
        "huge shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }",
        "negative shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "many dimensions": f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(1,) * 100}, }}",
        "deep header": "(" * 3000,
        "program": "__import__('os').system('true')",
        "no width": "{'descr': '<U0', 'fortran_order': False, 'shape': (9,), }",
        "wide text": "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (), }",
        "shape of text": "{'descr': '<f4', 'fortran_order': False, 'shape': 'a', }",
    }
    for name, text in headers.items():
        array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
        yield name, zipped({f"{key}.npy": array, "meta.npy": array})
    zeros = {f"{key}.npy": bytes(1 << 27)}
    yield "zeros", zipped(zeros, zipfile.ZIP_DEFLATED)
    yield "zeros that lie", _lying(zipped(zeros, zipfile.ZIP_DEFLATED), 100)
    yield "bz2", zipped({f"{key}.npy": bytes(1 << 20)}, zipfile.ZIP_BZIP2)
    yield "encrypted", _flagged(good)
    for name, meta in {
        "meta of a list": "[]",
        "deep meta": "[" * 100_000,
        "meta of nothing": "",
        "meta of numbers": '{"checksum": 1}',
        "huge number": '{"checksum": ' + "9" * 5000 + "}",
    }.items():
        if reader != "latents":
            yield name, npz_of(**{key: np.ones(2, np.float32)}, meta=np.array(meta))
    if reader == "features":
        yield "many lists", zipped({"meta.npy": _saved(_lists(22))}, zipfile.ZIP_DEFLATED)
    yield from _stamped(reader, key)


def _lists(power: int) -> np.ndarray:
    """Return JSON that becomes 24 times its length in memory."""
    return np.array('{"labels": [' + "[]," * (1 << power) + "[]]}")


def _stamped(reader: str, key: str) -> Iterator[tuple[str, bytes]]:
    """Yield files whose checksum is right, and what it covers is not."""
    if reader == "latents":
        return
    unit = torch.ones(4, 2)
    others = {"deviations": torch.ones(4)} if reader == "directions" else {}
    about, wrong = (_directions if reader == "directions" else _instances)(reader, unit)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        for name, (values, changes) in wrong.items():
            meta = {} if changes is None else {**about, **changes}
            tensor_file.write(path, {key: values, **others}, meta)
            yield name, path.read_bytes()


Wrong = dict[str, tuple[torch.Tensor, dict | None]]  # tensor, changes of what is said about it


def _directions(reader: str, unit: torch.Tensor) -> tuple[dict, Wrong]:
    return {"layers": [0], "network": "0"}, {
        "not finite": (unit * float("inf"), {}),
        "infinite layer": (unit, {"layers": [float("inf")]}),
        "negative layer": (unit, {"layers": [-(1 << 40)]}),
        "layers of text": (unit, {"layers": "ab"}),
        "one number": (unit[0, 0], {}),
        "no network": (unit, None),
    }


def _instances(reader: str, unit: torch.Tensor) -> tuple[dict, Wrong]:
    about = {"backbone": "vgg16", "backbone_sha256": "0", "likelihood": "log sigmoid D(G(z))"}
    about |= {"standard_error": {}, "source_sha256": "0"}
    return about, {
        "other type": (unit.long(), {}),
        "not finite": (unit * float("nan"), {}),
        "negative": (-unit if reader == "fisher" else unit[None, None], {}),
        "no rows": (unit[:0] if reader != "fisher" else unit.bool(), {}),
        "path for a name": (unit if reader != "fisher" else unit.int(), {"backbone": ["a"]}),
        "files of a list": (unit if reader != "fisher" else unit.byte(), {"files": [1]}),
        "no names": (unit, None),
    }


# Data sets and images


def _datasets() -> Iterator[Case]:
    png = readers.png()
    yield "zip: bz2", "dataset", zipped({"0.png": bytes(1 << 24)}, zipfile.ZIP_BZIP2)
    yield "zip: lzma", "dataset", zipped({"0.png": png}, zipfile.ZIP_LZMA)
    zeros = zipped({"0.png": png, "1.png": png[:33] + bytes(1 << 26)}, zipfile.ZIP_DEFLATED)
    yield "zip: zeros", "dataset", zeros
    yield "zip: zeros that lie", "dataset", _lying(zeros, 1000)
    plain = zipped({"0.png": png, "1.png": png})
    yield "zip: encrypted", "dataset", _flagged(plain)
    yield "zip: damaged", "dataset", plain.replace(png, png[:100] + b"x" * (len(png) - 100), 1)
    yield "zip: truncated", "dataset", plain[:-40]
    yield "zip: directory", "dataset", plain.replace(b"PK\x01\x02", b"PK\x01\x03")
    yield "zip: names", "dataset", zipped({"a\x1b[2J\n.png": png, "b.png": b"x"})
    yield "zip: folders above", "dataset", zipped({"../../a.png": png, "b.png": b"x"})
    yield "zip: nothing", "dataset", zipped({})
    yield "zip: text", "dataset", b"PK\x03\x04"
    members = {"0.png": png, "dataset.json": str(_lists(25)).encode()}
    yield "zip: labels", "dataset", zipped(members, zipfile.ZIP_DEFLATED)
    del members  # what a fork begins with counts
    for name, text in {
        "class of 10^30": '{"labels": [["0.png", 1' + "0" * 30 + "]]}",
        "class of 10^9": '{"labels": [["0.png", 1000000000]]}',
        "number of 10^400": '{"labels": [["0.png", [1' + "0" * 400 + "]]]}",
        "huge number": '{"labels": [["0.png", ' + "9" * 5000 + "]]}",
        "negative class": '{"labels": [["0.png", -1]]}',
        "not a number": '{"labels": [["0.png", [NaN]]]}',
        "infinite": '{"labels": [["0.png", [1e999]]]}',
        "deep": '{"labels": ' + "[" * 100_000,
        "deep label": '{"labels": [["0.png", ' + "[" * 500 + "]" * 500 + "]]}",
        "list": "[1]",
        "text": '"x"',
        "no list": '{"labels": 7}',
        "odd entries": '{"labels": [1, ["0.png"], {}]}',
        "label of text": '{"labels": [["0.png", "a"]]}',
        "name of a number": '{"labels": [[0, 1]]}',
        "empty label": '{"labels": [["0.png", []]]}',
        "not UTF-8": "\udcff{",
        "nothing": "",
    }.items():
        data = text.encode(errors="surrogateescape")
        yield f"labels: {name}", "labelled", data


def _images() -> Iterator[Case]:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n"
    png = readers.png()
    yield "image: EPS", "image", eps
    yield "image: WMF", "image", b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(100)
    for kind in ("BMP", "GIF", "TIFF", "PPM", "ICO", "TGA", "PCX", "SGI", "DIB"):
        yield f"image: {kind}", "image", readers.png(kind=kind)
    yield "image: XBM", "image", b"#define x_width 9\n#define x_height 9\n"
    yield "image: truncated", "image", png[: len(png) // 2]
    yield "image: huge", "image", png[:16] + struct.pack(">LL", 1 << 30, 1 << 30) + png[24:]
    yield "image: nothing", "image", b""
    yield "image: junk", "image", b"\x89PNG\r\n\x1a\n" + bytes(1000)
    text = b"tEXt" + b"a" * 10 + b"\0" + b"x" * 100
    for kind, start in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        body = kind + start + zlib.compress(bytes(1 << 27), 1)
        chunk = struct.pack(">L", len(body) - 4) + body + struct.pack(">L", zlib.crc32(body))
        yield f"image: expanding {kind.decode()}", "image", png[:33] + chunk + png[33:]
    yield "image: chunk", "image", png[:33] + struct.pack(">L", 1 << 31) + text + png[33:]


# Lines of JSON, and weights


def _lines() -> Iterator[Case]:
    for name, data in {
        "deep": DEEP,
        "not UTF-8": b"\xff\xfe\n",
        "list": b"[]",
        "text": b'"x"',
        "no results": b'{"kimg": 1}',
        "results of a list": b'{"results": [1]}',
        "no result": b'{"results": {}}',
        "result of text": b'{"results": {"a": "x"}}',
        "kimg of text": b'{"results": {"a": 1}, "kimg": "x"}',
        "name of a list": b'{"results": {"a": 1}, "snapshot_pkl": []}',
        "huge number": b'{"results": {"a": ' + b"9" * 5000 + b"}}",
        "damaged": b'{"results": {"a": 1}',
    }.items():
        yield f"results: {name}", "results", data + b"\n"


def _weights(marker: Path) -> Iterator[Case]:
    evil = Evil(os.system, f"touch {marker}")
    for name, content in {
        "program": evil,
        "objects": {"a": np.array([{}], object)},
        "bytearray": bytearray(100),
        "list": [1],
        "text": "x",
    }.items():
        yield f"arrays: {name}", "arrays", pickle.dumps(content, protocol=5)
        yield f"weights: {name}", "weights", assembler.archive(content)
    yield "arrays: memo", "arrays", b"\x80\x03Nr\xff\xff\xff\x7f."
    yield "arrays: bytes", "arrays", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"."
    yield "labels: huge", "labels", b"\x93NUMPY\x01\x00v\x00" + b"{'descr':'<f4'}"
    yield "labels: junk", "labels", b"junk"
    yield "labels: objects", "labels", _saved(np.array([{}], object))


def _saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def main() -> None:
    """Write a line of JSON for every hostile file, and every valid one."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder, marker = Path(place), Path(place) / "marker"
        (folder / "valid").mkdir()
        valid = readers.valid(folder / "valid")
        table = [(f"valid {n}", reader, data) for n, (reader, data) in valid.items()]
        for number, (name, reader, data) in enumerate([*table, *cases(marker)]):
            path = readers.path_for(folder / str(number), reader, data)
            found = forking.outcome(lambda p=path, r=reader: readers.READERS[r](p))
            told = {
                "name": name,
                "reader": reader,
                "most": readers.most_bytes(reader, data),
                "ran": marker.exists(),
                "file": path.stem,
            }
            print(json.dumps({**told, **asdict(found)}), flush=True)


if __name__ == "__main__":
    main()
