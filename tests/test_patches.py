"""Training in a checkout, with a miniature of the original in the checkout's place."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from patches import runtime
from patches.host_loss import HostLoss
from patches.runtime import replace
from patches.session import state_file
from patches.stylegan2_ada import main
from stylegan2_fewshot.plugin import seed_of

ROOT = Path(__file__).parent.parent
HOST = ROOT / "tests" / "miniature_host"
CPU = torch.device("cpu")
APA = ["--aug=apa", "--apa-target=-1", "--apa-kimg=0.1"]
METHODS = [*APA, "--ewc-lambda=0.01", "--ewc-samples=4", "--freezed=2"]


def command(*arguments):
    """Run `python -m patches.stylegan2_ada HOST`; this process keeps its own `training`."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-m", "patches.stylegan2_ada", str(HOST), *arguments],
        env={**environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def train(outdir, *arguments):
    shared = ["--data=unused", "--device=cpu", f"--outdir={outdir}"]
    return command("train", *shared, *arguments)


def run_dir(outdir):
    (found,) = outdir.iterdir()
    return found


def statistics(outdir, name):
    lines = (run_dir(outdir) / "stats-0.jsonl").read_text().splitlines()
    return [json.loads(line)[name]["mean"] for line in lines]


def state_of(outdir, nimg):
    path = run_dir(outdir) / f"plugins-{nimg:06d}.pt"
    return torch.load(path, weights_only=True)


def networks_of(path, monkeypatch):
    """Unpickle a snapshot of the miniature host, whose networks are this project's own."""
    monkeypatch.syspath_prepend(HOST)  # for dnnlib
    with open(path, "rb") as file:
        return pickle.load(file)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return the pickle of networks of the miniature host's shape."""
    G, D = tiny.networks(num_fp16_res=0)
    path = tmp_path_factory.mktemp("source") / "source.pkl"
    path.write_bytes(pickle.dumps({"G": G, "D": D, "G_ema": G}))
    return path


@pytest.fixture(scope="module")
def first(source, tmp_path_factory):
    """Train in the miniature host from `source`; return the folder of runs and the output."""
    before = fingerprint()
    outdir = tmp_path_factory.mktemp("first")
    ended = train(outdir, f"--resume={source}", *METHODS)
    assert ended.returncode == 0, ended.stderr
    assert fingerprint() == before
    return outdir, ended.stdout


def fingerprint():
    files = sorted(path for path in HOST.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_p_moves_and_the_penalty_is_logged(first):
    outdir, output = first
    p = statistics(outdir, "Augment/apa_p")
    assert p[0] == 0 and p[-1] > 0
    assert statistics(outdir, "EWC/penalty")[-1] > 0
    assert output.count("EWC/ratio ") == output.count("tick ") == 3
    assert run_dir(outdir).name == "mini-apa-ewc-freezed2"


def test_patches_are_printed_once_and_only_where_needed(first):
    _, output = first
    for name in ("sampler", "summary", "processor"):
        assert output.count(f"  {name}: ") == 1
    assert not any(f"  {name}: " in output for name in ("buffers", "convolution", "parse_version"))


def test_frozen_layers_stay_and_others_learn(first, source, monkeypatch):
    outdir, _ = first
    before = networks_of(source, monkeypatch)
    after = networks_of(run_dir(outdir) / "network-snapshot-000024.pkl", monkeypatch)
    old, new = (nets["D"].state_dict() for nets in (before, after))
    frozen = [n for n in old if n.startswith(("b16.fromrgb", "b16.conv0")) and n.endswith("weight")]
    assert len(frozen) == 2 and all(torch.equal(old[n], new[n]) for n in frozen)
    assert not torch.equal(old["b16.conv1.weight"], new["b16.conv1.weight"])
    assert torch.isfinite(after["G"].mapping.w_avg).all()  # the table of layers was fed NaN


def test_state_is_saved_and_goes_on(first, source, tmp_path):
    outdir, _ = first
    snapshot = run_dir(outdir) / "network-snapshot-000024.pkl"
    ended = train(tmp_path, f"--resume={snapshot}", *METHODS)
    assert ended.returncode == 0, ended.stderr
    assert "The plugins resume from 0.0 kimg" in ended.stdout
    before, after = state_of(outdir, 24), state_of(tmp_path, 24)
    assert (before["cur_nimg"], after["cur_nimg"]) == (24, 48)
    assert before["source"] == after["source"] == str(source)
    assert after["plugins"]["apa.adaptive.p"] > before["plugins"]["apa.adaptive.p"] > 0
    # Held to the network that all began with, not to the one that training went on from.
    assert torch.equal(before["plugins"]["ewc.anchor_G"], after["plugins"]["ewc.anchor_G"])
    assert statistics(tmp_path, "EWC/penalty")[0] > 0


def test_a_plugin_sees_what_it_sees_in_our_own_loop(tmp_path):
    record = tmp_path / "record"
    recorder = ["--plugin=host_plugins:Recorder", f"--recorder-path={record}"]
    ended = train(tmp_path / "runs", "--aug=noaug", "--seed=3", *recorder)
    assert ended.returncode == 0, ended.stderr
    expected = []
    for index in range(6):
        nimg = 4 * index
        expected += [f"Gmain {nimg} 2"] * 2
        expected += [f"Gpl {nimg} 1"] * 2 if index % 4 == 0 else []
        expected += [f"Dfake {nimg} 2", f"Dreal {nimg} 2"] * 2
        expected += [f"Dr1 {nimg} 2"] * 2 if index % 3 == 0 else []
        rng = torch.Generator().manual_seed(seed_of(3, 0, nimg, "recorder"))
        expected += [f"end {nimg} {float(torch.rand([], generator=rng))}"]
    assert record.read_text().splitlines() == expected


def test_two_processes_agree(source, tmp_path):
    ended = train(tmp_path, f"--resume={source}", "--gpus=2", *METHODS)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Patched for this machine") == 1
    assert "buffers: processes start with the same buffers" in ended.stdout
    assert state_of(tmp_path, 24)["plugins"]["apa.adaptive.p"] > 0


def test_help_and_dry_run_show_both(tmp_path):
    shown = command("train", "--help").stdout
    assert "The host's own help." in shown and "--ewc-lambda FLOAT" in shown
    assert shown.count("--target ") == shown.count("--freezed ") == 1
    ended = train(tmp_path, "--dry-run", "--aug=fixed", "--p=0.5", "--augpipe=blit", "--zdim=6")
    options = json.loads(ended.stdout)
    assert options["loss_kwargs"]["plugins"] == {"fixed": {"p": 0.5, "augpipe": "blit"}}
    assert options["loss_kwargs"]["r1_gamma"] == 1
    assert options["G_kwargs"]["z_dim"] == options["G_kwargs"]["w_dim"] == 6
    assert options["D_kwargs"]["num_fp16_res"] == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--apa-target=0.5"], "--apa-target=0.5 needs apa, which is off"),
        (["--zdim=6", "--resume=SOURCE", "--gpus=2"], "differ in mapping.fc0.bias and"),
        (
            ["--plugin=host_plugins:Widening", "--widening-by=2", "--aug=noaug"],
            "widening: one of these methods changes the networks, which is not possible in a ",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, message, source, tmp_path):
    ended = train(tmp_path, *[word.replace("SOURCE", str(source)) for word in arguments])
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("Error: ") == 1 and message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"), [(["train"], "it lacks train.py; give the folder"), ([], "usage: ")]
)
def test_what_is_no_checkout_is_refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), *arguments])
    assert message in capsys.readouterr().err


