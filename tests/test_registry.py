"""Risk: a registered algorithm cannot play, learn, or be saved. A new registry line is tested without a new test."""

from __future__ import annotations

import pytest
import torch

import algos
import envs
from marl.command import cli
from marl.env import SideBySide
from marl.learner import Learner, Pace
from marl.replay import Replay
from marl.worker import TRAIN, Plan, Worker
from tests.toys import Clockwork

SPEC = Clockwork.spec


def made(name: str):
    """The algorithm with its own settings; wraps take the base their file names."""
    (settings,) = cli.parse([f"algo={name}", "env=matrix"], algos.ALGORITHMS, envs.ENVIRONMENTS)
    torch.manual_seed(0)
    return algos.assemble(SPEC, settings.algo)


def learner(name: str) -> Learner:
    parts = made(name)
    layout = {**SPEC.fields(), **parts.columns()}
    return Learner(parts, Replay(SPEC, layout, 32, torch.device("cpu")), Pace(8, 1.0, 8), 0)


@pytest.mark.parametrize("name", sorted(algos.ALGORITHMS))
def test_it_plays_learns_and_goes_on_from_what_was_saved(name):
    subject, other = learner(name), learner(name)
    worker = Worker(made(name), SideBySide(Clockwork, 8), 0)
    before = subject.weights()
    for number in range(3):
        worker.load(subject.weights())
        for record in worker.play(Plan(number, TRAIN, 8 * number, 8, epsilon=0.5)).records:
            subject.absorb(record)
            subject.improve()
    assert any((before[key] != array).any() for key, array in subject.weights().items())
    other.restore({key: value.clone() for key, value in subject.tensors().items()}, subject.state())
    other.replay.restore(subject.replay.state())
    subject.update()
    other.update()
    for key, tensor in subject.tensors().items():
        assert torch.equal(tensor, other.tensors()[key]), key
