"""Risk: a world that changes while a team learns changes by another clock than the run's own."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import algos
import envs
from envs import matrix
from marl import build
from marl.command import cli
from marl.dice import EVALUATE, TRAIN
from marl.env import Env, SideBySide
from marl.evaluate import Request, play
from marl.fields import Mistake
from marl.reporting.log import repeats
from marl.run import Run
from marl.worker import Plan
from tests.toys import Clockwork

ALL = np.array([[i, j] for i in range(3) for j in range(3)])
BEFORE = np.diag([1.0, 0.9, 0.8]).astype(np.float32)
AFTER = {
    "rise": np.diag([1.0, 0.9, 1.6]).astype(np.float32),
    "fall": np.diag([0.5, 0.9, 0.8]).astype(np.float32),
}
SETTINGS = [
    "algo=vdn", "env=matrix", "env.game=shifting", "env.shift_at=96", "steps=240", "algo.hidden=8",
    "rollout.envs_per_worker=8", "rollout.inflight=4", "rollout.epsilon_steps=100", "learner.batch=16",
    "learner.burn_in=16", "eval.every_steps=40", "eval.episodes=2", "log.every_steps=8", "log.terminal=false",
    "checkpoint.every_steps=40", "checkpoint.keep=100",
]  # fmt: skip


def settings(*arguments):
    return cli.parse([*SETTINGS, *arguments], algos.ALGORITHMS, envs.ENVIRONMENTS)


def run(folder: Path, *arguments: str, resumed: bool = False) -> Run:
    chosen = settings(*arguments)
    made = Run(chosen, build.learner(chosen, build.spec(chosen), torch.device("cpu")), folder)
    try:
        if resumed:
            made.resume()
        made.play()
    finally:
        made.close()
    return made


def curve(folder: Path):
    with (folder / "scalars.csv").open() as stream:
        return [(row["step"], row["tag"], row["value"]) for row in csv.DictReader(stream) if repeats(row["tag"])]


@pytest.mark.parametrize("shift", ["rise", "fall"])
def test_payoffs_and_the_optimum_change_after_so_many_steps(shift):
    config = matrix.Config(game="shifting", shift=shift, shift_at=50)
    env = matrix.make(config, 9)
    assert env.spec.reward_range == (0.0, max(BEFORE.max(), AFTER[shift].max()))
    for steps, table in ((0, BEFORE), (49, BEFORE), (50, AFTER[shift]), (10**6, AFTER[shift]), (10, BEFORE)):
        env.advance(steps)
        env.reset(range(9))
        now = env.step(ALL, np.ones(9, np.bool_))
        np.testing.assert_array_equal(now.reward, table.reshape(-1))
        np.testing.assert_array_equal(now.columns["won"], table.reshape(-1) == table.max())
        assert matrix.optimum(config, steps) == pytest.approx(table.max())


@pytest.mark.parametrize(("key", "value"), [("shift", "jump"), ("shift_at", -1)])
def test_a_shift_that_cannot_be_is_refused_in_one_line(key, value):
    with pytest.raises(Mistake, match=f"env.{key}={value}"):
        settings(f"env.{key}={value}")


@pytest.mark.parametrize("purpose", [TRAIN, EVALUATE])
def test_the_clock_is_the_steps_consumed_when_a_plan_was_made(purpose):
    worker = build.MakeWorker(settings(), 8)()
    for asked_at, table in ((95, BEFORE), (96, AFTER["rise"]), (0, BEFORE)):
        records = worker.play(Plan(0, purpose, 0, 8, epsilon=1.0, asked_at=asked_at)).records
        actions = np.concatenate([record["actions"] for record in records])
        rewards = np.concatenate([record["reward"] for record in records])
        np.testing.assert_array_equal(rewards, table[actions[:, 0], actions[:, 1]])


def test_every_single_copy_is_told():
    class Told(Clockwork):
        steps = -1

        def advance(self, steps: int) -> None:
            self.steps = steps

    env = SideBySide(Told, 3)
    env.advance(7)
    assert [copy.steps for copy in env.copies] == [7, 7, 7]
    Env.advance(Clockwork(), 7)


def test_a_saved_policy_meets_the_world_of_its_step():
    chosen = settings("env.shift=fall")
    parts = algos.assemble(build.spec(chosen), chosen.algo)
    idle = {name: np.zeros_like(tensor.detach().numpy()) for name, tensor in parts.travelling().items()}
    for step, value in ((95, 1.0), (96, 0.5)):
        (rollout,) = play(chosen, Request(episodes=4), idle, step, pytest.fail)
        assert [record["reward"].tolist() for record in rollout.records] == [[value]] * 4


def test_four_workers_and_a_resumed_run_change_as_one_worker_does(tmp_path):
    one = run(tmp_path / "one", "rollout.backend=inline", "rollout.workers=1")
    run(tmp_path / "four", "rollout.backend=local", "rollout.workers=4")
    assert curve(tmp_path / "one") == curve(tmp_path / "four")
    (stored,) = [piece() for name, piece in one.learner.replay.state().items() if name != "replay"]
    paid = stored["reward"]
    assert (paid == np.float32(1.6)).any() and (paid == np.float32(0.8)).any()
    shutil.copytree(tmp_path / "one", tmp_path / "resumed")
    for saved in (tmp_path / "resumed" / "checkpoints").iterdir():
        if saved.name.isdigit() and int(saved.name) > 80:
            shutil.rmtree(saved)
    run(tmp_path / "resumed", "rollout.backend=inline", "rollout.workers=1", resumed=True)
    assert curve(tmp_path / "one") == curve(tmp_path / "resumed")
