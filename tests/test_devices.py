"""No phase mixes devices: meta tensors stand in for a GPU's, and refuse those of the CPU."""

from __future__ import annotations

import pytest
import torch

from stylegan2_fewshot import Plugin, Plugins, Run, files, stats
from stylegan2_fewshot.augment.pipe import AugmentPipe
from stylegan2_fewshot.fisher import file as fisher_file
from stylegan2_fewshot.loss import StyleGAN2Loss
from stylegan2_fewshot.methods.bank import filters as filter_bank
from training import pickles
from training.networks import Discriminator, Generator

META = torch.device("meta")
PHASES = ("Gboth", "Dboth")
SIZE = dict(c_dim=5, img_resolution=16, img_channels=3)


@pytest.fixture(autouse=True)
def _own_statistics():
    with stats.apart():
        yield


def networks(fp16):
    layers = dict(channel_base=128, channel_max=8, num_fp16_res=fp16, conv_clamp=256)
    G = Generator(
        z_dim=8, w_dim=8, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=layers, **SIZE
    )
    return G, Discriminator(**SIZE, **layers)


def routes_of(z, size, layers):
    """Return routes: numbers on the CPU, which meta tensors cannot give."""
    return torch.randint(size, (len(z), layers))


def run_phases(G, D, plugins, **known):
    made = Plugins.create(plugins)
    G, D = G.to(META), D.to(META)
    made.setup(Run(G, D, device=META, **known))
    for module in made.modules():
        if isinstance(module, AugmentPipe):
            module.p = torch.tensor(0.5)
    loss = StyleGAN2Loss(META, G.mapping, G.synthesis, D, plugins=made)
    z, c = torch.randn(4, 8, device=META), torch.randn(4, 5, device=META)
    images = torch.randn(4, 3, 16, 16, device=META)
    for phase in PHASES:
        for net in (G, D):
            net.requires_grad_(phase.startswith(type(net).__name__[0]))
        loss.accumulate_gradients(phase, images, c, z, c, sync=True, gain=1)


def test_meta_tensors_refuse_those_of_the_cpu():
    with pytest.raises(RuntimeError, match="not on the expected device meta"):
        torch.zeros(2, device=META) + torch.zeros(2)


@pytest.mark.parametrize("fp16", [0, 4])
@pytest.mark.parametrize(
    "plugins",
    [
        {},
        {"ada": {}},
        {"fixed": {"p": 0.5, "augpipe": "bgcfnc"}},
        {"apa": {}},
        {"diffaugment": {}},
        {"freezed": {"freezed": 2}},
        {"lecam": {"lambda_": 1.0}},
        {"bank": {"size": 3}},
    ],
    ids=str,
)
def test_no_phase_mixes_devices(plugins, fp16, monkeypatch):
    monkeypatch.setattr(Plugin, "rng", lambda self, step, device: None)  # there is none of meta
    monkeypatch.setattr(filter_bank, "routes_of", routes_of)
    run_phases(*networks(fp16), plugins)


def test_ewc_does_not_mix_devices(tmp_path):
    G, D = networks(0)
    source = tmp_path / "source.pkl"
    pickles.save(source, G=G, D=D, G_ema=G)
    values = {f"G.{name}": torch.ones(p.shape) for name, p in G.named_parameters()}
    meta = {"likelihood": fisher_file.LIKELIHOOD, "standard_error": {}}
    meta["source_sha256"] = files.sha256_of(source)
    meta["network"] = "G"
    fisher_file.save(tmp_path / "F.npz", fisher_file.Fisher(values, meta))
    ewc = {"lambda_": 1.0, "fisher": str(tmp_path / "F.npz")}
    run_phases(G, D, {"ewc": ewc}, resumed=str(source))
