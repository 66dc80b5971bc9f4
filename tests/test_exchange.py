"""What the original makes of our network files, and what we make of its."""

from __future__ import annotations

import copy

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import generate
from stylegan2_fewshot.augment import AugmentPipe
from training import pickles, training_loop
from training.formats import rosinality
from training.networks import Discriminator, Generator

WIDTHS = {"channel_base": 128, "channel_max": 8}


def filled(net):
    """Return a network whose tensors are sines, as that of the original was for the numbers."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    tensors = [tensor for name, tensor in tensors if "resample_filter" not in name]
    with torch.no_grad():
        for number, tensor in enumerate(tensors):
            angles = torch.arange(tensor.numel(), dtype=torch.float64).mul(0.7).add(number)
            tensor.copy_(angles.sin().reshape(tensor.shape))
    return net.eval().requires_grad_(False)


def networks(architecture="skip", taps=(1, 3, 3, 1)):
    kind = {"architecture": architecture, **WIDTHS}
    synthesis = {**kind, "resample_filter": list(taps)}
    torch.manual_seed(0)
    G = Generator(8, 0, 8, 16, 3, {"num_layers": 2}, synthesis)
    blocks = {"resample_filter": list(taps)}
    D = Discriminator(
        0, 16, 3, **kind, block_kwargs=blocks, epilogue_kwargs={"mbstd_group_size": 1}
    )
    return {"G": filled(G), "D": filled(D), "G_ema": filled(copy.deepcopy(G))}


# Computed by the original on a CPU: a pixel, the mean, and D's logit of the second image.
ORIGINAL = [
    ("skip", [1, 2, 1], [-2.94991, -3.48653, -2.466], -1.910259, 0.883356),
    ("skip", [1, 4, 6, 4, 1], [-1.52752, -2.08865, -1.7165], -1.650119, 1.063784),
    ("skip", [1, 1], [-4.33618, -4.67549, -2.92395], -2.225515, 1.789511),
    ("resnet", [1, 2, 1], [0.72467, -0.06429, -0.81553], -0.661028, -0.070302),
    ("resnet", [1, 4, 6, 4, 1], [0.11764, -0.53978, -0.94606], -0.619613, -0.349601),
    ("resnet", [1, 1], [0.96328, 0.19403, -0.65346], -0.815015, -0.495584),
]


@pytest.mark.parametrize(("architecture", "taps", "pixel", "mean", "logit"), ORIGINAL)
def test_filters_of_other_lengths(tmp_path, architecture, taps, pixel, mean, logit):
    """The original gives them to the layers that change the size, and conv1 of G keeps its own."""
    pickles.save(tmp_path / "x.pkl", **networks(architecture, taps))
    nets = pickles.load(tmp_path / "x.pkl")
    img = nets.G_ema(torch.arange(16.0).sin().reshape(2, 8), None, noise_mode="const")
    assert img[1, :, 3, 5].tolist() == pytest.approx(pixel, abs=2e-5)
    assert img.mean().item() == pytest.approx(mean, abs=2e-5)
    assert nets.D(img, None)[1].item() == pytest.approx(logit, abs=2e-5)
    sizes = {k: len(v) for k, v in nets.G_ema.state_dict().items() if "b16" in k and "filter" in k}
    assert sizes.pop("synthesis.b16.conv1.resample_filter") == 4
    assert set(sizes.values()) == {len(taps)}


def test_equal_networks_are_equal_bytes(tmp_path):
    """Whether or not they share numbers, and wherever in memory those are."""
    first, second = networks(), networks()
    shared = {**first, "G_ema": first["G"]}  # of equal numbers: one object in the place of two
    held = [torch.empty(1000) for _ in range(50)]  # so that the next ones lie elsewhere
    loaded = copy.deepcopy(second)
    path = "x.zip"
    options = {"path": path, "use_labels": False, "again": path}
    others = {**options, "again": "".join(list(path))}  # equal, but another object
    for name, nets in {"a": first, "b": second, "c": shared, "d": loaded}.items():
        pipe = AugmentPipe(xflip=1)
        given = others if name in "bd" else options
        pickles.save(tmp_path / name, **nets, augment_pipe=pipe, training_set_kwargs=given)
    read = pickles.load(tmp_path / "a")
    pickles.save(tmp_path / "e", **vars(read))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert len(held) == 50
    with torch.no_grad():
        first["D"].b4.conv.bias[0] += 1e-3
    pickles.save(tmp_path / "f", **first, augment_pipe=pipe, training_set_kwargs=options)
    assert (tmp_path / "f").read_bytes() != (tmp_path / "a").read_bytes()


def test_a_checkpoint_of_g_ema_alone_draws_but_does_not_train(tmp_path, tiny_options):
    nets, path = {**networks(), "D": networks("resnet")["D"]}, tmp_path / "sampling.pt"
    rosinality.write(path, nets)
    content = torch.load(path, weights_only=True)
    alone = {key: content[key] for key in ("g_ema", "latent_avg")}
    torch.save(alone, path)
    out = tmp_path / "out"
    command = [f"--network={path}", "--seeds=3", "--noise-mode=const", f"--outdir={out}"]
    result = CliRunner().invoke(generate.main, command)
    assert result.exit_code == 0, result.output
    pickles.save(tmp_path / "whole.pkl", **nets)
    command[0] = f"--network={tmp_path / 'whole.pkl'}"
    drawn = Image.open(out / "seed0003.png").tobytes()
    assert CliRunner().invoke(generate.main, command).exit_code == 0
    assert drawn == Image.open(out / "seed0003.png").tobytes()
    options = {**tiny_options, "resume": str(path)}
    with pytest.raises(pickles.PickleError, match="holds no G, D; that is enough to draw images"):
        training_loop.train(options, tmp_path / "run", torch.device("cpu"))


def test_the_originals_calc_metrics_finds_the_data_set(tmp_path, tiny_options):
    """It constructs `class_name` with all others as arguments: those of its ImageFolderDataset."""
    pickles.save(tmp_path / "x.pkl", **networks(), training_set_kwargs=tiny_options["dataset"])
    assert pickles.load(tmp_path / "x.pkl").training_set_kwargs == {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": tiny_options["dataset"]["path"],
        "use_labels": False,
        "max_size": None,
        "xflip": True,
        "random_seed": 3,
    }
