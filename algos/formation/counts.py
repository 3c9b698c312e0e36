"""How often each formation was met: a table of bounded size."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from marl.dice import GOLDEN, splitmix
from marl.types import Array

EMPTY = np.uint64(0)
FIRST_SLOTS = 2**12


def fingerprints(codes: Array) -> Array:
    """(M,) uint64, never `EMPTY`, of integer rows ``codes`` (M, C): splitmix64 of each column, then of their sum.

    Among n different rows some two agree with probability about n**2 / 2**65: 5e-7 for four million.
    """
    columns = codes.astype(np.int64).view(np.uint64)
    salt = _mix(np.arange(1, codes.shape[1] + 1, dtype=np.uint64))
    mixed = _mix(_mix(columns + salt).sum(1, dtype=np.uint64))
    return np.where(mixed == EMPTY, np.uint64(1), mixed)


def _mix(word: Array) -> Array:
    return splitmix(word + GOLDEN)


class CountTable:
    """Visits by key: open addressing with linear probing, in arrays that double until ``capacity`` keys fit.

    At most three quarters of the slots are filled, at 12 bytes a slot. A new key that finds the table full is not
    kept: every visit to it counts as its first. That is said once, in a warning.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        """Different keys held."""
        self.total = 0
        """Visits counted."""
        self._warned = False
        self._clear(FIRST_SLOTS)

    def visit(self, keys: Array) -> Array:
        """Count ``keys`` (M,) uint64 in their order; (M,) int64, how often each had been met by then."""
        unique, first, inverse, times = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        slots, held = self._claim(unique, first)
        before = np.where(held, self._counts[slots], 0)
        self._counts[slots[held]] += times[held].astype(np.int32)
        self.total += len(keys)
        order = np.argsort(inverse, kind="stable")
        earlier = np.empty(len(keys), np.int64)
        earlier[order] = np.arange(len(keys)) - np.repeat(np.cumsum(times) - times, times)
        return np.where(held[inverse], before[inverse] + earlier + 1, 1)

    def look_up(self, keys: Array) -> Array:
        """(M,) int64, how often ``keys`` (M,) uint64 were met so far; 0 for `EMPTY` and unknown ones."""
        return self._counts[self._find(keys)].astype(np.int64)

    def records(self) -> dict[str, Tensor]:
        """Everything, in an order that does not depend on the arrays' size."""
        filled = self._keys != EMPTY
        order = np.argsort(self._keys[filled])
        return {
            "keys": torch.from_numpy(self._keys[filled][order].view(np.int64)),
            "counts": torch.from_numpy(self._counts[filled][order]),
            "total": torch.tensor(self.total),
        }

    def restore(self, records: Mapping[str, Tensor]) -> None:
        """Take back what `records` gave."""
        keys = records["keys"].cpu().numpy().view(np.uint64)
        self._clear(FIRST_SLOTS)
        slots, held = self._claim(keys, np.arange(len(keys)))
        self._counts[slots[held]] = records["counts"].cpu().numpy()[held]
        self.total = int(records["total"])

    def _clear(self, slots: int) -> None:
        self._keys = np.zeros(slots, np.uint64)
        self._counts = np.zeros(slots, np.int32)
        self.size = 0

    def _claim(self, unique: Array, arrival: Array) -> tuple[Array, Array]:
        """(U,) slots and (U,) bool, which keys are held; room goes to new keys in order of ``arrival`` (U,)."""
        new = np.flatnonzero(self._keys[self._find(unique)] == EMPTY)
        new = new[np.argsort(arrival[new], kind="stable")]
        kept = new[: self.capacity - self.size]
        if len(kept) < len(new) and not self._warned:
            self._warned = True
            advice = "further new ones count as seen once; raise algo.table_capacity or lower algo.round"
            warnings.warn(f"the table of formations is full with {self.capacity}: {advice}", stacklevel=3)
        while self.size + len(kept) > len(self._keys) * 3 // 4:
            self._double()
        self._insert(unique[kept])
        self.size += len(kept)
        slots = self._find(unique)
        return slots, self._keys[slots] == unique

    def _find(self, keys: Array) -> Array:
        """(M,) the slot that holds each key, or the empty one where it would be put."""
        mask = np.uint64(len(self._keys) - 1)
        slots = (keys & mask).astype(np.int64)
        lost = np.arange(len(keys))
        while len(lost):
            met = self._keys[slots[lost]]
            lost = lost[(met != keys[lost]) & (met != EMPTY)]
            slots[lost] = (slots[lost] + 1) % len(self._keys)
        return slots

    def _insert(self, keys: Array) -> None:
        """Different keys that are not held; of those that want one slot the last stays, the others look on."""
        while len(keys):
            slots = self._find(keys)
            self._keys[slots] = keys
            keys = keys[self._keys[slots] != keys]

    def _double(self) -> None:
        filled = self._keys != EMPTY
        keys, counts, size = self._keys[filled], self._counts[filled], self.size
        self._clear(2 * len(self._keys))
        self._insert(keys)
        self._counts[self._find(keys)] = counts
        self.size = size
