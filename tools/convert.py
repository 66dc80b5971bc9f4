"""Converts checkpoints: `python -m tools.convert IN OUT`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from stylegan2_fewshot.networks import refuse_made
from training import pickles
from training.formats import onnx_export, rosinality, safetensors_file
from training.pickles import NetworkPickle

from .choices import plugin_option
from .command import FILE, UserPath, command
from .output import Output


def _write_pickle(path: Path, nets: NetworkPickle) -> str:
    pickles.save(path, **vars(nets))
    return "a network pickle of stylegan2-ada-pytorch"


def _write_rosinality(path: Path, nets: NetworkPickle) -> str:
    unknown = rosinality.write(path, {"G": nets.G, "D": nets.D, "G_ema": nets.G_ema})
    extra = {"augment_pipe": nets.augment_pipe, "training_set_kwargs": nets.training_set_kwargs}
    lost = [name for name, value in extra.items() if value is not None]
    notes = [f"left out: {' and '.join(lost)}"] if lost else []
    notes += [f"its own code does not know: {unknown}"] if unknown else []
    return "; ".join(["a checkpoint of rosinality/stylegan2-pytorch", *notes])


def _write_safetensors(path: Path, nets: NetworkPickle) -> str:
    named = vars(nets).items()
    found = {k: net for k, net in named if net is not None and k != "training_set_kwargs"}
    safetensors_file.write(path, found, nets.training_set_kwargs)
    return "safetensors"


def _write_onnx(path: Path, nets: NetworkPickle) -> str:
    difference = onnx_export.write(path, nets.G_ema)
    return (
        f"ONNX of G_ema, opset {onnx_export.OPSET}, fixed noise; "
        f"its images differ from PyTorch's by {difference:.1e} at most"
    )


WRITERS: dict[str, Callable[[Path, NetworkPickle], str]] = {
    ".pkl": _write_pickle,
    ".pt": _write_rosinality,
    ".safetensors": _write_safetensors,
    ".onnx": _write_onnx,
}


@command()
@click.argument("source", metavar="IN", type=UserPath())
@click.argument("target", metavar="OUT", type=FILE)
@plugin_option
def main(source: str, target: Path) -> None:
    """Convert the networks in IN (path, URL, short name or run) to OUT.

    IN is a network pickle of stylegan2-ada-pytorch or stylegan3 (StyleGAN2 networks), of the
    TensorFlow code of StyleGAN2 or StyleGAN2-ADA, a .pt checkpoint of rosinality's, or
    .safetensors; its content tells. OUT's suffix says what to write: .pkl, .pt, .safetensors, or
    .onnx for the generator. Nothing in IN is run.
    """
    if target.suffix not in WRITERS:
        raise ValueError(f"OUT={target}: its suffix must be one of {', '.join(WRITERS)}")
    alone = target.suffix in (".onnx", ".safetensors")
    nets = pickles.load(source, needs=("G_ema",) if alone else pickles.NEEDED)
    if target.suffix in (".pt", ".onnx"):
        refuse_made(nets.G_ema, f"OUT={target}: {target.suffix}")
    with Output(target) as output:
        click.echo(WRITERS[target.suffix](target, nets))
        output.count += 1
        output.companions(target, source)


if __name__ == "__main__":
    main()
