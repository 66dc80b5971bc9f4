"""What networks need of the methods that made them, whichever these are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from .plugin import Plugin, registry


def rebuilders() -> dict[str, type[Plugin]]:
    """Return the methods that make other networks, by their key in `init_kwargs`."""
    return {cls.network_key: cls for cls in registry().values() if cls.network_key}


def makers(G: Any) -> list[type[Plugin]]:
    """Return the methods that have made a generator other than its class says."""
    made = getattr(G, "init_kwargs", {})
    return [cls for key, cls in rebuilders().items() if key in made]


def refuse_made(G: Any, what: str) -> None:
    """Raise a ValueError that starts with `what` where a method has made G another network."""
    for cls in makers(G):
        remedy = f"; {cls.ordinary}" if cls.ordinary else ""
        raise ValueError(f"{what} takes no network that the method {cls.name} has made{remedy}")


def synthesis_of(G: Any, z: Tensor) -> dict[str, Any]:
    """Return further arguments of `G.synthesis` for `z`, whichever method has made G."""
    parts = (cls.synthesis_of(G, z) for cls in rebuilders().values())
    return {key: value for part in parts for key, value in part.items()}


def companions(network: Path) -> list[Path]:
    """Return the files that methods keep beside a network pickle, those that exist."""
    suffixes = (cls.companion for cls in registry().values() if cls.companion)
    return [path for suffix in suffixes if (path := network.with_suffix(suffix)).is_file()]


def conditioner(network: Path, sampling: str = "train") -> tuple[type[Plugin], Tensor] | None:
    """Return the method that keeps labels `[M, c_dim]` beside a network pickle, and these."""
    for cls in registry().values():
        if (labels := cls.labels_beside(network, sampling)) is not None:
            return cls, labels
    return None


def labels_beside(network: Path) -> Tensor | None:
    """Return the labels that lie beside a network pickle, whichever method put them there."""
    found = conditioner(network)
    return found[1] if found else None