def test_a_damaged_state_is_refused(first, tmp_path):
    outdir, _ = first
    snapshot = tmp_path / "network-snapshot-000024.pkl"
    snapshot.write_bytes((run_dir(outdir) / snapshot.name).read_bytes())
    state_file(snapshot).write_bytes(b"damaged")
    ended = train(tmp_path / "runs", f"--resume={snapshot}", *METHODS)
    assert ended.returncode == 2
    assert "plugins-000024.pt cannot be read" in ended.stderr and "Traceback" not in ended.stderr


class Stylegan3Generator(torch.nn.Module):
    """The interface of stylegan3's generator: the mean of w follows only where it is asked to."""

    def __init__(self):
        super().__init__()
        self.updates = []

    def mapping(self, z, c, update_emas):
        self.updates.append(update_emas)
        return z[:, None].repeat(1, 3, 1)

    def synthesis(self, ws):
        return ws.mean([1, 2])[:, None, None, None].repeat(1, 1, 4, 4)


def test_the_loss_takes_what_stylegan3_hands_it():
    G = Stylegan3Generator()
    loss = HostLoss(
        device=CPU,
        G=G,
        D=lambda img, c: img.mean([1, 2, 3])[:, None],
        augment_pipe=None,
        plugins={},
        r1_gamma=1,
        pl_no_weight_grad=True,
        blur_init_sigma=0,
    )
    z = torch.ones(2, 4, requires_grad=True)
    batch = dict(real_img=torch.zeros(2, 1, 4, 4), real_c=None, gen_z=z, gen_c=torch.zeros(2, 0))
    loss.accumulate_gradients(phase="Gmain", gain=1, cur_nimg=0, **batch)
    assert G.updates == [True, False]  # the second latent of style mixing does not count
    assert z.grad is not None and z.grad.abs().sum() > 0


def test_a_loop_that_does_not_tell_where_an_iteration_ends_is_noticed():
    loss = HostLoss(CPU, D=None, plugins={}, G_mapping=lambda: None, G_synthesis=lambda: None)
    loss._is_open = True
    with pytest.raises(RuntimeError, match="does not tell where an iteration ends"):
        loss.accumulate_gradients("Gmain", None, None, None, None)


def test_a_replacement_is_seen_by_one_module_alone():
    module = SimpleNamespace(torch=torch)
    replace(module, "torch.cuda.Event", runtime.Stopwatch)
    replace(module, "torch.cuda.current_stream", None)
    assert module.torch.cuda.Event is runtime.Stopwatch is not torch.cuda.Event
    assert module.torch.cuda.is_available is torch.cuda.is_available
    assert module.torch.nn is torch.nn


@pytest.mark.parametrize(
    ("device", "name", "needed"),
    [("cuda", "DeceiveD", True), ("cpu", "DeceiveD", False), ("cuda", "stylegan3", False)],
)
def test_convolutions_are_replaced_on_a_gpu_alone(device, name, needed):
    gradfix = SimpleNamespace(_should_use_custom_op=None)
    host = SimpleNamespace(name=name, module=lambda _: gradfix)
    line = runtime.convolution(host, torch.device(device), 1)
    assert bool(line) == needed == (gradfix._should_use_custom_op is not None)


def test_every_patch_says_why_and_where():
    assert len(runtime.PATCHES) == 7
    assert all("torch" in (change.__doc__ or "") for change in runtime.PATCHES)


def test_stopwatch_gives_milliseconds():
    start, end = runtime.Stopwatch(enable_timing=True), runtime.Stopwatch()
    start._at, end._at = 1.0, 1.5
    assert start.elapsed_time(end) == 500
