"""Risk: a registered algorithm cannot play, learn, or be saved. A new registry line is tested without a new test."""

from __future__ import annotations

import pytest
import torch

import algos
import envs
from marl.command import cli
from marl.config import Learning
from marl.dice import TRAIN
from marl.env import SideBySide
from marl.learner import Learner
from marl.replay import Replay
from marl.worker import Plan, Worker
from tests.toys import Clockwork

SPEC = Clockwork.spec


def made(name: str):
    """The algorithm with its own settings; wraps take the base their file names."""
    settings = cli.parse([f"algo={name}", "env=matrix"], algos.ALGORITHMS, envs.ENVIRONMENTS)
    torch.manual_seed(0)
    return algos.assemble(SPEC, settings.algo)


def learner(name: str) -> Learner:
    parts = made(name)
    layout = {**SPEC.fields(), **parts.columns()}
    return Learner(parts, Replay(SPEC, layout, 32, torch.device("cpu")), Learning(8, 1.0, 8), 0)


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


@pytest.mark.parametrize("name", sorted(algos.ALGORITHMS))
def test_workers_do_as_well_without_what_stays_at_the_learner(name):
    def played(parts) -> list:
        worker = Worker(parts, SideBySide(Clockwork, 8), 0)
        return [record["actions"] for record in worker.play(Plan(0, TRAIN, 0, 8, epsilon=0.3)).records]

    whole, bare = made(name), made(name)
    sent = {id(tensor) for tensor in bare.travelling().values()}
    for _, part in bare.named():
        for tensor in part.state_dict(keep_vars=True).values():
            if id(tensor) not in sent and tensor.is_floating_point():
                tensor.data.fill_(torch.nan)
    for one, other in zip(played(whole), played(bare), strict=True):
        assert (one == other).all()
    chosen, actions = torch.rand(4, SPEC.n_agents), torch.zeros(4, SPEC.n_agents, dtype=torch.long)
    values = [parts.q.mix(chosen, chosen, torch.ones(4, SPEC.state_dim), actions) for parts in (whole, bare)]
    torch.testing.assert_close(*values, rtol=0, atol=0)
