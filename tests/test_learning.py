"""Risk: an algorithm does not learn. Small tasks with a known optimum, fixed seeds."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path

import pytest
import torch

import algos
import envs
from marl import build
from marl.command import cli
from marl.run import Run
from marl.types import View

EXPLORE = ["rollout.epsilon_start=1", "rollout.epsilon_finish=1"]
ONE_STEP = ["env=matrix", "steps=12000", "learner.batch=64", "learner.burn_in=64", "learner.updates_per_episode=0.1"]


def learn(folder: Path, *arguments: str) -> Run:
    """A finished run, closed; its parts can still be asked."""
    quiet = ["log.terminal=false", "checkpoint.every_steps=1000000000"]
    settings = cli.parse([*arguments, *quiet], algos.ALGORITHMS, envs.ENVIRONMENTS)
    run = Run(settings, build.learner(settings, build.spec(settings), torch.device("cpu")), folder)
    try:
        run.play()
    finally:
        run.close()
    return run


def final(folder: Path, tag: str) -> float:
    with (folder / "scalars.csv").open() as stream:
        return [float(row["value"]) for row in csv.DictReader(stream) if row["tag"] == tag][-1]


def joint_values(run: Run) -> torch.Tensor:
    """(A, A) learned values of both agents' actions at the first view of a two-agent game."""
    env = build.environment(run.settings, 1)
    moments = env.reset([0])
    q = run.learner.parts.q
    view = View(
        torch.from_numpy(moments.obs),
        torch.from_numpy(moments.state),
        torch.from_numpy(moments.avail),
        torch.full((1, 2), -1),
    )
    with torch.no_grad():
        values = q.utilities(view, q.memory(1))[0]
        best, actions = values.amax(-1), range(env.spec.n_actions)
        table = [
            q.mix(torch.stack([values[0, i], values[1, j]]), best, view.state[0], torch.tensor([i, j]))
            for i, j in product(actions, actions)
        ]
    return torch.stack(table).view(len(actions), len(actions))


def greedy_return(run: Run) -> float:
    return final(run.folder, "eval/return")


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["iql", "vdn", "qmix"])
def test_the_monotonic_game_is_solved(algo, tmp_path):
    run = learn(tmp_path, f"algo={algo}", "env.game=monotonic", *ONE_STEP, *EXPLORE)
    assert greedy_return(run) == 8


@pytest.mark.slow
def test_vdn_fits_the_sum_that_is_nearest_to_a_game_it_cannot_represent(tmp_path):
    """Least squares of 8 -12 -12 / -12 0 0 / -12 0 0 by row + column: -56/9, -44/9, -32/9 (QTRAN's table 1c)."""
    run = learn(tmp_path, "algo=vdn", "env.game=nonmonotonic", *ONE_STEP, *EXPLORE)
    a, b, c = -56 / 9, -44 / 9, -32 / 9
    expected = torch.tensor([[a, b, b], [b, c, c], [b, c, c]])
    torch.testing.assert_close(joint_values(run), expected, atol=0.6, rtol=0)
    assert greedy_return(run) == 0


@pytest.mark.slow
def test_qmix_fits_the_monotonic_function_that_is_nearest_to_it(tmp_path):
    """Row and column of the optimum are levelled to (8 - 4 * 12) / 5 = -8, the rest is exact: 0 is chosen, not 8."""
    run = learn(tmp_path, "algo=qmix", "env.game=nonmonotonic", *ONE_STEP, *EXPLORE)
    expected = torch.tensor([[-8.0, -8, -8], [-8, 0, 0], [-8, 0, 0]])
    torch.testing.assert_close(joint_values(run), expected, atol=0.6, rtol=0)
    assert greedy_return(run) == 0


@pytest.mark.slow
def test_two_steps_tell_qmix_from_vdn(tmp_path):
    """QMIX finds 8; VDN stays with the safe 7 (Rashid et al. 2018, section 5)."""
    shared = ["env.game=two_step", *ONE_STEP, *EXPLORE, "algo.td_lambda=0", "learner.updates_per_episode=0.2"]
    assert greedy_return(learn(tmp_path / "qmix", "algo=qmix", *shared)) == 8
    assert greedy_return(learn(tmp_path / "vdn", "algo=vdn", *shared)) == 7


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["iql", "vdn", "qmix", "fox"])
def test_meeting_is_learned(algo, tmp_path):
    """FoX with its own optimiser and targets; its penalty of local heads is for returns of football's size."""
    steps = 40_000 if algo == "fox" else 20_000
    run = learn(
        tmp_path, f"algo={algo}", "env=meet", f"steps={steps}", "eval.episodes=128", f"eval.every_steps={steps}",
        "learner.batch=32", "learner.burn_in=64", "learner.updates_per_episode=0.25",
        *(["algo.local_l1=0.001", "algo.n_latent_samples=4"] if algo == "fox" else []),
    )  # fmt: skip
    assert final(run.folder, "eval/success") >= 0.95


@pytest.mark.slow
def test_landmarks_are_covered_better_than_at_random(tmp_path):
    """A short piece of README's table of simple_spread: random play scores -79.5, this run -61 after 50k steps."""
    shared = ["steps=60000", "eval.every_steps=60000", "eval.episodes=64"]
    assert greedy_return(learn(tmp_path, "experiment=qmix_spread", "algo=vdn", *shared)) > -72


@pytest.mark.slow
def test_training_under_attack_keeps_more_of_the_return_under_attack(tmp_path):
    """The wrap composes: the same base, with and without the attacker it is evaluated against."""
    shared = ["env=meet", "steps=30000", "eval.episodes=128", "eval.every_steps=30000", "learner.batch=32"]
    shared += ["learner.burn_in=64", "learner.updates_per_episode=0.25"]
    run = learn(tmp_path, "algo=random_attack", "algo.base=vdn", "algo.attack.probability=0.3", *shared)
    assert final(run.folder, "eval/success") >= 0.8
