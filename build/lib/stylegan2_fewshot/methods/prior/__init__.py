"""The data instance prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ...plugin import Plugin, Run, register
from .instances import Instances, beside, companion, conditions_of, labels_of, load, save


@register("prior")
class Prior(Plugin):
    """Condition G and D on a pretrained network's view of each image (data instance prior).

    Mangla et al., WACV 2022 (arXiv 2012.04256). The label of an image is its feature vector, less
    the mean over the data set, so that what comes out is an ordinary conditional network. An
    unconditional source is widened, and its images and logits are the same at first. Beside every
    snapshot lies what sampling needs, as `*.prior.npz`: conditions seen in training, at most 1000,
    and that mean.

    Args:
        prior: File of `python -m tools.features`, of these training images.
    """

    neutral: ClassVar = {"prior": None}
    companion = ".prior.npz"

    def __init__(self, *, prior: str | None = None) -> None:
        super().__init__()
        self.prior = prior
        self._conditions: Instances | None = None

    @classmethod
    def labels_beside(cls, network: Path) -> Tensor | None:
        kept = beside(network)
        return kept.vectors if kept else None

    def condition(self, dataset: Any) -> Any:
        if self.prior is None:
            return dataset
        features = load(Path(self.prior))
        if features.center is not None:
            raise ValueError(f"--prior={self.prior}: of a network; give those of a data set")
        if dataset.label_dim:
            raise ValueError("--prior brings its own labels; leave --cond away")
        of_files = features.as_conditions()
        conditioned = dataset.with_labels(labels_of(dataset, of_files))
        meta = {key: value for key, value in features.meta.items() if key != "files"}
        self._conditions = Instances(conditions_of(conditioned), meta, of_files.center)
        return conditioned

    def setup(self, run: Run) -> None:
        if self.prior is None:
            return
        if self._conditions is None:
            raise ValueError("--prior: this training loop does not hand its labels to G and D")
        if run.resumed and (kept := beside(Path(run.resumed))):
            mine, theirs = self._conditions.meta, kept.meta
            if mine["backbone_sha256"] != theirs["backbone_sha256"]:
                raise ValueError(
                    f"--prior: its features are of {mine['backbone']}, but {run.resumed} was "
                    f"conditioned on those of {theirs['backbone']}; compute them with that backbone"
                )

    def snapshot(self, path: Path) -> None:
        if self._conditions is not None:
            save(companion(path), self._conditions)
