"""Network pickles: read as the original writes them, written as it reads them, never run."""

from __future__ import annotations

import copyreg
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan2_fewshot.ada import AugmentPipe
from training import pickles
from training.networks import Discriminator, Generator
from training.pickles import PickleError

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = ("G", "D", "G_ema")


def small_networks(**d_kwargs):
    """A trio for images of 8x8, a few kilobytes in all."""
    torch.manual_seed(0)
    shape = {"c_dim": 0, "img_resolution": 8, "img_channels": 3}
    synthesis = {"channel_base": 32, "channel_max": 4, "num_fp16_res": 1, "conv_clamp": 256}
    g = {"z_dim": 4, "w_dim": 4, "mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": synthesis}
    G, G_ema = Generator(**g, **shape), Generator(**g, **shape)
    D = Discriminator(channel_base=32, channel_max=4, **d_kwargs, **shape)
    return {"G": G, "D": D, "G_ema": G_ema}


def state_of(net):
    return {name: (t.tolist(), t.stride(), t.dtype) for name, t in net.state_dict().items()}


# Reading what the original wrote.


@pytest.mark.parametrize("name", ["d_orig", "c_cond32"])
def test_original_pickle_has_its_tensors(name):
    nets, ref = pickles.load(GOLDEN / f"{name}.pkl"), np.load(GOLDEN / f"{name}.npz")
    for key, want in json.loads(str(ref["shapes"])).items():
        net = getattr(nets, key)
        tensors = [*net.named_parameters(), *net.named_buffers()]
        assert {n: list(t.shape) for n, t in tensors} == want
        assert not net.training
        assert not any(t.requires_grad or t.is_meta for _, t in tensors)


@pytest.mark.parametrize("name", ["d_orig", "c_cond32"])
def test_original_pickle_gives_its_images_and_logits(name):
    nets, ref = pickles.load(GOLDEN / f"{name}.pkl"), np.load(GOLDEN / f"{name}.npz")
    z, c, d_img, d_c = (torch.from_numpy(ref[k]) for k in ("z", "c", "d_img", "d_c"))
    img = nets.G_ema(z, c, noise_mode="const", force_fp32=True).numpy()
    logits = nets.D(d_img, d_c, force_fp32=True).numpy()
    assert np.abs(img - ref["img"]).max() < 2e-5 * np.abs(ref["img"]).max()
    assert np.abs(logits - ref["logits"]).max() < 2e-5 * np.abs(ref["logits"]).max()


def test_original_pickle_gives_plain_settings():
    nets = pickles.load(GOLDEN / "c_cond32.pkl")
    assert nets.training_set_kwargs["class_name"] == "training.dataset.ImageFolderDataset"
    assert type(nets.training_set_kwargs) is dict
    assert nets.G.init_kwargs["synthesis_kwargs"]["channel_base"] == 1024
    assert float(nets.augment_pipe.p) == pytest.approx(0.086, abs=1e-3)
    assert nets.augment_pipe.init_kwargs["xint"] == 1


def test_loading_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    pickles.load(GOLDEN / "d_orig.pkl")
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_of_one_file_share_no_memory(tmp_path):
    nets = small_networks()
    pickles.save(tmp_path / "x.pkl", **nets)
    data = (tmp_path / "x.pkl").read_bytes()
    G = entry(data, "G")  # one object for both, as tools that convert networks write it
    shared = b"q" + bytes([200]) + text("G_ema") + b"h" + bytes([200]) + b"s"
    start, end = data.index(text("G") + G), data.index(text("G_ema"))
    D = data[start + len(text("G") + G) + 1 : end]
    (tmp_path / "y.pkl").write_bytes(
        b"\x80\x03}" + D + text("G") + G + b"r" + struct.pack("<I", 2000) + b"s" + shared[2:6]
    ) if False else None
    loaded = pickles.load(tmp_path / "x.pkl")
    assert loaded.G.mapping.w_avg.data_ptr() != loaded.G_ema.mapping.w_avg.data_ptr()
