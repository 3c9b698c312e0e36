"""Risk: a GPU learns something else than a CPU, or not at all. Skipped where there is none."""

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
from tests.yard import settled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SPEC = Clockwork.spec


def learner(name: str, device: str, *arguments: str, **options) -> Learner:
    settings = cli.parse([f"algo={name}", "env=matrix", *arguments], algos.ALGORITHMS, envs.ENVIRONMENTS)
    torch.manual_seed(0)
    parts = algos.assemble(SPEC, settings.algo)
    layout = {**SPEC.fields(), **parts.columns()}
    replay = Replay(SPEC, layout, 32, torch.device(device))
    return Learner(parts, replay, Learning(8, 1.0, 8), 0, **options)


def play(subject: Learner, name: str, *arguments: str) -> None:
    """Three rounds of eight episodes, learned from as they come."""
    settings = cli.parse([f"algo={name}", "env=matrix", *arguments], algos.ALGORITHMS, envs.ENVIRONMENTS)
    worker = Worker(algos.assemble(SPEC, settings.algo), SideBySide(Clockwork, 8), 0)
    for number in range(3):
        worker.load(subject.weights())
        for record in worker.play(Plan(number, TRAIN, 8 * number, 8, epsilon=0.5)).records:
            subject.absorb(record)
            subject.improve()


@pytest.mark.parametrize("name", sorted(algos.ALGORITHMS))
def test_every_algorithm_learns_there_and_its_checkpoint_moves_between_devices(name):
    there, here = learner(name, "cuda"), learner(name, "cpu")
    before = there.weights()
    play(there, name)
    assert any((before[key] != array).any() for key, array in there.weights().items())
    here.restore({key: value.cpu() for key, value in there.tensors().items()}, there.state())
    here.replay.restore(there.replay.state())
    for key, array in here.weights().items():
        torch.testing.assert_close(torch.from_numpy(array), torch.from_numpy(there.weights()[key]), atol=0, rtol=0)
    here.update()


@pytest.mark.parametrize("chosen", [["iql"], ["vdn"], ["qmix"], ["qmix", "algo.shared=false"]])
def test_one_update_is_the_same_on_both(chosen):
    """Up to the order in which sums are taken."""
    name, *arguments = chosen
    there, here = learner(name, "cuda", *arguments), learner(name, "cpu", *arguments)
    play(here, name, *arguments)
    there.restore({key: value.clone() for key, value in here.tensors().items()}, here.state())
    there.replay.restore(here.replay.state())
    told = [subject.update() for subject in (there, here)]
    assert float(told[0]["loss/td"]) == pytest.approx(float(told[1]["loss/td"]), rel=1e-4)
    for key, array in here.weights().items():
        torch.testing.assert_close(
            torch.from_numpy(there.weights()[key]), torch.from_numpy(array), atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize("options", [{"precision": "tf32"}, {"precision": "bf16"}, {"compiled": True}])
def test_faster_arithmetic_and_compiled_networks_still_learn(options):
    subject = learner("qmix", "cuda", **options)
    play(subject, "qmix")
    assert torch.isfinite(torch.as_tensor(subject.update()["loss/td"]))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_actions_that_change_nothing_have_no_influence(precision):
    """There the step that was taken goes through another kernel than its alternatives."""
    subject = learner("fim", "cuda", "algo.selection=all", "algo.alpha=1", "algo.c_max=null", precision=precision)
    play(subject, "fim")
    (bonus,) = subject.parts.bonuses
    with torch.no_grad():
        bonus.model.action_columns().zero_()
    settled(bonus)
    told = subject.update()
    assert float(told["fim/selected"]) > 0 and float(told["fim/reward"]) < 1e-4
