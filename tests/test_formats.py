"""Checkpoint formats: converted exactly, refused in one line, never run."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import sys
import tempfile
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import tf_writer
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_pickles import Evil, archive, assert_same, hostile_files, legacy, small_networks
from torch import nn

from stylegan2_fewshot.augment import AugmentPipe
from tools import convert
from training import pickles
from training.formats import rosinality
from training.networks import Discriminator, Generator
from training.pickles import PickleError

safetensors = pytest.importorskip("safetensors.torch")

GOLDEN = Path(__file__).parent / "golden"
LABELS = 3
WIDTH = dict(channel_base=128, channel_max=16)


def networks(c_dim=0, conv_clamp=None):
    """A trio for images of 16x16 with all its tensors away from where they start."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    shape = dict(c_dim=c_dim, img_resolution=16, img_channels=3)
    width = dict(**WIDTH, conv_clamp=conv_clamp)
    mapping = dict(num_layers=2)
    g = dict(z_dim=8, w_dim=8, mapping_kwargs=mapping, synthesis_kwargs=width, **shape)
    labels = dict(mapping_kwargs=mapping) if c_dim else {}
    nets = {"G": Generator(**g), "D": Discriminator(**width, **labels, **shape)}
    nets["G_ema"] = Generator(**g)
    for net in nets.values():
        for tensor in net.state_dict(keep_vars=True).values():
            if tensor.ndim < 2:  # multiples of 1/64, which 1 can be taken from without rounding
                step = torch.randint(-32, 32, tensor.shape, generator=rng) / 64
                tensor.data += step
        net.eval().requires_grad_(False)
    return nets


def run_convert(*arguments):
    return CliRunner().invoke(convert.main, [str(argument) for argument in arguments])


def converted(source, target):
    result = run_convert(source, target)
    assert result.exit_code == 0, result.output
    return target


def refusal(tmp_path, data, name="network.bin"):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(PickleError) as caught:
        pickles.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 600
    return message


def images(G):
    z = torch.from_numpy(np.random.RandomState(0).randn(3, G.z_dim)).float()
    c = torch.eye(G.c_dim)[torch.arange(3) % G.c_dim] if G.c_dim else None
    return G(z, c, truncation_psi=0.7, noise_mode="const", force_fp32=True)


def saved(folder, **nets):
    pickles.save(folder / "first.pkl", **nets)
    return folder / "first.pkl"


# Round trips.


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_official_to_another_and_back_is_exact(tmp_path, suffix):
    first = saved(tmp_path, **networks(conv_clamp=256))
    between = converted(first, tmp_path / f"between{suffix}")
    before, after = pickles.load(first), pickles.load(converted(between, tmp_path / "last.pkl"))
    for key in ("G", "D", "G_ema"):
        assert_same(getattr(before, key), getattr(after, key))
    assert torch.equal(images(before.G_ema), images(after.G_ema))


@pytest.mark.parametrize("stem", ["d_orig", "c_cond32"])
def test_safetensors_keep_all_of_a_golden_file(tmp_path, stem):
    before = pickles.load(GOLDEN / f"{stem}.pkl")
    between = converted(GOLDEN / f"{stem}.pkl", tmp_path / "x.safetensors")
    after = pickles.load(converted(between, tmp_path / "last.pkl"))
    for key in ("G", "D", "G_ema", *(["augment_pipe"] if before.augment_pipe else [])):
        assert_same(getattr(before, key), getattr(after, key))
    assert after.training_set_kwargs == before.training_set_kwargs


def test_layout_of_half_precision_networks_survives(tmp_path):
    last = dict(num_fp16_res=1, conv_clamp=256)
    nets = small_networks({**last, "block_kwargs": {"fp16_channels_last": True}}, last)
    first = saved(tmp_path, **nets)
    for suffix in (".safetensors", ".pt"):
        again = pickles.load(converted(first, tmp_path / f"x{suffix}"))
        assert_same(nets["D"], again.D)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("c_dim", [0, LABELS])
