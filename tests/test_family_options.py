"""Risk: a common option does nothing, or fails, for some algorithm. Every one, with every option, plays and learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import algos
import envs
from algos.factored import FactoredConfig
from marl.command import cli
from marl.config import Learning, Settings
from marl.dice import TRAIN, Noise
from marl.env import Moment, SideBySide
from marl.fields import Mistake
from marl.learner import Learner
from marl.mixers import StateInput
from marl.replay import Replay
from marl.worker import Plan, Worker
from tests.toys import Clockwork

SPEC = Clockwork.spec
OPTIONS = [
    {"recurrent": False},
    {"dense_layers": 3},
    {"layer_norm": True},
    {"state_norm": True},
    {"shared": False},
    {"recurrent": False, "layer_norm": True, "shared": False, "dense_layers": 2},
    {"agent_id": False, "last_action": False},
    {"returns": "n_step"},
    {"returns": "watkins"},
    {"returns": "harutyunyan"},
    {"rewards": "scaled"},
    {"rewards": "standardised"},
    {"double_q": False},
    {"target_tau": 0.05},
    {"prioritised": True},
]


def settings(*arguments: str) -> Settings:
    return cli.parse([*arguments, "env=matrix"], algos.ALGORITHMS, envs.ENVIRONMENTS)


@cache
def chosen(name: str) -> Settings:
    return settings(f"algo={name}")


def innermost(config: Any) -> Any:
    """What a wrapper wraps."""
    while "base" in {entry.name for entry in fields(config)}:
        config = config.base
    return config


def refused(module: ModuleType, config: Any, option: dict[str, Any]) -> bool:
    """Whether the algorithm says, in one line and before anything starts, that the option is not for it."""
    try:
        if "check" in vars(module):
            module.check(config)
        module.build(SPEC, config)
    except Mistake as mistake:
        assert str(mistake).startswith(tuple(f"algo.{key}=" for key in option)), mistake
        return True
    return False


class Wide(Clockwork):
    """With a state of more than two features, and small numbers to see."""

    spec = replace(Clockwork.spec, state_dim=4)

    def _moment(self, actions: Any) -> Moment:
        moment = super()._moment(actions)
        return replace(moment, obs=moment.obs / 100, state=np.concatenate([moment.state, moment.state[::-1] - 3]))


@contextmanager
def changed(config: Any, **values: Any) -> Iterator[None]:
    """A shared configuration with other values for a while."""
    kept = {name: vars(config)[name] for name in values}
    vars(config).update(values)
    try:
        yield
    finally:
        vars(config).update(kept)


def learned(name: str, *, prioritised: bool = False, **option: Any) -> dict[str, torch.Tensor]:
    """All tensors after four updates on eight episodes of the toy world."""
    whole = chosen(name).algo
    config = innermost(whole)
    with changed(config, **{"td_lambda": 0.5, **option}), changed(config.optimizer, lr=0.01):
        torch.manual_seed(0)
        parts = algos.assemble(Wide.spec, whole)
        layout = {**Wide.spec.fields(), **parts.columns()}
        replay = Replay(Wide.spec, layout, 8, torch.device("cpu"), alpha=0.5 if prioritised else None)
        learner = Learner(parts, replay, Learning(4, 0.25, 8), 0)
        worker = Worker(algos.assemble(Wide.spec, whole), SideBySide(Wide, 8), 0)
        worker.load(learner.weights())
        for record in worker.play(Plan(0, TRAIN, 0, 8, epsilon=0.5)).records:
            learner.absorb(record)
        for _ in range(4):
            learner.update()
    return learner.tensors()


@cache
def plain(name: str) -> dict[str, torch.Tensor]:
    """The same without an option."""
    return learned(name)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: "-".join(map(str, option)))
@pytest.mark.parametrize("name", sorted(algos.ALGORITHMS))
def test_every_option_changes_what_every_algorithm_learns_or_is_refused(name: str, option: dict[str, Any]) -> None:
    config = innermost(chosen(name).algo)
    if not isinstance(config, FactoredConfig):
        pytest.skip("not of the family")
    with changed(config, **{key: value for key, value in option.items() if key != "prioritised"}):
        if refused(algos.module(config.name), config, option):
            return
    after = learned(name, **option)
    assert all(tensor.isfinite().all() for tensor in after.values())
    q = algos.assemble(SPEC, chosen(name).algo).q
    reads_no_state = "state_norm" in option and not any(isinstance(module, StateInput) for module in q.modules())
    is_so_already = all(vars(config).get(key) == value for key, value in option.items())
    assert same(after, plain(name)) == (reads_no_state or is_so_already)


@pytest.mark.parametrize("name", sorted(algos.ALGORITHMS))
def test_errors_decide_what_is_drawn_from_a_prioritised_replay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(innermost(chosen(name).algo), FactoredConfig):
        pytest.skip("not of the family")
    by_error = learned(name, prioritised=True)
    monkeypatch.setattr(Replay, "reprioritise", lambda *_: None)
    assert not same(by_error, learned(name, prioritised=True))


def test_what_is_refused_is_known() -> None:
    """No member refuses more than it must."""
    refusals = set()
    for name in ("iql", "vdn", "qmix", "qplex", "wqmix", "qatten", "qtran", "pqn_vdn"):
        config = chosen(name).algo
        for option in OPTIONS[:-1]:
            with changed(config, **option):
                if refused(algos.module(name), config, option):
                    refusals.add((name, *option))
    assert refusals == {("wqmix", "double_q"), ("pqn_vdn", "target_tau")}


def q_of_scaled_states(
    name: str, state_norm: bool, world: type[Clockwork] = Wide
) -> tuple[float, float, torch.Tensor, torch.Tensor]:
    """Loss and values of one batch, and of the same batch with every state three times as large and further from 0."""
    config = chosen(name).algo
    with changed(config, state_norm=state_norm):
        torch.manual_seed(0)
        parts = algos.assemble(world.spec, config)
        worker = Worker(algos.assemble(world.spec, config), SideBySide(world, 4), 0)
    replay = Replay(world.spec, {**world.spec.fields(), **parts.columns()}, 4, torch.device("cpu"))
    learner = Learner(parts, replay, Learning(4, 0.25, 8), 0)
    for record in worker.play(Plan(0, TRAIN, 0, 4, epsilon=1.0)).records:
        learner.absorb(record)
    batch = replay.sample(4, torch.Generator())[1]
    scaled = replace(batch, state=3 * batch.state + 5)
    losses = [parts.q.loss(one, Noise(0, 0)).stats["loss/td"].item() for one in (batch, scaled)]
    chosen_values, best = torch.randn(2, 4, 9, world.spec.n_agents).sort(0).values
    actions = batch.actions[:, :1].expand(-1, 9, -1)
    joint = [parts.q.mix(chosen_values, best, one.state[:, :1].expand(-1, 9, -1), actions) for one in (batch, scaled)]
    return *losses, *joint


@pytest.mark.parametrize("name", ["qmix", "qplex", "qatten", "qtran", "wqmix", "fox", "s2q"])
def test_a_normalised_state_has_neither_scale_nor_origin(name: str) -> None:
    loss, scaled_loss, joint, scaled_joint = q_of_scaled_states(name, state_norm=True)
    assert scaled_loss == pytest.approx(loss, rel=1e-3)
    torch.testing.assert_close(scaled_joint, joint, rtol=1e-3, atol=1e-3)
    loss, scaled_loss, joint, scaled_joint = q_of_scaled_states(name, state_norm=False)
    assert scaled_loss != pytest.approx(loss, rel=1e-3)
    assert (scaled_joint - joint).abs().max() > 0.01


def test_of_two_features_more_than_the_order_is_kept() -> None:
    loss, scaled_loss, *_ = q_of_scaled_states("qmix", state_norm=True, world=Clockwork)
    assert scaled_loss != pytest.approx(loss, rel=1e-3)


# one switch


@pytest.mark.parametrize("name", sorted(algos.ALGORITHMS))
def test_one_switch_tunes_every_algorithm(name: str) -> None:
    """The innermost algorithm takes the recipe, the paper's numbers aside; its mathematics stays its own."""
    config, paper = innermost(settings(f"algo={name}", "recipe=tuned").algo), innermost(chosen(name).algo)
    vdn = settings("algo=vdn", "recipe=tuned").algo
    assert (config.layer_norm, config.returns) == (vdn.layer_norm, vdn.returns)
    assert (config.td_lambda, config.optimizer.lr) == (vdn.td_lambda, vdn.optimizer.lr)
    assert config.name == paper.name
    common = {entry.name for entry in fields(FactoredConfig)} | {"central_embed"}
    assert {k: v for k, v in vars(config).items() if k not in common} == {
        k: v for k, v in vars(paper).items() if k not in common
    }


