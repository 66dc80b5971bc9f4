"""Networks as `.safetensors`: tensors under names such as `G_ema.synthesis.b4.const`.

The header's `__metadata__` holds JSON: `networks`, constructor arguments by key, and
`training_set_kwargs`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stylegan2_fewshot.files import replacing

from ..unpickler import PickleError, one_line
from .content import KEYS, Content, Parts

_FORMAT = "stylegan2-fewshot"
_MISSING = "safetensors files need a package: pip install safetensors"


def is_one(data: bytes) -> bool:
    """Return whether the bytes start like that format, with the size of a JSON header and it."""
    return data[8:10] == b'{"'


def read(data: bytes) -> Content:
    """Return the networks of a file.

    Raises:
        PickleError: The file is damaged, was not written by `write`, or the package is missing.
    """
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise PickleError(_MISSING) from None
    try:
        tensors = safetensors.torch.load(data)  # has checked the header's size
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = header.get("__metadata__", {})
        if about.get("format") != _FORMAT:
            raise PickleError(f"is a safetensors file without the metadata format={_FORMAT}")
        networks = json.loads(about["networks"])
        options = json.loads(about.get("training_set_kwargs", "null"))
        known = [key for key in KEYS if key in networks]
        return Content({key: _parts(key, networks, tensors) for key in known}, options)
    except (PickleError, MemoryError):
        raise
    except Exception as error:  # SafetensorError, and what foreign JSON makes our code raise
        raise PickleError(f"is a damaged safetensors file ({one_line(error)})") from None


def _parts(key: str, networks: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Parts:
    start = f"{key}."
    own = {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
    if not isinstance(networks[key], dict):
        raise PickleError(f"{key[:80]!r} has arguments that are no JSON object")
    return Parts(networks[key], own)


def write(
    path: str | os.PathLike[str],
    networks: Mapping[str, nn.Module],
    training_set_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write networks by key: G, D, G_ema and, if any, augment_pipe.

    Raises:
        ValueError: The package safetensors is missing.
    """
    try:
        from safetensors.torch import save
    except ModuleNotFoundError:
        raise ValueError(_MISSING) from None
    tensors = {
        f"{key}.{name}": tensor.detach().cpu().contiguous().clone()
        for key, net in networks.items()
        for name, tensor in net.state_dict().items()
    }
    metadata = {
        "format": _FORMAT,
        "networks": json.dumps({key: net.init_kwargs for key, net in networks.items()}),
        "training_set_kwargs": json.dumps(training_set_kwargs),
    }
    with replacing(path) as file:
        file.write(save(tensors, metadata))
