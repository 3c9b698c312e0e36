"""Whole episodes in tensors that are allocated once, on the learner's device, in compact types."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise

import numpy as np
import psutil
import torch
from torch import Tensor

from marl.types import Array, Column, EnvSpec, Episodes, Tensors

ROUNDED = ("obs", "state")
"""What may be stored in fewer bits than it has."""
INDEX = "replay"
"""The piece that tells which episodes there are; the others are named by it and their first slot."""
PIECE = 2**26
"""Bytes of a piece, or one episode."""


class ReplayTooLarge(MemoryError):
    """Replay cannot fit; the message says how large it would be and what to change."""


def _writable(field: Tensor) -> Array | Tensor:
    """The same memory as an array if there is such a type of array: small pieces are copied five times as fast."""
    return field if field.is_cuda or field.dtype == torch.bfloat16 else field.numpy()


class Replay:
    """The last ``capacity`` episodes. Padding is zero and is never copied in.

    Args:
        layout: what an episode holds (`EnvSpec.fields` and the columns of parts).
        rounded: storage type of observations and states (``float32``, ``float16``, ``bfloat16``).
        alpha: exponent of priorities; None: uniform sampling.

    Raises:
        ReplayTooLarge: the tensors would not fit in the device's free memory.
    """

    def __init__(
        self,
        spec: EnvSpec,
        layout: Mapping[str, Column],
        capacity: int,
        device: torch.device,
        rounded: str = "float32",
        alpha: float | None = None,
    ) -> None:
        self.spec, self.layout, self.capacity, self.device, self.alpha = spec, dict(layout), capacity, device, alpha
        types = {n: getattr(torch, rounded if n in ROUNDED else c.dtype) for n, c in self.layout.items()}
        shapes = {n: (capacity, *c.rows(spec.horizon), *c.shape) for n, c in self.layout.items()}
        self.bytes = sum(torch.Size(shapes[n]).numel() * types[n].itemsize for n in shapes)
        self._refuse_what_cannot_fit()
        self._fields = {n: torch.zeros(shapes[n], dtype=types[n], device=device) for n in shapes}
        self._written = {n: _writable(field) for n, field in self._fields.items()}
        self._lengths = torch.zeros(capacity, dtype=torch.long)
        self._priorities = torch.zeros(capacity)
        self.added = 0

    def _refuse_what_cannot_fit(self) -> None:
        free = (
            torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else psutil.virtual_memory().available
        )
        if self.bytes > free:
            need, have = self.bytes / 2**30, free / 2**30
            fits = int(self.capacity * free / self.bytes * 0.9)
            raise ReplayTooLarge(
                f"replay.capacity={self.capacity}: needs {need:.1f} GiB on {self.device}, {have:.1f} GiB are free; "
                f"at most about {fits} episodes fit, or use replay.float=float16"
            )

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, episode: Mapping[str, Array | Tensor]) -> None:
        """Store one trimmed episode, over the oldest if full. A fresh episode has priority 1."""
        slot = self.added % self.capacity
        length, before = len(episode["reward"]), int(self._lengths[slot])
        for name, field in self._written.items():
            rows = self.layout[name].rows(length)
            room = field[slot, : rows[0]] if rows else field[slot : slot + 1]
            value = episode[name] if isinstance(field, np.ndarray) else torch.as_tensor(episode[name])
            room[...] = value  # type: ignore[assignment]
            if rows and before > length:
                field[slot, rows[0] : self.layout[name].rows(before)[0]] = 0
        self._lengths[slot] = length
        self._priorities[slot] = 1.0
        self.added += 1

    def sample(self, n: int, generator: torch.Generator, *, uniform: bool = False) -> tuple[Tensor, Episodes]:
        """Slots (n,) and ``n`` distinct episodes, padded to the longest of them.

        By priority ** alpha without importance weights, or uniformly; ``generator`` lives on the CPU.
        """
        size = len(self)
        if uniform or self.alpha is None:
            slots = torch.randperm(size, generator=generator)[:n]
        else:
            weights = self._priorities[:size].double().pow(self.alpha)
            slots = torch.multinomial(weights, n, generator=generator)
        return slots, self.episodes(slots)

    def episodes(self, slots: Tensor) -> Episodes:
        """The episodes of these slots (B,)."""
        lengths = self._lengths[slots]
        longest, rows = int(lengths.max()), slots.to(self.device)
        taken = {}
        for name, field in self._fields.items():
            column = self.layout[name].rows(longest)
            taken[name] = (field[:, : column[0]] if column else field).index_select(0, rows)
        return Episodes.of(taken, lengths.to(self.device))

    def reprioritise(self, slots: Tensor, priority: Tensor) -> None:
        """Give the episodes of ``slots`` (B,) their new priorities (B,)."""
        if self.alpha is not None:
            self._priorities[slots] = priority.float().cpu().clamp(min=1e-6)

    def clear(self) -> None:
        """Forget everything."""
        for field in self._fields.values():
            field[: len(self)] = 0
        self._lengths.zero_()
        self._priorities.zero_()
        self.added = 0

    def state(self) -> dict[str, Tensors]:
        """Everything stored, without padding, in pieces, so that saving needs the memory of one besides."""
        size = len(self)
        each = max(1, PIECE * self.capacity // max(self.bytes, 1))
        slots = [slice(first, min(first + each, size)) for first in range(0, size, each)]
        return {INDEX: self._index, **{f"{INDEX}-{part.start:07d}": partial(self._piece, part) for part in slots}}

    def _index(self) -> dict[str, Tensor]:
        size = len(self)
        return {
            "added": torch.tensor(self.added),
            "lengths": self._lengths[:size],
            "priorities": self._priorities[:size],
        }

    def _piece(self, slots: slice) -> dict[str, Tensor]:
        return {name: field[slots][self._kept(name, slots)].cpu() for name, field in self._fields.items()}

    def restore(self, state: Mapping[str, Tensors]) -> None:
        """Take back what `state` gave."""
        self.clear()
        index = state[INDEX]()
        self.added = int(index["added"])
        size = len(self)
        self._lengths[:size], self._priorities[:size] = index["lengths"], index["priorities"]
        firsts = [int(name.removeprefix(f"{INDEX}-")) for name in sorted(state) if name.startswith(f"{INDEX}-")]
        for first, end in pairwise([*firsts, size]):
            self._restore_piece(slice(first, end), state[f"{INDEX}-{first:07d}"]())

    def _restore_piece(self, slots: slice, piece: Mapping[str, Tensor]) -> None:
        for name, field in self._fields.items():
            field[slots][self._kept(name, slots)] = piece[name].to(self.device)

    def _kept(self, name: str, slots: slice) -> Tensor:
        """(slots, rows) bool, or (slots,) of what an episode has once: entries that belong to an episode."""
        if self.layout[name].span == "episode":
            return torch.ones_like(self._lengths[slots], dtype=torch.bool, device=self.device)
        rows = self._fields[name].shape[1]
        extra = rows - self.spec.horizon
        return (torch.arange(rows) < self._lengths[slots, None] + extra).to(self.device)
