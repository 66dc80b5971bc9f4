"""The data instance prior."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ...plugin import Plugin, Run, register
from ...projection import add_unconditional_term
from .clusters import fitted
from .drawing import PriorDrawing, pool
from .instances import (
    Instances,
    companion,
    conditions_of,
    labels_of,
    load,
    load_beside,
    permuted,
    rows_of,
    save,
    some,
)


@register("prior")
class Prior(Plugin):
    """Condition G and D on a pretrained network's view of each image (data instance prior).

    Mangla et al., WACV 2022 (arXiv 2012.04256). The label of an image is its feature vector, less
    the mean over the images in use, so that what comes out is an ordinary conditional network. An
    unconditional source is widened, and its images and logits are the same at first; from scratch,
    D has the paper's unconditional term. Beside every snapshot lies what sampling needs, as
    `*.prior.npz`: conditions seen in training, at most 1000, that mean, and clusters of all
    conditions: their centres, and a mixture of Gaussians.

    Args:
        prior: File of `python -m tools.features`, of these training images.
        center: Take away the mean of the features of the images in use, which is not the paper's.
        permute: Give every image another one's features: the control, in which they cannot help.
    """

    neutral: ClassVar = {"prior": None}
    companion = ".prior.npz"
    draws = PriorDrawing

    def __init__(
        self, *, prior: str | None = None, center: bool = True, permute: bool = False
    ) -> None:
        super().__init__()
        self.prior, self.center, self.permute = prior, center, permute
        self._conditions: Instances | None = None  # all of them
        self._kept: Instances | None = None  # what lies beside a snapshot

    @classmethod
    def labels_beside(cls, network: Path, sampling: str = "train") -> Tensor | None:
        kept = load_beside(network)
        return pool(kept, sampling) if kept else None

    def condition(self, dataset: Any) -> Any:
        if self.prior is None:
            return dataset
        features = load(Path(self.prior))
        if features.center is not None:
            raise ValueError(f"--prior={self.prior}: of a network; give those of a data set")
        if dataset.label_dim:
            raise ValueError("--prior brings its own labels; drop --cond")
        rows = rows_of(dataset, features)
        if len(rows) < 2 and (self.center or self.permute):
            raise ValueError(
                "--prior: one image has nothing to be told from; add images, or --no-prior-center "
                "without --prior-permute"
            )
        of_files = features.as_conditions(
            list(rows.values()), mirrored=dataset.xflip, centered=self.center
        )
        shown = permuted(rows) if self.permute else rows
        conditioned = dataset.with_labels(labels_of(dataset, of_files.vectors, shown))
        meta = {key: value for key, value in features.meta.items() if key != "files"}
        self._conditions = Instances(conditions_of(conditioned), meta, of_files.center)
        self._kept = None
        return conditioned

    def setup(self, run: Run) -> None:
        if self.prior is None:
            return
        if self._conditions is None:
            raise ValueError("--prior: this training loop does not hand its labels to G and D")
        if run.resumed is None:
            add_unconditional_term(run.D)
        elif kept := load_beside(Path(run.resumed)):
            now, before = self._conditions.meta, kept.meta
            if now["backbone_sha256"] != before["backbone_sha256"]:
                raise ValueError(
                    f"--prior: its features are of {now['backbone']}, but {run.resumed} was "
                    f"conditioned on those of {before['backbone']}; compute them with that backbone"
                )

    def snapshot(self, path: Path) -> None:
        if self._conditions is not None:
            if self._kept is None:  # at the first snapshot, on the rank that writes
                everything = self._conditions
                kept, found = some(everything.vectors), fitted(everything.vectors)
                self._kept = replace(everything, vectors=kept, clusters=found)
            save(companion(path), self._kept)
