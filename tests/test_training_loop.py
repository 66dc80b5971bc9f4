"""Training as a whole: what a run leaves, and that interrupting it changes nothing."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from stylegan2_fewshot import Plugins, Run, distributed, files
from stylegan2_fewshot.fisher import file as fisher_file
from stylegan2_fewshot.loss import StyleGAN2Loss
from stylegan2_fewshot.ops import select
from training import checkpoint, networks, pickles, training_loop
from training.launch import launch
from training.stopping import Interrupted, Requests
from training.training_loop import train

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def flatten(value, path=""):
    """Yield every tensor and number of a nested state with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        yield from flatten(dict(enumerate(value)), path)
    else:
        yield path, value


def assert_same_state(one, other):
    mine, theirs = dict(flatten(one)), dict(flatten(other))
    assert mine.keys() == theirs.keys()
    for path, value in mine.items():
        equal = torch.equal if isinstance(value, torch.Tensor) else type(value).__eq__
        assert equal(value, theirs[path]), path


def final_state(run_dir):
    state = checkpoint.load_newest(run_dir)
    return {key: value for key, value in state.items() if value is not None}


@pytest.fixture
def uninterrupted(tiny_options, tmp_path):
    select("torch", CPU)  # as in the processes of other tests here
    run_dir = tmp_path / "whole"
    run_dir.mkdir()
    train(tiny_options, run_dir, CPU)
    return run_dir


