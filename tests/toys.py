"""Small worlds whose every number can be told in advance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marl.env import BatchedEnv, Env, Moment, SideBySide
from marl.types import Column, EnvSpec

HORIZON = 8


class Clockwork(Env):
    """Episodes of 2 to 8 steps, by the seed. What is seen tells (seed, step, agent); reward is the sum of actions.

    Odd seeds end by themselves, even seeds are cut by time. Action 2 is available at even steps only.
    """

    spec = EnvSpec(
        "clockwork",
        n_agents=2,
        n_actions=3,
        obs_dim=3,
        state_dim=2,
        horizon=HORIZON,
        columns={
            "alive": Column((2,), "bool", "views"),
            "spent": Column((), "float32", "steps"),
            "won": Column((), "bool", "episode"),
        },
    )

    def reset(self, seed: int) -> Moment:
        self.seed, self.now, self.length = seed, 0, 2 + seed % (HORIZON - 1)
        return self._moment(np.zeros(2, int))

    def step(self, actions) -> Moment:
        assert all(action < 2 or self.now % 2 == 0 for action in actions), "an action that was not available"
        self.now += 1
        return self._moment(actions)

    def _moment(self, actions) -> Moment:
        ended = self.now == self.length
        code = self.seed % 1000
        columns = {"alive": np.array([True, self.now < 3]), "spent": float(actions.max())}
        return Moment(
            obs=np.array([[code, self.now, agent] for agent in range(2)], np.float32),
            state=np.array([code, self.now], np.float32),
            avail=np.array([[True, True, self.now % 2 == 0]] * 2),
            reward=float(actions.sum()),
            terminal=ended and self.seed % 2 == 1,
            truncated=ended and self.seed % 2 == 0,
            columns={**columns, "won": self.length > 4} if ended else columns,
        )

    def render(self):
        return np.full((4, 6, 3), self.now, np.uint8)


class Coordinate(Env):
    """Two agents, one step, QMIX's monotonic kind of task: reward 1 if both choose the action the state names."""

    spec = EnvSpec(
        "coordinate",
        n_agents=2,
        n_actions=3,
        obs_dim=3,
        state_dim=3,
        horizon=1,
        columns={"won": Column((), "bool", "episode")},
    )

    def reset(self, seed: int) -> Moment:
        self.goal = seed % 3
        return self._moment(0.0, False)

    def step(self, actions) -> Moment:
        return self._moment(float((actions == self.goal).all()), True)

    def _moment(self, reward: float, terminal: bool) -> Moment:
        sign = np.eye(3, dtype=np.float32)[self.goal]
        avail = np.ones((2, 3), bool)
        return Moment(np.stack([sign, sign]), sign, avail, reward, terminal, False, {"won": reward > 0})


@dataclass(frozen=True)
class Copies:
    """Makes a batch of a world; can be sent to another process."""

    world: type[Env]
    size: int

    def __call__(self) -> BatchedEnv:
        return SideBySide(self.world, self.size)
