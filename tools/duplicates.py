"""Near duplicates among many pictures, by hashes of 64 bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

MOST_DISTANCE = 10
_BITS = 64


def pairs(hashes: np.ndarray, distance: int) -> Iterator[tuple[int, int, int]]:
    """Yield `(i, j, d)`, i < j, for hashes, uint64 `[N]`, that differ in d <= `distance` bits.

    Hashes cut into `distance + 1` bands agree in one of them, so that only those that do are
    compared. Of equal hashes, each is paired with the first.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    for j, i in enumerate(first[inverse]):
        if i != j:
            yield int(i), j, 0
    edges = np.linspace(0, _BITS, distance + 2).astype(int)
    for start, stop in itertools.pairwise(edges):
        band = (unique >> np.uint64(start)) & np.uint64(2 ** int(stop - start) - 1)
        order = np.argsort(band, kind="stable")
        yield from _within_bands(unique, first, order, band[order], distance, int(start))


def _within_bands(
    unique: np.ndarray,
    first: np.ndarray,
    order: np.ndarray,
    band: np.ndarray,
    distance: int,
    start: int,
) -> Iterator[tuple[int, int, int]]:
    places, shift = np.arange(len(order)), 0
    while len(places):
        shift += 1
        places = places[places + shift < len(order)]
        places = places[band[places] == band[places + shift]]
        one, other = order[places], order[places + shift]
        bits = np.bitwise_count(unique[one] ^ unique[other])
        for k in np.flatnonzero(bits <= distance):
            i, j = sorted((int(first[one[k]]), int(first[other[k]])))
            yield i, j, int(bits[k])


def dropped(
    hashes: np.ndarray, quality: Sequence[tuple[int, ...]], distance: int
) -> dict[int, tuple[int, int]]:
    """Return the pictures to drop: which one of those that stay each is like, and the distance.

    Args:
        hashes: uint64 `[N]`.
        quality: The higher of two near duplicates stays.
        distance: Bits in which near duplicates may differ.
    """
    near: dict[int, list[tuple[int, int]]] = {}
    equal: dict[int, list[int]] = {}
    for i, j, d in pairs(hashes, distance):
        near.setdefault(i, []).append((d, j))
        near.setdefault(j, []).append((d, i))
        if d == 0:
            equal.setdefault(i, []).append(j)
    gone: dict[int, tuple[int, int]] = {}
    stays: set[int] = set()
    leader = {j: i for i, others in equal.items() for j in others}
    for i in sorted(range(len(hashes)), key=lambda i: quality[i], reverse=True):
        # What is near to the first of equal ones is near to all of them.
        head = leader.get(i, i)
        around = {j: d for d, other in near.get(head, []) for j in (other, *equal.get(other, []))}
        around |= dict.fromkeys((head, *equal.get(head, [])), 0)
        kept = [(d, j) for j, d in around.items() if j in stays]
        if kept:
            d, j = min(kept)
            gone[i] = (j, d)
        else:
            stays.add(i)
    return gone


def groups(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return a number `[N]` per picture, equal for those that near duplicates connect."""
    parent = list(range(len(hashes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j, _ in pairs(hashes, distance):
        parent[root(j)] = root(i)
    return np.array([root(i) for i in range(len(hashes))])


def split(group: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    """Return which pictures, bool `[N]`, are set aside: at most `number`, in whole groups."""
    members: dict[int, list[int]] = {}
    for i, g in enumerate(group):
        members.setdefault(int(g), []).append(i)
    aside = np.zeros(len(group), bool)
    keys = list(members)
    for k in np.random.RandomState(seed).permutation(len(keys)):
        found = members[keys[k]]
        if aside.sum() + len(found) <= number:
            aside[found] = True
        if aside.sum() == number:
            break
    return aside
