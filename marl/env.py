"""What the program asks of an environment: many copies, stepped together.

Authors of a world usually write one copy (`Env`) and let `SideBySide` line copies up; a suite that is vectorised by
nature implements `BatchedEnv` itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from marl.fields import Mistake
from marl.types import Array, EnvSpec


class EnvUnavailable(Mistake):
    """A registered environment cannot run here; the message says what to install, in one line."""


def no_pictures(spec: EnvSpec) -> EnvUnavailable:
    """The refusal of a world that cannot be filmed."""
    return EnvUnavailable(f"{spec.name} draws no pictures")


@dataclass(frozen=True)
class Moment:
    """What one copy says after `reset` or `step`.

    ``terminal`` is True where the task itself ended (no value beyond), ``truncated`` where only time ran out.
    """

    obs: Array
    """(N, O) float32"""
    state: Array
    """(S,) float32"""
    avail: Array
    """(N, A) bool, at least one True per agent"""
    reward: float = 0.0
    terminal: bool = False
    truncated: bool = False
    columns: Mapping[str, Array | float | bool] = field(default_factory=dict)
    """Entries of ``spec.columns``: ``views`` at every moment, ``steps`` after steps, ``episode`` at the last moment."""


class Moments(NamedTuple):
    """The same for E copies; the arrays belong to the environment and change at its next step."""

    obs: Array
    """(E, N, O) float32"""
    state: Array
    """(E, S) float32"""
    avail: Array
    """(E, N, A) bool"""
    reward: Array
    """(E,) float32"""
    terminal: Array
    """(E,) bool"""
    truncated: Array
    """(E,) bool"""
    columns: dict[str, Array]
    """name to (E, ...)"""

    @classmethod
    def blank(cls, spec: EnvSpec, count: int) -> Moments:
        """Of ``count`` copies that have said nothing yet: zeros, and nothing available."""
        return cls(
            obs=np.zeros((count, spec.n_agents, spec.obs_dim), np.float32),
            state=np.zeros((count, spec.state_dim), np.float32),
            avail=np.zeros((count, spec.n_agents, spec.n_actions), np.bool_),
            reward=np.zeros(count, np.float32),
            terminal=np.zeros(count, np.bool_),
            truncated=np.zeros(count, np.bool_),
            columns={name: np.zeros((count, *c.shape), c.dtype) for name, c in spec.columns.items()},
        )


class Env(ABC):
    """One copy of a world. Construction is cheap and starts no engine: the first `reset` does."""

    spec: EnvSpec

    @abstractmethod
    def reset(self, seed: int) -> Moment:
        """Start an episode that ``seed`` fixes together with the actions to come."""

    @abstractmethod
    def step(self, actions: Array) -> Moment:
        """Move every agent; ``actions`` (N,) int64, all available."""

    def advance(self, steps: int) -> None:  # noqa: B027 - most worlds stay as they are
        """Training has consumed ``steps`` environment steps: for worlds that change while a team learns.

        Called before `reset`, and decides together with the seed what episodes are like, never the process they are in.
        """

    def render(self) -> Array:
        """A picture of this moment, (height, width, 3) uint8.

        Raises:
            EnvUnavailable: this world has no pictures.
        """
        raise no_pictures(self.spec)

    def close(self) -> None:  # noqa: B027 - a world without engines or windows has nothing to free
        """Free engines and windows. Closing twice is allowed."""


class BatchedEnv(ABC):
    """E copies of a world, stepped together."""

    spec: EnvSpec
    size: int
    """E, the most copies that may play at once."""

    @abstractmethod
    def reset(self, seeds: Sequence[int]) -> Moments:
        """Start one episode per seed, at most ``size``; the arrays then have that many rows."""

    @abstractmethod
    def step(self, actions: Array, live: Array) -> Moments:
        """Move the copies where ``live`` (E,) is True; ``actions`` (E, N). Other rows keep their last values."""

    def advance(self, steps: int) -> None:  # noqa: B027 - most worlds stay as they are
        """Training has consumed ``steps`` environment steps: see `Env.advance`."""

    def starting(self, seeds: Sequence[int]) -> int:
        """How many episodes start.

        Raises:
            ValueError: none, or more than ``size``.
        """
        if not 0 < len(seeds) <= self.size:
            raise ValueError(f"{len(seeds)} seeds for {self.size} copies")
        return len(seeds)

    def render(self, copy: int = 0) -> Array:
        """A picture of one copy, (height, width, 3) uint8.

        Raises:
            EnvUnavailable: this world has no pictures.
        """
        raise no_pictures(self.spec)

    def close(self) -> None:  # noqa: B027 - a world without engines or windows has nothing to free
        """Free everything. Closing twice is allowed."""


class SideBySide(BatchedEnv):
    """E single copies in one process."""

    def __init__(self, make: Callable[[], Env], size: int) -> None:
        self.size = size
        self.copies = [make() for _ in range(size)]
        self.spec = spec = self.copies[0].spec
        self._all = Moments.blank(spec, size)
        self._playing = self._all

    def reset(self, seeds: Sequence[int]) -> Moments:
        rows, every = slice(0, self.starting(seeds)), self._all
        self._playing = Moments(
            obs=every.obs[rows],
            state=every.state[rows],
            avail=every.avail[rows],
            reward=every.reward[rows],
            terminal=every.terminal[rows],
            truncated=every.truncated[rows],
            columns={name: array[rows] for name, array in every.columns.items()},
        )
        for row, seed in enumerate(seeds):
            moment = self.copies[row].reset(seed)
            self._refuse_other_shapes(moment)
            self._write(row, moment)
        return self._playing

    def step(self, actions: Array, live: Array) -> Moments:
        for row in map(int, np.flatnonzero(live)):
            self._write(row, self.copies[row].step(actions[row]))
        return self._playing

    def _refuse_other_shapes(self, moment: Moment) -> None:
        """Arrays of another shape would be broadcast, or fail without a name."""
        for name in ("obs", "state", "avail"):
            found, needed = np.shape(vars(moment)[name]), getattr(self._playing, name).shape[1:]
            if found != needed:
                raise ValueError(f"{self.spec.name}: {name} is {found}, {needed} is needed; see python -m envs.check")

    def _write(self, row: int, moment: Moment) -> None:
        playing = self._playing
        playing.obs[row] = moment.obs
        playing.state[row] = moment.state
        playing.avail[row] = moment.avail
        playing.reward[row] = moment.reward
        playing.terminal[row] = moment.terminal
        playing.truncated[row] = moment.truncated
        for name, value in moment.columns.items():
            playing.columns[name][row] = value

    def advance(self, steps: int) -> None:
        for copy in self.copies:
            copy.advance(steps)

    def render(self, copy: int = 0) -> Array:
        return self.copies[copy].render()

    def close(self) -> None:
        for copy in self.copies:
            copy.close()
