"""Stag hunt on a grid: a stag is caught by two hunters at once, and one who tries alone costs the team.

The task of Böhmer, Kurin and Whiteson, "Deep coordination graphs", ICML 2020, section 5.1 (relative overgeneralisation)
with the rules of its released code (wendelinboehmer/dcg, rel_overgen.yaml); Rashid et al., "Weighted QMIX", NeurIPS
2020, section 6.1, hunt by the same rules. There 8 hunters and 8 stags share 10 x 10 cells for 200 steps.

Rules, in the order of a step:

1. All hunters and stags start on different cells, uniformly. No two ever share one.
2. Hunters move one after the other in random order: up, down, left, right or not at all; a move to a cell that is taken
   fails. Moves off the grid are unavailable. `catch` is available beside a stag (4 neighbours), and does not move.
3. Stags then act one after the other in random order. A stag with at least two catching hunters beside it is caught:
   the team is paid `reward`, the stag and all catching hunters beside it leave the grid. With a single one beside it
   the team is paid `penalty`. A stag that is not caught moves to a free neighbouring cell, uniformly, if there is one.
4. The task ends (terminal) when all stags are caught or all hunters have left; at `horizon` time is cut.

A hunter sees the cells up to `sight` away in both directions, (2 sight + 1)^2 of them, hunters and stags in a plane
each; cells beyond the grid are empty. One that has left sees zeros and can only stay. The state is the whole grid in
the same two planes. `won`: as many stags were caught as can be, for two hunters leave with each.

Deviations from the released code: it has a third plane, and rules, for hares, of which the task has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np

from envs import refusal
from envs.draws import scrambled
from envs.painting import board
from marl.env import BatchedEnv, Moments
from marl.fields import check_values, count, number
from marl.types import Array, Column, EnvSpec

UP, DOWN, LEFT, RIGHT, STAY, CATCH = range(6)
BESIDE = 4
"""The first actions lead to the neighbouring cells."""


@dataclass
class Config:
    name: str = "stag_hunt"
    hunters: int = count(8, least=2)  # N
    stags: int = count(8)
    grid: int = count(10, least=2)  # cells along each side
    sight: int = count(2)  # cells that a hunter sees in each direction
    penalty: float = number(-2.0, most=0)  # paid for a lone catch; published are 0 to -2
    reward: float = number(10.0, above=0)  # paid for a stag
    horizon: int = count(200)  # steps


def refuse_bad(config: Config) -> None:
    check_values(config, "env.")
    actors = config.hunters + config.stags
    if actors > config.grid**2:
        least = f"{ceil(sqrt(actors))} and more with env.hunters={config.hunters} and env.stags={config.stags}"
        raise refusal("env.grid", config.grid, f"allowed are {least}, so that all have a cell")


def most_catches(config: Config) -> int:
    """Stags that can be caught in an episode."""
    return min(config.stags, config.hunters // 2)


def optimum(config: Config) -> float:
    """The highest undiscounted return."""
    return config.reward * most_catches(config)


def probe(config: Config) -> None:
    """Nothing to install; a bad setting raises ValueError."""
    refuse_bad(config)


def make(config: Config, size: int) -> BatchedEnv:
    refuse_bad(config)
    return StagHunt(config, size)


class StagHunt(BatchedEnv):
    """Cells are numbers in a grid with a margin of ``sight``, so that neighbours and windows need no bounds.

    Actors of one kind act in sequence, as the rules say, in all copies at once.
    """

    def __init__(self, config: Config, size: int) -> None:
        self._config, self.size = config, size
        n, grid, sight = config.hunters, config.grid, config.sight
        window = (2 * sight + 1) ** 2
        self.spec = EnvSpec(
            name=config.name,
            n_agents=n,
            n_actions=6,
            obs_dim=2 * window,
            state_dim=2 * grid**2,
            horizon=config.horizon,
            agents=tuple(f"hunter_{i}" for i in range(n)),
            state_groups={"hunters": tuple(range(grid**2)), "stags": tuple(range(grid**2, 2 * grid**2))},
            noop=STAY,
            reward_range=(config.penalty * config.stags, config.reward * min(config.stags, n // 2)),
            draws=True,
            columns={"alive": Column((n,), "bool", "views"), "won": Column((), "bool", "episode")},
        )
        side = grid + 2 * sight
        self._cells = side**2
        rows, columns = np.divmod(np.arange(grid**2), grid)
        self._inside = (rows + sight) * side + columns + sight
        self._beside = np.asarray([-side, side, -1, 1])
        reach = np.arange(-sight, sight + 1)
        self._window = (reach[:, None] * side + reach).reshape(-1)
        self._walls = np.ones(self._cells, np.bool_)
        self._walls[self._inside] = False

    def reset(self, seeds: Sequence[int]) -> Moments:
        copies, spec, config = self.starting(seeds), self.spec, self._config
        self._root = scrambled(seeds, 1)[:, 0]
        cells = self._inside[scrambled(seeds, len(self._inside)).argsort(1, kind="stable")]
        self._hunter = cells[:, : config.hunters].copy()
        self._stag = cells[:, config.hunters : config.hunters + config.stags].copy()
        self._hunting = np.ones(self._hunter.shape, np.bool_)
        self._roaming = np.ones(self._stag.shape, np.bool_)
        self._time = np.zeros(copies, np.int64)
        self._moments = Moments.blank(spec, copies)
        self._moments.columns["alive"][:] = True
        self._show(np.arange(copies))
        return self._moments

    def step(self, actions: Array, live: Array) -> Moments:
        """Raises:
        ValueError: an action is unavailable.
        """
        rows = np.flatnonzero(live)
        now, config, chosen = self._moments, self._config, actions[rows]
        if not len(rows):
            return now
        if not np.take_along_axis(now.avail[rows], chosen[..., None], -1).all():
            raise ValueError(f"{self.spec.name}: an unavailable action was taken")
        n, m = config.hunters, config.stags
        drawn = scrambled((self._root[rows] + self._time[rows].astype(np.uint64)).tolist(), n + 2 * m)
        played = _Round(self, rows, chosen)
        for hunter in drawn[:, :n].argsort(1, kind="stable").T:
            played.move(hunter)
        for stag in drawn[:, n : n + m].argsort(1, kind="stable").T:
            played.face(stag, drawn[:, n + m :])
        self._hunter[rows], self._hunting[rows] = played.hunter, played.hunting
        self._stag[rows], self._roaming[rows] = played.stag, played.roaming
        self._time[rows] += 1
        over = ~played.roaming.any(1) | ~played.hunting.any(1)
        now.reward[rows] = config.reward * played.caught + config.penalty * played.missed
        now.terminal[rows] = over
        now.truncated[rows] = ~over & (self._time[rows] == config.horizon)
        now.columns["won"][rows] = (~played.roaming).sum(1) == most_catches(config)
        self._show(rows)
        return now

    def _planes(self, rows: Array) -> Array:
        """(R, 2, cells) bool: where hunters are, where stags are, margin included."""
        planes = np.zeros((len(rows), 2, self._cells), np.bool_)
        for plane, cells, there in ((0, self._hunter, self._hunting), (1, self._stag, self._roaming)):
            row, actor = np.nonzero(there[rows])
            planes[row, plane, cells[rows[row], actor]] = True
        return planes

    def _show(self, rows: Array) -> None:
        now, planes = self._moments, self._planes(rows)
        hunter, hunting, every = self._hunter[rows], self._hunting[rows], np.arange(len(rows))[:, None, None]
        seen = planes[every[..., None], np.arange(2)[:, None], (hunter[..., None] + self._window)[:, :, None]]
        now.obs[rows] = seen.reshape(*hunter.shape, self.spec.obs_dim) & hunting[..., None]
        now.state[rows] = planes[:, :, self._inside].reshape(len(rows), -1)
        beside = hunter[..., None] + self._beside
        avail = np.zeros((*hunter.shape, 6), np.bool_)
        avail[..., :BESIDE] = ~self._walls[beside]
        avail[..., CATCH] = planes[every, 1, beside].any(-1)
        avail &= hunting[..., None]
        avail[..., STAY] = True
        now.avail[rows] = avail
        now.columns["alive"][rows] = hunting

    def render(self, copy: int = 0) -> Array:
        """Hunters blue, stags brown."""
        planes = self._planes(np.asarray([copy]))[0][:, self._inside]
        colours = np.full((self._config.grid**2, 3), 255, np.uint8)
        colours[planes[0]], colours[planes[1]] = (40, 80, 220), (150, 90, 40)
        return board(colours.reshape(self._config.grid, self._config.grid, 3))


class _Round:
    """One step of the copies that play, (R, ...)."""

    def __init__(self, hunt: StagHunt, rows: Array, chosen: Array) -> None:
        self.hunter, self.hunting = hunt._hunter[rows], hunt._hunting[rows]
        self.stag, self.roaming = hunt._stag[rows], hunt._roaming[rows]
        self.caught, self.missed = np.zeros(len(rows)), np.zeros(len(rows))
        self._beside, self._every = hunt._beside, np.arange(len(rows))
        self._taken = hunt._planes(rows).any(1) | hunt._walls
        step = np.where(chosen < BESIDE, self._beside[np.minimum(chosen, BESIDE - 1)], 0)
        self._target = self.hunter + step
        self._moving = self.hunting & (chosen < BESIDE)
        self._catching = chosen == CATCH

    def move(self, hunter: Array) -> None:
        """One hunter (R,) of each copy goes where it wants to, if it can."""
        every = self._every
        target = self._target[every, hunter]
        rows = np.flatnonzero(self._moving[every, hunter] & ~self._taken[every, target])
        self._taken[rows, self.hunter[rows, hunter[rows]]] = False
        self._taken[rows, target[rows]] = True
        self.hunter[rows, hunter[rows]] = target[rows]

    def face(self, stag: Array, drawn: Array) -> None:
        """One stag (R,) of each copy is caught, or moves as its number among ``drawn`` (R, M) says."""
        every = self._every
        here, roaming = self.stag[every, stag], self.roaming[every, stag]
        beside = here[:, None] + self._beside
        near = (self.hunter[..., None] == beside[:, None]).any(-1) & self._catching & self.hunting
        catching = near.sum(1)
        caught = roaming & (catching >= 2)
        self.caught += caught
        self.missed += roaming & (catching == 1)
        self.roaming[every, stag] &= ~caught
        left = near & caught[:, None]
        self.hunting &= ~left
        rows, hunters = np.nonzero(left)
        self._taken[rows, self.hunter[rows, hunters]] = False
        self._taken[every[caught], here[caught]] = False
        free = ~self._taken[every[:, None], beside] & (roaming & ~caught)[:, None]
        ways = free.sum(1)
        rows = np.flatnonzero(ways)
        picked = drawn[rows, stag[rows]] % ways[rows].astype(np.uint64)
        way = (free[rows].cumsum(1) > picked[:, None]).argmax(1)
        target = beside[rows, way]
        self._taken[rows, here[rows]] = False
        self._taken[rows, target] = True
        self.stag[rows, stag[rows]] = target
