"""A few steps of the loop on toy networks, under an Adam that has momentum, and a resume."""

from __future__ import annotations

import copy
import io

import torch

from stylegan2_fewshot.laws import ToyDiscriminator, ToyGenerator, ToyImages
from stylegan2_fewshot.loss import StyleGAN2Loss
from stylegan2_fewshot.plugin import Plugins, Run
from training.phases import Phases
from training.state import State

CPU = torch.device("cpu")
OPTIONS = dict(
    seed=1, batch_size=4, batch_gpu=2, ema_kimg=0.01, ema_rampup=None,
    G_reg_interval=2, D_reg_interval=2,
)  # fmt: skip


def toys():
    """Return the smallest generator and discriminator."""
    return {"G": ToyGenerator(), "D": ToyDiscriminator()}


def begin(options, *, beta1=0.5, networks=toys):
    """Return the state at the start of a run from a source network, which is always the same."""
    torch.manual_seed(0)
    nets = networks()
    plugins = Plugins.create(options)
    G_ema = copy.deepcopy(nets["G"])
    given = dict(dataset=ToyImages(), batch_size=4, resumed="source.pkl", estimates=False)
    plugins.setup(Run(**nets, G_ema=G_ema, **given))
    loss = StyleGAN2Loss(CPU, nets["G"].mapping, nets["G"].synthesis, nets["D"], plugins)
    trained, optimizers = {}, {}
    for name, net in nets.items():
        net.requires_grad_(False)
        named = net.named_parameters()
        trained[name] = {key: p for key, p in named if plugins.trainable(name, key)}
        optimizers[name] = torch.optim.Adam(trained[name].values(), lr=0.01, betas=(beta1, 0.99))
    return State(
        **nets,
        G_ema=G_ema,
        optimizers=optimizers,
        plugins=plugins,
        loss=loss,
        dataset=ToyImages(),
        trained=trained,
    )


def iterate(state, iterations):
    """Train for some iterations on random images, a function of the iteration."""
    phases = Phases(OPTIONS, state, CPU)
    for _ in range(iterations):
        rng = torch.Generator().manual_seed(state.cur_nimg)
        images = torch.randint(0, 256, [4, 3, 8, 8], generator=rng, dtype=torch.uint8)
        phases.iterate(images, torch.zeros(4, 0))
    return state


def resume(options, state, networks=toys):
    """Return the state that a new process has after loading a checkpoint of `state`."""
    file = io.BytesIO()
    torch.save(state.tensors(), file)
    file.seek(0)
    fresh = begin(options, networks=networks)
    fresh.load(torch.load(file, weights_only=True))
    return fresh


def parameters(state):
    """Return a copy of all parameters of G and D, by network and name."""
    nets = (("G", state.G), ("D", state.D))
    return {f"{net}.{k}": p.clone() for net, module in nets for k, p in module.named_parameters()}


def moved(before, after):
    """Return the names of the parameters that are not the same, bit for bit."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def assert_resumes(options, *, before=2, after=2, networks=toys):
    """Train on through a checkpoint; all that a checkpoint holds must be as without it."""
    once = iterate(begin(options, networks=networks), before)
    twice = resume(options, once, networks)
    for state in (once, twice):
        iterate(state, after)
    for part in ("G", "D", "G_ema", "plugins"):
        one, two = once.tensors()[part], twice.tensors()[part]
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.equal(value, two[name]), f"{part}.{name}"
