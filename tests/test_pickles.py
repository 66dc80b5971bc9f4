"""Network pickles: read as the original writes them, written as it reads them, never run."""

from __future__ import annotations

import copyreg
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan2_fewshot.augment import AugmentPipe
from training import pickles
from training.networks import Discriminator, Generator
from training.pickles import PickleError

GOLDEN = Path(__file__).parent / "golden"
SHAPE = {"c_dim": 0, "img_resolution": 8, "img_channels": 3}


def small_networks(d_kwargs=(), g_synthesis=()):
    """A trio for images of 8x8 with a few kilobytes."""
    torch.manual_seed(0)
    synthesis = {"channel_base": 32, "channel_max": 4, **dict(g_synthesis)}
    g = {"z_dim": 4, "w_dim": 4, "mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": synthesis}
    D = Discriminator(channel_base=32, channel_max=4, **dict(d_kwargs), **SHAPE)
    return {"G": Generator(**g, **SHAPE), "D": D, "G_ema": Generator(**g, **SHAPE)}


def assert_same(a, b):
    assert type(a) is type(b)
    assert a.init_kwargs == b.init_kwargs
    for (name, x), (other, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert (name, x.stride(), x.dtype) == (other, y.stride(), y.dtype)
        assert torch.equal(x, y)


# A small assembler for pickles.


class Code(bytes):
    """Opcodes that leave one value."""


def code(value):
    if isinstance(value, Code):
        return value
    if isinstance(value, dict):
        return b"}" + b"".join(code(k) + code(v) + b"s" for k, v in value.items())
    if isinstance(value, tuple):
        return b"(" + b"".join(map(code, value)) + b"t"
    return pickle.dumps(value, protocol=3)[2:-1]


def name(path):
    module, _, attribute = path.rpartition(".")
    return Code(f"c{module}\n{attribute}\n".encode())


def call(path, *args):
    return Code(name(path) + code(args) + b"R")


def build(value, state):
    return Code(code(value) + code(state) + b"b")


def network(net, source="", class_name=None, **state):
    parts = {"_init_args": (), "_init_kwargs": net.init_kwargs, "_modules": {}}
    parts["_parameters"] = {k: p.detach() for k, p in net.named_parameters()}
    parts["_buffers"] = dict(net.named_buffers())
    meta = {"type": "class", "version": 6, "module_src": source}
    meta |= {"class_name": class_name or type(net).__name__, "state": parts | state}
    return call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def snapshot(protocol=3, **entries):
    nets = {k: network(net) for k, net in small_networks().items() if k not in entries}
    content = {"training_set_kwargs": None, "augment_pipe": None, **nets, **entries}
    return b"\x80" + bytes([protocol]) + code(content) + b"."


def tensor(value, storage):
    strides = torch.empty(value).stride() if isinstance(value, tuple) else ()
    return call("torch._utils._rebuild_tensor_v2", storage, 0, value, strides, False, {})


def storage(data):
    return call("torch.storage._load_from_bytes", data)


def with_parameter(value, key="mapping.fc0.bias", **init_kwargs):
    """A snapshot whose G has another tensor, or other arguments."""
    G = small_networks()["G"]
    params = {k: p.detach() for k, p in G.named_parameters()}
    if value is not None:
        params[key] = value
    return snapshot(G=network(G, _parameters=params, _init_kwargs=G.init_kwargs | init_kwargs))


def load(tmp_path, data):
    path = tmp_path / "network.pkl"
    path.write_bytes(data)
    return pickles.load(path)


def refusal(tmp_path, data):
    with pytest.raises(PickleError) as caught:
        load(tmp_path, data)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'network.pkl'}: ")
    assert "\n" not in message
    assert len(message) < 600
    return message


# Reading what the original wrote.


@pytest.mark.parametrize("stem", ["d_orig", "c_cond32"])
def test_original_pickle_has_its_tensors(stem):
    nets, ref = pickles.load(GOLDEN / f"{stem}.pkl"), np.load(GOLDEN / f"{stem}.npz")
    for key, want in json.loads(str(ref["shapes"])).items():
        net = getattr(nets, key)
        tensors = [*net.named_parameters(), *net.named_buffers()]
        assert {n: list(t.shape) for n, t in tensors} == want
        assert not net.training
        assert not any(t.requires_grad or t.is_meta for _, t in tensors)


