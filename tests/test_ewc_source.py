"""What EWC holds on to: the generator of the source that makes its samples."""

from __future__ import annotations

import copy
import json

import pytest
import tiny
import torch
from click.testing import CliRunner
from test_training_loop import assert_same_state

import train as command
from stylegan2_fewshot import Plugins, files, fisher, stats
from stylegan2_fewshot.fisher.file import LIKELIHOOD, Fisher
from training import checkpoint, pickles
from training.construction import summary
from training.dataset import ImageDataset
from training.training_loop import construct, train

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path):
    """Return a pickle whose G and G_ema are far apart."""
    G, D = tiny.networks(num_fp16_res=0)
    G_ema = copy.deepcopy(G)
    with torch.no_grad():
        for param in G_ema.parameters():
            param += 0.1 * torch.randn_like(param)
    pickles.save(tmp_path / "source.pkl", G=G, D=D, G_ema=G_ema)
    return tmp_path / "source.pkl"


def samples(path):
    G = pickles.load(path).G_ema
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    return G(z, None, noise_mode="const")


def with_ewc(options, source, **ewc):
    start = {"resume": str(source), "resume_from": "G_ema"}
    return {**options, **start, "plugins": {"ewc": {"samples": 16, **ewc}}}


@pytest.mark.slow
def test_an_immovable_network_makes_the_source_s_samples(tiny_options, source, tmp_path):
    fast = dict(batch_gpu=4, total_kimg=0.2, kimg_per_tick=0.2, D_reg_interval=16)
    fast["loss"] = dict(r1_gamma=1.0, pl_weight=0.0)

    def distance(lambda_):
        (run := tmp_path / f"{lambda_:g}").mkdir()
        train(with_ewc({**tiny_options, **fast}, source, lambda_=lambda_), run, CPU)
        change = samples(run / "network-snapshot-000000-200.pkl") - samples(source)
        return change.square().mean().sqrt()

    held = distance(1e12)
    assert held < 0.01  # after 50 iterations
    assert distance(0.0) > 10 * held


@pytest.mark.parametrize("start", ["G", "G_ema"])
def test_g_starts_as_the_chosen_generator_and_f_and_anchor_are_of_it(tiny_options, source, start):
    options = with_ewc(tiny_options, source, lambda_=1.0) | {"resume_from": start}
    dataset = ImageDataset(**options["dataset"])
    state, path = construct(options, dataset, CPU)
    nets = pickles.load(source)
    flat = [p.flatten() for p in getattr(nets, start).parameters()]
    assert torch.cat(flat).equal(state.plugins["ewc"].anchor_G)
    assert all(map(torch.equal, getattr(nets, start).parameters(), state.G.parameters()))
    assert all(map(torch.equal, nets.G_ema.parameters(), state.G_ema.parameters()))
    [kept] = source.parent.glob("source.fisher-*.npz")
    assert fisher.load(kept).meta["network"] == start
    said = summary(options, dataset, state.G, state.D, path, 0)
    assert f"from {source}, G as its {start}\n" in said


@pytest.mark.parametrize(("mine", "theirs"), [("G_ema", "G"), ("G", "G_ema")])
def test_the_information_of_the_other_generator_is_refused(tiny_options, source, mine, theirs):
    meta = {"likelihood": LIKELIHOOD, "standard_error": {}, "network": theirs}
    meta["source_sha256"] = files.sha256_of(source)
    fisher.save(path := source.with_suffix(".npz"), Fisher({"G.x": torch.ones(1)}, meta))
    options = with_ewc(tiny_options, source, lambda_=1.0, fisher=str(path))
    with pytest.raises(ValueError, match=f"of the source's {theirs}, but G starts as its {mine}"):
        construct({**options, "resume_from": mine}, ImageDataset(**options["dataset"]), CPU)


