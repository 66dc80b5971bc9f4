"""The laws over every registered method, and what they catch; the library alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stylegan2_fewshot
from stylegan2_fewshot import Plugin, laws
from stylegan2_fewshot.plugin import registry

LIBRARY = Path(stylegan2_fewshot.__file__).parent


@pytest.mark.parametrize("cls", registry().values(), ids=lambda cls: cls.name)
def test_every_method_obeys_the_laws(cls):
    laws.check(cls)


class NotNeutral(Plugin):
    """Shift D's images.

    Args:
        by: By how much.
    """

    def __init__(self, *, by: float = 0.1) -> None:
        super().__init__()
        self.by = by

    def augment(self, img, step):
        return img + self.by


class Undocumented(Plugin):
    """Nothing is said of its parameter."""

    def __init__(self, *, by: float = 0.1) -> None:
        super().__init__()

    def augment(self, img, step):
        return img


class Forgetful(Plugin):
    """Grow a buffer, so that a checkpoint of it cannot be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def after_step(self, cur_nimg):
        self.seen = torch.cat([self.seen, self.seen])


class Misspelt(Plugin):
    """Has a hook of the wrong parameters."""

    def penalty(self, step, logits):
        return None


@pytest.mark.parametrize(
    ("cls", "error", "message"),
    [
        (NotNeutral, AssertionError, "neutral settings {} change the gradient of"),
        (Undocumented, TypeError, "'by' must be described under Args:"),
        (Forgetful, RuntimeError, "size mismatch for seen"),
        (Misspelt, TypeError, r"penalty\(self, step, logits\) must be penalty\(self, step\)"),
    ],
)
def test_what_breaks_a_law_is_caught(cls, error, message):
    with pytest.raises(error, match=message):
        laws.check(cls)


def test_the_library_trains_a_step_with_every_method_where_nothing_else_of_ours_exists(tmp_path):
    (tmp_path / "stylegan2_fewshot").symlink_to(LIBRARY)
    code = """
import sys
from stylegan2_fewshot import Plugins, laws
from stylegan2_fewshot.plugin import registry
for name, cls in registry().items():
    settings = {"fixed": {"p": 0.5}}.get(name, {})
    laws.steps(Plugins({name: cls(**settings)}), resumed="source.pkl")
assert not {"training", "metrics", "tools", "PIL", "scipy", "matplotlib"} & sys.modules.keys()
print(len(registry()), "methods")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{len(registry())} methods"
