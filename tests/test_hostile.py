"""No file executes anything, takes much memory or time, or ends in another's exception."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stylegan2_fewshot.files import refusing
from tests.readers import OURS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def outcomes():
    """Return what became of every file, each read in a fork of one warm process."""
    command = [sys.executable, "-m", "tests.hostile_files"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_hostile_files_are_refused_or_harmless(outcomes):
    hostile = [found for found in outcomes if not found["name"].startswith("valid ")]
    assert len(hostile) >= 340
    bad = [found for found in hostile if not is_harmless(found)]
    assert not bad, "\n".join(map(str, bad))
    refused = [found for found in hostile if found["kind"] == "raised"]
    assert len(refused) > 0.9 * len(hostile)


def is_harmless(found):
    if found["ran"] or found["peak"] > found["most"]:
        return False
    if found["kind"] == "returned":
        return True
    words = found["message"]
    named = found["file"] in words or "dataset.json" in words or ".prior.npz" in words
    named = named or "metric-" in words
    advises_numpy = "allow_pickle" in words or "weights_only" in words
    return (
        found["kind"] == "raised"
        and found["error"] in OURS
        and words.isprintable()
        and len(words) < 1000
        and named
        and not advises_numpy
    )


def test_valid_files_of_every_kind_load(outcomes):
    valid = [found for found in outcomes if found["name"].startswith("valid ")]
    assert len(valid) >= 18
    assert [found for found in valid if found["kind"] != "returned"] == []


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit])
def test_what_is_not_the_file_s_fault_passes(error):
    with pytest.raises(error), refusing("x", "is damaged", "get it again"):
        raise error


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), KeyError("k"), RecursionError(), OSError("o"), Exception()]
)
def test_whatever_a_decoder_raises_becomes_one_line_of_ours(error):
    with (
        pytest.raises(ValueError, match=r"^a\\x1bb: is damaged \(.+\); get it again$"),
        refusing("a\x1bb", "is damaged", "get it again"),
    ):
        raise error


def test_mutated_files_end_in_our_errors():
    command = [sys.executable, "-m", "tests.fuzz", "--files=300"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 other exceptions" in ran.stdout
