"""Risk: the order of plans depends on who is idle, or a phase is skipped."""

from __future__ import annotations

import re

import pytest
import torch

import algos
import envs
from marl import build
from marl.command import cli
from marl.dice import EVALUATE, TRAIN
from marl.fields import Mistake
from marl.run import Run
from marl.schedule import Epsilon, Schedule, Stage
from marl.types import Clock


def schedule(**kw):
    stages = kw.pop("stages", (Stage("train", until=1000),))
    epsilon = kw.pop("epsilon", Epsilon(1.0, 0.0, 100))
    return Schedule(stages, epsilon, copies=4, **{"eval_every": 100, "eval_episodes": 6, **kw})


def play(subject, steps_per_plan=20, plans=20):
    clock, told = Clock(), []
    for _ in range(plans):
        plan = subject.next(clock)
        told.append(plan)
        clock.steps += steps_per_plan if plan.purpose == TRAIN else 0
    return told


def test_evaluation_comes_when_due_in_plans_of_the_same_size():
    plans = play(schedule())
    kinds = [(plan.purpose, plan.asked_at, plan.episodes) for plan in plans]
    assert kinds[:2] == [(EVALUATE, 0, 4), (EVALUATE, 0, 2)]
    assert kinds[2:7] == [(TRAIN, step, 4) for step in (0, 20, 40, 60, 80)]
    assert kinds[7:9] == [(EVALUATE, 100, 4), (EVALUATE, 100, 2)]


def test_episode_numbers_never_repeat_within_a_purpose():
    for purpose in (TRAIN, EVALUATE):
        numbers = [n for plan in play(schedule()) if plan.purpose == purpose for n in plan.numbers]
        assert numbers == list(range(len(numbers)))


def test_evaluation_is_greedy_and_training_anneals():
    plans = play(schedule())
    assert {plan.epsilon for plan in plans if plan.purpose == EVALUATE} == {0.0}
    train = [plan.epsilon for plan in plans if plan.purpose == TRAIN]
    assert train[:5] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2]) and train[5] == 0.0


def test_phases_switch_interventions_and_restart_exploration():
    stages = (Stage("pretrain", until=100, interventions=False), Stage("robust", until=300, epsilon_restart=True))
    subject = schedule(stages=stages, eval_every=0)
    assert not subject.next(Clock(steps=99)).interventions
    assert subject.next(Clock(steps=100)).interventions
    assert subject.stage(99) == 0 and subject.stage(100) == 1 and subject.stage(999) == 1
    assert subject.epsilon_at(50) == 0.5 and subject.epsilon_at(99) < 0.02
    assert subject.epsilon_at(100) == 1.0 and subject.epsilon_at(150) == 0.5


def test_evaluation_keeps_to_its_multiples():
    plans = [plan for plan in play(schedule(), steps_per_plan=70, plans=30) if plan.purpose == EVALUATE]
    assert [plan.asked_at for plan in plans if plan.episodes == 4][:4] == [0, 140, 210, 350]


def test_evaluation_meets_what_its_phase_meets():
    stages = (Stage("clean", until=100, interventions=False), Stage("attacked", until=300))
    plans = [plan for plan in play(schedule(stages=stages), plans=20) if plan.purpose == EVALUATE]
    assert {plan.asked_at: plan.interventions for plan in plans} == {0: False, 100: True, 200: True}


def test_every_restart_of_exploration_counts_from_its_own_phase():
    later = (Stage("b", until=300, epsilon_restart=True), Stage("c", until=500, epsilon_restart=True))
    subject = schedule(stages=(Stage("a", until=100), *later))
    assert [subject.epsilon_at(step) for step in (150, 299, 300, 350)] == pytest.approx([0.5, 0, 1, 0.5])
    assert Epsilon(1.0, 0.1, 0).at(0) == 0.1, "in no time"


def test_no_evaluation_if_never():
    assert all(plan.purpose == TRAIN for plan in play(schedule(eval_every=0)))
    assert schedule(eval_every=0).last(Clock()) == []


def test_evaluation_explores_as_much_as_it_is_told_to():
    for wanted in (0.0, 0.05):
        plans = play(schedule(eval_epsilon=wanted), plans=30)
        assert {plan.epsilon for plan in plans if plan.purpose != TRAIN} == {wanted}
        assert len({plan.epsilon for plan in plans if plan.purpose == TRAIN}) > 1


