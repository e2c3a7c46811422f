"""Keyed 64-bit hashes of ids: what is drawn, and in which order, is a fixed function of seed and id."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]


def mix64(values: UInt64Array) -> UInt64Array:
    """SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014): a bijection that scatters its input's bits."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def derive_key(*parts: int) -> np.uint64:
    """One 64-bit key from a seed and the numbers that tell its uses apart."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = mix64(key ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return np.uint64(key[0])


def keyed_hash(ids: UInt64Array, *parts: int) -> UInt64Array:
    """A 64-bit hash of each id (n,) under a key: the same for the same document, wherever it stands."""
    return mix64(mix64(ids) ^ derive_key(*parts))
