"""Risk: FoX computes what its specification says and yet explores no better for it."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from algos import assemble, fox, qmix
from algos.factored import Optimizer
from algos.formation.novelty import FormationNovelty
from envs import grf
from marl.config import Learning
from marl.dice import EVALUATE, TRAIN, Noise
from marl.env import BatchedEnv, EnvUnavailable, Moments
from marl.learner import Learner
from marl.replay import Replay
from marl.types import Array, EnvSpec, Episodes
from marl.worker import Plan, Worker
from tests.test_learning import learn

pytestmark = pytest.mark.slow

SEEDS = range(5)
MAJORITY = range(3)
"""Of the seeds: what all of these are above or below, the median of five is too."""
COPIES = 8
EPSILON = 0.05
TARGETS = 50
"""Episodes between copies: runs are short."""
MOVES = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])


class Grid(BatchedEnv):
    """Three agents on a ``side`` x ``side`` grid; each sees where it is and where the others are from it.

    With a ``triangle``, places of the second and third agent relative to the first, all start in a corner, and
    standing so ends the episode with reward 1. Without one they start in the middle and there is nothing to gain.
    """

    def __init__(self, copies: int, side: int, horizon: int, triangle: Sequence[tuple[int, int]] | None = None) -> None:
        self.size, self.side, self.horizon = copies, side, horizon
        self.triangle = None if triangle is None else np.array(triangle)
        self.spec = EnvSpec("grid", n_agents=3, n_actions=len(MOVES), obs_dim=6, state_dim=6, horizon=horizon)

    def reset(self, seeds: Sequence[int]) -> Moments:
        self.places = np.full((len(seeds), 3, 2), self.side // 2 if self.triangle is None else 0)
        self.clock = np.zeros(len(seeds), int)
        self.rewards = np.zeros(len(seeds), np.float32)
        return self._moments()

    def step(self, actions: Array, live: Array) -> Moments:
        moved = np.clip(self.places + MOVES[actions], 0, self.side - 1)
        self.places = np.where(live[:, None, None], moved, self.places)
        self.clock += live
        self.rewards = (self._formed() & live).astype(np.float32)
        return self._moments()

    def _formed(self) -> Array:
        if self.triangle is None:
            return np.zeros(len(self.places), bool)
        return (self.places[:, 1:] - self.places[:, :1] == self.triangle).all((1, 2))

    def _moments(self) -> Moments:
        scaled = self.places / (self.side - 1)
        others = np.array([[1, 2], [0, 2], [0, 1]])
        relative = scaled[:, others] - scaled[:, :, None]
        obs = np.concatenate([scaled[:, :, None], relative], 2).reshape(-1, 3, 6).astype(np.float32)
        avail = np.ones((len(obs), 3, len(MOVES)), bool)
        formed = self.rewards > 0
        late = (self.clock >= self.horizon) & ~formed
        return Moments(obs, scaled.reshape(-1, 6).astype(np.float32), avail, self.rewards, formed, late, {})

    def render(self, copy: int = 0) -> Array:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Run:
    """A learner and one who plays for it, an update per episode."""

    def __init__(self, config, world: Grid, seed: int, batch: int = 8) -> None:
        torch.manual_seed(seed)
        parts = assemble(world.spec, config)
        layout = {**world.spec.fields(), **parts.columns()}
        replay = Replay(world.spec, layout, 500, torch.device("cpu"), alpha=0.3)
        self.learner = Learner(parts, replay, Learning(batch=batch, updates_per_episode=1.0, burn_in=32), seed)
        self.worker = Worker(assemble(world.spec, config), world, seed, limits_end=world.triangle is not None)
        self.plans = 0

    def play(self, epsilon: float) -> list:
        """Eight training episodes, learned from."""
        self.worker.load(self.learner.weights())
        plan = Plan(self.plans, TRAIN, COPIES * self.plans, COPIES, epsilon)
        self.plans += 1
        records = self.worker.play(plan).records
        for record in records:
            self.learner.absorb(record)
            self.told = self.learner.improve()
        return records

    def success(self, episodes: int) -> float:
        """Share of greedy episodes that end with the reward."""
        self.worker.load(self.learner.weights())
        plans = [Plan(0, EVALUATE, first, COPIES) for first in range(0, episodes, COPIES)]
        returns = [record["reward"].sum() for plan in plans for record in self.worker.play(plan).records]
        return float(np.mean(returns))

    @property
    def steps(self) -> int:
        return self.learner.clock.steps


def plain():
    """QMIX with everything FoX has in common with it."""
    optimizer = Optimizer("rmsprop", lr=5e-4, alpha=0.99, eps=1e-5)
    return qmix.Config(td_lambda=0.0, td_weight=1.0, target_every_episodes=TARGETS, optimizer=optimizer)


def novel(beta1: float, beta2: float):
    return fox.Config(beta1=beta1, beta2=beta2, target_every_episodes=TARGETS)


def headless(beta1: float):
    """The count bonus, or nothing, on the CDS base."""
    return fox.Config(beta1=beta1, beta2=0.0, formation_head=False, target_every_episodes=TARGETS)


def histories_that_tell(seed, weight):
    """An `fox` part and batches whose formation is a fixed, squashed, linear function of the team's histories."""
    spec = EnvSpec("told", n_agents=3, n_actions=5, obs_dim=8, state_dim=8, horizon=20)
    torch.manual_seed(seed)
    parts = assemble(spec, fox.Config(kl_weight=weight))
    for _, part in parts.named():
        part.equip()
    readout = torch.randn(64, 12)
    rng = np.random.default_rng(seed)

    def batch():
        shape = (16, 20, 3)
        blank = Episodes(
            obs=torch.tensor(rng.standard_normal((16, 21, 3, 8)), dtype=torch.float32),
            state=torch.zeros(16, 21, 8),
            avail=torch.ones(16, 21, 3, 5, dtype=torch.bool),
            actions=torch.tensor(rng.integers(0, 5, shape)),
            executed=torch.zeros(shape, dtype=torch.long),
            reward=torch.zeros(16, 20),
            terminal=torch.zeros(16, 20, dtype=torch.bool),
            mask=torch.ones(16, 20),
        )
        with torch.no_grad():
            formation = 1000 * (parts.q.histories(blank).sum(2) @ readout).sigmoid()
        partner = torch.tensor([[1, 0, 0], [2, 2, 1]], dtype=torch.uint8).expand(16, 21, 2, 3)
        columns = {"formation": formation, "farthest": partner[:, :, 0], "nearest": partner[:, :, 1]}
        return replace(blank, columns=columns)

    return parts, batch


