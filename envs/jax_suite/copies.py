"""E copies of a task of the suite, stepped together by compiled calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from envs.jax_suite import machine
from envs.jax_suite.asked import Task
from marl.env import BatchedEnv, Moments
from marl.types import Array

TILE = 32
"""Copies in one call on a CPU, whatever E is: another number is another program, which may round otherwise."""


class Copies(BatchedEnv):
    """JAX starts at the first `reset`. Rows of a tile that no episode fills are computed and not looked at."""

    def __init__(self, task: Task, size: int) -> None:
        self.spec, self.size = task.spec, size
        self._task = task
        self._tile = TILE if task.config.device == "cpu" else size
        self._tiles: list[_Tile] = []
        self._program: Any = None

    def reset(self, seeds: Sequence[int]) -> Moments:
        count = self.starting(seeds)
        if self._program is None:
            device = machine.start(self._task.config.device)
            from envs.jax_suite.program import compiled

            self._program = compiled(self._task, device)
        filled = np.zeros((-(-count // self._tile), self._tile), np.uint64)
        filled.reshape(-1)[:count] = seeds
        self._tiles = [_Tile(self._program, part, self.spec.n_agents) for part in filled]
        self._all = Moments.blank(self.spec, count)
        for rows, tile in self._parts():
            _write(self._all, rows, tile.moments)
        return self._all

    def step(self, actions: Array, live: Array) -> Moments:
        for rows, tile in self._parts():
            if live[rows].any():
                tile.step(actions[rows], live[rows])
                _write(self._all, rows, tile.moments)
        return self._all

    def _parts(self) -> Iterator[tuple[slice, _Tile]]:
        """Each tile and the rows that it has among all."""
        for number, tile in enumerate(self._tiles):
            yield slice(number * self._tile, (number + 1) * self._tile), tile

    def render(self, copy: int = 0) -> Array:
        from envs.jax_suite.pictures import drawn

        tile, row = divmod(copy, self._tile)
        return drawn(self._task, self._program.suite, self._tiles[tile].copies.world, row)

    def close(self) -> None:
        self._tiles, self._program = [], None


class _Tile:
    """Copies that one call steps."""

    def __init__(self, program: Any, seeds: Array, n_agents: int) -> None:
        self._program = program
        self._actions = np.zeros((len(seeds), n_agents), np.int32)
        self._live = np.zeros(len(seeds), np.bool_)
        # The two halves of a seed, as JAX makes a key of it.
        halves = np.stack([seeds >> np.uint64(32), seeds & np.uint64(0xFFFFFFFF)], 1).astype(np.uint32)
        self.copies, self.moments = program.start(program.placed(halves))

    def step(self, actions: Array, live: Array) -> None:
        self._actions[: len(live)] = actions
        self._live[: len(live)] = live
        self.copies, self.moments = self._program.advance(self.copies, self.moments, self._actions, self._live)


def _write(every: Moments, rows: slice, told: Moments) -> None:
    """Copy what a tile told, by NumPy's view of JAX's memory: the view itself is read-only, which tensors cannot be."""
    for whole, part in zip(every[:-1], told[:-1]):
        whole[rows] = np.asarray(part)[: len(whole[rows])]
    for name, whole in every.columns.items():
        whole[rows] = np.asarray(told.columns[name])[: len(whole[rows])]