@pytest.mark.parametrize("stem", ["d_orig", "c_cond32"])
def test_original_pickle_gives_its_images_and_logits(stem):
    nets, ref = pickles.load(GOLDEN / f"{stem}.pkl"), np.load(GOLDEN / f"{stem}.npz")
    z, c, d_img, d_c = (torch.from_numpy(ref[k]) for k in ("z", "c", "d_img", "d_c"))
    img = nets.G_ema(z, c, noise_mode="const", force_fp32=True).numpy()
    logits = nets.D(d_img, d_c, force_fp32=True).numpy()
    assert np.abs(img - ref["img"]).max() < 2e-5 * np.abs(ref["img"]).max()
    assert np.abs(logits - ref["logits"]).max() < 2e-5 * np.abs(ref["logits"]).max()


def test_original_pickle_gives_plain_settings():
    nets = pickles.load(GOLDEN / "c_cond32.pkl")
    assert nets.training_set_kwargs["class_name"] == "training.dataset.ImageFolderDataset"
    assert type(nets.training_set_kwargs) is dict
    assert nets.G.init_kwargs["synthesis_kwargs"]["channel_base"] == 1024
    assert float(nets.augment_pipe.p) == pytest.approx(0.086, abs=1e-3)
    assert nets.augment_pipe.init_kwargs["xint"] == 1


def test_loading_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    pickles.load(GOLDEN / "d_orig.pkl")
    assert torch.equal(torch.get_rng_state(), before)


def test_one_object_under_two_keys_becomes_two_networks(tmp_path):
    G = network(small_networks()["G"])  # tools that convert networks write such files
    content = {
        "G": Code(G + b"q\xfa"),
        "G_ema": Code(b"h\xfa"),
        "D": network(small_networks()["D"]),
    }
    nets = load(tmp_path, b"\x80\x03" + code(content) + b".")
    nets.G.mapping.w_avg.fill_(7)
    assert (nets.G_ema.mapping.w_avg != 7).all()


def test_augment_pipe_and_training_set_may_be_absent(tmp_path):
    content = {key: network(net) for key, net in small_networks().items()}
    nets = load(tmp_path, b"\x80\x03" + code(content) + b".")
    assert nets.augment_pipe is None
    assert nets.training_set_kwargs is None


def test_layers_nest_and_positional_arguments_count(tmp_path):
    D = small_networks()["D"]
    kwargs = dict(D.init_kwargs)
    args = tuple(kwargs.pop(key) for key in ("c_dim", "img_resolution", "img_channels"))
    layers = {}
    for key, layer in D.named_children():
        layer.init_kwargs = {}
        layers[key] = network(layer)
    nested = network(
        D, _init_args=args, _init_kwargs=kwargs, _modules=layers, _parameters={}, _buffers={}
    )
    loaded = load(tmp_path, snapshot(D=nested)).D
    assert loaded.init_kwargs == {**kwargs, **SHAPE}
    assert torch.equal(loaded.b8.conv0.weight, D.b8.conv0.weight)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize(
    ("kind", "order", "value"), [("f8", "<", 256.0), ("f4", ">", 256.0), ("i8", "<", 256)]
)
def test_numpy_numbers_become_plain(tmp_path, module, kind, order, value):
    state = (3, order, None, None, None, -1, -1, 0)
    dtype = build(call("numpy.dtype", kind, False, True), state)
    number = call(f"{module}.scalar", dtype, np.array(value, order + kind).tobytes())
    got = load(tmp_path, snapshot(training_set_kwargs={"n": number})).training_set_kwargs["n"]
    assert got == value
    assert type(got) is type(value)


def test_older_names(tmp_path):
    listed = call("torch.FloatStorage", [1.0, 2.0, 3.0, 4.0])
    easy = Code(name("dnnlib.util.EasyDict") + b")\x81" + code("path") + code("x.zip") + b"s")
    ordered = Code(call("collections.OrderedDict") + code("k") + code(1) + b"s")
    G = small_networks()["G"]
    params = {k: p.detach() for k, p in G.named_parameters()}
    params["mapping.fc0.bias"] = call(
        "torch._utils._rebuild_parameter", tensor((4,), listed), True, ordered
    )
    unused = {"_non_persistent_buffers_set": call("builtins.set", [])}
    nets = load(
        tmp_path, snapshot(G=network(G, _parameters=params, **unused), training_set_kwargs=easy)
    )
    assert nets.G.mapping.fc0.bias.tolist() == [1, 2, 3, 4]
    assert nets.training_set_kwargs == {"path": "x.zip"}