@pytest.mark.parametrize("name", sorted(algos.ALGORITHMS))
def test_one_switch_compares_algorithms_at_one_pace_of_learning_and_exploring(name: str) -> None:
    """In a world that says nothing of either; PQN-VDN aside."""

    def pace(algorithm: str) -> tuple[Any, ...]:
        made = cli.parse([f"algo={algorithm}", "recipe=tuned", "env=grf"], algos.ALGORITHMS, envs.ENVIRONMENTS)
        explored = made.rollout.epsilon_start, made.rollout.epsilon_finish, made.rollout.epsilon_steps
        return (*explored, made.learner, made.replay.capacity)

    if name == "pqn_vdn":
        assert pace(name)[:3] == (1.0, 0.01, 1_000_000)
    else:
        assert pace(name) == pace("vdn")


def test_what_an_algorithm_does_otherwise_stands_in_a_file_of_its_own() -> None:
    tuned = settings("algo=pqn_vdn", "recipe=tuned")
    assert (tuned.algo.optimizer.name, tuned.algo.target_tau, tuned.replay.capacity) == ("radam", 0.0, 128)
    for algorithm in ("algo=wqmix", "algo=s2q"):
        recipes = ([], ["recipe=pymarl2"], ["recipe=tuned"])
        assert [settings(algorithm, *recipe).algo.central_embed for recipe in recipes] == [256, 256, 64]
    assert settings("algo=wqmix", "recipe=pymarl").algo.central_weight == 1.0
    assert settings("algo=wqmix").algo.central_weight == 0.5
    assert settings("algo=qtran", "recipe=pymarl2").algo.td_weight == 1.0
    tuned = settings("algo=qtran", "recipe=tuned").algo
    assert (tuned.td_weight, tuned.opt_weight, tuned.nopt_weight) == (1.0, 1.0, 0.1)
    assert settings("algo=qplex", "recipe=pymarl2").algo.optimizer.eps == 1e-8
    tuned = settings("algo=fox", "recipe=tuned").algo
    assert (tuned.td_weight, tuned.rewards, settings("algo=fox", "recipe=pymarl2").algo.td_weight) == (1.0, "raw", 1.0)
    assert settings("algo=qmix", "recipe=tuned").algo.rewards == "scaled"


