"""Random numbers of many episodes at once, each from its own seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marl.types import Array


def scrambled(seeds: Sequence[int], draws: int) -> Array:
    """(E, draws) uint64, uniform: SplitMix64 (Steele, Lea and Flood 2014), for a generator per copy costs too much."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    word = np.asarray(seeds, np.uint64)[:, None]
    for counter in (np.ones(1, np.uint64), np.arange(1, draws + 1, dtype=np.uint64)):
        word = word + counter * golden
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word = word ^ (word >> np.uint64(31))
    return word