def test_tensorflow_pickle_is_read_exactly(tmp_path, protocol, c_dim):
    nets = networks(c_dim)
    path = tmp_path / "tf.pkl"
    path.write_bytes(tf_writer.tf_pickle(Namespace(**nets), protocol))
    read = pickles.load(converted(path, tmp_path / "official.pkl"))
    for key, net in nets.items():
        have = getattr(read, key).state_dict()
        assert have.keys() == net.state_dict().keys()
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, have[name]), name
    assert (images(nets["G_ema"]) - images(read.G_ema)).abs().max() <= 1e-5
    img, c = images(nets["G_ema"]), torch.eye(LABELS)
    logits = [D(img, c if c_dim else None, force_fp32=True) for D in (nets["D"], read.D)]
    assert (logits[0] - logits[1]).abs().max() <= 1e-5


def test_tensorflow_pickle_holds_no_text_that_ran(tmp_path):
    data = tf_writer.tf_pickle(Namespace(**networks()))
    assert b"raise SystemExit" in data
    (tmp_path / "tf.pkl").write_bytes(data)
    assert isinstance(pickles.load(tmp_path / "tf.pkl").G, Generator)


@pytest.mark.parametrize("c_dim", [pytest.param(0, marks=pytest.mark.slow), LABELS])
def test_onnx_gives_the_images(tmp_path, c_dim):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    nets = networks(c_dim)
    target = tmp_path / "g.onnx"
    assert "opset 18" in run_convert(saved(tmp_path, **nets), target).output
    assert [entry.version for entry in onnx.load(target).opset_import if not entry.domain] == [18]
    z = np.random.RandomState(0).randn(3, 8).astype(np.float32)
    inputs = {"z": z, "truncation_psi": np.array(0.7, np.float32)}
    inputs |= {"c": np.eye(LABELS, dtype=np.float32)} if c_dim else {}
    session = runtime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (img,) = session.run(["img"], inputs)
    assert np.abs(img - images(nets["G_ema"]).numpy()).max() <= 1e-4


# Rosinality's files, as its own code writes them: no arguments, and much besides.


def written():
    """What `rosinality.write` writes of the networks: their tensors, by its names for them."""
    with tempfile.TemporaryDirectory() as folder:
        rosinality.write(Path(folder) / "x.pt", networks())
        content = torch.load(Path(folder) / "x.pt", weights_only=True)
    return {theirs: content[theirs] for theirs in rosinality.KEYS.values()}


