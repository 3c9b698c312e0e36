"""Risk: FIM computes what its specification says, and yet a team does not find what it is paid to look for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from algos import assemble, fim, qmix
from marl.config import Learning
from marl.dice import EVALUATE, TRAIN, Noise, generator
from marl.env import BatchedEnv, Moments
from marl.learner import Learner
from marl.replay import Replay
from marl.types import Array, Column, EnvSpec
from marl.worker import Plan, Worker

pytestmark = pytest.mark.slow

COPIES = 8
STATISTIC, STEPS = 2_000, 12_000
LEVER, WEATHER = 2, 3


class Levers(BatchedEnv):
    """Two levers, which each agent can pull; nothing pays. Each agent moves the lever of its own by three tenths more.

    State: where the levers are. A random agent pulls one in a step of 5.
    """

    spec = EnvSpec(
        "levers",
        n_agents=2,
        n_actions=10,
        obs_dim=2,
        state_dim=2,
        horizon=10,
        state_groups={"levers": (0, 1)},
        columns={"pulled": Column((2,), "float32", "episode")},
    )
    size = COPIES
    moved_by = np.array([[1.3, 1.0], [1.0, 1.3]])
    """(N, levers)"""

    def reset(self, seeds: Sequence[int]) -> Moments:
        self.levers, self.clock = np.zeros((len(seeds), 2)), np.zeros(len(seeds), int)
        return self._moments()

    def step(self, actions: Array, live: Array) -> Moments:
        pulls = actions[..., None] == np.arange(2)
        self.levers += live[:, None] * (pulls * self.moved_by).sum(1)
        self.clock += live
        return self._moments()

    def _moments(self) -> Moments:
        state = (self.levers / (2.3 * self.spec.horizon)).astype(np.float32)
        late, never = self.clock >= self.spec.horizon, np.zeros(len(state), bool)
        avail = np.ones((len(state), 2, self.spec.n_actions), bool)
        columns = {"pulled": self.levers.astype(np.float32)}
        obs, nothing = np.repeat(state[:, None], 2, 1), np.zeros(len(state), np.float32)
        return Moments(obs, state, avail, nothing, never, late, columns)

    def render(self, copy: int = 0) -> Array:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Lock(BatchedEnv):
    """A lock opens, reward 1 and the end, after ten turns in twenty steps; it turns when each agent makes its own move.

    A random team turns it in a step of 25, and opens it in one episode of 10 million. State: both last moves, turns,
    and a bit of weather that flips as rarely as the lock turns, whatever the agents do.
    """

    spec = EnvSpec(
        "lock",
        n_agents=2,
        n_actions=5,
        obs_dim=1,
        state_dim=4,
        horizon=20,
        state_groups={"moves": (0, 1), "turns": (2,), "weather": (3,)},
        columns={"won": Column((), "bool", "episode")},
    )
    size = COPIES
    turns_needed = 10

    def reset(self, seeds: Sequence[int]) -> Moments:
        self.dice = [np.random.default_rng(seed) for seed in seeds]
        self.moves, self.turns = np.zeros((len(seeds), 2)), np.zeros(len(seeds))
        self.weather, self.clock = np.zeros(len(seeds)), np.zeros(len(seeds), int)
        return self._moments()

    def step(self, actions: Array, live: Array) -> Moments:
        flips = np.array([dice.random() < 0.04 for dice in self.dice])
        self.weather = np.where(live & flips, 1 - self.weather, self.weather)
        self.turns += live & (actions == [1, 3]).all(1)
        self.moves = np.where(live[:, None], actions, self.moves)
        self.clock += live
        return self._moments()

    def _moments(self) -> Moments:
        turned = self.turns / self.turns_needed
        state = np.column_stack([self.moves / 4, turned, self.weather]).astype(np.float32)
        obs = np.repeat(turned[:, None, None], 2, 1).astype(np.float32)
        won = self.turns >= self.turns_needed
        late = (self.clock >= self.spec.horizon) & ~won
        avail = np.ones((len(obs), 2, 5), bool)
        return Moments(obs, state, avail, won.astype(np.float32), won, late, {"won": won})

    def render(self, copy: int = 0) -> Array:
        raise NotImplementedError

    def close(self) -> None:
        pass


@dataclass
class Outcome:
    learner: Learner
    greedy: list[Mapping[str, Array]]
    """Episodes of the final policy."""

    @property
    def success(self) -> float:
        return float(np.mean([record["won"] for record in self.greedy]))

    @property
    def focus(self) -> float:
        """Share of what moved that was the lever that moved more."""
        return float(np.mean([record["pulled"].max() / record["pulled"].sum() for record in self.greedy]))


def trained(config, seed: int, world: BatchedEnv | None = None) -> Outcome:
    """``STEPS`` steps, the first ``STATISTIC`` of them at random and without updates."""
    torch.manual_seed(seed)
    world = world or Lock()
    parts = assemble(world.spec, config)
    replay = Replay(world.spec, {**world.spec.fields(), **parts.columns()}, 1000, torch.device("cpu"))
    learner = Learner(parts, replay, Learning(batch=16, updates_per_episode=0.5, burn_in=16), seed)
    worker = Worker(assemble(world.spec, config), world, seed, limits_end=True)
    plans = 0
    while learner.clock.steps < STEPS:
        learns = learner.clock.steps >= STATISTIC
        annealed = (learner.clock.steps - STATISTIC) / (0.5 * (STEPS - STATISTIC))
        worker.load(learner.weights())
        for record in worker.play(
            Plan(plans, TRAIN, COPIES * plans, COPIES, float(np.clip(1 - annealed, 0.05, 1)))
        ).records:
            learner.absorb(record, earns=learns)
            learner.improve()
        plans += 1
    worker.load(learner.weights())
    return Outcome(learner, worker.play(Plan(plans, EVALUATE, 0, COPIES)).records)


def base():
    return qmix.Config(target_every_episodes=20)


def focusing(**kw):
    settings = {"alpha": 0.1, "statistic_steps": STATISTIC, "delta_mode": "absolute", "delta": 0.3, "model_hidden": 32}
    model = {"model_updates": 5, "model_lr": 3e-3, "model_every_episodes": 20, "model_predicts": "change"}
    return fim.Config(base=base(), **{**settings, **model, **kw})


@pytest.fixture(scope="module")
def focused() -> list[Outcome]:
    return [trained(focusing(), seed) for seed in range(3)]


def test_paid_for_influence_a_team_opens_a_lock_that_its_base_never_opens(focused):
    plain = [trained(base(), seed).success for seed in range(3)]
    assert np.median(plain) == 0, plain
    assert np.median([outcome.success for outcome in focused]) == 1, [outcome.success for outcome in focused]


def test_rare_features_are_selected_and_only_the_one_that_can_be_influenced_pays(focused):
    for outcome in focused:
        bonus = outcome.learner.parts.bonuses[0]
        assert bonus.statistic.selected.nonzero().flatten().tolist() == [LEVER, WEATHER]
        _, batch = outcome.learner.replay.sample(64, generator(0, "test", 0), uniform=True)
        influence = bonus.influence(batch, outcome.learner.parts.q, Noise(0, 0), bonus.statistic.target())
        lever, weather = influence[batch.mask.bool()].mean(0).tolist()
        assert lever > 5 * weather, (lever, weather)


def test_with_traces_both_agents_move_one_lever_and_without_mostly_each_its_own():
    def focus(trace_mode: str) -> list[float]:
        config = focusing(trace_mode=trace_mode, delta=0.7, c_max=None)
        return [trained(config, seed, Levers()).focus for seed in range(3)]

    together, apart = focus("product"), focus("none")
    assert np.median(together) > 0.95 and max(apart) < 0.8, (together, apart)
