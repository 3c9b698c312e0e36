"""Risk: what plays is not what was learned, or a curve stands at other steps than it was asked for."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import algos
import envs
from marl import build
from marl.command import cli
from marl.dice import TRAIN
from marl.run import Run, Stopped
from marl.worker import Plan

SMALL = [
    "algo=vdn", "env=meet", "env.horizon=5", "algo.hidden=8", "rollout.backend=inline", "rollout.workers=1",
    "rollout.envs_per_worker=4", "learner.batch=8", "learner.burn_in=8", "log.terminal=false",
]  # fmt: skip


def made(folder: Path, *arguments: str) -> Run:
    settings = cli.parse([*SMALL, *arguments], algos.ALGORITHMS, envs.ENVIRONMENTS)
    return Run(settings, build.learner(settings, build.spec(settings), torch.device("cpu")), folder)


def finished(run: Run) -> Run:
    try:
        run.play()
    finally:
        run.close()
    return run


def logged(folder: Path, tag: str) -> dict[int, float]:
    with (folder / "scalars.csv").open() as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["tag"] == tag}


@pytest.mark.parametrize("episodes", [4, 6])
def test_the_newest_value_plays_and_evaluations_stand_where_they_were_asked_for(tmp_path: Path, episodes: int) -> None:
    often = ["rollout.inflight=3", "learner.updates_per_episode=1", "eval.every_steps=60", f"eval.episodes={episodes}"]
    run = made(tmp_path, "steps=200", *often)
    submit, asked = run.fleet.submit, set()

    def watched(plan: Plan, version: int) -> None:
        learned, given = run.learner.weights(), run.fleet.weights_of(version)
        assert all(np.array_equal(learned[name], given[name]) for name in learned), plan
        if plan.purpose != TRAIN:
            asked.add(plan.asked_at)
        submit(plan, version)

    run.fleet.submit = watched  # type: ignore[method-assign]
    finished(run)
    assert run.learner.clock.updates > 10 and len(asked) > 3
    told = logged(tmp_path, "eval/episodes")
    assert set(told) == set(logged(tmp_path, "eval/return")) == asked and set(told.values()) == {float(episodes)}


def test_the_last_evaluation_can_be_stopped_and_is_made_up_for(tmp_path: Path) -> None:
    words = ["steps=40", "eval.every_steps=1000", "eval.episodes=8", "checkpoint.every_steps=20"]
    run = made(tmp_path, *words)
    finish = run._finish

    def asked() -> None:
        run.stop = True
        finish()

    run._finish = asked  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        finished(run)
    assert list(logged(tmp_path, "eval/return")) == [0]
    again = made(tmp_path, *words)
    again.resume()
    finished(again)
    assert list(logged(tmp_path, "eval/return")) == [0, again.learner.clock.steps]


def test_the_share_of_updates_is_told_per_episode(tmp_path: Path) -> None:
    run = finished(made(tmp_path, "steps=400", "learner.updates_per_episode=0.25", "eval.every_steps=0"))
    shares, clock = logged(tmp_path, "updates/per_episode"), run.learner.clock
    assert 0 < clock.updates < clock.episodes / 4
    assert shares[clock.steps] == pytest.approx(clock.updates / clock.episodes)


@pytest.mark.parametrize("ratio", [0.25, 2.0])
@pytest.mark.parametrize("side_by_side", [1, 4, 64])
def test_the_update_to_data_ratio_means_the_same_for_any_number_of_environments(
    tmp_path: Path, side_by_side: int, ratio: float
) -> None:
    words = [f"rollout.envs_per_worker={side_by_side}", f"learner.updates_per_episode={ratio}"]
    clock = finished(made(tmp_path, *words, "steps=400", "eval.every_steps=0")).learner.clock
    burnt_in = clock.episodes - 7
    assert burnt_in > 60 and clock.updates == int(burnt_in * ratio)


def test_evaluation_counts_no_formations(tmp_path: Path) -> None:
    learner = finished(made(tmp_path, "algo=fox", "steps=200", "eval.every_steps=50")).learner
    assert len(logged(tmp_path, "eval/return")) > 3
    (counted,) = (bonus.records()["total"] for bonus in learner.parts.bonuses if "total" in bonus.records())
    assert counted == learner.clock.steps + learner.clock.episodes


def test_a_resumed_run_does_not_enter_its_phase_again(tmp_path: Path) -> None:
    """A fresh replay is emptied once."""
    phases = "phases=[{name:a,steps:100},{name:b,fresh_replay:true}]"
    words = ["steps=300", "eval.every_steps=0", "checkpoint.every_steps=20", "rollout.inflight=1", phases]
    kept = len(finished(made(tmp_path, *words)).learner.replay)
    shutil.rmtree(max((tmp_path / "checkpoints").iterdir()))
    again = made(tmp_path, *words)
    again.resume()
    before = len(again.learner.replay)
    finished(again)
    assert 0 < before < len(again.learner.replay) == kept
