"""Risk: what is recorded is not what happened."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import algos
from algos import qmix, random_attack
from algos.attacks import random_actions
from marl import dice
from marl.dice import EVALUATE, TRAIN
from marl.env import SideBySide
from marl.ops import best_available
from marl.parts import Intervention, Parts
from marl.types import Column, Episodes
from marl.worker import Plan, Worker
from tests.toys import HORIZON, Clockwork


def worker(size=4, *interventions, seed=3, **kw):
    torch.manual_seed(0)
    parts = algos.assemble(Clockwork.spec, qmix.Config(hidden=8))
    for part in interventions:
        parts = parts.with_intervention(part)
    return Worker(parts, SideBySide(Clockwork, size), seed, **kw)


def plan(episodes=4, first=0, **kw):
    return Plan(0, kw.pop("purpose", TRAIN), first, episodes, kw.pop("epsilon", 1.0), **kw)


def same(one, other):
    for left, right in zip(one.records, other.records, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_a_record_tells_what_happened():
    seeds = dice.Dice(3, TRAIN, range(4)).seeds()
    for seed, record in zip(seeds, worker().play(plan()).records, strict=True):
        length = 2 + seed % (HORIZON - 1)
        time = np.arange(length + 1)
        assert record["obs"].shape == (length + 1, 2, 3) and record["actions"].shape == (length, 2)
        np.testing.assert_array_equal(record["state"], np.stack([np.full(length + 1, seed % 1000), time], 1))
        np.testing.assert_array_equal(record["obs"][:, 1, 2], np.ones(length + 1))
        np.testing.assert_array_equal(record["avail"][:, 0, 2], time % 2 == 0)
        np.testing.assert_array_equal(record["reward"], record["actions"].sum(1))
        np.testing.assert_array_equal(record["executed"], record["actions"])
        np.testing.assert_array_equal(record["spent"], record["actions"].max(1))
        np.testing.assert_array_equal(record["alive"][:, 1], time < 3)
        assert record["terminal"].tolist() == [False] * (length - 1) + [seed % 2 == 1]
        assert record["won"] == (length > 4)


def test_a_time_limit_may_be_a_rule_of_the_task():
    cut, ruled = worker().play(plan(4)), worker(limits_end=True).play(plan(4))
    assert {bool(record["terminal"][-1]) for record in cut.records} == {True, False}
    assert all(record["terminal"][-1] and not record["terminal"][:-1].any() for record in ruled.records)


def test_only_available_actions_are_chosen():
    for record in worker().play(plan()).records:
        taken = np.take_along_axis(record["avail"][:-1], record["actions"][..., None].astype(int), -1)
        assert taken.all()


def test_random_draws_belong_to_the_episode_not_to_its_company():
    together = worker(4).play(plan(4, first=10))
    for number in range(4):
        alone = worker(1).play(plan(1, first=10 + number))
        np.testing.assert_array_equal(alone.records[0]["actions"], together.records[number]["actions"])


def test_the_same_plan_gives_the_same_episodes_whatever_was_played_before():
    fresh, used = worker(), worker()
    used.play(plan(3, first=77))
    used.play(plan(4, purpose=EVALUATE, epsilon=0.0))
    same(fresh.play(plan(epsilon=0.3)), used.play(plan(epsilon=0.3)))


def test_another_seed_number_or_purpose_is_another_episode():
    base = worker().play(plan()).records[0]["state"][0, 0]
    assert worker(seed=4).play(plan()).records[0]["state"][0, 0] != base
    assert worker().play(plan(first=1)).records[0]["state"][0, 0] != base
    assert worker().play(plan(purpose=EVALUATE)).records[0]["state"][0, 0] != base


def test_a_long_episode_never_meets_the_same_draws_again():
    subject = dice.Dice(0, TRAIN, range(2))
    drawn = np.stack([subject.uniform("exploration", (3,)) for _ in range(100)])
    assert len(np.unique(drawn)) > 0.99 * drawn.size


def test_every_purpose_episode_stream_and_seed_has_draws_of_its_own():
    cases = product((0, 1), (TRAIN, EVALUATE), (0, 1), ("x", "y"))
    drawn = [float(dice.Dice(seed, purpose, [number]).uniform(stream)[0]) for seed, purpose, number, stream in cases]
    assert len(set(drawn)) == 16
    cases = product((0, 1), ("a", "b"), (0, 1))
    assert len({float(torch.rand(1, generator=dice.generator(*case))) for case in cases}) == 8
    assert torch.rand(1, generator=dice.Noise(0, 1)("x")) != torch.rand(1, generator=dice.Noise(0, 2)("x"))


def test_fewer_episodes_than_copies():
    assert len(worker(4).play(plan(3)).records) == 3
    with pytest.raises(ValueError, match="5 seeds for 4 copies"):
        worker(4).play(plan(5))


def test_greedy_play_follows_the_weights_it_is_given():
    one, other = worker(), worker()
    weights = {name: tensor.numpy() * 0 for name, tensor in one.parts.travelling().items()}
    weights["q.agent.head.bias"] = np.array([0, 5, 1], np.float32)
    other.load(weights)
    for record in other.play(plan(epsilon=0.0)).records:
        assert (record["actions"] == 1).all()


class Puppeteer(Intervention):
    """The second agent does the other of its first two actions."""

    def act(self, view, actions, q, memory, state, dice):
        moved = actions.clone()
        moved[:, 1] = 1 - actions[:, 1].clamp(max=1)
        return moved, {}, state


def test_what_plays_remembers_and_is_told_of_its_choices_as_what_learns():
    """Greedy choices under an attacker are those of the whole network on the record."""
    subject = worker(16, Puppeteer())
    with torch.no_grad():
        for parameter in subject.parts.q.agent.parameters():
            parameter.mul_(3)
        subject.parts.q.agent.body.trunk.dense[0].weight[:, :3] *= 0.01  # what was chosen and is remembered decides
    batch = Episodes.of_records(subject.play(plan(16, epsilon=0.0)).records, Clockwork.spec.fields())
    with torch.inference_mode():
        values = subject.parts.q.unroll(subject.parts.q.agent, batch, None, "live").values[:, :-1]
    played = batch.mask.bool()
    assert (batch.actions != batch.executed)[played].any()
    assert torch.equal(best_available(values, batch.avail[:, :-1])[played], batch.actions[played])


def test_filming_pictures_the_first_episode():
    rollout = worker().play(plan(film=True))
    assert rollout.frames is not None
    assert rollout.frames[:, 0, 0, 0].tolist() == list(range(len(rollout.records[0]["reward"]) + 1))
    assert worker().play(plan()).frames is None


class Blindfold(Intervention):
    """Hides agent 0's observation, keeps the clean one; state counts the steps."""

    def columns(self):
        return {"clean": Column((2, 3), "float32", "views"), "count": Column((), "int64", "steps")}

    def begin(self, n, seats, dice):
        return torch.zeros(n, dtype=torch.long)

    def perceive(self, view, q, state, dice):
        hidden = view.obs.clone()
        hidden[:, 0] = 0
        return view._replace(obs=hidden), {"clean": view.obs}

    def act(self, view, actions, q, memory, state, dice):
        assert not view.obs[:, 0].any()
        return actions, {"count": state}, state + 1


