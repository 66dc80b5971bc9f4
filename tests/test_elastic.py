"""Two of torchrun's agents, as on two machines: a process is lost, and the group resumes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import checkpoint

ROOT = Path(__file__).parent.parent
LONG = 500  # seconds, for the slowest machine
MORTAL = '''
import os, signal
from pathlib import Path
from stylegan2_fewshot import Plugin, distributed
from stylegan2_fewshot.plugin import register

@register("mortal")
class Mortal(Plugin):
    """Die once, on rank 1.

    Args:
        marker: File that says that it has happened.
    """

    def __init__(self, *, marker: str = "") -> None:
        super().__init__()
        self.marker = Path(marker)

    def after_step(self, cur_nimg: int) -> None:
        if distributed.rank() == 1 and cur_nimg == 16 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
'''
SCRIPT = """
import json, sys
from pathlib import Path
from stylegan2_fewshot.external import load_external
from training import launch

if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    load_external(options["external"][0])
    launch.launch(options, outdir=Path(sys.argv[2]), fresh=False, gpus=int(sys.argv[3]))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(command, environment, count):
    """Start a command several times; whatever is left of them ends with the test."""
    processes = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def state_of(folder):
    (run,) = folder.iterdir()
    assert (run / "finished.json").exists()
    return checkpoint.load_newest(run)


def flat(value):
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in flat(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in flat(part)]
    return [value]


@pytest.mark.slow
def test_a_lost_process_costs_the_group_nothing_but_time(tiny_options, tmp_path):
    (tmp_path / "mortal.py").write_text(MORTAL)
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as docs/scale.md says
    marker = tmp_path / "died"
    external = [f"{tmp_path / 'mortal.py'}:Mortal"]
    options = {**tiny_options, "external": external, "plugins": {"mortal": {"marker": str(marker)}}}
    arguments = [str(tmp_path / "run.py"), json.dumps(options)]
    agent = f"--nnodes=2 --nproc-per-node=1 --max-restarts=3 --rdzv-id=1 --rdzv-backend=c10d \
        --rdzv-endpoint=127.0.0.1:{free_port()} --local-addr=127.0.0.1".split()
    command = [sys.executable, "-m", "torch.distributed.run", *agent, *arguments]
    with started([*command, str(tmp_path / "elastic"), "1"], environment, 2) as agents:
        for process in agents:
            said, _ = process.communicate(timeout=LONG)
            assert process.returncode == 0, said
    assert marker.exists()
    whole = [sys.executable, *arguments, str(tmp_path / "whole"), "2"]
    subprocess.run(whole, env=environment, check=True, timeout=LONG)
    mine, theirs = flat(state_of(tmp_path / "elastic")), flat(state_of(tmp_path / "whole"))
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
