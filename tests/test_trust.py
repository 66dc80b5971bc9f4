"""Feature networks that are programs: they run on the word of the user's command line alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from click.testing import CliRunner
from PIL import Image

import generate
import train
from metrics import Trust, backbones, detectors, weights
from metrics.__main__ import main as metrics_main
from stylegan2_fewshot.methods.prior import instances
from stylegan2_fewshot.methods.prior.instances import Instances
from tools.features import main as features_main

DIM = 6
PIN = f"--backbone-sha256={'ab' * 32}"


class Program(torch.nn.Module):
    """Makes a file as soon as it is loaded, and another when it runs."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.folder, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.folder, self.training = state
        assert torch.from_file(self.folder + "/loaded", True, 1).numel() == 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert torch.from_file(self.folder + "/called", True, 1).numel() == 1
        return torch.nn.functional.adaptive_avg_pool2d(images, [1, 2]).flatten(1)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Return a folder that stays empty as long as no program runs."""
    folder = tmp_path / "canary"
    folder.mkdir()
    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STYLEGAN2_FEWSHOT_DETECTORS", str(tmp_path / "mine"))
    detectors.load.cache_clear()
    return folder


@pytest.fixture
def program(canary, tmp_path):
    """Return a TorchScript file; it is found as `dino`, too."""
    path = tmp_path / "mine" / "dino.pt"
    path.parent.mkdir()
    torch.jit.script(Program(str(canary))).save(str(path))
    return path


@pytest.fixture
def network(tmp_path):
    """Return a network pickle that has 16x16 pixels and takes conditions of 6 numbers."""
    path = tiny.save(tmp_path / "net.pkl", c_dim=DIM)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "my.png")
    return path


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def companion(network, backbone, digest):
    meta = {"backbone": str(backbone), "backbone_sha256": digest, "resize": ""}
    vectors = instances.unit(torch.randn(4, DIM))
    instances.save(instances.companion(network), Instances(vectors, meta, vectors.mean(0)))


def run(network, *options):
    arguments = [f"--network={network}", "--seeds=1", f"--prior-image={network.parent}/my.png"]
    arguments += [f"--outdir={network.parent}/out", *options]
    return CliRunner().invoke(generate.main, arguments)


def refused(result, text):
    assert result.exit_code == 2 and result.output.count("\n") == 1, result.output
    assert text in result.output


@pytest.mark.parametrize("named", ["path", "name"])
def test_a_companion_runs_no_program(network, program, canary, named):
    companion(network, program if named == "path" else "dino", sha256(program))
    refused(run(network), "not built in")
    refused(run(network, "--trust-backbone"), "not built in")  # trust in what, is the user's to say
    assert not any(canary.iterdir())


def test_a_companion_cannot_have_the_users_own_unpinned_file_run(network, program, canary):
    shutil.copy(program, program.parent / "vgg16.pt")
    companion(network, "nvidia-vgg16", sha256(program))
    refused(run(network), "is a program")
    assert not any(canary.iterdir())


def test_the_users_own_backbone_runs_once_its_hash_is_the_companions(network, program, canary):
    companion(network, "theirs.pt", sha256(program))
    own = f"--backbone={program}"
    refused(run(network, own), f"--backbone-sha256={sha256(program)}")
    refused(run(network, own, f"--backbone-sha256={'0' * 64}"), "not that of --backbone-sha256")
    refused(run(network, own, "--backbone-sha256=00"), "64 hexadecimal digits")
    other = program.with_name("other.pt")
    other.write_bytes(program.read_bytes() + b"\0")
    refused(run(network, f"--backbone={other}", "--trust-backbone"), "those of training had")
    assert not any(canary.iterdir())
    for word in ("--trust-backbone", f"--backbone-sha256={sha256(program).upper()}"):
        result = run(network, own, word)
        assert result.exit_code == 0, result.output
    assert {path.name for path in canary.iterdir()} == {"loaded", "called"}


def test_features_run_a_program_where_it_is_trusted(program, canary, tiny_data, tmp_path):
    arguments = [str(tiny_data), f"--backbone={program}", f"--out={tmp_path}/f.npz"]
    refused(CliRunner().invoke(features_main, arguments), "is a program")
    pin = f"--backbone-sha256={'0' * 64}"
    refused(CliRunner().invoke(features_main, [*arguments, pin]), "not that of")
    assert not any(canary.iterdir())
    result = CliRunner().invoke(features_main, [*arguments, "--trust-backbone"])
    assert result.exit_code == 0, result.output
    assert instances.load(tmp_path / "f.npz").meta["backbone_sha256"] == sha256(program)


def test_metrics_run_a_program_where_it_is_trusted(
    network, program, canary, tiny_data, heldout_data
):
    companion(network, "vgg16", "0" * 64)
    arguments = [str(network), f"--data={tiny_data}", f"--metricdata={heldout_data}"]
    arguments += ["--metrics=nn1k@dino", "--device=cpu"]
    result = CliRunner().invoke(metrics_main, arguments)
    assert result.exit_code == 1 and "is a program" in result.output
    assert not any(canary.iterdir())


def test_the_command_line_of_training_carries_the_users_word(tiny_data):
    arguments = [f"--data={tiny_data}", "--outdir=x", "--metrics=none", "--dry-run"]
    runs = [CliRunner().invoke(train.main, [*arguments, *more]) for more in ([], [PIN])]
    plain, pinned = (json.loads(result.stdout) for result in runs)
    assert "trust" not in plain
    assert pinned["trust"] == {"everything": False, "hashes": ["ab" * 32]}


@pytest.mark.parametrize("name", ["net.pt2", "./net.pt2"])
def test_exported_programs_are_not_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("net.pt2").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"net\.pt2: files of torch\.export are not read"):
        detectors.load(name, trust=Trust(everything=True))


PINNED = [detectors.MOBILENETV2, detectors.RESNET50_SSL, detectors.INCEPTION]
PINNED += [*detectors.CONVOLUTIONS.values(), *detectors.HEADS.values(), *detectors.BOTH.values()]


@pytest.mark.parametrize("file", PINNED, ids=lambda file: file.name)
def test_weights_of_another_hash_are_not_looked_into(canary, tmp_path, monkeypatch, file):
    """Neither torch nor pickle sees a byte of a file that is not the one whose hash is known."""

    def never(*_, **__):
        raise AssertionError("a file was interpreted before its hash was known")

    for module, name in ((torch, "load"), (torch.jit, "load"), (backbones, "read_arrays")):
        monkeypatch.setattr(module, name, never)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / file.name).write_bytes(b"\x80\x02c__builtin__\nbytearray\n.")
    with pytest.raises(
        weights.DetectorMissing, match=rf"{file.name}: SHA-256 must be {file.sha256}"
    ):
        weights.obtain((file,))
    used = {"inception-2015-12-05.pt": "inception", "mobilenet_v2-b0353104.pth": "mobilenetv2"}
    if name := used.get(file.name):
        with pytest.raises(weights.DetectorMissing, match="SHA-256 must be"):
            detectors.load(name)