def test_half_precision_tensors_are_widened(tmp_path):
    nets = load(tmp_path, with_parameter(torch.tensor([0.5, 1, 2, 3]).half()))
    assert nets.G.mapping.fc0.bias.dtype == torch.float32
    assert nets.G.mapping.fc0.bias.tolist() == [0.5, 1, 2, 3]


# What is written is read again.


@pytest.mark.parametrize("stem", ["d_orig", "c_cond32"])
def test_golden_round_trip_is_exact(tmp_path, stem):
    first = pickles.load(GOLDEN / f"{stem}.pkl")
    pickles.save(tmp_path / "x.pkl", **vars(first))
    second = pickles.load(tmp_path / "x.pkl")
    for key in ("G", "D", "G_ema", *(["augment_pipe"] if first.augment_pipe else [])):
        assert_same(getattr(first, key), getattr(second, key))
    assert second.training_set_kwargs == first.training_set_kwargs
    assert [p.name for p in tmp_path.iterdir()] == ["x.pkl"]


@pytest.mark.parametrize(
    ("d_kwargs", "g_synthesis"),
    [
        ({"block_kwargs": {"freeze_layers": 3}}, {}),
        (
            {"num_fp16_res": 1, "block_kwargs": {"fp16_channels_last": True}},
            {"num_fp16_res": 1, "fp16_channels_last": True, "conv_clamp": 256},
        ),
        ({"architecture": "skip"}, {"architecture": "resnet"}),
    ],
    ids=["freeze_d", "channels_last", "architectures"],
)
def test_variants_round_trip(tmp_path, d_kwargs, g_synthesis):
    nets = small_networks(d_kwargs, g_synthesis)
    pipe = AugmentPipe(xflip=1, hue=0.5)
    pipe.p.fill_(0.25)
    pickles.save(tmp_path / "x.pkl", **nets, augment_pipe=pipe)
    loaded = pickles.load(tmp_path / "x.pkl")
    for key, net in {**nets, "augment_pipe": pipe}.items():
        assert_same(net, getattr(loaded, key))
        assert dict(net.named_buffers()).keys() == dict(getattr(loaded, key).named_buffers()).keys()


def test_channels_last_of_the_file_is_kept(tmp_path):
    nets = small_networks()
    weight = nets["D"].b8.conv0.weight
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    pickles.save(tmp_path / "x.pkl", **nets)
    assert pickles.load(tmp_path / "x.pkl").D.b8.conv0.weight.stride() == weight.stride()


def test_no_running_mean_of_w(tmp_path):
    nets = small_networks()
    kwargs = {**nets["G"].init_kwargs, "mapping_kwargs": {"num_layers": 2, "w_avg_beta": None}}
    nets["G"] = Generator(**kwargs)
    pickles.save(tmp_path / "x.pkl", **nets)
    names = pickles.load(tmp_path / "x.pkl").G.state_dict()
    assert not any("w_avg" in key for key in names)


def test_numpy_settings_are_written_as_plain_numbers(tmp_path):
    settings = {"resolution": np.int64(8), "ratio": np.float64(0.5), "flags": [np.bool_(True)]}
    pickles.save(tmp_path / "x.pkl", **small_networks(), training_set_kwargs=settings)
    assert b"numpy" not in (tmp_path / "x.pkl").read_bytes()
    loaded = pickles.load(tmp_path / "x.pkl").training_set_kwargs
    assert loaded == {"resolution": 8, "ratio": 0.5, "flags": [True]}


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"old")
    nets = small_networks()
    with pytest.raises(ValueError, match="D must be a Discriminator, got a Generator"):
        pickles.save(path, **{**nets, "D": nets["G"]})
    nets["G"].mapping.fc0.bias = torch.nn.Parameter(torch.zeros(5))
    with pytest.raises(ValueError, match=r"G has mapping.fc0.bias of shape \[5\].*give \[4\]"):
        pickles.save(path, **nets)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.pkl"]


# What is written loads elsewhere, through the persistence call.

