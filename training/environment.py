"""What a run was started with and on: command, versions, machine."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from stylegan2_fewshot.files import without_secrets, write_text

FILE = "environment.json"


def processor() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def describe(device: torch.device) -> dict[str, str]:
    """Return command, versions and machine in words; neither its name nor its user's."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    cpu = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return {
        "command": shlex.join(["python", *map(without_secrets, sys.argv)]),
        "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"NumPy {np.__version__}",
        "machine": f"{platform.system()}, {cpu}" + (f", {gpu}" if gpu else ""),
        "device": f"{device.type}, {torch.get_num_threads()} threads",
    }


def record(run_dir: Path, device: torch.device) -> None:
    """Write what this start has to a run directory; of several starts the last one's stays."""
    write_text(run_dir / FILE, json.dumps(describe(device), indent=2))