def test_a_run_leaves_what_it_should(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert {"reals.png", "fakes_init.png", "fakes000000-024.png", "log.txt", "stats.jsonl"} <= names
    assert {"network-snapshot-000000-024.pkl", "checkpoint-000000-024.pt", "finished.json"} <= names
    assert not [name for name in names if name.endswith(".part")]
    lines = [json.loads(line) for line in (uninterrupted / "stats.jsonl").read_text().splitlines()]
    assert [line["nimg"] for line in lines] == [8, 16, 24]
    assert all(line["Augment/ada_p"]["num"] > 0 for line in lines)
    assert lines[-1]["Loss/scores/real"]["num"] > 0
    saved = pickles.load(uninterrupted / "network-snapshot-000000-024.pkl")
    state = final_state(uninterrupted)
    assert state["cur_nimg"] == 24
    for key in ("G", "D", "G_ema"):
        assert_same_state(dict(getattr(saved, key).state_dict()), dict(state[key]))
    assert saved.augment_pipe.p == state["plugins"]["ada.probability.p"] > 0


class Board(list):
    """Stands in for TensorBoard's writer."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def add_scalar(self, name, value, global_step):
        self.append((name, value))
        self.steps.append(global_step)

    def add_text(self, name, text):
        self.append((name, text))

    def add_image(self, name, pixels, global_step, dataformats):
        self.append((name, pixels.shape))

    def flush(self):
        pass


def test_p_signals_and_logits_are_in_stats_status_line_and_tensorboard(
    tiny_options, tmp_path, monkeypatch, capsys
):
    board = Board()
    writer = SimpleNamespace(SummaryWriter=lambda *_, **__: board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    train({**tiny_options, "total_kimg": 0.016}, tmp_path, CPU)
    labels = {
        "real": "Loss/scores/real",
        "fake": "Loss/scores/fake",
        "sign": "Loss/signs/real",
        "ada_p": "Augment/ada_p",
        "apa_p": "Augment/apa_p",
        "apa_signal": "APA/signal",
    }
    line = json.loads((tmp_path / "stats.jsonl").read_text().splitlines()[-1])
    means = {label: line[name]["mean"] for label, name in labels.items()}
    assert {label: dict(board)[name] for label, name in labels.items()} == means
    assert set(board.steps) == {8, 16}  # images: a short run's ticks are parts of a kimg
    assert dict(board)["fakes"][2] == dict(board)["reals"][2] == 3  # pictures, too
    assert '"total_kimg": 0.016' in dict(board)["options"]
    words = re.search("^tick 2 .*$", capsys.readouterr().out, re.MULTILINE)[0].split()
    assert {k: words[words.index(k) + 1] for k in labels} == {
        k: f"{mean:.3f}" for k, mean in means.items()
    }


def test_the_choice_of_operations_is_printed_once(tiny_options, tmp_path, capsys):
    launch(tiny_options, outdir=tmp_path, fresh=False, gpus=1)
    assert len(re.findall(r"^Operations: .* on cpu\b.*\.$", capsys.readouterr().out, re.M)) == 1


@pytest.mark.parametrize("iterations", [1, 3, 4])
def test_interrupted_and_resumed_equals_uninterrupted(
    uninterrupted, tiny_options, tmp_path, stop_after, iterations
):
    run_dir = tmp_path / "parts"
    run_dir.mkdir()
    stop_after(iterations)
    with pytest.raises(Interrupted):
        train(tiny_options, run_dir, CPU)
    assert not training_loop.is_finished(run_dir)
    train(tiny_options, run_dir, CPU)
    assert training_loop.is_finished(run_dir)
    assert_same_state(final_state(run_dir), final_state(uninterrupted))
    assert (run_dir / "fakes000000-024.png").read_bytes() == (
        uninterrupted / "fakes000000-024.png"
    ).read_bytes()
    mine, theirs = (
        pickles.load(d / "network-snapshot-000000-024.pkl") for d in (run_dir, uninterrupted)
    )
    assert_same_state(dict(mine.G_ema.state_dict()), dict(theirs.G_ema.state_dict()))
    lines = (run_dir / "stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["nimg"] for line in lines] == [8, 16, 24]


KILLED = """
import json, os, signal, sys
import torch
from pathlib import Path
from stylegan2_fewshot.loss import StyleGAN2Loss
from training import training_loop

moment, number, run_dir, options = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
count = 0

def deadly(real):
    def call(*args, **kwargs):
        global count
        count += moment != "save" or "cur_nimg" in args[0]
        if count < number:
            return real(*args, **kwargs)
        if moment == "save":
            args[1].write(b"half a checkpoint")
            args[1].flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return call

if moment == "save":
    torch.save = deadly(torch.save)
else:
    StyleGAN2Loss.accumulate_gradients = deadly(StyleGAN2Loss.accumulate_gradients)
training_loop.train(json.loads(options), run_dir, torch.device("cpu"))
"""


@pytest.mark.parametrize(("moment", "number"), [("tick", 19), ("save", 2)])
def test_killed_and_resumed_equals_uninterrupted(
    uninterrupted, tiny_options, tmp_path, moment, number
):
    run_dir = tmp_path / "killed"
    run_dir.mkdir()
    command = [sys.executable, "-c", KILLED, moment, str(number), run_dir, json.dumps(tiny_options)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert final_state(run_dir)["cur_nimg"] == 8
    train(tiny_options, run_dir, CPU)
    assert_same_state(final_state(run_dir), final_state(uninterrupted))


def test_damaged_checkpoint_is_passed_over(tmp_path):
    for nimg in (1000, 2000):
        checkpoint.save(checkpoint.path_at(tmp_path, nimg), {"cur_nimg": nimg})
    checkpoint.path_at(tmp_path, 2000).write_bytes(b"damaged")
    assert checkpoint.load_newest(tmp_path) == {"cur_nimg": 1000}
    checkpoint.path_at(tmp_path, 1000).unlink()
    assert checkpoint.load_newest(tmp_path) is None


def test_old_checkpoints_go(tmp_path):
    for nimg in (1000, 2000, 3000, 4000):
        checkpoint.save(checkpoint.path_at(tmp_path, nimg), {"cur_nimg": nimg})
    assert [path.name for path in checkpoint.all_of(tmp_path)] == [
        "checkpoint-000003.pt",
        "checkpoint-000004.pt",
    ]


def test_resume_takes_the_networks_of_a_pickle(uninterrupted, tiny_options, tmp_path):
    source = uninterrupted / "network-snapshot-000000-024.pkl"
    options = {
        **tiny_options,
        "resume": str(source),
        "plugins": {"ewc": {"lambda_": 10.0, "samples": 4}},
    }
    state, path = training_loop.construct(
        options, training_loop.ImageDataset(**options["dataset"]), CPU
    )
    assert path == str(source)
    for key, net in vars(pickles.load(source)).items():
        if key in ("G", "D", "G_ema"):
            assert_same_state(dict(getattr(state, key).state_dict()), dict(net.state_dict()))
    assert "ewc.anchor_G" in state.plugins.state_dict()


@pytest.mark.parametrize("nhwc", [True, False])
def test_a_source_is_channels_last_where_asked(tiny_options, tmp_path, nhwc):
    reduced = {"num_fp16_res": 1, "channel_base": 128, "channel_max": 8}
    G = networks.Generator(8, 0, 8, 16, 3, synthesis_kwargs=reduced)
    D = networks.Discriminator(0, 16, 3, epilogue_kwargs={"mbstd_group_size": 2}, **reduced)
    pickles.save(tmp_path / "source.pkl", G=G, D=D, G_ema=G)
    options = {**tiny_options, "resume": str(tmp_path / "source.pkl"), "nhwc": nhwc}
    dataset = training_loop.ImageDataset(**options["dataset"])
    state, _ = training_loop.construct(options, dataset, CPU)
    for blocks in (state.G.synthesis.b16, state.G_ema.synthesis.b16, state.D.b16):
        assert blocks.channels_last == nhwc
    assert not state.G.synthesis.b8.channels_last


def test_contradicting_the_source_is_refused(uninterrupted, tiny_options):
    source = str(uninterrupted / "network-snapshot-000000-024.pkl")
    options = {**tiny_options, "resume": source, "explicit": {"G.z_dim": "--zdim=9"}}
    options["G"] = {**options["G"], "z_dim": 9}
    dataset = training_loop.ImageDataset(**options["dataset"])
    with pytest.raises(ValueError, match=r"--zdim=9: .* has G\.z_dim=8, not 9"):
        training_loop.construct(options, dataset, CPU)


@pytest.mark.parametrize(
    ("place", "entry", "words"),
    [
        ("D.architecture", {"architecture": "orig"}, "D.architecture=resnet, not orig"),
        ("D.epilogue_kwargs.mbstd_group_size", {}, "mbstd_group_size=4, not 2"),
    ],
)
def test_defaults_of_the_source_contradict_too(tiny_options, tmp_path, place, entry, words):
    G, D = two_networks()
    D = networks.Discriminator(0, 16, 3, channel_base=128, channel_max=8)
    pickles.save(tmp_path / "source.pkl", G=G, D=D, G_ema=G)
    options = {**tiny_options, "resume": str(tmp_path / "source.pkl"), "explicit": {place: "--x"}}
    options["D"] = {**options["D"], **entry}
    dataset = training_loop.ImageDataset(**options["dataset"])
    with pytest.raises(ValueError, match=words):
        training_loop.construct(options, dataset, CPU)


def test_frozen_parameters_are_not_trained(tiny_options, tmp_path):
    options = {**tiny_options, "plugins": {"freezed": {"freezed": 2}}}
    dataset = training_loop.ImageDataset(**options["dataset"])
    before, _ = training_loop.construct(options, dataset, CPU)
    train(options, tmp_path, CPU)
    after = final_state(tmp_path)["D"]
    for name, value in before.D.named_parameters():
        frozen = name.startswith(("b16.fromrgb", "b16.conv0"))
        assert torch.equal(value, after[name]) == frozen, name


def two_networks():
    G, D = tiny.networks()
    return G.train(), D.train()


@pytest.fixture
def source(tmp_path):
    """Return a folder that holds a source network and Fisher information of it."""
    G, D = two_networks()
    pickles.save(tmp_path / "source.pkl", G=G, D=D, G_ema=G)
    meta = {"likelihood": fisher_file.LIKELIHOOD, "standard_error": {}}
    meta["source_sha256"] = files.sha256_of(tmp_path / "source.pkl")
    meta["network"] = "G"
    values = {f"G.{name}": torch.rand(p.shape) for name, p in G.named_parameters()}
    fisher_file.save(tmp_path / "F.npz", fisher_file.Fisher(values, meta))
    return tmp_path


def all_plugins(G, D, source):
    """Return plugins of every kind, in the middle of a training."""
    ewc = {"lambda_": 1.0, "fisher": str(source / "F.npz")}
    plugins = Plugins.create(
        {"apa": {}, "ada": {}, "diffaugment": {}, "lecam": {"lambda_": 1.0}}
        | {"freezed": {"freezed": 1}, "bank": {"size": 3}, "ewc": ewc}
    )
    plugins.setup(
        Run(G, D, batch_size=8, resumed=str(source / "source.pkl"), source=two_networks())
    )
    plugins["lecam"].means.copy_(torch.tensor([1.0, -1.0]))
    plugins["lecam"].started.fill_(1)
    plugins["apa"].adaptive.p.fill_(0.5)
    plugins["ada"].pipe.p.fill_(0.5)
    for param in G.parameters():
        param.data.mul_(1.1)
    return plugins


def gradients(rank, world, part, source):
    """Return all gradients of a step on this rank's share of a fixed batch."""
    G, D = two_networks()
    real, z = torch.rand(8, 3, 16, 16) * 2 - 1, torch.randn(8, 8)
    noise = torch.randn(4, 3, 16, 16)
    plugins = all_plugins(G, D, source)
    synthesis = functools.partial(G.synthesis, noise_mode="const")
    loss = StyleGAN2Loss(CPU, G.mapping, synthesis, D, plugins, style_mixing_prob=0)
    found = []
    for phase in ("Gmain", "Greg", "Dmain", "Dreg"):
        net = G if phase[0] == "G" else D
        net.zero_grad(set_to_none=True)
        for name, param in net.named_parameters():
            param.requires_grad_(plugins.trainable(phase[0], name))
        shares = zip(real.split(part), z.split(part), noise.split(part // 2), strict=True)
        for number, (x, w, y) in enumerate(shares):
            if number % world == rank:
                for plugin in plugins.active:  # else every rank would draw its own
                    plugin.rng = lambda step, device, n=number: torch.Generator().manual_seed(n)
                loss.pl_noise = lambda img, y=y: y
                loss.pl_mean.zero_()  # each rank's own, and else it would depend on the order
                c = torch.zeros(part, 0)
                loss.accumulate_gradients(phase, x, c, w, c, sync=True, gain=world * part / 8)
        distributed.average_gradients(net.parameters())
        found += [p.grad for p in net.parameters() if p.grad is not None]
    return found


def on_a_rank(world, out):
    torch.set_num_threads(1)
    distributed.init("cpu")
    torch.save(gradients(distributed.rank(), world, 2, out), out / f"{distributed.rank()}.pt")
    distributed.shutdown()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_give_the_gradients_of_one(source, world):
    distributed.spawn(on_a_rank, (world, source), world)
    alone = gradients(0, 1, 2, source)  # accumulates four parts
    for rank in range(world):
        for mine, theirs in zip(alone, torch.load(source / f"{rank}.pt"), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_each_rank_goes_on_with_its_own_path_length(tiny_options, monkeypatch):
    dataset = training_loop.ImageDataset(**tiny_options["dataset"])
    state, _ = training_loop.construct(tiny_options, dataset, CPU)
    state.loss.pl_mean.fill_(0.1)
    monkeypatch.setattr(distributed, "gather", lambda x: [x, 0.7 if isinstance(x, float) else x])
    saved = state.tensors()
    saved["pl_mean"] = saved["pl_mean"].clone()  # as a file would hold it
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    for world, expected in ((2, 0.7), (4, 0.1)):
        monkeypatch.setattr(distributed, "world_size", lambda world=world: world)
        state.load(saved)
        assert state.loss.pl_mean == torch.tensor(expected)
    del saved["pl_means"]  # as older checkpoints are
    state.load(saved)
    assert state.loss.pl_mean == torch.tensor(0.1)


def test_ranks_on_gpus_agree_to_stop(monkeypatch):
    def refuse(tensor):
        raise RuntimeError("No backend type associated with device type cpu")  # as NCCL does

    def gather(values, value):
        values[:] = [value, True]

    monkeypatch.setattr(distributed.td, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.td, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.td, "all_reduce", refuse)
    monkeypatch.setattr(distributed.td, "all_gather_object", gather)
    loop = SimpleNamespace(options={"batch_size": 4}, state=SimpleNamespace(cur_nimg=4 * 16))
    assert training_loop._Run._must_stop(loop, asked=False)
    loop.state.cur_nimg += 4  # GPUs are not waited for in every iteration
    assert not training_loop._Run._must_stop(loop, asked=True)


def test_interrupted_ranks_leave_together(tiny_options, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise Interrupted("stopped")

    seen = []
    monkeypatch.setattr("training.launch.train", interrupted)
    monkeypatch.setattr(distributed, "shutdown", lambda: seen.append(sys.exc_info()[0]))
    with pytest.raises(SystemExit) as ended:
        launch(tiny_options, outdir=tmp_path, fresh=False, gpus=1)
    assert ended.value.code == 130
    assert seen == [None]  # else shutdown takes it for an error, and does not wait


def test_ctrl_c_is_for_the_ranks_to_answer(tiny_options, tmp_path, monkeypatch):
    def spawn(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    with pytest.raises(BaseException) as ended:  # else KeyboardInterrupt, and "Aborted!"
        launch(tiny_options, outdir=tmp_path, fresh=False, gpus=2)
    assert isinstance(ended.value, SystemExit) and ended.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_processes_that_load_images_leave_signals_to_the_loop(capfd):
    with Requests() as requests:
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(requests.asked)
        assert os.waitpid(child, 0)[1] == 0
    assert "Saving" not in capfd.readouterr().out


DYING = """
import os, sys
from pathlib import Path
import json
from training import launch, training_loop

step = training_loop._Run._iterate

def iterate(self, images, labels):
    if os.environ["RANK"] == "1":
        Path(sys.argv[2], "died").touch()
        raise RuntimeError("rank 1 is out of luck")
    step(self, images, labels)

training_loop._Run._iterate = iterate
options = json.loads(sys.argv[1])
if __name__ == "__main__":
    launch.launch(options, outdir=Path(sys.argv[2]), fresh=True, gpus=2)
"""


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others(tiny_options, tmp_path):
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    command = [sys.executable, script, json.dumps(tiny_options), tmp_path / "runs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert time.time() - (tmp_path / "runs" / "died").stat().st_mtime < 30
    assert ended.returncode != 0 and "rank 1 is out of luck" in ended.stderr
    assert not list((tmp_path / "runs").glob("*/finished.json"))
