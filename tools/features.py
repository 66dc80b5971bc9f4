"""Write what a pretrained network sees in each image, for `train.py --prior`."""

from __future__ import annotations

from pathlib import Path

import click

from metrics import Trust, detectors
from metrics.features import Reals, extract
from stylegan2_fewshot import distributed, trust
from stylegan2_fewshot.methods.prior.instances import Instances, digest, save, unit
from training.dataset import ImageDataset

from .command import FILE, UserPath, command


@command()
@click.argument("data", type=UserPath(exists=True))
@click.option(
    "--backbone",
    default="vgg16",
    show_default=True,
    help="vgg16, mobilenetv2, resnet50-ssl, or the path of a TorchScript file, which is a program.",
)
@click.option("--out", required=True, type=FILE, help="File .npz to write.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where.")
@trust.options
def main(
    data: str,
    backbone: str,
    out: Path,
    device: str,
    trust_backbone: bool,
    backbone_sha256: tuple[str, ...],
) -> None:
    """Write what a pretrained network sees in each image of DATA, and in its mirror image.

    \b
    Several processes share the work:
      torchrun --nproc-per-node=N -m tools.features ...
    """
    place = distributed.init(device)
    dataset = ImageDataset(data, xflip=True)
    detector = detectors.load(backbone, place, trust=Trust(trust_backbone, backbone_sha256))
    found = extract(Reals(dataset, mirrored=True), detector, device=place, show=detector.name)
    vectors = unit(found).view(2, len(dataset) // 2, -1)
    if distributed.rank() == 0:
        meta = {
            "backbone": backbone,
            "backbone_sha256": detector.sha256,
            "resize": detector.resize,
            "files": {name: digest(content) for name, content in dataset.files()},
        }
        save(out, Instances(vectors, meta))
        click.echo(f"{out}: {vectors.shape[2]} numbers of each of {vectors.shape[1]} images")
    distributed.shutdown()


if __name__ == "__main__":
    main()
