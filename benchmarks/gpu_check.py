"""All that a GPU at hand for a few minutes should be asked, in one command.

    python -m benchmarks.gpu_check [--quick] [--against CHECKOUT] [--gpus=2] | tee gpu.txt

Every part is a process with a time limit of its own and prints as it goes, so that one that fails
or hangs hides nothing. The last lines say how each ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
KERNELS = """
import sys, torch
from stylegan2_fewshot.ops import select
device = torch.device(sys.argv[1])
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.get_num_threads()} threads")
if device.type == "cuda":
    for number in range(torch.cuda.device_count()):
        print(torch.cuda.get_device_properties(number))
print(select("cuda" if device.type == "cuda" else "torch", device))
"""


class Part(NamedTuple):
    """One process: its arguments are made when its turn comes, for it may need earlier results."""

    name: str
    arguments: Callable[[], list[str]]
    limit_sec: float


class Size(NamedTuple):
    """A training of ten images that starts from a network."""

    resolution: int
    options: tuple[str, ...]
    batch: int
    iterations: int


SIZES = {
    "job64": Size(64, ("--cbase=2048", "--cmax=96", "--precision=fp32"), 16, 128),
    "job256": Size(256, ("--cbase=16384", "--precision=fp16"), 16, 64),
}
TOY = Size(16, ("--cbase=64", "--cmax=8", "--zdim=8", "--map-depth=1", "--ops=torch"), 4, 2)


def job(name: str, size: Size, device: str, folder: Path, gpus: int = 1) -> Iterator[Part]:
    """Yield the training of a source network, and the main job, APA and EWC, that starts from it;
    on one device, also the same, and ADA, with CUDA graphs beside without.

    Args:
        name: Name of the part, and of its folder.
        size: Networks and length.
        device: cpu or cuda.
        folder: Where images and runs are written.
        gpus: Processes of the second training.
    """
    kimg = size.iterations * size.batch / 1000
    place = folder / name

    def train(outdir: str, *options: str) -> list[str]:
        data = place / "images"
        if not data.is_dir():
            draw_images(data, size.resolution)
        length = (f"--kimg={kimg:g}", f"--tick={kimg / 2:g}", "--snap=2", f"--batch={size.batch}")
        where = (f"--outdir={place / outdir}", f"--data={data}", f"--device={device}")
        return ["train.py", *where, *length, "--metrics=none", *size.options, *options]

    def adapt(program: Sequence[str] = ()) -> list[str]:
        sources = sorted(place.glob("source/*/*.pkl"))
        if not sources:
            raise click.ClickException(f"{name} has no source network to start from")
        methods = ("--aug=apa", "--ewc-lambda=1", "--ewc-samples=16", f"--gpus={gpus}")
        words = train("runs", f"--resume={sources[-1]}", *methods)
        return [*program, *words[1:]] if program else words

    yield Part(f"{name}: source", lambda: train("source", "--aug=noaug"), 150)
    yield Part(f"{name}: APA and EWC on {gpus}", adapt, 150)
    if gpus == 1:
        compare = ("-m", "benchmarks.graphs", f"{max(size.iterations, 2)}")
        yield Part(f"{name}: without and with graphs", lambda: adapt(compare), 240)
        ada = ("--aug=ada", "--target=-1", f"--ada-kimg={2 * kimg:g}")  # p moves up to 1/2
        pipe = f"{name}: ADA without and with graphs"
        yield Part(pipe, lambda: [*compare, *train("ada", *ada)[1:]], 240)


def draw_images(folder: Path, resolution: int) -> None:
    """Write ten pictures of noise."""
    folder.mkdir(parents=True)
    pixels = np.random.RandomState(0).randint(
        0, 256, [10, resolution, resolution, 3], dtype=np.uint8
    )
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")


def parts(
    device: str, folder: Path, *, quick: bool, against: str | None, gpus: int, toy: bool
) -> Iterator[Part]:
    """Yield what is run, in its order.

    Args:
        device: cpu or cuda.
        folder: Where images and runs are written.
        quick: Leave out what takes long: the job at 256 pixels, and training at 1024.
        against: Checkout of the original, which `benchmarks` measures in turn.
        gpus: From 2 on, the small job is run on as many as well.
        toy: Sizes for a look at the commands themselves.
    """
    sides = [f"--against={against}"] if against else []
    few = ["--rounds=1", "--reps=1" if toy else "--reps=5", f"--device={device}"]
    few += ["--ops=torch"] if toy else []

    def bench(what: str, *options: str) -> Callable[[], list[str]]:
        return lambda: ["-m", "benchmarks", f"--what={what}", *few, *options, *sides]

    yield Part("kernels", lambda: ["-c", KERNELS, device], 180)
    tests = ["-m", "pytest", "tests/test_cuda_ops.py", "-q", "-m", "gpu"]
    yield Part("tests", lambda: [*tests, *(["--collect-only"] if toy else [])], 240)
    sizes = {"job16": TOY} if toy else SIZES
    for name, size in sizes.items():
        if not (quick and size.resolution > 64):
            yield from job(name, size, device, folder)
    if gpus > 1:
        name, size = next(iter(sizes.items()))
        yield from job(f"{name}-gpus", size, device, folder, gpus)
    if toy:
        yield Part("tiny32", bench("tiny32"), 120)
        return
    for what in ("ops", "train256", *(() if quick else ("train1024",))):
        yield Part(f"{what}, fp16", bench(what, "--precision=fp16"), 240)
    for what in ("ops", "train256"):  # in either layout, so that whoever has a card can choose
        last = bench(what, "--precision=fp16", "--nhwc")
        yield Part(f"{what}, fp16, channels last", last, 120)
    yield Part("demo64, fp32", bench("demo64"), 120)


def run(arguments: list[str], limit_sec: float) -> str:
    """Run Python with these arguments, ended with its children at the limit; say how it went."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, start_new_session=True)
    try:
        status = process.wait(limit_sec)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return f"stopped at its limit of {limit_sec:g} seconds"
        raise
    return f"failed, exit status {status}" if status else "done"


@click.command(context_settings={"show_default": True})
@click.option("--quick", is_flag=True, help="Without the job at 256 pixels and 1024's training.")
@click.option("--against", type=click.Path(exists=True, file_okay=False, resolve_path=True))
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="The job on as many, too.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
@click.option("--toy", is_flag=True, help="A look at the commands, in sizes that say nothing.")
@click.option("--only", default="", help="Parts whose names begin so.")
def main(quick: bool, against: str | None, gpus: int, device: str, toy: bool, only: str) -> None:
    """Kernels, their tests, the main job, operations, training, and the original in turn.

    Ends with status 1 unless every part was done. Name the card where you quote a number.
    """
    ends = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(quick=quick, against=against, gpus=gpus, toy=toy)
        for part in parts(device, Path(folder), **settings):  # type: ignore[arg-type]
            if not part.name.startswith(only):
                continue
            click.echo(f"\n=== {part.name} (at most {part.limit_sec:g} s)")
            start = time.monotonic()
            try:
                end = run(part.arguments(), part.limit_sec)
            except click.ClickException as error:
                end = f"skipped: {error.message}"
            ends[part.name] = f"{end}, {time.monotonic() - start:.0f} s"
            click.echo(f"=== {part.name}: {ends[part.name]}")
    click.echo("\n" + "\n".join(f"{name:32}{end}" for name, end in ends.items()))
    if not ends or not all(end.startswith("done") for end in ends.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