def checkpoint(c=None, **changes):
    """What its training saves, from what `rosinality.write` writes."""
    stream = io.BytesIO()
    content = dict(args=Namespace(size=16), ada_aug_p=0.25)
    content["g_optim"] = torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()
    content |= written()
    content["g_optim"]["state"] = {0: {"step": torch.tensor(1.0)}}
    content.update(changes)
    save = c or torch.save
    save({key: value for key, value in content.items() if value is not None}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoint_without_arguments(tmp_path, zipped):
    mean = torch.linspace(-1, 1, 8)
    data = checkpoint(
        lambda *a: torch.save(*a, _use_new_zipfile_serialization=zipped), latent_avg=mean[None]
    )
    (tmp_path / "x.pt").write_bytes(data)
    read, nets = pickles.load(tmp_path / "x.pt"), networks()
    nets["G_ema"].mapping.w_avg.copy_(mean)
    assert torch.equal(images(nets["G_ema"]), images(read.G_ema))
    img = images(nets["G_ema"])
    assert torch.equal(nets["D"](img, None), read.D(img, None))


def test_mean_of_w_is_measured_where_it_is_missing(tmp_path):
    (tmp_path / "x.pt").write_bytes(checkpoint())
    first, again = (pickles.load(tmp_path / "x.pt").G_ema.mapping for _ in range(2))
    assert torch.equal(first.w_avg, again.w_avg)
    ws = first(torch.randn(20000, 8, generator=torch.Generator().manual_seed(5)), None)[:, 0]
    assert ((ws.mean(0) - first.w_avg).abs() < 5 * ws.std(0) / 4096**0.5).all()
    assert first.w_avg.abs().max() > 0


def test_names_of_parallel_training_are_read(tmp_path):
    data = checkpoint(d={f"module.{name}": tensor for name, tensor in written()["d"].items()})
    (tmp_path / "x.pt").write_bytes(data)
    read = pickles.load(tmp_path / "x.pt").D
    assert torch.equal(read.b16.conv0.weight, networks()["D"].b16.conv0.weight)


def changed(key, name, tensor):
    state = {**written()[key], name: tensor}
    return checkpoint(**{key: {n: t for n, t in state.items() if t is not None}})


def with_arguments(**kwargs):
    return checkpoint(init_kwargs={"G": networks()["G"].init_kwargs | kwargs})


def with_filter(taps):
    return with_arguments(synthesis_kwargs={**WIDTH, "resample_filter": taps})


def with_mapping(**kwargs):
    return with_arguments(mapping_kwargs={"num_layers": 2, **kwargs})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: archive({"a": 1}), "without the state dict g_ema"),
        (lambda: legacy([1]), "without the state dict g_ema"),
        (lambda: checkpoint(d=None), "holds no G, D; that is enough to draw images"),
        (lambda: checkpoint(g=torch.ones(2)), "g is not a state dict"),
        (lambda: checkpoint(d={"x": 1}), "d is not a state dict"),
        (lambda: changed("g", "style.2.bias", None), "g lacks tensor 'style.2.bias'"),
        (lambda: changed("d", "final_conv.0.weight", None), "lacks tensor 'final_conv.0.weight'"),
        (lambda: changed("d", "extra", torch.ones(1)), "d has an unknown tensor 'extra'"),
        (
            lambda: changed("g", "conv1.noise.weight", torch.ones(2)),
            "with too few 1s",
        ),
        (
            lambda: changed("g", "style.1.weight", torch.ones(8)),
            "g is not a network of rosinality's",
        ),
        (lambda: changed("g", "style.1.bias", torch.ones(9)), r"G has mapping.fc0.bias of shape"),
        (lambda: changed("g", "to_rgbs.0.upsample.kernel", torch.ones(4, 4)), "another filter"),
        (lambda: changed("g", "to_rgbs.0.upsample.kernel", torch.ones(2, 2)), "another filter"),
        (lambda: changed("g", "conv1.conv.weight", torch.ones(1, 5, 16, 3, 3)), "fall irregularly"),
        (lambda: checkpoint(latent_avg=torch.zeros(9)), r"G has mapping.w_avg of shape \[9\]"),
        (lambda: checkpoint(init_kwargs={"G": {"img_resolution": 1 << 40}}), "img_resolution is"),
        (lambda: checkpoint(init_kwargs={"G": {"img_resolution": 16}}), "G cannot be built"),
        (lambda: with_mapping(activation=3), "G has arguments that do not run: .* got 3"),
        (lambda: with_filter([1] * 5000), "lacks tensor 'synthesis.b16.conv0.resample_filter'"),
    ],
)
def test_what_does_not_fit_in_a_checkpoint_is_named(tmp_path, make, words):
    assert re.search(words, refusal(tmp_path, make()))


@pytest.mark.parametrize(
    ("nets", "words"),
    [
        (lambda: networks(c_dim=LABELS), "G has c_dim 3; rosinality's networks know 0 alone"),
        (lambda: small_networks({"architecture": "skip"}), "D has architecture 'skip'"),
        (lambda: small_networks((), {"use_noise": False}), "G has use_noise False"),
        (lambda: small_networks((), {"resample_filter": [1, 2, 1]}), "has resample_filter"),
        (
            lambda: small_networks({"epilogue_kwargs": {"activation": "relu"}}),
            "D has activation 'relu'",
        ),
    ],
)
def test_what_rosinality_does_not_know_is_named(tmp_path, nets, words):
    result = run_convert(saved(tmp_path, **nets()), tmp_path / "x.pt")
    assert result.exit_code == 2
    assert words in result.output
    assert result.output.count("\n") <= 2
    assert not (tmp_path / "x.pt").exists()