def test_the_last_evaluation_is_whole():
    subject = schedule()
    play(subject, plans=7)
    plans = subject.last(Clock(steps=100))
    assert [plan.episodes for plan in plans] == [4, 2] and {plan.asked_at for plan in plans} == {100}


def test_an_evaluation_under_way_is_finished_first():
    subject = schedule()
    subject.next(Clock())
    plans = subject.last(Clock(steps=50))
    assert [(plan.asked_at, plan.episodes) for plan in plans] == [(0, 2), (50, 4), (50, 2)]


def test_films_are_of_the_first_episode_at_their_interval():
    plans = play(schedule(film_every=200))
    assert [(plan.asked_at, plan.film) for plan in plans if plan.purpose == EVALUATE and plan.episodes == 4] == [
        (0, True),
        (100, False),
        (200, True),
    ]


def test_a_restored_schedule_goes_on():
    one = schedule(film_every=200)
    play(one, plans=9)
    other = schedule(film_every=200)
    other.restore(one.state())
    clock = Clock(steps=100)
    assert [one.next(clock) for _ in range(5)] == [other.next(clock) for _ in range(5)]


def test_a_phase_may_fix_its_share_of_random_actions():
    stages = (
        Stage("random", until=100, epsilon=1.0),
        Stage("train", until=300, epsilon_restart=True),
        Stage("late", until=400),
    )
    subject = schedule(stages=stages, eval_every=0)
    assert subject.epsilon_at(0) == subject.epsilon_at(99) == 1.0
    assert [subject.epsilon_at(step) for step in (100, 150, 350)] == [1.0, 0.5, 0.0]
    assert schedule(stages=(Stage("greedy", until=9, epsilon=0.0),)).epsilon_at(3) == 0.0


def settings(*words):
    made = cli.parse(["algo=vdn", "env=meet", *words], algos.ALGORITHMS, envs.ENVIRONMENTS)
    return made


def test_one_phase_may_take_what_the_others_leave():
    made = settings("steps=50", "phases=[{name:a,steps:10,updates:false,epsilon:1},{name:b},{name:c,steps:15}]")
    stages = build.schedule(made).stages
    assert [(stage.name, stage.until) for stage in stages] == [("a", 10), ("b", 35), ("c", 50)]
    assert [(stage.updates, stage.epsilon) for stage in stages] == [(False, 1.0), (True, None), (True, None)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("steps=9 phases=[{name:a},{name:b}]", "phases: 2 of them have no steps"),
        ("steps=9 phases=[{name:a,steps:9},{name:b}]", "steps=9: allowed is more than 9"),
        ("steps=9 phases=[{name:a,steps:4}]", "steps=9: allowed is 4"),
        ("steps=9 phases=[{name:a,steps:9,epsilon:2}]", "phases.0.epsilon=2"),
    ],
)
def test_phases_that_do_not_add_up_are_refused(words, told):
    with pytest.raises(Mistake, match=re.escape(told)):
        settings(*words.split())


@pytest.mark.parametrize("inflight", [1, 4])
def test_a_phase_without_updates_collects_and_owes_nothing_afterwards(inflight, tmp_path):
    """Without the pause there would be 40 updates: one for each episode after the first 8."""
    quiet = "log.terminal=false eval.every_steps=0 rollout.envs_per_worker=8 learner.batch=8 learner.burn_in=8"
    ratio = "learner.updates_per_episode=1 env.horizon=5 rollout.epsilon_finish=1"
    phases = "phases=[{name:statistic,steps:100,updates:false},{name:train,fresh_replay:true}]"
    made = settings("steps=300", f"rollout.inflight={inflight}", *quiet.split(), *ratio.split(), phases)
    run = Run(made, build.learner(made, build.spec(made), torch.device("cpu")), tmp_path)
    asked_at, receive = [], run.fleet.receive

    def watched():
        rollout = receive()
        asked_at.extend(rollout.plan.asked_at for _ in rollout.records)
        return rollout

    run.fleet.receive = watched
    try:
        run.play()
    finally:
        run.close()
    clock, kept = run.learner.clock, len(run.learner.replay)
    learned_from = asked_at[: clock.episodes]  # what comes after the last step is not used
    assert kept == sum(step >= 100 for step in learned_from)
    assert 0 < kept < clock.episodes and clock.updates == kept - 7