@pytest.mark.parametrize(("weight", "low", "high"), [(1e-5, 0.3, 1.0), (1.0, -1.0, 0.1)])
def test_fnet_learns_what_histories_tell_unless_latents_collapse(weight, low, high):
    parts, batch = histories_that_tell(0, weight)
    for phase in range(80):
        stats = parts.bonuses[1].fit(batch(), parts.q, Noise(0, phase))
    assert low < stats["fnet/r2"] < high, stats
    assert (stats["fnet/kl"] < 0.01) == (weight == 1.0), stats


def formations_visited(config, steps: int, seed: int) -> int:
    run = Run(config, Grid(COPIES, side=9, horizon=50), seed)
    torch.manual_seed(99)
    ruler = FormationNovelty(
        run.worker.env.spec,
        beta=0.0,
        shift="nonneg",
        decimals=1,
        bits=9,
        law="gaussian",
        capacity=10**6,
        source="obs",
        requery=False,
        repaired=True,
    )
    while run.steps < steps:
        for record in run.play(EPSILON):
            ruler.annotate(Episodes.of_records([record], run.worker.env.spec.fields()))
    return ruler.table.size


def visited(config, steps: int, seeds: range) -> list[int]:
    return [formations_visited(config, steps, seed) for seed in seeds]


def test_counting_formations_explores_more_of_them():
    """Without a reward, and without the formation head, whose drawn latents alone make choices vary."""
    base, counted = (visited(headless(beta1), 20_000, SEEDS) for beta1 in (0.0, 0.1))
    assert np.median(counted) >= 1.5 * np.median(base), (base, counted)


