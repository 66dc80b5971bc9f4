"""The data instance prior: do a pretrained network's features help, or any condition at all?

    python examples/instance_prior.py                      # what is missing, then the report

On a hundred images, adapts the example network without conditions, with those of VGG16, and with
VGG16's shuffled over the images: the same vectors, which then say nothing about the image. That
features matter follows only where the first are ahead of the shuffled ones between conditions.
"""

from __future__ import annotations

from pathlib import Path

import few_shot
import make_data
import torch
from experiment import Experiment, Record, Runs, Settings, by_method, command, networks
from measures import real_images, samples
from tables import cells, markdown
from trials import ROOT, Trial, run

from metrics import results
from stylegan2_fewshot.methods.prior import instances
from stylegan2_fewshot.pixels import to_float
from training import grids
from training.run_dir import snapshots

SHOTS = make_data.archive("lorelei", "hundred")
HELDOUT = make_data.archive("lorelei", "heldout")
OUT = Path("out/instance-prior")
FEATURES = OUT / "vgg16.npz"
KID = "kid5k_full@mobilenetv2"
METRICS = f"{KID},pr5k3_full@mobilenetv2,nn1k"
MIXED = "mixup"
COLUMNS = {
    "KID": (KID, 3),
    "precision": ("pr5k3_full_precision@mobilenetv2", 2),
    "recall": ("pr5k3_full_recall@mobilenetv2", 2),
    "copies": ("nn1k_copies", 2),
}


class InstancePrior(Experiment):
    name = "instance-prior"
    methods = {
        "no prior": "",
        "VGG16": f"--prior={FEATURES}",
        "VGG16, not centred": f"--prior={FEATURES} --no-prior-center",
        "VGG16, shuffled": f"--prior={FEATURES} --prior-permute",
    }
    settings = {"kimg": 40}

    def trial(self, method: str, options: str, seed: int, settings: Settings) -> Trial:
        shared = (
            f"--data={SHOTS} --metricdata={HELDOUT} --resume={few_shot.SOURCE} --mirror=1 "
            f"--batch=8 --gamma=0.5 --pl-weight=0 --aug=noaug --kimg={settings['kimg']} --tick=2 "
            f"--snap=1000 --metrics={METRICS}"
        )
        return Trial(method, f"{shared} {options}".strip(), seed)

    def prepare(self, out: Path, settings: Settings) -> None:
        if not (ROOT / FEATURES).exists():
            make = f"-m tools.features {SHOTS} --backbone=vgg16 --out={FEATURES}"
            run(make, ROOT / OUT / "features.txt")

    def measure(self, trial: Trial, run_dir: Path) -> None:
        """Measure a conditional network between conditions too, in a folder beside snapshots."""
        folder = (run_dir / MIXED).relative_to(ROOT)
        if "--prior=" in trial.options and not results.read(ROOT / folder):
            network = snapshots(run_dir)[-1].relative_to(ROOT)
            options = f"--metricdata={HELDOUT} --prior-sample={MIXED} --out={folder}"
            run(f"-m metrics {network} --metrics={METRICS} {options}", ROOT / folder / "output.txt")
            for name, lines in results.read(ROOT / folder).items():
                mixed = {f"{MIXED}_{k}": v for k, v in lines[-1]["results"].items()}
                line = {**lines[-1], "metric": f"{MIXED}_{name}", "results": mixed}
                results.append(run_dir, line)

    def paragraphs(self, record: Record) -> list[str]:
        rows = []
        for method, runs in by_method(record).items():
            ends = [run["snapshots"][-1] for run in runs]
            for label, prefix in (("", ""), (", between conditions", f"{MIXED}_")):
                columns = {head: (prefix + key, n) for head, (key, n) in COLUMNS.items()}
                if prefix + KID in ends[0]:
                    rows.append([method + label, str(len(runs)), *cells(ends, columns)])
        picture = "![An image a row, and samples of its condition](instance-prior.png)"
        return [markdown(["method", "seeds", *COLUMNS], rows), picture]

    def pictures(self, runs: Runs, record: Record, docs: Path) -> None:
        """Draw for a few training images the image, and samples of its condition."""
        if (network := networks(runs).get("VGG16")) is None:
            return
        conditions = instances.load(ROOT / FEATURES).as_conditions().vectors[0]
        rows = []
        for index, image in enumerate(to_float(real_images(SHOTS, 6))):
            fakes = samples(network, range(8), psi=0.8, label=conditions[index])
            rows.append((f"image {index}", torch.cat([image[None], fakes])))
        grids.save_png(docs / "instance-prior.png", grids.labelled_rows(few_shot.enlarged(rows)))


EXPERIMENT = InstancePrior()

if __name__ == "__main__":
    command(EXPERIMENT, __doc__)()