@pytest.mark.parametrize("theirs", [{}, {"network": None}, {"network": 7}, {"network": "D"}])
def test_information_of_no_named_generator_is_refused_in_one_line(source, theirs):
    meta = {"likelihood": LIKELIHOOD, "standard_error": {}, **theirs}
    meta["source_sha256"] = files.sha256_of(source)
    fisher.save(path := source.with_suffix(".npz"), Fisher({"G.x": torch.ones(1)}, meta))
    with pytest.raises(ValueError, match=r"does not say whether .* --network=G_ema$") as caught:
        fisher.load(path, source, "G_ema")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ("--resume=SOURCE", "G"),
        ("--resume=SOURCE --ewc-lambda=1", "G_ema"),
        ("--resume=SOURCE --ewc-lambda=1 --resume-from=g", "G"),
        ("--resume=SOURCE --resume-from=g_ema", "G_ema"),
        ("", None),
    ],
)
def test_default_on_the_command_line(words, start, tiny_data, source):
    arguments = [f"--outdir={tiny_data / 'runs'}", f"--data={tiny_data}", "--dry-run"]
    arguments += words.replace("SOURCE", str(source)).split()
    found = CliRunner().invoke(command.main, arguments)
    assert found.exit_code == 0, found.output
    expected = "null" if start is None else f'"{start}"'
    assert f'"resume_from": {expected},' in found.output


def test_nothing_to_start_from(tiny_data):
    arguments = [f"--outdir={tiny_data}", f"--data={tiny_data}", "--resume-from=g_ema"]
    found = CliRunner().invoke(command.main, arguments)
    assert found.exit_code == 2
    assert "--resume-from=g_ema needs --resume" in found.output


def test_plugins_say_where_they_begin():
    assert Plugins.create({}).resumes_from == Plugins.create({"apa": {}}).resumes_from == "G"
    assert Plugins.create({"apa": {}, "ewc": {}}).resumes_from == "G_ema"


def trained(options, folder):
    folder.mkdir(exist_ok=True)
    train(options, folder, CPU)
    return checkpoint.load_newest(folder)


def test_a_ratio_becomes_a_lambda_in_a_rehearsal_that_leaves_no_trace(
    tiny_options, source, tmp_path, capsys
):
    others = {"ada": {"target": -1.0, "kimg": 0.1}, "apa": {"target": -1.0, "kimg": 0.1}}

    def options(**ewc):
        chosen = with_ewc(tiny_options, source, **ewc)
        return {**chosen, "plugins": {**chosen["plugins"], **others}}

    asked = options(ratio=0.3, rehearsal=4)
    found = trained(asked, tmp_path / "ratio")
    lambda_ = found["plugins"].pop("ewc.found_lambda")
    assert f"--ewc-ratio=0.3 makes it {lambda_:.6g}" in capsys.readouterr().out
    given = trained(options(lambda_=lambda_.item()), tmp_path / "lambda")
    assert_same_state(given, found)  # weights, optimizers, draws and p

    part = {**asked, "total_kimg": 0.008}
    assert trained(part, tmp_path / "part")["plugins"]["ewc.found_lambda"] == lambda_
    capsys.readouterr()
    assert_same_state(trained(asked, tmp_path / "part")["G"], found["G"])
    assert "ehearsal" not in capsys.readouterr().out


def test_lambda_is_scaled_by_what_the_last_half_reached(tiny_options, source, tmp_path):
    asked = with_ewc(tiny_options, source, ratio=0.3, rehearsal=4)
    state, _ = construct(asked, ImageDataset(**asked["dataset"]), CPU)
    guess = state.plugins["ewc"].found_lambda.item()
    found = trained(asked, tmp_path / "ratio")["plugins"]["ewc.found_lambda"].item()
    stats.collect()
    rehearsed = {"total_kimg": 0.016, "kimg_per_tick": 0.008}  # four iterations, two a tick
    rest = with_ewc({**tiny_options, **rehearsed}, source, lambda_=guess)
    trained(rest, tmp_path / "guess")
    last = json.loads((tmp_path / "guess/stats.jsonl").read_text().splitlines()[-1])
    assert found == pytest.approx(guess * 0.3 / last["EWC/ratio"]["mean"], rel=1e-5)


def test_a_ratio_switches_it_on_and_replaces_lambda(tiny_data, source):
    arguments = [f"--outdir={tiny_data}", f"--data={tiny_data}", f"--resume={source}", "--dry-run"]
    found = CliRunner().invoke(command.main, [*arguments, "--ewc-ratio=0.3"])
    options = json.loads(found.stdout)
    assert options["plugins"]["ewc"]["ratio"] == 0.3 and options["resume_from"] == "G_ema"
    found = CliRunner().invoke(command.main, [*arguments, "--ewc-ratio=0.3", "--ewc-lambda=1"])
    assert found.exit_code == 2 and "--ewc-ratio=0.3 finds lambda; drop" in found.output
