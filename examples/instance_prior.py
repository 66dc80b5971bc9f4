"""The data instance prior: do a pretrained network's features help, or any condition at all?

    python examples/instance_prior.py                      # what is missing, then the report

On a hundred images, adapts the example network without conditions, with those of VGG16, and with
VGG16's shuffled over the images: the same vectors, which then say nothing about the image. That
features matter follows only where the first are ahead of the shuffled ones between conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import few_shot
import make_data
import torch
from experiment import Experiment, Record, Runs, by_method, command, commands
from measures import as_float, real_images, samples
from tables import markdown, spread
from trials import ROOT, Trial, run, snapshots

from metrics import results
from stylegan2_fewshot.methods.prior import instances
from training import grids

TARGET = "lorelei"
SHOTS = make_data.archive(TARGET, "hundred")
HELDOUT = make_data.archive(TARGET, "heldout")
OUT = Path("out/instance-prior")
FEATURES = OUT / "vgg16.npz"
METHODS = {
    "no prior": "",
    "VGG16": f"--prior={FEATURES}",
    "VGG16, not centred": f"--prior={FEATURES} --no-prior-center",
    "VGG16, shuffled": f"--prior={FEATURES} --prior-permute",
}
KID = "kid5k_full@mobilenetv2"
MIXED = "mixup"
COLUMNS = {
    "KID": (KID, 3),
    "precision": ("pr5k3_full_precision@mobilenetv2", 2),
    "recall": ("pr5k3_full_recall@mobilenetv2", 2),
    "copies": ("nn1k_copies", 2),
}
METRICS = (KID, "pr5k3_full@mobilenetv2", "nn1k")


def trial(method: str, options: str, seed: int, settings: Mapping[str, Any]) -> Trial:
    """Return the run of a method and a seed."""
    shared = (
        f"--data={SHOTS} --metricdata={HELDOUT} --resume={few_shot.SOURCE} --mirror=1 --batch=8 "
        f"--gamma=0.5 --pl-weight=0 --aug=noaug --kimg={settings['kimg']} --tick=2 --snap=1000 "
        f"--metrics={','.join(METRICS)}"
    )
    return Trial(method, f"{shared} {options}".strip(), seed)


def prepare(out: Path, settings: Mapping[str, Any]) -> None:
    """Compute the images' features."""
    if not (ROOT / FEATURES).exists():
        make = f"-m tools.features {SHOTS} --backbone=vgg16 --out={FEATURES}"
        run(make, ROOT / OUT / "features.txt")


def measure(trial: Trial, run_dir: Path) -> None:
    """Measure a conditional network between conditions too, in a folder beside its snapshots."""
    folder = (run_dir / MIXED).relative_to(ROOT)
    if "--prior=" in trial.options and not results.read(ROOT / folder):
        network = snapshots(run_dir)[-1].relative_to(ROOT)
        options = f"--metricdata={HELDOUT} --prior-sample={MIXED} --out={folder}"
        metrics = f"-m metrics {network} --metrics={','.join(METRICS)} {options}"
        run(metrics, ROOT / folder / "output.txt")
        for name, lines in results.read(ROOT / folder).items():
            line = lines[-1]
            mixed = {f"{MIXED}_{k}": v for k, v in line["results"].items()}
            results.append(run_dir, {**line, "metric": f"{MIXED}_{name}", "results": mixed})


def sections(record: Record) -> dict[str, str]:
    """Return the document's section."""
    if not record["runs"]:
        return {"instance-prior": "0 of 3 seeds were run."}
    rows = []
    for method, runs in by_method(record).items():
        for label, prefix in (("", ""), (", between conditions", f"{MIXED}_")):
            ends = [run["snapshots"][-1] for run in runs]
            if f"{prefix}{KID}" in ends[0]:
                cells = [spread([s[f"{prefix}{k}"] for s in ends], n) for k, n in COLUMNS.values()]
                rows.append([method + label, str(len(runs)), *cells])
    picture = "![An image a row, and samples of its condition](instance-prior.png)"
    text = [markdown(["method", "seeds", *COLUMNS], rows), picture, commands(record)]
    return {"instance-prior": "\n\n".join(text)}


def pictures(runs: Runs, settings: Mapping[str, Any], docs: Path) -> None:
    """Draw for a few training images the image, and samples of its condition."""
    shown = next((path for trial, path in runs.items() if trial.method == "VGG16"), None)
    if shown is None:
        return
    conditions = instances.load(ROOT / FEATURES).as_conditions().vectors[0]
    rows = []
    for index, image in enumerate(as_float(real_images(SHOTS, 6))):
        fakes = samples(snapshots(shown)[-1], range(8), psi=0.8, label=conditions[index])
        rows.append((f"image {index}", torch.cat([image[None], fakes])))
    grids.save_png(docs / "instance-prior.png", grids.labelled_rows(few_shot.enlarged(rows)))


EXPERIMENT = Experiment(
    "instance-prior",
    METHODS,
    trial,
    sections,
    settings={"kimg": 40},
    prepare=prepare,
    measure=measure,
    pictures=pictures,
)

if __name__ == "__main__":
    command(EXPERIMENT, __doc__)()