def test_what_a_checkpoint_leaves_out_is_told(tmp_path):
    nets = dict(networks(conv_clamp=256), augment_pipe=AugmentPipe(xflip=1))
    output = run_convert(saved(tmp_path, **nets), tmp_path / "x.pt").output
    assert "left out: augment_pipe" in output
    assert "conv_clamp" in output
    assert "feature maps" in output


# TensorFlow pickles.


def tf_changed(variables=(), state=(), **static_kwargs):
    """A TensorFlow pickle whose D differs."""
    nets = networks()
    trio = [tf_writer.generator(nets["G"]), tf_writer.discriminator(nets["D"])]
    attributes = vars(trio[1])
    attributes["static_kwargs"] |= static_kwargs
    attributes["variables"] += list(dict(variables).items())
    attributes |= dict(state)
    return tf_writer.dumps((*trio, trio[0]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tf_changed(colour=1), "D has the TensorFlow argument 'colour'"),
        (lambda: tf_changed({"16x16/New/weight": np.ones(1)}), "variable '16x16/New/weight'"),
        (lambda: tf_changed({"Output/bias": np.ones(2, np.float32)}), "b4.out.bias of shape"),
        (lambda: tf_changed({"Output/bias": [1.0]}), "variable 'Output/bias' is not an array"),
        (lambda: tf_changed(state={"version": 3}), "of version 3; 4 is needed"),
        (lambda: tf_changed(state={"variables": []}), "D lacks tensor"),
        (lambda: tf_changed(state={"variables": 7}), "damaged TensorFlow pickle"),
        (lambda: tf_changed(resolution="16"), "D cannot be built"),
        (lambda: tf_changed(state={"components": {"a": tf_writer.Network({}, {})}}), "network 'a'"),
        (lambda: tf_writer.dumps((tf_writer.Network({}, {}),) * 2), "none of three networks"),
        (lambda: tf_writer.dumps(tf_writer.Network({}, {})), "none of three networks"),
    ],
)
def test_what_does_not_fit_in_a_tensorflow_pickle_is_named(tmp_path, make, words):
    assert re.search(words, refusal(tmp_path, make()))


def test_one_array_under_many_names_is_refused(tmp_path):
    many = {f"Mapping{number}/weight": np.ones([9, 100000], np.float32) for number in (0,)}
    one = many["Mapping0/weight"]
    many |= {f"Mapping{number}/weight": one for number in range(1, 2000)}
    assert "overlap" in refusal(tmp_path, tf_changed(many))


# Safetensors.


def header(metadata=None, size=None, **tensors):
    text = json.dumps({"__metadata__": metadata or {}, **tensors}).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


def described(networks_json, **others):
    return header({"format": "stylegan2-fewshot", "networks": networks_json, **others})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(), "without the metadata format=stylegan2-fewshot"),
        (header(size=1 << 60), "damaged safetensors file"),
        (header(size=5), "damaged safetensors file"),
        (header(x={"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}), "damaged"),
        (described("{"), "damaged safetensors file"),
        (described("[" * 100_000), "damaged safetensors file"),
        (described("[]"), "holds no G, D, G_ema"),
        (described("7"), "damaged safetensors file"),
        (described('["G"]'), "damaged safetensors file"),
        (described('{"G": 3}'), "arguments that are no JSON object"),
        (described('{"G": {}, "D": {}, "G_ema": {}}'), "G cannot be built"),
        (
            described('{"G": {}, "D": {}, "G_ema": {}}', training_set_kwargs="[1]"),
            "cannot be built",
        ),
    ],
)
def test_what_does_not_fit_in_safetensors_is_named(tmp_path, data, words):
    assert words in refusal(tmp_path, data)


def safetensors_bytes(**changes):
    nets = networks()
    tensors = {f"{k}.{n}": t for k, net in nets.items() for n, t in net.state_dict().items()}
    kwargs = {key: net.init_kwargs | changes for key, net in nets.items()}
    return safetensors.save(
        tensors, {"format": "stylegan2-fewshot", "networks": json.dumps(kwargs)}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"img_resolution": 32}, "G lacks tensor"),
        ({"z_dim": 1 << 30}, "its arguments give"),
        ({"z_dim": 1 << 40}, "refused int"),
        ({"mapping_kwargs": {"num_layers": 1 << 30}}, "num_layers is"),
        ({"speed": 1}, "'speed'"),
    ],
)
def test_arguments_that_do_not_fit_the_tensors_are_refused(tmp_path, changes, words):
    assert words in refusal(tmp_path, safetensors_bytes(**changes))


