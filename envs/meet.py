"""A toy learnt in seconds: a team must gather on a cell of a grid that only its first agent, the guide, can see.

A cell is the meeting place; the episode ends when all agents stand on it together. Agents see their own cell and the
offsets of their team-mates; the guide alone sees the offset of the meeting place, so the others have to follow it and
it has to wait. The team is paid 1/N for each agent by which the most that ever stood on the place together grows:
returns lie in [0, 1] and are 1 exactly when the team met. Actions 0 to 4 are stay, up, down, left, right; those that
lead off the grid are unavailable. A time limit is no terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs import refusal
from marl.env import BatchedEnv, Moments
from marl.types import Array, Column, EnvSpec

MOVES = np.asarray([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
STAY = 0


@dataclass
class Config:
    name: str = "meet"
    agents: int = 2  # N, at least 2
    grid: int = 5  # cells along each side, at least 2
    horizon: int = 20  # steps; at least 4 * (grid - 1), so that every start can be solved


def refuse_bad(config: Config) -> None:
    if config.agents < 2:
        raise refusal("env.agents", config.agents, "allowed are 2 and more")
    if config.grid < 2:
        raise refusal("env.grid", config.grid, "allowed are 2 and more")
    if config.horizon < enough(config):
        raise refusal("env.horizon", config.horizon, f"a grid of {config.grid} allows {enough(config)} and more")


def enough(config: Config) -> int:
    """Steps in which the guide reaches any place and the others, chasing it, reach the guide."""
    return 4 * (config.grid - 1)


def optimum(config: Config) -> float:
    """The highest undiscounted return of an episode, whatever its start."""
    refuse_bad(config)
    return 1.0


def probe(config: Config) -> None:
    """Nothing to install; a bad setting raises ValueError."""
    refuse_bad(config)


def make(config: Config, size: int) -> BatchedEnv:
    return Meet(config, size)


def scrambled(seeds: Sequence[int], draws: int) -> Array:
    """(E, draws) uint64, uniform: SplitMix64 (Steele, Lea and Flood 2014), for a generator per copy costs too much."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    word = np.asarray(seeds, np.uint64)[:, None]
    for counter in (np.zeros(1, np.uint64), np.arange(draws, dtype=np.uint64)):
        word = word + (counter + np.uint64(1)) * golden
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word = word ^ (word >> np.uint64(31))
    return word


