"""Random numbers of many episodes at once, each from its own seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marl.dice import GOLDEN, splitmix
from marl.types import Array


def scrambled(seeds: Sequence[int], draws: int) -> Array:
    """(E, draws) uint64, uniform: SplitMix64, for a generator per copy costs too much."""
    word = np.asarray(seeds, np.uint64)[:, None]
    for counter in (np.ones(1, np.uint64), np.arange(1, draws + 1, dtype=np.uint64)):
        word = splitmix(word + counter * GOLDEN)
    return word
