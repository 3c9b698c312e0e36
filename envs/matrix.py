"""Two-agent matrix games with known optimum: climbing, penalty, (non-)monotonic one-step games, the two-step game.

Payoffs: climbing and penalty from Claus and Boutilier, "The dynamics of reinforcement learning in cooperative
multiagent systems", AAAI 1998 (repeated 25 times in the EPyMARL benchmark, Papoudakis et al. 2021); two_step and its
second stage as a game of its own (monotonic) from Rashid et al., "QMIX", ICML 2018, section 5; nonmonotonic from
Son et al., "QTRAN", ICML 2019, table 1, used by Rashid et al., "Weighted QMIX", NeurIPS 2020, to show what a monotonic
mixer cannot represent; nonmonotonic_small is the two-action game on the same point in the appendix of the QMIX paper.
shifting pays 1, 0.9, 0.8 on its diagonal and 0 elsewhere until ``shift_at``; then ``rise``: the third becomes the best,
1.6; ``fall``: the first becomes the worst, 0.5. After Jo, Lee, Han, "Retaining suboptimal actions to follow shifting
optima in multi-agent reinforcement learning", ICLR 2026, whose own numbers are not known here.

Agents see the stage of the game one-hot, which is the constant 1 where a game has a single stage; so does the state.
The last repetition ends the task: it is terminal, not a time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from marl.env import BatchedEnv, Moments
from marl.fields import check_values, count, number, one_of, only_with
from marl.types import Array, Column, EnvSpec

END = -1


@dataclass
class Config:
    name: str = "matrix"
    game: str = one_of(
        "climbing", "penalty", "monotonic", "nonmonotonic", "nonmonotonic_small", "two_step", "shifting"
    )  # payoffs: see the module
    repeats: int = count(1)  # times the game is played in one episode; the EPyMARL benchmark plays 25
    shift: str = only_with(one_of("rise", "fall"), game="shifting")  # the third becomes best, or the first worst
    shift_at: int = only_with(count(12_000, least=0), game="shifting")  # steps of training before the later payoffs
    k: float = only_with(number(-100.0, most=0), game="penalty")  # pay for failing; published are 0 to -100 by 25


class Game(NamedTuple):
    payoffs: Array
    """(S, A, A) float32: reward of stage s for the joint action"""
    following: Array
    """(S, A) long: the next stage by the first agent's action; END after the last"""


def one_step(payoffs: Sequence[Sequence[float]]) -> Game:
    table = np.asarray([payoffs], np.float32)
    return Game(table, np.full((1, table.shape[1]), END))


def two_step() -> Game:
    nothing, safe, risky = np.zeros((2, 2)), np.full((2, 2), 7.0), np.asarray([[0.0, 1.0], [1.0, 8.0]])
    return Game(np.stack([nothing, safe, risky]).astype(np.float32), np.asarray([[1, 2], [END, END], [END, END]]))


def diagonal(*payoffs: float) -> Game:
    return one_step(np.diag(payoffs).tolist())


BEFORE = (1.0, 0.9, 0.8)
SHIFTS = {"rise": (1.0, 0.9, 1.6), "fall": (0.5, 0.9, 0.8)}
GAMES: dict[str, Callable[[float], Game]] = {
    "climbing": lambda k: one_step([[11, -30, 0], [-30, 7, 6], [0, 0, 5]]),
    "penalty": lambda k: one_step([[10, 0, k], [0, 2, 0], [k, 0, 10]]),
    "monotonic": lambda k: one_step([[0, 1], [1, 8]]),
    "nonmonotonic": lambda k: one_step([[8, -12, -12], [-12, 0, 0], [-12, 0, 0]]),
    "nonmonotonic_small": lambda k: one_step([[2, 1], [1, 8]]),
    "two_step": lambda k: two_step(),
    "shifting": lambda k: diagonal(*BEFORE),
}


def game(config: Config, steps: int = 0) -> Game:
    """The stages a configuration asks for, as they are after ``steps`` steps of training.

    Raises:
        ValueError: a setting that cannot be, in one line.
    """
    check_values(config, "env.")
    if config.game == "shifting" and steps >= config.shift_at:
        return diagonal(*SHIFTS[config.shift])
    return GAMES[config.game](config.k)


def depth(stages: Game, stage: int = 0) -> int:
    """Steps from a stage to the end of the game, the same on every way through it."""
    return 1 + max(0 if after == END else depth(stages, after) for after in stages.following[stage])


def worth(stages: Game, stage: int = 0) -> float:
    """The best sum of rewards from a stage on."""
    best = stages.payoffs[stage].max(1)
    return max(
        float(reward) + (0.0 if after == END else worth(stages, after))
        for reward, after in zip(best, stages.following[stage], strict=True)
    )


def optimum(config: Config, steps: int = 0) -> float:
    """The highest undiscounted return of an episode after ``steps`` steps of training."""
    return config.repeats * worth(game(config, steps))


def probe(config: Config) -> None:
    """Nothing to install; a bad setting raises ValueError."""
    game(config)


def make(config: Config, size: int) -> BatchedEnv:
    return MatrixGames(config, size)


class MatrixGames(BatchedEnv):
    def __init__(self, config: Config, size: int) -> None:
        self._config, self._repeats = config, config.repeats
        self.advance(0)
        stages = self._game
        tables = stages.payoffs, game(config, config.shift_at).payoffs
        n_stages, n_actions = stages.payoffs.shape[:2]
        self.size = size
        self.spec = EnvSpec(
            name=f"{config.name}:{config.game}",
            n_agents=2,
            n_actions=n_actions,
            obs_dim=n_stages,
            state_dim=n_stages,
            horizon=depth(stages) * config.repeats,
            state_groups={"stage": tuple(range(n_stages))},
            reward_range=(float(np.min(tables)), float(np.max(tables))),
            columns={"won": Column((), "bool", "episode")},
        )
        self._one_hot = np.eye(n_stages, dtype=np.float32)

    def advance(self, steps: int) -> None:
        self._game, self._optimum = game(self._config, steps), optimum(self._config, steps)

    def reset(self, seeds: Sequence[int]) -> Moments:
        copies = self.starting(seeds)
        self._stage = np.zeros(copies, np.int64)
        self._played = np.zeros(copies, np.int64)
        self._return = np.zeros(copies, np.float64)
        self._moments = now = Moments.blank(self.spec, copies)
        now.obs[:], now.state[:], now.avail[:] = self._one_hot[0], self._one_hot[0], True
        return now

    def step(self, actions: Array, live: Array) -> Moments:
        rows = np.flatnonzero(live)
        now, stage, (first, second) = self._moments, self._stage[rows], actions[rows].T
        reward = self._game.payoffs[stage, first, second]
        after = self._game.following[stage, first]
        ended = after == END
        self._stage[rows] = after = np.where(ended, 0, after)
        self._played[rows] += ended
        self._return[rows] += reward
        now.obs[rows] = self._one_hot[after, None]
        now.state[rows] = self._one_hot[after]
        now.reward[rows] = reward
        now.terminal[rows] = over = self._played[rows] == self._repeats
        now.columns["won"][rows] = over & (self._return[rows] >= self._optimum)
        return now