class Meet(BatchedEnv):
    """Positions are (row, column); offsets and positions are divided by grid - 1.

    Observation (5 + 2 (N-1)): own position, whether the place is seen and its offset, offsets of the team-mates.
    State (2 N + 4): positions, the place, the most agents that stood on it over N, time gone over horizon.
    """

    def __init__(self, config: Config, size: int) -> None:
        refuse_bad(config)
        self._grid, self._horizon = config.grid, config.horizon
        self.size = size
        n = config.agents
        block = tuple((5 + 2 * mate, 6 + 2 * mate) for mate in range(n - 1))
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
            teammate_blocks=(block,) * n,
            noop=STAY,
            reward_range=(0.0, 1.0),
            columns={"won": Column((), "bool", "episode")},
        )
        self._mates = np.asarray([[j for j in range(n) if j != i] for i in range(n)])
        self._open = self._leads_inside()

    def _leads_inside(self) -> Array:
        """(grid, grid, A) bool: moves that stay on the grid."""
        cells = np.stack(np.meshgrid(np.arange(self._grid), np.arange(self._grid), indexing="ij"), -1)
        reached = cells[:, :, None] + MOVES
        inside: Array = ((reached >= 0) & (reached < self._grid)).all(-1)
        return inside

    def reset(self, seeds: Sequence[int]) -> Moments:
        count, spec = len(seeds), self.spec
        if not 0 < count <= self.size:
            raise ValueError(f"{count} seeds for {self.size} copies")
        cells = self._grid**2
        drawn = scrambled(seeds, spec.n_agents + 1)
        start = (drawn[:, :-1] % np.uint64(cells)).astype(np.int64)
        apart = 1 + (drawn[:, -1] % np.uint64(cells - 1)).astype(np.int64)
        place = (start[:, 0] + apart) % cells
        self._position = np.stack(np.divmod(start, self._grid), -1)
        self._place = np.stack(np.divmod(place, self._grid), -1)
        self._gathered = np.zeros(count, np.int64)
        self._time = np.zeros(count, np.int64)
        self._moments = Moments(
            obs=np.zeros((count, spec.n_agents, spec.obs_dim), np.float32),
            state=np.zeros((count, spec.state_dim), np.float32),
            avail=np.zeros((count, spec.n_agents, spec.n_actions), np.bool_),
            reward=np.zeros(count, np.float32),
            terminal=np.zeros(count, np.bool_),
            truncated=np.zeros(count, np.bool_),
            columns={"won": np.zeros(count, np.bool_)},
        )
        self._show(np.arange(count))
        return self._moments

    def step(self, actions: Array, live: Array) -> Moments:
        rows = np.flatnonzero(live)
        now, n = self._moments, self.spec.n_agents
        self._position[rows] = position = self._moved(rows, actions[rows])
        self._time[rows] += 1
        together = (position == self._place[rows, None]).all(-1).sum(1)
        most = np.maximum(self._gathered[rows], together)
        met = together == n
        now.reward[rows] = (most - self._gathered[rows]) / n
        now.terminal[rows] = met
        now.truncated[rows] = ~met & (self._time[rows] == self._horizon)
        now.columns["won"][rows] = met
        self._gathered[rows] = most
        self._show(rows)
        return now

    def _moved(self, rows: Array, actions: Array) -> Array:
        position: Array = self._position[rows] + MOVES[actions]
        outside = (position < 0) | (position >= self._grid)
        if outside.any():
            row, agent = np.argwhere(outside)[0, :2]
            raise ValueError(f"action {actions[row, agent]} is unavailable: {self.spec.agents[agent]} stands at a wall")
        return position

    def _show(self, rows: Array) -> None:
        now, n, scale = self._moments, self.spec.n_agents, self._grid - 1
        position, place = self._position[rows], self._place[rows]
        mates = position[:, self._mates] - position[:, :, None]
        obs = np.zeros((len(rows), n, self.spec.obs_dim), np.float32)
        obs[:, :, :2] = position / scale
        obs[:, 0, 2] = 1.0
        obs[:, 0, 3:5] = (place - position[:, 0]) / scale
        obs[:, :, 5:] = mates.reshape(len(rows), n, -1) / scale
        now.obs[rows] = obs
        now.state[rows, : 2 * n] = position.reshape(len(rows), -1) / scale
        now.state[rows, 2 * n : 2 * n + 2] = place / scale
        now.state[rows, 2 * n + 2] = self._gathered[rows] / n
        now.state[rows, 2 * n + 3] = self._time[rows] / self._horizon
        now.avail[rows] = self._open[position[..., 0], position[..., 1]]

    def render(self, copy: int = 0) -> Array:
        """Cells of 32 x 32 pixels: the place green, the guide blue, followers orange, shared cells striped."""
        cell = 32
        picture = np.full((self._grid * cell, self._grid * cell, 3), 255, np.uint8)
        picture[::cell] = picture[:, ::cell] = 200

        def paint(position: Array, margin: int, colour: tuple[int, int, int], part: slice = slice(None)) -> None:
            top, left = position * cell + margin
            picture[top : top + cell - 2 * margin, left : left + cell - 2 * margin][part] = colour

        paint(self._place[copy], 1, (120, 200, 120))
        n = self.spec.n_agents
        for agent in range(n - 1, -1, -1):
            colour = (40, 80, 220) if agent == 0 else (240, 140, 30)
            paint(self._position[copy, agent], 6, colour, slice(agent, None, n))
        return picture

    def close(self) -> None:
        """Nothing is held open."""