def test_a_recipe_comes_after_the_algorithm_and_before_the_rest() -> None:
    assert settings("algo=qmix", "recipe=pymarl").algo.optimizer.name == "rmsprop"
    assert settings("algo=qmix", "recipe=pymarl").rollout.epsilon_steps == settings("algo=qmix").rollout.epsilon_steps
    assert settings("algo=qmix", "recipe=pymarl", "algo.optimizer.lr=7e-4").algo.optimizer.lr == 7e-4
    spread = cli.parse(["experiment=qmix_spread", "recipe=pymarl"], algos.ALGORITHMS, envs.ENVIRONMENTS)
    assert (spread.algo.optimizer.name, spread.algo.gamma) == ("rmsprop", 0.9)


def test_a_recipe_is_for_the_algorithm_within_a_wrapper() -> None:
    wrapped = settings("algo=random_attack", "algo.base=vdn", "recipe=pymarl").algo
    assert (wrapped.base.optimizer.name, wrapped.attack.budget) == ("rmsprop", 8)


@pytest.mark.parametrize(
    ("line", "told"),
    [("algo=qmix recipe=tund", "allowed are pymarl, pymarl2, tuned; did you mean tuned?"), ("recipe=tuned", "algo:")],
)
def test_a_recipe_that_is_not_there_is_refused(line: str, told: str) -> None:
    with pytest.raises(Mistake) as raised:
        settings(*line.split())
    assert told in str(raised.value)
