"""Risk: a member of the family does not find what it was made to find. Games with a known optimum, fixed seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_learning import EXPLORE, ONE_STEP, final, greedy_return, joint_values, learn

MEMBERS = {
    "qplex": ["algo=qplex"],
    "cw_qmix": ["algo=wqmix", "algo.weighting=central"],
    "ow_qmix": ["algo=wqmix", "algo.weighting=optimistic"],
    "qatten": ["algo=qatten"],
    "qtran": ["algo=qtran"],
    "pqn_vdn": ["algo=pqn_vdn", "algo.hidden=64", "learner.updates_per_episode=0.25", "learner.every_episodes=128"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMBERS)
def test_the_monotonic_game_is_solved(name: str, tmp_path: Path) -> None:
    run = learn(tmp_path, "env.game=monotonic", *ONE_STEP, *EXPLORE, *MEMBERS[name])
    assert greedy_return(run) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cw_qmix", "ow_qmix"])
def test_an_optimum_among_penalties_is_found(name: str, tmp_path: Path) -> None:
    """8 -12 -12 / -12 0 0 / -12 0 0: where VDN and QMIX settle for 0, these find 8."""
    run = learn(tmp_path, "env.game=nonmonotonic", *ONE_STEP, *EXPLORE, *MEMBERS[name])
    assert greedy_return(run) == 8


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["algo.heads=10"]])
def test_qplex_finds_it_by_its_defaults(options: list[str], tmp_path: Path) -> None:
    """Exploration is the game's; with the ten heads of the paper's matrix games as well."""
    run = learn(tmp_path, "env=matrix", "env.game=nonmonotonic", "algo=qplex", "steps=3000", *options)
    assert greedy_return(run) == 8


@pytest.mark.slow
def test_qplex_climbs(tmp_path: Path) -> None:
    """11 -30 0 / -30 7 6 / 0 0 5, nothing but the defaults."""
    run = learn(tmp_path, "env=matrix", "env.game=climbing", "algo=qplex", "steps=2000")
    assert greedy_return(run) == 11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qatten", "pqn_vdn"])
def test_who_cannot_represent_it_settles_for_less(name: str, tmp_path: Path) -> None:
    run = learn(tmp_path, "env.game=nonmonotonic", *ONE_STEP, *EXPLORE, *MEMBERS[name])
    assert greedy_return(run) == 0


@pytest.mark.slow
def test_qtran_finds_the_optimum_is_exact_there_and_nowhere_below(tmp_path: Path) -> None:
    """What the two constraints ask for: sum + V is 8 at the optimum, and at least the payoff everywhere else."""
    options = [*MEMBERS["qtran"], "learner.updates_per_episode=0.2"]
    run = learn(tmp_path, "env.game=nonmonotonic", *ONE_STEP, *EXPLORE, *options)
    assert greedy_return(run) == 8
    table = joint_values(run)
    assert table[0, 0].item() == pytest.approx(8, abs=0.5)
    assert (table[1:, 1:] > -0.5).all() and (table[0, 1:] > -12.5).all() and (table[1:, 0] > -12.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qplex", "cw_qmix", "qatten", "qtran", "pqn_vdn"])
def test_meeting_is_learned(name: str, tmp_path: Path) -> None:
    steps, shared = 40_000, ["env=meet", "eval.episodes=128"]
    if name != "pqn_vdn":
        steps = 20_000
        shared += ["learner.batch=32", "learner.burn_in=64", "learner.updates_per_episode=0.25"]
    run = learn(tmp_path, *MEMBERS[name], *shared, f"steps={steps}", f"eval.every_steps={steps}")
    assert final(run.folder, "eval/success") >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iql", "qmix", "qatten", "qplex", "ow_qmix", "s2q"])
def test_landmarks_are_covered_better_than_at_random(name: str, tmp_path: Path) -> None:
    """simple_spread: random play scores -83, these -60 to -72 after 100k steps; QTRAN needs longer (docs/qtran.md)."""
    pytest.importorskip("jaxmarl")
    algorithm = {**MEMBERS, "s2q": ["algo=s2q", "algo.floor=200"]}.get(name, [f"algo={name}"])
    world = ["env=jaxmarl", "env.id=MPE_simple_spread_v3", "rollout.time_limits=terminal"]
    recipe = ["recipe=tuned", "algo.gamma=0.9", "algo.optimizer.lr=2e-3", "rollout.epsilon_steps=50000"]
    length = ["steps=100000", "eval.every_steps=100000", "eval.episodes=64"]
    run = learn(tmp_path, *world, *algorithm, *recipe, *length)
    assert final(run.folder, "eval/return") > -77
