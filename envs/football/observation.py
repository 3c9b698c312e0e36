"""State and observations of N agents and R opponents, 4N + 4R + 6 features each.

Both come from one list of numbers read off the engine: the state is that list, and every feature of an observation is
one entry of it, taken relative to the observer's own position where the paper's wrapper does so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from marl.types import Array


class Frame(NamedTuple):
    """What the rules need to know of one step of the engine."""

    features: list[float]
    """(4N + 4R + 6,) in the order of the state"""
    gain: int
    """goals scored minus goals conceded at this step"""
    over: bool
    """the engine's own rules end the episode: a goal, the ball out of play, the ball lost"""
    controlled: tuple[int, ...]
    """(N,) the player that each agent moves, as an index of the left team"""


class Scene(NamedTuple):
    """What a drawing shows, in the engine's units: x in [-1, 1] towards the right goal, y in [-0.42, 0.42] down."""

    left: Array
    """(L, 2)"""
    right: Array
    """(R, 2)"""
    ball: Array
    """(3,)"""
    controlled: tuple[int, ...]


class Layout:
    """Where everything is.

    State: agents' positions (2N), agents' directions (2N), opponents' positions (2R), opponents' directions (2R),
    ball position (3), ball direction (3), all absolute. A direction is the displacement per step.
    """

    def __init__(self, n_agents: int, n_opponents: int) -> None:
        self.dim = 4 * n_agents + 4 * n_opponents + 6
        widths = [2 * n_agents, 2 * n_agents, 2 * n_opponents, 2 * n_opponents, 3, 3]
        names = [f"{who}_{what}" for who in ("ally", "enemy", "ball") for what in ("position", "direction")]
        entries = np.split(np.arange(self.dim), np.cumsum(widths)[:-1])
        self.groups = {name: tuple(entry.tolist()) for name, entry in zip(names, entries, strict=True)}
        self._n_agents, self._n_opponents = n_agents, n_opponents
        rows = [self._row(agent) for agent in range(n_agents)]
        self._taken = np.array([[taken for taken, _ in row] for row in rows])
        self._origin = np.array([[origin for _, origin in row] for row in rows])
        self._padded = np.zeros(self.dim + 1, np.float32)

    def _row(self, agent: int) -> list[tuple[int, int]]:
        """(O,) pairs: the entry of the state, and the entry it is relative to (the zero after the last if none)."""
        zero = self.dim
        ally, ally_direction, enemy, enemy_direction, ball, ball_direction = self.groups.values()
        mates = [2 * mate + axis for mate in range(self._n_agents) if mate != agent for axis in (0, 1)]
        own = [2 * agent, 2 * agent + 1]

        def absolute(entries: list[int] | tuple[int, ...]) -> list[tuple[int, int]]:
            return [(entry, zero) for entry in entries]

        def relative(entries: list[int] | tuple[int, ...]) -> list[tuple[int, int]]:
            return [(entry, ally[own[place % 2]]) for place, entry in enumerate(entries)]

        return [
            *absolute([ally[k] for k in own]),
            *relative([ally[k] for k in mates]),
            *absolute([ally_direction[k] for k in own]),
            *absolute([ally_direction[k] for k in mates]),
            *relative(enemy),
            *absolute(enemy_direction),
            *relative(ball[:2]),
            *absolute(ball[2:]),
            *absolute(ball_direction),
        ]

    def teammate_blocks(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """[i][k]: the features of agent i's observation that describe its k-th team-mate: position, then direction."""
        mates = range(self._n_agents - 1)
        directions = 2 * self._n_agents + 2
        block = tuple((2 + 2 * k, 3 + 2 * k, directions + 2 * k, directions + 2 * k + 1) for k in mates)
        return (block,) * self._n_agents

    def observe(self, state: Array) -> Array:
        """(N, O) float32 from a state (S,)."""
        self._padded[:-1] = state
        return self._padded.take(self._taken) - self._padded.take(self._origin)
