"""A third party's methods, for the tests of `patches`: `--plugin=host_plugins:Recorder`."""

from pathlib import Path

import torch

from stylegan2_fewshot import Plugin


class Recorder(Plugin):
    """Write down what the hooks see, and the first number drawn in each iteration.

    Args:
        path: Text file for it.
    """

    def __init__(self, *, path: str = "") -> None:
        super().__init__()
        self.path = Path(path)

    def observe(self, step):
        with self.path.open("a") as file:
            file.write(f"{step.phase} {step.cur_nimg} {len(step.img)}\n")

    def after_step(self, cur_nimg):
        drawn = torch.rand([], generator=self.rng(cur_nimg, torch.device("cpu")))
        with self.path.open("a") as file:
            file.write(f"end {cur_nimg} {float(drawn)}\n")


class Widening(Plugin):
    """Change a network, as a method must not in a checkout.

    Args:
        by: Channels.
    """

    def __init__(self, *, by: int = 0) -> None:
        super().__init__()
        self.by = by

    def setup(self, run):
        run.G.extra = torch.nn.Linear(self.by, 1)

    def penalty(self, step):
        return None