PERSISTENCE = """
import types
def _reconstruct_persistent_obj(meta):
    module = types.ModuleType('loaded')
    exec(meta['module_src'], module.__dict__)
    cls = module.__dict__[meta['class_name']]
    net = cls.__new__(cls)
    net.__setstate__(meta['state'])
    return net
"""
HOST = """
import json, torch
TENSORS = json.load(open('tensors.json'))
class Host(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.kwargs = kwargs
        for name, shape in TENSORS[type(self).__name__].items():
            *path, leaf = name.split('.')
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(leaf, torch.nn.Parameter(torch.zeros(shape)))
class Generator(Host): pass
class Discriminator(Host): pass
class AugmentPipe(Host): pass
"""
PROBE = """
import json, pickle
nets = pickle.load(open('x.pkl', 'rb'))
def facts(net):
    again = type(net).__new__(type(net))
    again.__setstate__(net.__dict__)  # what a copy by the host amounts to
    sums = {k: t.double().sum().item() for k, t in again.state_dict().items()}
    frozen = not net.training and not any(p.requires_grad for p in net.parameters())
    return {'class': type(net).__name__, 'kwargs': again.kwargs, 'sums': sums, 'frozen': frozen}
print(json.dumps({k: v if k == 'training_set_kwargs' else facts(v) for k, v in nets.items()}))
"""


