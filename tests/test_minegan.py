"""MineGAN: the miner by hand, where it stands, and what moves when."""

from __future__ import annotations

import copy

import few_steps
import pytest
import torch
from test_combined import networks

from stylegan2_fewshot import files, fisher
from stylegan2_fewshot.fisher.file import LIKELIHOOD, Fisher
from stylegan2_fewshot.laws import ToyDiscriminator, ToyGenerator
from stylegan2_fewshot.methods.ewc import EWC
from stylegan2_fewshot.methods.minegan import MineGAN, install
from stylegan2_fewshot.plugin import Plugins, Run
from training import pickles
from training.networks import Generator

ON = {"minegan": {"layers": 2, "alone": 2}}


def test_a_miner_of_two_numbers_by_hand():
    """-f(-5 f(x)) = x with f(x) = x for x > 0, else x / 5; the first layers put out f(x), -x."""
    G = Generator(2, 0, 2, 8, 3, dict(num_layers=2), dict(channel_base=64, channel_max=8))
    before = G.mapping.fc0.weight.clone()
    install(G, layers=2)
    x = torch.tensor([[1.0, -0.5]])
    first = G.mapping.fc0(x)
    torch.testing.assert_close(first, torch.tensor([[1.0, -0.1]]))
    torch.testing.assert_close(G.mapping.fc1(first), -x)
    assert torch.equal(G.mapping.fc2.weight, -before)


@pytest.mark.parametrize("layers", [2, 4])
def test_at_first_images_are_the_source_s(layers):
    G = networks()["G"].eval()
    G.mapping.w_avg.copy_(torch.randn(8))
    mined = copy.deepcopy(G)
    install(mined, layers=layers)
    z, arguments = torch.randn(4, 8), dict(truncation_psi=0.5, noise_mode="const")
    torch.testing.assert_close(mined(z, None, **arguments), G(z, None, **arguments))
    assert mined.mapping.num_layers == 2 + layers


def test_the_pickle_is_an_ordinary_one_that_draws_with_the_miner(tmp_path):
    state = few_steps.iterate(few_steps.begin(ON, networks=networks), 3)
    pickles.save(tmp_path / "mined.pkl", G=state.G, D=state.D, G_ema=state.G_ema)
    loaded = pickles.load(tmp_path / "mined.pkl").G
    assert type(loaded) is Generator and loaded.init_kwargs["mapping_kwargs"]["num_layers"] == 4
    z = torch.randn(2, 8)
    with torch.no_grad():
        assert torch.equal(
            loaded(z, None, noise_mode="const"), state.G.eval()(z, None, noise_mode="const")
        )


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_the_miner_moves_alone_at_first_and_then_all(beta1):
    state = few_steps.begin(ON, beta1=beta1, networks=networks)
    before = few_steps.parameters(state)
    miner = {f"G.mapping.fc{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias")}
    first = few_steps.moved(before, few_steps.parameters(few_steps.iterate(state, 2)))
    assert {name for name in first if name[0] == "G"} == miner
    assert first - miner == {name for name in before if name[0] == "D"}
    assert not state.optimizers["G"].state
    later = few_steps.moved(before, few_steps.parameters(few_steps.iterate(state, 1)))
    trained = {name for name in before if not name.endswith("noise_strength")}
    assert later >= trained


def test_a_step_of_the_miner_is_one_of_the_learning_rate():
    """Adam's first step is the learning rate, in units of a layer without a multiplier."""
    state = few_steps.begin(ON, networks=networks)
    bias = state.G.mapping.fc1.bias
    few_steps.iterate(state, 1)  # Gmain and Greg
    lr, multiplier = 0.002, state.G.mapping.fc1.bias_gain
    steps = (bias * multiplier / lr).abs()
    assert multiplier == 0.01 and (steps > 0.3).any() and (steps < 2.5).all()


@pytest.mark.parametrize("before", [1, 3])
def test_a_resumed_run_is_the_same(before):
    few_steps.assert_resumes(ON, before=before, networks=networks)


def test_ewc_holds_the_source_s_layers_by_their_new_names_and_not_the_miner(tmp_path):
    nets = networks()
    path = tmp_path / "source.pkl"
    pickles.save(path, G=nets["G"], D=nets["D"], G_ema=nets["G"])
    named = {f"G.{name}": p for name, p in nets["G"].named_parameters()}
    values = {name: torch.full(p.shape, float(n)) for n, (name, p) in enumerate(named.items(), 1)}
    meta = {"likelihood": LIKELIHOOD, "standard_error": {}, "network": "G"}
    meta["source_sha256"] = files.sha256_of(path)
    fisher.save(tmp_path / "f.npz", Fisher(values, meta))
    ewc, minegan = EWC(lambda_=1.0, fisher=str(tmp_path / "f.npz")), MineGAN()
    run = Run(**nets, resumed=str(path))
    Plugins({"ewc": ewc, "minegan": minegan}).setup(run)
    kept, start = {}, 0
    for name, param in run.G.named_parameters():
        if name.startswith(("mapping.fc0.", "mapping.fc1.")):
            continue
        kept[name] = ewc.fisher_G[start : start + param.numel()]
        assert torch.equal(ewc.anchor_G[start : start + param.numel()], param.flatten())
        start += param.numel()
    assert start == len(ewc.fisher_G)
    for old, new in (("fc0", "fc2"), ("fc1", "fc3")):
        assert kept[f"mapping.{new}.weight"].eq(values[f"G.mapping.{old}.weight"].flatten()).all()


def test_refusals():
    with pytest.raises(ValueError, match="--minegan-layers=2 needs --resume"):
        MineGAN().setup(Run(ToyGenerator(), ToyDiscriminator()))
    with pytest.raises(ValueError, match="--minegan-layers must be an even number, or 0, got 3"):
        MineGAN(layers=3)
    with pytest.raises(ValueError, match="--minegan-alone must not be negative, got -1"):
        MineGAN(alone=-1)
    labelled = Generator(8, 4, 8, 8, 3, synthesis_kwargs=dict(channel_base=64, channel_max=8))
    narrow = Generator(8, 0, 6, 8, 3, synthesis_kwargs=dict(channel_base=64, channel_max=8))
    for G, text in ((labelled, "drop --cond or --prior"), (narrow, "take another source")):
        with pytest.raises(ValueError, match=text):
            MineGAN().setup(Run(G, ToyDiscriminator(), resumed="source.pkl"))
    with pytest.raises(ValueError, match="fsgan and minegan both set the networks' weights"):
        Plugins.create({"fsgan": {}, "minegan": {}})
