"""A data set and a run that are as small as they can be."""

from __future__ import annotations

import os
import signal
import subprocess

import numpy as np
import pytest
from PIL import Image

from stylegan2_fewshot.methods.ada import ADA
from stylegan2_fewshot.ops.cpu import loader


@pytest.fixture(scope="session")
def compiler(tmp_path_factory):
    """Skip what needs a C++ compiler with OpenMP where there is none."""
    source = tmp_path_factory.mktemp("compiler") / "nothing.cpp"
    source.write_text("#include <omp.h>\n")
    found = loader.compiler()
    command = [found, *loader.FLAGS, str(source), "-o", str(source.with_suffix(".so"))]
    if found is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no C++ compiler with OpenMP is installed")
    return found


@pytest.fixture
def tiny_data(tmp_path):
    """Return a folder of eight random images of 16x16 pixels."""
    return _images(tmp_path / "data", 0)


@pytest.fixture
def heldout_data(tmp_path):
    """Return a folder of eight others, to measure against."""
    return _images(tmp_path / "heldout", 1)


def _images(folder, seed):
    folder.mkdir()
    pixels = np.random.RandomState(seed).randint(0, 256, [8, 16, 16, 3], dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def stop_after(monkeypatch):
    """Return a function that lets a signal arrive after as many iterations of `tiny_options`."""

    def prepare(iterations):
        after_step, done = ADA.after_step, []

        def interrupted(self, cur_nimg):
            after_step(self, cur_nimg)
            done.append(cur_nimg)
            if len(done) == iterations:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(ADA, "after_step", interrupted)

    return prepare


@pytest.fixture
def tiny_options(tiny_data):
    """Return the options of a run of six iterations, with a snapshot after every second one."""
    shared = dict(channel_base=128, channel_max=8, num_fp16_res=0, conv_clamp=None)
    optimizer = dict(lr=0.0025, betas=[0, 0.99], eps=1e-8)
    return dict(
        name="tiny",
        seed=3,
        device="cpu",
        dataset=dict(path=str(tiny_data), use_labels=False, max_size=None, xflip=True, seed=3),
        G=dict(z_dim=8, w_dim=8, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=shared),
        D=dict(**shared, epilogue_kwargs=dict(mbstd_group_size=2)),
        G_opt=optimizer,
        D_opt=optimizer,
        loss=dict(r1_gamma=1.0, style_mixing_prob=0.9, pl_weight=2.0),
        plugins=dict(ada=dict(target=-1.0, kimg=0.1), apa=dict(target=-1.0, kimg=0.1)),
        external=[],
        explicit={},
        batch_size=4,
        batch_gpu=2,
        total_kimg=0.024,
        kimg_per_tick=0.008,
        ema_kimg=0.01,
        ema_rampup=None,
        G_reg_interval=4,
        D_reg_interval=3,
        snapshot_ticks=1,
        metrics=[],
        metric_data=None,
        resume=None,
        resume_from="G",
        precision="fp32",
        nhwc=False,
        ops="auto",
        workers=0,
        allow_tf32=False,
        benchmark=False,
        patience=None,
    )
