"""Risk: a curve tells another number than was played."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from marl.dice import EVALUATE, TRAIN
from marl.reporting.tally import Tally
from marl.types import Record
from marl.worker import Plan, Rollout


def rollout(*records: Record, purpose: str = TRAIN, asked_at: int = 0) -> Rollout:
    return Rollout(Plan(0, purpose, 0, len(records), asked_at=asked_at), list(records), {})


def episode(*rewards: float, won: bool | None = None) -> Record:
    record = {"reward": np.array(rewards, np.float32)}
    return record if won is None else {**record, "won": np.array(won)}


def test_an_evaluation_is_told_once_and_whole_with_means_and_standard_errors() -> None:
    tally = Tally()
    begun = rollout(episode(1, 2, won=True), episode(5, won=False), purpose=EVALUATE, asked_at=7)
    another = rollout(episode(100), purpose=EVALUATE, asked_at=9)
    ended = rollout(episode(1, 1, 2, won=True), purpose=EVALUATE, asked_at=7)
    assert tally.evaluated(begun, 3) is None and tally.evaluated(another, 3) is None
    assert tally.evaluated(ended, 3) == pytest.approx(
        {
            "eval/return": 4.0,
            "eval/return_se": np.std([3, 5, 4], ddof=1) / 3**0.5,
            "eval/length": 2.0,
            "eval/success": 2 / 3,
            "eval/success_se": np.std([1, 0, 1], ddof=1) / 3**0.5,
            "eval/episodes": 3.0,
        }
    )
    assert tally.empty, "evaluation is no training"


def test_a_resumed_run_goes_on_with_the_seconds_it_had(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    before = Tally()
    before.played(rollout(episode(*[0] * 30)))
    before.spent({"learner": 5.0})
    now[0] = 109.0
    saved, now[0] = before.state(), 1.0
    after = Tally()
    after.restore(saved)
    now[0] = 2.0
    told = after.tell(1)
    assert (told["throughput/steps_per_second"], told["time/learner"]) == (3.0, 0.5)


def test_training_is_told_of_what_came_since_the_last_time() -> None:
    tally = Tally()
    tally.played(rollout(episode(1, 2), episode(5)))
    tally.improved([{"loss": torch.tensor(1.0)}, {"loss": torch.tensor(3.0), "rare": torch.tensor(8.0)}])
    told = tally.tell(1)
    assert (told["train/return"], told["train/length"], told["train/episodes"]) == (4.0, 1.5, 2.0)
    assert (told["loss"], told["rare"]) == (2.0, 8.0)
    tally.played(rollout(episode(9)))
    again = tally.tell(1)
    assert (again["train/return"], again["train/episodes"]) == (9.0, 1.0) and "loss" not in again
