"""Near duplicates among many pictures, by hashes of 64 bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

MOST_DISTANCE = 10
_BITS = 64
_MOST_COMPARED = 1000


def pairs(hashes: np.ndarray, distance: int) -> Iterator[tuple[int, int, int]]:
    """Yield `(i, j, d)`, i < j, for hashes, uint64 `[N]`, that differ in d <= `distance` bits.

    Hashes cut into `distance + 1` bands agree in one of them, so that only those that do are
    compared, each with the next thousand that agree.
    """
    edges = np.linspace(0, _BITS, distance + 2).astype(int)
    bands = [
        (hashes >> np.uint64(start)) & np.uint64(2 ** int(stop - start) - 1)
        for start, stop in itertools.pairwise(edges)
    ]
    for number, band in enumerate(bands):
        order = np.argsort(band, kind="stable")
        places = np.arange(len(order))
        for shift in range(1, _MOST_COMPARED + 1):
            places = places[places + shift < len(order)]
            one, other = order[places], order[places + shift]
            agree = band[one] == band[other]
            places, one, other = places[agree], one[agree], other[agree]
            if not len(places):
                break
            bits = np.bitwise_count(hashes[one] ^ hashes[other])
            new = bits <= distance
            for earlier in bands[:number]:
                new &= earlier[one] != earlier[other]
            for k in np.flatnonzero(new):
                yield int(one[k]), int(other[k]), int(bits[k])


def dropped(
    near: Sequence[tuple[int, int, int]], quality: Sequence[tuple[int, ...]]
) -> dict[int, tuple[int, int]]:
    """Return the pictures to drop: which one of those that stay each is like, and the distance.

    Args:
        near: Pairs of near duplicates and their distance.
        quality: Of all pictures; the higher of two near duplicates stays.
    """
    around: dict[int, list[tuple[int, int]]] = {}
    for i, j, d in near:
        around.setdefault(i, []).append((d, j))
        around.setdefault(j, []).append((d, i))
    gone: dict[int, tuple[int, int]] = {}
    for i in sorted(around, key=lambda i: (quality[i], -i), reverse=True):
        better = [(d, j) for d, j in around[i] if j not in gone and _is_better(quality, j, i)]
        if better:
            d, j = min(better)
            gone[i] = (j, d)
    return gone


def _is_better(quality: Sequence[tuple[int, ...]], i: int, j: int) -> bool:
    return (quality[i], -i) > (quality[j], -j)


def groups(near: Iterable[tuple[int, int, int]], number: int) -> np.ndarray:
    """Return a number `[N]` per picture, equal for those that near duplicates connect."""
    parent = list(range(number))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j, _ in near:
        parent[root(j)] = root(i)
    return np.array([root(i) for i in range(number)])


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