# Pickles of stylegan3's StyleGAN2 networks have other defaults, and nest otherwise.


def stylegan3_pickle(**g_kwargs):
    from test_pickles import call, code, network

    nets = small_networks({"num_fp16_res": 4, "conv_clamp": 256}, {"num_fp16_res": 4})
    marker = call(
        "torch_utils.persistence._reconstruct_persistent_obj",
        {"class_name": "FullyConnectedLayer", "state": {"in_features": 4, "_parameters": {}}},
    )
    content = {}
    for key, net in nets.items():
        kwargs = {k: v for k, v in net.init_kwargs.items() if k not in ("num_fp16_res",)}
        kwargs |= {**kwargs.pop("synthesis_kwargs", {}), **({} if key == "D" else g_kwargs)}
        kwargs.pop("conv_clamp", None)
        kwargs.pop("num_fp16_res", None)
        content[key] = network(net, _init_kwargs=kwargs, _modules={"marker": marker})
    return b"\x80\x03" + code(content) + b"."


def test_stylegan3_pickle_gives_arguments_of_this_project(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(stylegan3_pickle(fused_modconv_default="inference_only"))
    nets = pickles.load(path)
    width = dict(channel_base=32, channel_max=4, num_fp16_res=4, conv_clamp=256)
    assert nets.G_ema.init_kwargs["synthesis_kwargs"] == width
    assert nets.G_ema.init_kwargs["mapping_kwargs"] == dict(num_layers=2, w_avg_beta=0.998)
    assert nets.D.init_kwargs["conv_clamp"] == 256
    assert nets.D.b8.use_fp16


def test_networks_of_stylegan3_itself_are_refused_by_their_option(tmp_path):
    message = refusal(tmp_path, stylegan3_pickle(magnitude_ema_beta=0.999))
    assert "G cannot be built" in message
    assert "magnitude_ema_beta" in message


# Hostile files of every format.


def hostile_checkpoint(payload):
    """An archive of torch.save whose pickle is one of test_pickles' hostile ones."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}X\x05\x00\x00\x00g_ema" + payload + b"s.")
    return stream.getvalue()


def hostile_tensorflow(payload):
    start = b"\x80\x03cdnnlib.tflib.network\nNetwork\n)\x81}X\x01\x00\x00\x00x"
    return start + payload + b"sb."


@pytest.mark.parametrize("case", hostile_files(""))
@pytest.mark.parametrize("wrap", [hostile_checkpoint, hostile_tensorflow])
def test_hostile_pickle_inside_is_refused_and_does_not_run(tmp_path, wrap, case):
    marker = tmp_path / "marker"
    refusal(tmp_path, wrap(hostile_files(marker)[case]))
    assert not marker.exists()


@pytest.mark.parametrize("form", [archive, legacy])
def test_hostile_call_in_a_checkpoint_does_not_run(tmp_path, form):
    marker = tmp_path / "marker"
    message = refusal(tmp_path, form({"g_ema": Evil(os.system, f"touch {marker}")}))
    assert "refused posix.system" in message
    assert not marker.exists()


def test_compressed_bomb_is_refused(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10_000_000))
    assert "compressed" in refusal(tmp_path, stream.getvalue())


def test_storage_larger_than_its_data_is_refused(tmp_path):
    data = legacy({"g_ema": torch.ones(4)})
    grown = data.replace(b"K\x04N", b"J\xff\xff\xff\x7fN")
    assert grown != data
    assert "larger than" in refusal(tmp_path, grown)


# Damaged files: only our own error, whatever the bytes are.

SEEDS = {
    "official": lambda: (GOLDEN / "d_orig.pkl").read_bytes(),
    "stylegan3": stylegan3_pickle,
    "tensorflow": lambda: tf_writer.tf_pickle(Namespace(**networks())),
    "checkpoint": checkpoint,
    "legacy": lambda: checkpoint(lambda *a: torch.save(*a, _use_new_zipfile_serialization=False)),
    "safetensors": safetensors_bytes,
}


@pytest.fixture(scope="module")
def seeds():
    return {name: make() for name, make in SEEDS.items()}


EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 30), st.integers(0, 3), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)


def edited(data, edits):
    """Overwrite, insert, delete or cut at places that are often among the opcodes."""
    data = bytearray(data)
    for place, kind, piece in edits:
        size = len(data) if place % 2 else min(len(data), 3000)
        at = (place // 2) % max(size, 1)
        if kind == 0:
            data[at : at + len(piece)] = piece
        elif kind == 1:
            data[at:at] = piece
        elif kind == 2:
            del data[at : at + len(piece)]
        else:
            del data[len(data) - at // 2 :]
    return bytes(data)


@pytest.mark.parametrize("form", SEEDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pickletools, about odd escapes
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=EDITS)
def test_damaged_file_raises_nothing_else(tmp_path, seeds, form, edits):
    path = tmp_path / "x"
    path.write_bytes(edited(seeds[form], edits))
    try:
        pickles.load(path)
    except PickleError as error:
        assert "\n" not in str(error)


@settings(max_examples=60, deadline=None)
@given(
    start=st.sampled_from([b"PK\x03\x04", b"\x80\x02", b"\x80\x04cdnnlib.tflib.network\n", b""]),
    rest=st.binary(max_size=300),
)
def test_noise_raises_nothing_else(tmp_path_factory, start, rest):
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(start + rest)
    with pytest.raises(PickleError):
        pickles.load(path)


# The command.


def test_conditions_go_along(tmp_path):
    source = saved(tmp_path, **networks())
    source.with_suffix(".prior.npz").write_bytes(b"conditions")
    assert run_convert(source, tmp_path / "other.safetensors").exit_code == 0
    assert (tmp_path / "other.prior.npz").read_bytes() == b"conditions"


def test_command_refuses_an_unknown_suffix(tmp_path):
    result = run_convert(saved(tmp_path, **networks()), tmp_path / "x.h5")
    assert result.exit_code == 2
    assert "its suffix must be one of .pkl, .pt, .safetensors, .onnx" in result.output


def test_command_says_which_file_is_missing(tmp_path):
    result = run_convert(tmp_path / "none.pt", tmp_path / "x.pkl")
    assert result.exit_code == 2
    assert "no such file" in result.output


@pytest.mark.parametrize(
    ("package", "suffix"), [("safetensors", ".safetensors"), ("onnxruntime", ".onnx")]
)
def test_missing_package_is_named(tmp_path, monkeypatch, package, suffix):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.torch", None)
    result = run_convert(saved(tmp_path, **networks()), tmp_path / f"x{suffix}")
    assert result.exit_code == 2
    assert f"pip install {'onnx ' if suffix == '.onnx' else ''}" in result.output
    assert package in result.output
    assert not (tmp_path / f"x{suffix}").exists()


def test_missing_package_is_named_when_reading(tmp_path, monkeypatch):
    data = safetensors_bytes()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install safetensors" in refusal(tmp_path, data)


def test_a_run_stands_for_its_newest_network(tmp_path):
    newest = saved(tmp_path, **networks())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "network-snapshot-000003.pkl").write_bytes(b"older")
    newest.rename(tmp_path / "run" / "network-snapshot-000010.pkl")
    result = run_convert(tmp_path / "run", tmp_path / "x.safetensors")
    assert result.output.endswith(f"wrote 1 file to {tmp_path / 'x.safetensors'}\n")
