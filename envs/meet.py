"""A toy learnt in seconds: a guide leads its team to a cell of a grid that it alone can see, and waits for them.

All agents start on one cell; the meeting place is another. Everyone has a compass to every team-mate, the guide
(the first agent) one to the place too. A follower that stands with the guide waits for it to lead on: its other moves
are unavailable, as are those off the grid. So nobody gains by guessing, and the shortest episode is one step longer
than the guide's way. Each step costs 1/horizon; the team is paid 1/N for each agent by which the most that ever stood
on the place together grows, and the episode ends when all do. A time limit is no terminal.

Actions 0 to 4 are stay, up, down, left, right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs import refusal
from envs.draws import scrambled
from marl.env import BatchedEnv, Moments
from marl.fields import check_values, count
from marl.types import Array, Column, EnvSpec

MOVES = np.asarray([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
STAY = 0


@dataclass
class Config:
    name: str = "meet"
    agents: int = count(2, least=2)  # N: the guide and its followers
    grid: int = count(3, least=2)  # cells along each side
    horizon: int = count(10)  # steps, at least 2 * grid - 1, so that the team can meet from every start


def refuse_bad(config: Config) -> None:
    check_values(config, "env.")
    shortest = 2 * config.grid - 1
    if config.horizon < shortest:
        raise refusal("env.horizon", config.horizon, f"a grid of {config.grid} allows {shortest} and more")


def starts(config: Config, seeds: Sequence[int]) -> tuple[Array, Array]:
    """Where the team and the place are, (E, 2) each as (row, column), fixed by the seeds alone."""
    cells = config.grid**2
    drawn = scrambled(seeds, 2)
    team = (drawn[:, 0] % np.uint64(cells)).astype(np.int64)
    apart = 1 + (drawn[:, 1] % np.uint64(cells - 1)).astype(np.int64)
    return as_cells(team, config.grid), as_cells((team + apart) % cells, config.grid)


def as_cells(number: Array, grid: int) -> Array:
    return np.stack(np.divmod(number, grid), -1)


def optimum(config: Config, seeds: Sequence[int] | None = None) -> float:
    """The highest undiscounted return: the mean over these episodes, or over all starts."""
    refuse_bad(config)
    if seeds is None:
        every = as_cells(np.arange(config.grid**2), config.grid)
        ways = np.abs(every[:, None] - every).sum(-1)
        way = ways[ways > 0].mean()
    else:
        team, place = starts(config, seeds)
        way = np.abs(team - place).sum(-1).mean()
    return float(1 - (way + 1) / config.horizon)


def probe(config: Config) -> None:
    """Nothing to install; a bad setting raises ValueError."""
    refuse_bad(config)


def make(config: Config, size: int) -> BatchedEnv:
    return Meet(config, size)


class Meet(BatchedEnv):
    """Compass readings are the signs of (rows, columns) to go; positions are divided by grid - 1.

    Observation (5 + 2 (N-1)): own position, whether the place is seen, compasses to it and to the team-mates.
    State (2 N + 4): positions, the place, the most agents that stood on it over N, time gone over horizon.
    """

    def __init__(self, config: Config, size: int) -> None:
        refuse_bad(config)
        self._config = config
        self.size = size
        n = config.agents
        compasses = tuple((5 + 2 * mate, 6 + 2 * mate) for mate in range(n - 1))
        self.spec = EnvSpec(
            name=config.name,
            n_agents=n,
            n_actions=len(MOVES),
            obs_dim=5 + 2 * (n - 1),
            state_dim=2 * n + 4,
            horizon=config.horizon,
            agents=("guide", *(f"follower_{i}" for i in range(1, n))),
            state_groups={
                "positions": tuple(range(2 * n)),
                "place": (2 * n, 2 * n + 1),
                "gathered": (2 * n + 2,),
                "time": (2 * n + 3,),
            },
            by_agent=("positions",),
            teammate_blocks=(compasses,) * n,
            noop=STAY,
            reward_range=(-1 / config.horizon, 1 - 1 / config.horizon),
            draws=True,
            columns={"won": Column((), "bool", "episode")},
        )
        self._mates = np.asarray([[j for j in range(n) if j != i] for i in range(n)])
        self._inside = self._moves_inside()

    def _moves_inside(self) -> Array:
        """(grid, grid, A) bool: moves that stay on the grid."""
        grid = self._config.grid
        reached = as_cells(np.arange(grid**2), grid)[:, None] + MOVES
        inside: Array = ((reached >= 0) & (reached < grid)).all(-1)
        return inside.reshape(grid, grid, len(MOVES))

    def reset(self, seeds: Sequence[int]) -> Moments:
        copies, spec = self.starting(seeds), self.spec
        team, self._place = starts(self._config, seeds)
        self._position = np.repeat(team[:, None], spec.n_agents, 1)
        self._gathered = np.zeros(copies, np.int64)
        self._time = np.zeros(copies, np.int64)
        self._moments = Moments.blank(spec, copies)
        self._show(np.arange(copies))
        return self._moments

    def step(self, actions: Array, live: Array) -> Moments:
        """Raises:
        ValueError: an action is unavailable.
        """
        rows = np.flatnonzero(live)
        now, n, horizon = self._moments, self.spec.n_agents, self.spec.horizon
        chosen = actions[rows]
        if not np.take_along_axis(now.avail[rows], chosen[..., None], -1).all():
            raise ValueError(f"{self.spec.name}: an unavailable action was taken")
        self._position[rows] = position = self._position[rows] + MOVES[chosen]
        self._time[rows] += 1
        together = (position == self._place[rows, None]).all(-1).sum(1)
        most = np.maximum(self._gathered[rows], together)
        met = together == n
        now.reward[rows] = (most - self._gathered[rows]) / n - 1 / horizon
        now.terminal[rows] = met
        now.truncated[rows] = ~met & (self._time[rows] == horizon)
        now.columns["won"][rows] = met
        self._gathered[rows] = most
        self._show(rows)
        return now

    def _show(self, rows: Array) -> None:
        now, n, far = self._moments, self.spec.n_agents, self._config.grid - 1
        position, place = self._position[rows], self._place[rows]
        obs = np.zeros((len(rows), n, self.spec.obs_dim), np.float32)
        obs[:, :, :2] = position / far
        obs[:, 0, 2] = 1.0
        obs[:, 0, 3:5] = np.sign(place - position[:, 0])
        obs[:, :, 5:] = np.sign(position[:, self._mates] - position[:, :, None]).reshape(len(rows), n, 2 * (n - 1))
        now.obs[rows] = obs
        places, whole = np.concatenate([position, place[:, None]], 1), 2 * n + 2
        now.state[rows, :whole] = places.reshape(len(rows), whole) / far
        now.state[rows, whole] = self._gathered[rows] / n
        now.state[rows, whole + 1] = self._time[rows] / self.spec.horizon
        avail = self._inside[position[..., 0], position[..., 1]]
        led = (position[:, 1:] == position[:, :1]).all(-1)
        avail[:, 1:, 1:] &= ~led[..., None]
        now.avail[rows] = avail

    def render(self, copy: int = 0) -> Array:
        """Cells of 32 x 32 pixels: the place green, the guide blue, followers orange; sharing a cell, in stripes."""
        side, grid, n = 32, self._config.grid, self.spec.n_agents
        picture = np.full((grid * side, grid * side, 3), 255, np.uint8)
        picture[::side] = picture[:, ::side] = 200

        def cell(position: Array, margin: int) -> Array:
            (top, left), width = position * side + margin, side - 2 * margin
            return picture[top : top + width, left : left + width]

        cell(self._place[copy], 1)[:] = (120, 200, 120)
        for agent, position in enumerate(self._position[copy]):
            cell(position, 6)[agent::n] = (40, 80, 220) if agent == 0 else (240, 140, 30)
        return picture