def load_elsewhere(folder, networks_module):
    nets = {**small_networks(), "augment_pipe": AugmentPipe(xflip=1)}
    pickles.save(folder / "x.pkl", **nets, training_set_kwargs={"path": "x.zip"})
    tensors = {
        type(net).__name__: {k: list(t.shape) for k, t in net.state_dict().items()}
        for net in nets.values()
    }
    (folder / "tensors.json").write_text(json.dumps(tensors))
    for path, content in {
        "torch_utils/persistence.py": PERSISTENCE,
        f"training/{networks_module}.py": HOST,
        "training/augment.py": HOST,
        "probe.py": PROBE,
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(content)
    command = [sys.executable, "probe.py"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return nets, json.loads(result.stdout)


def test_file_loads_through_the_persistence_call(tmp_path):
    nets, seen = load_elsewhere(tmp_path, "networks")
    assert seen.pop("training_set_kwargs") == {"path": "x.zip"}
    assert list(seen) == ["G", "D", "G_ema", "augment_pipe"]
    for key, net in nets.items():
        sums = {k: t.double().sum().item() for k, t in net.state_dict().items()}
        kwargs = net.init_kwargs
        want = {"class": type(net).__name__, "kwargs": kwargs, "sums": sums, "frozen": True}
        assert seen[key] == want


def test_stylegan3_receives_flat_arguments(tmp_path):
    nets, seen = load_elsewhere(tmp_path, "networks_stylegan2")
    kwargs = dict(nets["G"].init_kwargs)
    flat = kwargs.pop("synthesis_kwargs")
    assert seen["G"]["kwargs"] == {"num_fp16_res": 0, "conv_clamp": None, **kwargs, **flat}


# Hostile files. Each would create `marker` if anything in it ran.


class Evil:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def numbers(tensor):
    return torch.storage.TypedStorage(
        wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
    )


def legacy(value):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def archive(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def hostile_files(marker):
    touch, source = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    run = call("os.system", touch)
    evil = Evil(os.system, touch)
    dtype = call("numpy.dtype", "O", False, True)
    slots = (None, {"__setstate__": name("collections.OrderedDict")})
    return {
        "system": run,
        "posix": call("posix.system", touch),
        "eval": call("builtins.eval", source),
        "exec": call("builtins.exec", source),
        "python2": call("__builtin__.eval", source),
        "getattr": Code(
            b"(" + call("builtins.getattr", name("os"), "system") + code(touch) + b"tR"
        ),
        "dotted": Code(b"\x8c\x05torch\x8c\x09os.system\x93" + code((touch,)) + b"R"),
        "partial": call("functools.partial", name("os.system"), touch),
        "copyreg": call("copyreg._reconstructor", name("subprocess.Popen"), name("object"), None),
        "torch_load": call("torch.load", str(marker)),
        "storage_legacy": storage(legacy(evil)),
        "storage_pickle": storage(pickle.dumps(evil, protocol=2)),
        "storage_eval": storage(legacy(Evil(eval, source))),
        "storage_archive": storage(archive(evil)),
        "storage_other": storage(legacy({"a": 1})),
        "array": call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), (0,), b"b"),
        "object_dtype": call("numpy.core.multiarray.scalar", dtype, pickle.dumps(evil)),
        "object_dtype_state": call(
            "numpy.core.multiarray.scalar",
            build(call("numpy.dtype", "f8"), (3, "O", None, None, None, -1, -1, 0)),
            pickle.dumps(evil),
        ),
        "build_name": build(name("torch.storage._load_from_bytes"), slots),
        "build_class": build(name("dnnlib.util.EasyDict"), slots),
        "build_dict": build(call("collections.OrderedDict"), {"items": name("builtins.set")}),
        "build_tensor": build(tensor((1,), storage(legacy(numbers(torch.ones(1))))), (1, 2)),
        "persistent_id": Code(b"Pmarker\n"),
        "binary_persistent_id": Code(code(touch) + b"Q"),
        "extension": Code(b"\x82\xf0"),
        "inst": Code(f"(S'{touch}'\nios\nsystem\n".encode()),
        "obj": Code(b"(" + name("os.system") + code(touch) + b"o"),
        "tensorflow": call("dnnlib.tflib.network.Network"),
    }


@pytest.fixture
def cached_extension():
    """A process that has used pickle's extension codes answers them without asking for names."""
    copyreg.add_extension("os", "system", 0xF0)
    pickle.loads(b"\x82\xf0.")
    yield
    copyreg.remove_extension("os", "system", 0xF0)
    copyreg.clear_extension_cache()


@pytest.mark.parametrize("case", hostile_files(""))
@pytest.mark.parametrize("key", ["extra", "training_set_kwargs", "G"])
@pytest.mark.usefixtures("cached_extension")
def test_hostile_file_is_refused_and_does_not_run(tmp_path, case, key):
    marker = tmp_path / "marker"
    payload = hostile_files(marker)[case]
    refusal(tmp_path, snapshot(protocol=4, **{key: payload}))
    assert not marker.exists()
    load(tmp_path, snapshot())  # nor has the file spoilt the reader


def test_a_refusal_names_what_was_refused(tmp_path):
    assert "refused os.system" in refusal(tmp_path, snapshot(x=call("os.system", "true")))
    nested = storage(legacy(Evil(os.system, "true")))
    assert "refused a storage: refused posix.system" in refusal(tmp_path, snapshot(x=nested))
    assert "opcode EXT1" in refusal(tmp_path, snapshot(x=Code(b"\x82\xf0")))
    tf = call("dnnlib.tflib.network.Network")
    assert "TensorFlow" in refusal(tmp_path, snapshot(x=tf))


def test_source_text_is_never_run(tmp_path):
    marker = tmp_path / "marker"
    source = f"open({str(marker)!r}, 'w').close()"
    nets = load(tmp_path, snapshot(G=network(small_networks()["G"], source=source)))
    assert isinstance(nets.G, Generator)
    assert not marker.exists()


# Files that would eat memory or time.


def doubled(levels):
    """A list of lists that unfolds to 2**levels strings, from few bytes."""
    opcodes = code("x" * 100)
    for _ in range(levels):
        opcodes = b"](" + opcodes + b"q\x05h\x05e"
    return Code(opcodes)


def deep_modules(levels):
    """A module tree that unfolds to 2**levels modules without tensors."""
    G, empty = small_networks()["G"], {"_parameters": {}, "_buffers": {}}
    layer = network(G, **empty)
    for _ in range(levels):
        children = Code(b"}" + code("a") + layer + b"q\xfas" + code("b") + b"h\xfas")
        layer = network(G, **empty, _modules=children)
    return layer


def huge_storage():
    data = legacy(numbers(torch.ones(4, dtype=torch.uint8)))
    return data.replace(b"K\x04", b"J\xff\xff\xff\x7f")


BOMBS = {
    "doubled_list": (
        "nested or numerous",
        lambda: snapshot(training_set_kwargs={"a": doubled(60)}),
    ),
    "deep_list": (
        "nested or numerous",
        lambda: snapshot(training_set_kwargs={"a": Code(b"]" * 20000 + b"a" * 19999)}),
    ),
    "modules": ("more than 10000 layers", lambda: snapshot(G=deep_modules(60))),
    "memo_gap": ("memo with gaps", lambda: snapshot(x=Code(b"Nr\xff\xff\xff\x7f"))),
    "bytearray": (
        "only 2 remain",
        lambda: snapshot(5, x=Code(b"\x96" + struct.pack("<Q", 1 << 40))),
    ),
    "bytes": ("only 2 remain", lambda: snapshot(4, x=Code(b"\x8e" + struct.pack("<Q", 1 << 40)))),
    "frame": (
        "truncated",
        lambda: snapshot(4, x=Code(b"\x95" + struct.pack("<Q", 1 << 40) + b"N")),
    ),
    "copies": (
        "positional argument",
        lambda: snapshot(x=call("collections.OrderedDict", {"a": 1})),
    ),
    "opcodes": ("1000000 opcodes", lambda: snapshot(x=Code(b"](" + b"N" * 1_000_001 + b"e"))),
    "huge_key": ("no text", lambda: snapshot(x=Code(b"})" + b"\x85" * 500_000 + b"Ns"))),
    "keys": ("no text", lambda: snapshot(x=Code(b"})" + b"q\xfah\xfa\x86" * 60 + b"Ns"))),
    "storage": (
        "larger than its data",
        lambda: with_parameter(tensor((4,), storage(huge_storage()))),
    ),
    "expanded": ("larger than its storage", lambda: with_parameter(torch.ones(1).expand(4))),
    "layers": (
        "num_layers is",
        lambda: with_parameter(None, mapping_kwargs={"num_layers": 1 << 30}),
    ),
    "resolution": ("cannot be built", lambda: with_parameter(None, img_resolution=1 << 30)),
    "width": ("its arguments give", lambda: with_parameter(None, z_dim=1 << 30)),
    "big_int": ("int among", lambda: with_parameter(None, z_dim=1 << 40)),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bomb_is_refused_at_once(tmp_path, case):
    words, make = BOMBS[case]
    data = make()
    start = time.process_time()
    assert words in refusal(tmp_path, data)
    assert time.process_time() - start < 5


def test_tensors_may_not_overlap_beyond_the_size_of_the_file(tmp_path):
    G = small_networks()["G"]
    flat = storage(legacy(numbers(torch.zeros(20000))))
    one = Code(tensor((20000,), flat) + b"q\xfa")
    params = {"p0": one} | {f"p{i}": Code(b"h\xfa") for i in range(1, 100)}
    assert "overlap" in refusal(tmp_path, snapshot(G=network(G, _parameters=params)))


# Files that are damaged, or something else.


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(tmp_path, share):
    data = (GOLDEN / "d_orig.pkl").read_bytes()
    words = "damaged" if share else "is not a network file"
    assert words in refusal(tmp_path, data[: int(share * len(data))])


def test_truncation_anywhere_in_a_small_file(tmp_path):
    data = snapshot()
    for length in range(0, len(data), 997):
        refusal(tmp_path, data[:length])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG\r\n\x1a\n", "is not a network file"),
        (b"<html>404</html>", "is not a network file"),
        (pickle.dumps([1, 2], protocol=3), "holds a list"),
        (pickle.dumps({"a": 1}, protocol=3), "holds no G, D, G_ema"),
        (pickle.dumps({"G": 1, "D": 2, "G_ema": 3}, protocol=3), "G is a int"),
        (snapshot(D=None), "holds no D"),
        (snapshot(training_set_kwargs=[1]), "training_set_kwargs is a list"),
        (snapshot(augment_pipe=network(AugmentPipe(), class_name="Pipe")), "'Pipe', not a Augment"),
        (snapshot(G=network(small_networks()["D"])), "G is a 'Discriminator', not a Generator"),
        (with_parameter(torch.zeros(5)), r"mapping.fc0.bias of shape \[5\], .* give \[4\]"),
        (with_parameter(torch.zeros(4), key="mapping.x"), "unknown tensor 'mapping.x'"),
        (with_parameter(torch.zeros(4).int()), "of type torch.int32"),
        (with_parameter(3.5), "float in _parameters"),
        (with_parameter(None, colour=1), "Generator.*'colour'"),
        (with_parameter(None, mapping_kwargs={"speed": 1}), "G cannot be built: .*'speed'"),
        (with_parameter(None, synthesis_kwargs={"speed": 1}), "G cannot be built: .*'speed'"),
        (with_parameter(None, img_resolution="8"), "G cannot be built"),
        (snapshot(G=network(small_networks()["G"], _parameters=7)), "_parameters of a 'Generator'"),
        (snapshot(G=network(small_networks()["G"], _init_kwargs=[])), "G cannot be built"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, data, words):
    assert re.search(words, refusal(tmp_path, data))


def test_missing_tensor_is_named(tmp_path):
    G = small_networks()["G"]
    params = {k: p.detach() for k, p in G.named_parameters() if k != "synthesis.b4.const"}
    message = refusal(tmp_path, snapshot(G=network(G, _parameters=params)))
    assert "G lacks tensor 'synthesis.b4.const'" in message
