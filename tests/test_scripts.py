"""Risk: a page tells numbers of a script that measures something else."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import algos
import envs
from marl.command import cli
from marl.training import train
from scripts import left_food


@pytest.mark.slow
def test_the_yardstick_takes_turns_with_us():
    pytest.importorskip("jaxmarl")
    command = [sys.executable, "-m", "scripts.yardstick", "1", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (row,) = re.findall(r"^ *1 +([\d,]+) +([\d.]+) +([\d,]+) +([\d.]+) +([\d.]+) *$", done.stdout, re.MULTILINE)
    steps, updates, own_steps, own_updates, ratio = (float(cell.replace(",", "")) for cell in row)
    assert steps / updates == pytest.approx(8 * 26, rel=0.01), "one update for 8 copies and 26 steps"
    assert own_steps / own_updates == pytest.approx(8 * 26, rel=0.05), "and for as many episodes of ours"
    assert ratio == pytest.approx(own_steps / steps, abs=0.01)


@pytest.mark.slow
def test_iql_in_jax_learns_of_own_rewards_and_of_the_teams():
    pytest.importorskip("jaxmarl")
    command = [sys.executable, "-m", "scripts.own_rewards", "1", "400000"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (row,) = re.findall(r"^ *0 +(-[\d.]+) +(-[\d.]+) *$", told, re.MULTILINE)
    own, team = map(float, row)
    random = -83.0
    assert own > random and team > random and own != team, (own, team)


@pytest.mark.slow
def test_iql_in_jax_has_td_lambda_too():
    """Two steps by hand: the last target is its one-step target, 2 + 0.9 * 20; the first is (10 + 1 + 0.9 * 20) / 2."""
    pytest.importorskip("jaxmarl")
    lines = (
        "from scripts.own_rewards import Independent, jnp",
        "learner, column = Independent.__new__(Independent), lambda *steps: jnp.asarray(steps)[:, None, None]",
        "learner.td_lambda = 0.5",
        "print(learner._targets(column(1.0, 2.0), column(0.9, 0.9), column(10.0, 20.0)).ravel().tolist())",
    )
    told = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "[14.5, 20.0]"


@pytest.mark.slow
def test_rules_score_more_where_moves_show_a_step_earlier():
    pytest.importorskip("mpe2")
    command = [sys.executable, "-m", "scripts.particle_rules", "30"]
    told = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
    ).stdout
    rows = re.findall(r"^ *simple_\w+: .*? {2,}(-[\d.]+) \(.*?\) +(-[\d.]+) \(.*?\) *$", told, re.MULTILINE)
    scores = [(float(now), float(before)) for now, before in rows]
    assert len(scores) == 4
    assert all(now < before for now, before in scores)
    (now_spread, _), *_, (goals, _), (silent, _) = scores
    assert now_spread > -40, "half of what random play loses, -79.5"
    assert goals > silent + 10, "who knows its goal gains by going there"


def record(*views, actions):
    """Two agents' episode from the lists of food, (row, column, level), and the agents' places before each step."""
    listed = [sum(food, []) + [-1, -1, 0] * (2 - len(food)) for food, _ in views]
    obs = [
        [[*food, *own, 1, *other, 1] for own, other in (places, places[::-1])]
        for food, (_, places) in zip(listed, views)
    ]
    return {"obs": np.asarray(obs, np.float32), "actions": np.asarray(actions)}


def test_what_is_left_is_told_with_how_far_off_the_team_is():
    upper, lower = [1, 2, 2], [5, 5, 2]
    near_lower = ([5, 4], [5, 6])
    one = record(([upper, lower], near_lower), ([upper], near_lower), actions=[[5, 5]])
    assert left_food.taken_first(one) == "lower"
    assert left_food.distances(one) == [4 + 2, 4 + 4]
    both = record(([upper, lower], near_lower), ([lower], near_lower), ([], near_lower), actions=[[5, 5], [5, 5]])
    assert left_food.taken_first(both) == "upper" and left_food.distances(both) == []
    nothing = record(([upper, lower], near_lower), ([upper, lower], near_lower), actions=[[0, 0]])
    assert left_food.taken_first(nothing) == "none" and left_food.distances(nothing) == [1, 1]


def test_a_run_on_foraging_is_looked_into(tmp_path, capsys):
    pytest.importorskip("lbforaging")
    told = (
        f"env=lbf algo=vdn steps=200 learner.batch=2 learner.burn_in=2 rollout.backend=inline rollout.workers=1 "
        f"rollout.inflight=1 rollout.envs_per_worker=2 eval.every_steps=0 log.terminal=false logdir={tmp_path} name=run"
    )
    train(cli.parse(told.split(), algos.ALGORITHMS, envs.ENVIRONMENTS))
    capsys.readouterr()
    left_food.main(str(tmp_path / "run"), 4)
    told = capsys.readouterr().out
    shares = [float(share) for share in re.findall(r"first food: \w+ +([\d.]+)", told)]
    assert sum(shares) == pytest.approx(1) and "food is left" in told
    actions = [float(share) for share in re.findall(r"last 10 steps +([\d.]+)", told)]
    assert len(actions) == 6 and sum(actions) == pytest.approx(1, abs=0.04)
