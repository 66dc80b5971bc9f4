"""torchvision's network architectures, also where its compiled operators do not load."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def models() -> Any:
    """Return the module `torchvision.models`.

    The registry's torchvision is built for CUDA. Beside a CPU build of torch its import fails,
    because it decorates operators that its own library failed to define; with their schemas in
    place the Python parts work.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        import torchvision.models
    except RuntimeError:
        _define_schemas()
        import torchvision.models
    return torchvision.models


def _define_schemas() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        with contextlib.suppress(RuntimeError):  # it is defined
            library.define(schema)
    _KEPT.append(library)


_KEPT: list[Any] = []  # a library's definitions go with the object