class Puppet(Intervention):
    """Plays seat 1 with action 1: a partner (``chooses``) or an attacker."""

    def __init__(self, chooses):
        super().__init__()
        self.chooses = chooses

    def act(self, view, actions, q, memory, state, dice):
        moved = actions.clone()
        moved[:, 1] = 1
        return moved, {}, state


def test_an_intervention_that_hides_leaves_the_truth_as_a_column():
    for record in worker(4, Blindfold()).play(plan()).records:
        assert not record["obs"][:, 0].any()
        np.testing.assert_array_equal(record["clean"][:, 0, 1], np.arange(len(record["obs"])))
        np.testing.assert_array_equal(record["obs"][:, 1], record["clean"][:, 1])
        assert record["count"].tolist() == list(range(len(record["reward"])))


def test_values_are_learned_of_a_partners_choice_but_not_of_an_attackers():
    attacked = worker(4, Puppet(False)).play(plan())
    partnered = worker(4, Puppet(True)).play(plan())
    free = worker(4).play(plan())
    for forced, partner, clean in zip(attacked.records, partnered.records, free.records, strict=True):
        assert (forced["executed"][:, 1] == 1).all() and (partner["executed"][:, 1] == 1).all()
        assert (partner["actions"][:, 1] == 1).all()
        np.testing.assert_array_equal(forced["actions"], clean["actions"])


def test_a_plan_may_leave_interventions_out():
    same(worker(4, Puppet(False)).play(plan(interventions=False)), worker(4).play(plan()))


def test_nothing_of_an_earlier_plan_is_left_in_one_without_interventions():
    hiding = worker(4, Blindfold())
    hiding.play(plan())
    same(hiding.play(plan(interventions=False)), worker(4).play(plan()))


def test_the_random_attacker_keeps_to_its_budget_and_to_available_actions():
    config = random_attack.Config(base=qmix.Config(hidden=8), attack=random_actions.Config(probability=0.9, budget=2))
    parts: Parts = algos.assemble(Clockwork.spec, config)
    records = Worker(parts, SideBySide(Clockwork, 16), 0).play(plan(16)).records
    for record in records:
        assert record["attacked"].sum() <= 2
        changed = record["executed"] != record["actions"]
        assert (changed.sum(1) <= record["attacked"]).all()
    assert sum((record["executed"] != record["actions"]).any() for record in records) > 8


def test_a_world_that_never_ends_is_reported():
    class Endless(Clockwork):
        def _moment(self, actions):
            moment = super()._moment(actions)
            return type(moment)(moment.obs, moment.state, moment.avail, columns=moment.columns)

    parts = algos.assemble(Clockwork.spec, qmix.Config(hidden=8))
    with pytest.raises(RuntimeError, match="past its horizon of 8"):
        Worker(parts, SideBySide(Endless, 1), 0).play(plan(1))


def test_a_world_that_says_another_shape_is_named():
    class Narrow(Clockwork):
        def _moment(self, actions):
            moment = super()._moment(actions)
            return replace(moment, obs=moment.obs[:1])

    with pytest.raises(ValueError, match=r"clockwork: obs is \(1, 3\), \(2, 3\) is needed"):
        SideBySide(Narrow, 2).reset([0, 1])


@pytest.mark.parametrize("paid", [np.nan, np.inf])
def test_a_reward_that_is_no_number_is_reported(paid):
    class Broken(Clockwork):
        def step(self, actions):
            moment = super().step(actions)
            return replace(moment, reward=paid) if self.now == 2 else moment

    parts = qmix.build(Broken.spec, qmix.Config(hidden=8))
    with pytest.raises(RuntimeError, match="clockwork paid .* at step 1"):
        Worker(parts, SideBySide(Broken, 4), 0).play(plan(4))
