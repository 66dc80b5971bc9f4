"""Every block of README and docs/ runs as printed; only how long it takes is cut (`SHORTER`).

A block that needs a GPU, npm or the internet has a comment before it that says so: `NOT_RUN`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.photos import camera_photos
from tests.staged_runs import stage

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run by the tests: (needs [^>]+) -->")
MOST_NOT_RUN = 6
# What takes minutes or hours is made to take seconds; hours-long experiments only report.
SHORTER = {
    r"--kimg=[\d.]+": "--kimg=0.02",
    r"-kimg[\d.]+-": "-kimg0.02-",
    r"--cfg=fewshot": "--cfg=fewshot --kimg=0.02",
    r"-fewshot-": "-fewshot-kimg0.02-",
    r"benchmarks\.methods": "benchmarks.methods --only=ewc",
    r"demo\.py": "demo.py --kimg=0.02",
    r"--(ewc-samples|num-steps)=\d+": r"--\1=4",
    r"(python -m metrics[^|]*?)--metrics=\S+": r"\1--metrics=nn1k",
    r"(train\.py[^|]*?)--metrics=\S+": r"\1--metrics=none",
    r"--patience=\d+": "",
    r"--what=(tiny32,)?train64": "--what=tiny32",
    r"--reps=\d+": "--reps=1 --rounds=1",
    r"--against=CHECKOUT": "",  # the original's, which is not ours to hold
    r"\bmake (?=[a-z])": "make -n ",
    r"(examples/(few_shot|fisher_figure)\.py)": r"\1 --report",
    r"make_data\.py --styles=\S+": "make_data.py --help",
}
QUICK = {("your-pictures.md", 1), ("your-pictures.md", 3)}  # document, number of the block


@dataclass(frozen=True)
class Block:
    """A block of a document: commands, or the Python of all of a document's blocks."""

    document: str
    number: int
    text: str
    language: str
    not_run: str

    def __str__(self):
        return f"{self.document} {self.number}"


def blocks_of(path):
    """Return a document's blocks, indented or fenced; those of `text` are not commands."""
    found = []
    parts = re.split(r"(?m)^```(\w*)\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for index in range(0, len(parts), 3):
        prose = parts[index]
        for match in re.finditer(r"(?:\A|\n\n)((?:    .*(?:\n|\Z)|\n(?=    ))+)", prose):
            before = prose[: match.start()].rstrip().rpartition("\n")[2]
            found.append((re.sub(r"(?m)^    ", "", match[1]), "bash", before))
        if index + 2 < len(parts):
            before = prose.rstrip().rpartition("\n")[2]
            found.append((parts[index + 2], parts[index + 1], before))
    blocks = []
    for text, language, before in found:
        if language != "text":
            reason = NOT_RUN.search(before)
            number = len(blocks) + 1
            blocks.append(Block(path.name, number, text, language, reason[1] if reason else ""))
    return blocks


BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Work in a copy of the checkout, with what documents name as the reader's own files."""
    monkeypatch.chdir(tmp_path)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = {name.partition("/")[0] for name in tracked.stdout.split()} or os.listdir(ROOT)
    for name in names - {"examples", "docs"}:
        Path(name).symlink_to(ROOT / name)
    for name in ("examples", "docs"):
        shutil.copytree(
            ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__", "*.fisher*")
        )
    Path("bin").mkdir()
    Path("bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    Path("bin/python").chmod(0o755)
    camera_photos(Path("PHOTOS"), 20)
    Image.new("RGB", (32, 32), "red").save("photo.png")
    for name in ("adapted.pkl", "source.pkl"):
        shutil.copy("examples/toon-heads-32.pkl", name)
    shutil.copy("examples/lorelei-ten.zip", "ten.zip")
    Path("out/data").mkdir(parents=True)
    for style, part in (("lorelei", "ten"), ("toon-head", "train")):
        shutil.copy("examples/lorelei-ten.zip", f"out/data/{style}-32-{part}.zip")
        shutil.copy("examples/lorelei-heldout.zip", f"out/data/{style}-32-heldout.zip")
    shutil.copy("examples/lorelei-ten.zip", "out/data/lorelei-32-ten0.zip")
    shutil.copy("examples/personas-ten.zip", "out/data/personas-32-ten0.zip")
    shutil.copy("examples/personas-heldout.zip", "out/data/personas-32-heldout.zip")
    code = next(b for b in BLOCKS if b.document == "your-own-method.md" and b.language == "python")
    Path("my_method.py").write_text(code.text)
    return tmp_path


def run(text, language="bash"):
    """Run a block, and return what it printed; it must succeed."""
    command = [sys.executable, "-c", text]
    if language == "bash":
        for long, short in SHORTER.items():
            text = re.sub(long, short, text)
        command = ["bash", "-e", "-o", "pipefail", "-c", text]
    path = f"{Path('bin').resolve()}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def marked(block):
    quick = (block.document, block.number) in QUICK
    return pytest.param(block, id=str(block), marks=[] if quick else pytest.mark.slow)


def test_few_blocks_are_not_run():
    left_out = [block for block in BLOCKS if block.not_run]
    assert len(left_out) <= MOST_NOT_RUN, [str(block) for block in left_out]
    for block in left_out:
        assert re.match(r"needs (a GPU|npm|the internet)", block.not_run), str(block)


def test_every_comment_belongs_to_a_block():
    comments = sum(len(NOT_RUN.findall(path.read_text())) for path in DOCUMENTS)
    assert comments == sum(bool(block.not_run) for block in BLOCKS)
    assert {block.language for block in BLOCKS} == {"bash", "python"}


@pytest.mark.parametrize(
    "block", [marked(b) for b in BLOCKS if b.language == "bash" and not b.not_run]
)
def test_commands_run_as_printed(block, checkout):
    if "tools.prepare" not in block.text:
        shutil.copy("examples/personas-ten.zip", "my-pictures.zip")
    if block.document == "report.md":
        for name in ("00000-first", "00001-second"):
            stage("well", 0, checkout / "runs", name=name)
    run(block.text)


@pytest.mark.slow
@pytest.mark.parametrize("document", sorted({b.document for b in BLOCKS if b.language == "python"}))
def test_python_runs_as_printed(document, checkout):
    blocks = [b.text for b in BLOCKS if b.document == document and b.language == "python"]
    run("\n".join(blocks), "python")