def test_fox_explores_more_formations_than_qmix_and_awareness_does_not_harm():
    """Without a reward; medians of five seeds were 635, 7074 and 7278 after 20,000 steps."""
    configs = plain(), novel(0.1, 0.0), novel(0.1, 0.01)
    base, counted, aware = (visited(config, 10_000, MAJORITY) for config in configs)
    assert min(counted) >= 3 * max(base), (base, counted)
    assert np.median(aware) >= 0.9 * np.median(counted), (counted, aware)


BUDGET = 8000
"""Environment steps."""
CHECK = 400
GOAL = 1 / 100
"""The reward here in units of a football goal."""


def steps_to_triangle(config, seed: int) -> int:
    """Environment steps until the greedy team forms the triangle at two checks in a row; ``2 * BUDGET`` if never.

    World and policy are deterministic: the success of one greedy episode is that of all.
    """
    run = Run(config, Grid(COPIES, side=4, horizon=8, triangle=[(2, 0), (0, 2)]), seed, batch=16)
    since = None
    for check in range(CHECK, BUDGET + 1, CHECK):
        while run.steps < check:
            run.play(EPSILON)
        if run.success(COPIES) < 0.8:
            since = None
        elif since is not None:
            return since
        else:
            since = run.steps
    return 2 * BUDGET


def tuned(config):
    """What one reward in 8 steps asks of any algorithm: Adam and TD(lambda)."""
    return replace(config, td_lambda=0.6, optimizer=Optimizer("adam", lr=1e-3))


def test_fox_finds_a_sparse_triangle_before_qmix():
    """All of FoX. The penalty of local heads is for returns of football's size, beside squared errors of them."""
    seeker = tuned(replace(novel(0.1, 0.01), local_l1=0.1 * GOAL))
    quick, slow = ([steps_to_triangle(config, seed) for seed in MAJORITY] for config in (seeker, tuned(plain())))
    assert max(quick) <= 0.9 * BUDGET < min(slow), (quick, slow)


def without_engine() -> str:
    try:
        grf.probe(grf.Config())
    except EnvUnavailable as error:
        return str(error)
    return ""


needs_engine = pytest.mark.skipif(bool(without_engine()), reason=without_engine() or "the engine is here")
LOGGED = (
    "formation/unique_ratio",
    "formation/rho",
    "fnet/kl",
    "fnet/r2",
    "bonus/count",
    "bonus/awareness",
    "eval/return",
    "train/return",
)


@needs_engine
def test_a_short_run_on_football_finishes_and_tells_what_it_should(tmp_path):
    run = learn(
        tmp_path, "algo=fox", "env=grf", "steps=2500", "eval.episodes=4", "eval.every_steps=1000",
        "rollout.backend=inline", "rollout.workers=1", "rollout.inflight=1", "rollout.envs_per_worker=4",
        "learner.burn_in=16", "algo.fnet_every_episodes=8", "replay.capacity=200", "log.every_steps=500",
    )  # fmt: skip
    with (tmp_path / "scalars.csv").open() as stream:
        rows = [(row["tag"], float(row["value"])) for row in csv.DictReader(stream)]
    assert all(math.isfinite(value) for _, value in rows), [row for row in rows if not math.isfinite(row[1])]
    told = Counter(tag for tag, _ in rows)
    assert all(told[tag] >= 2 for tag in LOGGED), told
    assert run.learner.clock.steps >= 2500 and run.learner.clock.updates >= 10
