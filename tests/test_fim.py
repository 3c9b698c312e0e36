"""Risk: FIM selects, pays or learns something else than its specification says."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import algos
import envs
from algos import fim, qmix
from algos.influence.counterfactual import compare, sampled, uniform_marginal
from algos.influence.model import ForwardModel, Target
from algos.influence.selection import Rule, entropy_per_dim, mean_change, scale, select
from algos.influence.trace import trace_scan
from envs import push_box
from marl import build
from marl.command import cli
from marl.dice import Noise
from marl.fields import Mistake
from marl.parts import Bars
from marl.reporting.chart import draw
from marl.reporting.log import repeats
from marl.run import Run
from marl.types import Column, EnvSpec, Episodes
from tests.yard import SPEC, built, by_hand, episodes, run, settled

NONE = Noise(0, 0)


def play(rows):
    """A window of one episode whose only feature takes these values."""
    return [torch.tensor(rows, dtype=torch.float32).reshape(len(rows), -1)]


# the entropy criterion


@pytest.mark.parametrize(
    ("share", "entropy"), [(0.01, 0.0560), (0.02, 0.0980), (0.05, 0.1985), (0.1, 0.3251), (0.2, 0.5004), (0.5, 0.6931)]
)
def test_the_entropy_of_a_feature_that_changes_by_one_with_a_known_share(share, entropy):
    steps = 10_000
    change = (np.arange(steps) < share * steps).astype(np.float32)
    states = play(np.concatenate([[0], change.cumsum()]))
    found = entropy_per_dim(states, scale(states, "max"), 10)
    assert found.item() == pytest.approx(entropy, abs=5e-5)


@pytest.mark.parametrize("norm", ["max", "mean", "range"])
def test_units_and_the_order_of_steps_do_not_matter(norm):
    rng = np.random.default_rng(0)
    jumps = rng.standard_normal((400, 5)) * (rng.random((400, 5)) < [0.01, 0.1, 0.5, 1.0, 0.0])
    halves = [np.abs(jumps[:200]), np.abs(jumps[200:])]

    def found(factor, order):
        states = [torch.tensor(np.concatenate([np.zeros((1, 5)), half.cumsum(0)]) * factor) for half in halves]
        states = [states[i] for i in order]
        entropy = entropy_per_dim(states, scale(states, norm), 10)
        rule = Rule("entropy", True, 0.5, None)
        return entropy, select(entropy, mean_change(states), torch.ones(5, dtype=torch.bool), rule).chosen

    entropy, chosen = found(1.0, (0, 1))
    for factor, order in ((1e-6, (0, 1)), (1e6, (1, 0)), (np.array([1e-3, 7.0, 1.0, 50.0, 2.0]), (1, 0))):
        other, picked = found(factor, order)
        torch.testing.assert_close(other, entropy, atol=1e-6, rtol=0)
        assert torch.equal(picked, chosen)


def test_a_feature_that_never_changes_is_not_selected_whatever_the_bound():
    entropy, change, every = torch.tensor([0.0, 0.1, 0.6]), torch.tensor([0.0, 1.0, 2.0]), torch.ones(3).bool()
    assert select(entropy, change, every, Rule("entropy", False, math.inf, None)).chosen.tolist() == [False, True, True]
    assert select(entropy, change, every, Rule("all", False, 0.3, None)).chosen.tolist() == [False, True, True]


def test_bounds_caps_and_the_fallback():
    entropy, change = torch.tensor([0.5, 0.1, 0.0, 0.2, 0.4]), torch.tensor([9.0, 3.0, 0.0, 2.0, 1.0])
    every = torch.ones(5, dtype=torch.bool)

    def chosen(rule, candidates=every):
        return select(entropy, change, candidates, rule).chosen.nonzero().flatten().tolist()

    assert chosen(Rule("entropy", False, 0.3, None)) == [1, 3]
    assert chosen(Rule("entropy", False, 0.2, None)) == [1]
    assert chosen(Rule("entropy", True, 1.0, None)) == [1, 3], "the mean is over positive ones: 0.3"
    assert chosen(Rule("entropy", False, 9.0, 2)) == [1, 3]
    assert chosen(Rule("least_change", False, 0.3, None)) == [3, 4], "as many as by entropy"
    assert chosen(Rule("entropy", False, 0.3, None), torch.tensor([1, 0, 1, 1, 1]).bool()) == [3]
    assert chosen(Rule("all", False, 0.3, 2)) == [3, 4], "those that change least"
    empty = select(entropy, change, every, Rule("entropy", False, 0.05, None))
    assert empty.fallback and empty.chosen.nonzero().flatten().tolist() == [1]
    many = torch.cat([entropy, torch.zeros(16)])
    tenth = select(many, many, torch.ones(21, dtype=torch.bool), Rule("entropy", False, 0.05, None))
    assert tenth.fallback and tenth.chosen.nonzero().flatten().tolist() == [1, 3, 4], "of 21 candidates, moving or not"
    nothing = select(torch.zeros(5), torch.zeros(5), every, Rule("entropy", False, 0.3, None))
    assert nothing.fallback and not nothing.chosen.any()


def test_the_mean_norm_has_bins_up_to_ten_means():
    """One change of 20 means is cut to 10: two values, one of them in one step of 20."""
    states = play([0] * 20 + [1])
    units = scale(states, "mean")
    assert units.unit.item() == pytest.approx(1 / 20) and units.limit == 10
    expected = -(0.05 * math.log(0.05) + 0.95 * math.log(0.95))
    assert entropy_per_dim(states, units, 10).item() == pytest.approx(expected, abs=1e-6)


# counterfactuals


class Oracle(ForwardModel):
    """Knows a lever: its displacement is a function of how many agents push (action 1), whatever the memory."""

    def __init__(self, lever):
        super().__init__(EnvSpec("lever", 2, 2, 1, 1, 1), hidden=3, residual=True)
        self.lever = lever
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.first.weight[0, [2, 4]] = 1.0
            self.gru.weight_ih_l0[6, 0] = 1.0
            self.gru.bias_ih_l0[3:6] = -100.0

    def displacement(self, memory, origin, target):
        pushers = memory[..., :1].atanh().round()
        return self.lever(pushers)


LEVERS = {
    "and": lambda pushers: (pushers == 2).float(),
    "or": lambda pushers: (pushers > 0).float(),
    "add": lambda pushers: pushers / 2,
}


@pytest.mark.parametrize(
    ("lever", "actions", "worth"),
    [
        ("and", [1, 1], [0.5, 0.5]),
        ("or", [1, 1], [0.0, 0.0]),
        ("or", [1, 0], [0.5, 0.0]),
        ("add", [1, 1], [0.25, 0.25]),
    ],
)
def test_levers(lever, actions, worth):
    batch = Episodes(
        obs=torch.zeros(1, 2, 2, 1),
        state=torch.zeros(1, 2, 1),
        avail=torch.ones(1, 2, 2, 2, dtype=torch.bool),
        actions=torch.tensor([[actions]]),
        executed=torch.tensor([[actions]]),
        reward=torch.zeros(1, 1),
        terminal=torch.zeros(1, 1, dtype=torch.bool),
        mask=torch.ones(1, 1),
    )
    target = Target(torch.tensor([0]), torch.ones(1))
    marginal = uniform_marginal(batch.avail[:, :-1])
    with torch.no_grad():
        ((taken, expected),) = compare(Oracle(LEVERS[lever]), batch, marginal, target, torch.abs, None)
    gain = (taken.unsqueeze(1) - expected).clamp(min=0)
    assert gain.flatten().tolist() == pytest.approx(worth)


@pytest.mark.parametrize("residual", [False, True])
@torch.no_grad()
def test_the_fast_pass_equals_whole_inputs_whatever_the_chunks(residual):
    torch.manual_seed(0)
    batch, model = episodes([5, 3, 7]), ForwardModel(SPEC, 16, residual=residual)
    target = Target(torch.tensor([1, 2, 5]), torch.tensor([0.5, 2.0, 1.0]))
    model.read_in(torch.arange(6.0), torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 0.1]))
    marginal = uniform_marginal(batch.avail[:, :-1])
    expected = by_hand(model, batch, target, marginal)
    truth = model(batch.state[:, :-1], batch.executed, target)[batch.mask.bool()].abs()
    for chunk in (1, 20, None):
        taken, found = map(torch.cat, zip(*compare(model, batch, marginal, target, torch.abs, chunk)))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(taken, truth, atol=1e-5, rtol=0)


def test_an_agent_with_one_action_has_no_influence():
    torch.manual_seed(0)
    batch = episodes([6, 4])
    only = torch.nn.functional.one_hot(batch.executed, SPEC.n_actions).bool()
    batch = replace(batch, avail=torch.cat([only, only[:, :1]], 1))
    target, model = Target(torch.arange(3), torch.ones(3)), ForwardModel(SPEC, 8, residual=False)
    for taken, expected in compare(model, batch, uniform_marginal(batch.avail[:, :-1]), target, torch.abs, None):
        torch.testing.assert_close(expected, taken.unsqueeze(1).expand_as(expected))


def test_drawn_alternatives_are_the_marginal_on_average():
    probabilities = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    drawn = torch.stack([sampled(probabilities, 3, Noise(0, n)("draw")) for n in range(3000)])
    torch.testing.assert_close(drawn.mean(0), probabilities, atol=0.02, rtol=0)
    assert torch.equal(drawn.sum(-1), torch.ones(3000, 2)) and (drawn[:, 0, 2:] == 0).all()


# the trace


def paid(influence, mask=None, **kw):
    influence = torch.tensor(influence, dtype=torch.float64)
    mask = torch.ones(influence.shape[:2], dtype=torch.float64) if mask is None else mask
    return trace_scan(influence, mask, **{"decay": 0.9, "mode": "product", "clip": 10.0, "norm": "none", **kw})


FOCUS = [[[1, 0]] * 10]
ALTERNATE = [[[1, 0], [0, 1]] * 5]
SWITCH = [[[1, 0]] * 5 + [[0, 1]] * 5]


@pytest.mark.parametrize(("decay", "totals"), [(0.9, (44.8678, 24.8926, 28.0980)), (0.5, (26.0039, 14.8906, 22.25))])
def test_focused_influence_pays_more_than_scattered(decay, totals):
    for influence, total in zip((FOCUS, ALTERNATE, SWITCH), totals):
        assert paid(influence, decay=decay).reward.sum().item() == pytest.approx(total, abs=1e-4)
        assert paid(influence, decay=decay, mode="none").reward.sum().item() == 10


def test_other_forms_of_the_trace():
    assert paid([[[1, 0], [0, 2]]], mode="accumulate", decay=0.5).reward.tolist() == [[1.0, 2.5]]
    assert paid([[[1, 0], [1, 0]]], clip=0.25).reward.tolist() == [[1.0, 1.25]]
    assert paid([[[-1, 0], [1, 0], [1, 0]]], decay=1.0).reward.tolist() == [[-1.0, 1.0, 2.0]], "a trace is at least 0"
    shared = paid([[[1, 3], [1, 0]]], norm="sum", decay=1.0).reward
    torch.testing.assert_close(shared, torch.tensor([[4.0, 1.5]], dtype=torch.float64))


def test_the_trace_starts_at_zero_and_padding_pays_nothing():
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    influence = torch.ones(2, 3, 1) * mask.unsqueeze(-1)
    for mode in ("product", "accumulate", "none"):
        reward, trace = trace_scan(influence, mask, decay=0.5, mode=mode, clip=10.0, norm="none")
        assert (trace[:, 0] == 0).all() and reward[1, 2] == 0
        torch.testing.assert_close(reward[0, :2], reward[1, :2])


# as parts of a learner


def of(**kw):
    plain = {"statistic_steps": 20, "model_hidden": 16, "model_updates": 2, "delta_mode": "relative", "rho": 2.0}
    return fim.Config(base=qmix.Config(), **{**plain, **kw})


def watched(config, spec=SPEC, **columns):
    parts = built(config, spec)
    batch = episodes([12, 12, 5], spec, **columns)
    parts.bonuses[0].annotate(batch)
    return parts, batch


def test_without_weight_it_is_its_base_bit_for_bit():
    base = run(qmix.Config())
    wrapped = run(of(alpha=0.0, statistic_steps=10, model_every_episodes=1, selection="all"))
    bonus = wrapped.parts.bonuses[0]
    assert int(bonus.slow_model.rounds) > 1 and bonus.statistic.selected.any()
    mine = wrapped.parts.q.state_dict()
    for name, value in base.parts.q.state_dict().items():
        assert torch.equal(value, mine[name]), name
    paying = run(of(alpha=1.0, statistic_steps=10, model_every_episodes=1, selection="all"))
    assert any(not torch.equal(value, paying.parts.q.state_dict()[name]) for name, value in mine.items())


@pytest.mark.parametrize("influence", ["marginal", "signed", "ate_sq", "change"])
def test_padding_has_no_influence_and_changes_none(influence):
    parts, batch = watched(of(influence=influence))
    bonus = settled(parts.bonuses[0])
    reward, _ = bonus.reward(batch, parts.q, Noise(0, 0))
    assert reward[2, :5].any() and not reward[2, 5:].any()
    dirty = batch.state.clone()
    dirty[2, 6:] = 77.0
    other, _ = bonus.reward(replace(batch, state=dirty), parts.q, Noise(0, 0))
    torch.testing.assert_close(other, reward)
    one, two = bonus.fit(batch, parts.q, Noise(0, 0)), parts.bonuses[0]
    again = settled(watched(of(influence=influence))[0].bonuses[0])
    other = again.fit(replace(batch, state=dirty), parts.q, Noise(0, 0))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for left, right in zip(two.parameters(), again.parameters()):
        assert torch.equal(left, right)


def test_dead_agents_and_what_is_not_seen_pay_nothing():
    spec = replace(SPEC, columns={"alive": Column((3,), "bool", "views"), "visible": Column((3, 6), "bool", "views")})
    alive, visible = torch.ones(3, 13, 3, dtype=torch.bool), torch.ones(3, 13, 3, 6, dtype=torch.bool)

    def influence(config, **columns):
        parts, batch = watched(config, spec, **columns)
        bonus = settled(parts.bonuses[0])
        return bonus.influence(batch, parts.q, Noise(0, 0), bonus.statistic.target())

    whole = influence(of(), alive=alive)
    parts = [influence(of(), alive=alive & (torch.arange(3) == agent)) for agent in range(3)]
    assert whole.sum() > 0 and all(part.sum() > 0 for part in parts)
    torch.testing.assert_close(sum(parts), whole)
    dying = torch.rand(3, 13, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    steps = parts[0].shape[1]
    before = dying[:, :steps].float().unsqueeze(-1)
    left = sum(part * before[:, :, agent] for agent, part in enumerate(parts))
    torch.testing.assert_close(influence(of(), alive=dying), left)
    enemies = torch.cat([dying, ~dying[..., :2]], -1)
    torch.testing.assert_close(influence(of(), alive=enemies), left)
    config = of(visibility_mask=True)
    torch.testing.assert_close(influence(config, alive=alive, visible=visible), whole)
    hidden = influence(config, alive=alive, visible=visible & (torch.arange(6) != 2))
    built_in = whole.clone()
    built_in[..., watched(of(), spec)[0].bonuses[0].statistic.target().features.tolist().index(2)] = 0
    torch.testing.assert_close(hidden, built_in)


def test_gradients_of_value_and_model_do_not_meet():
    parts, batch = watched(of())
    bonus = settled(parts.bonuses[0])
    reward, _ = bonus.reward(batch, parts.q, Noise(0, 0))
    assert not reward.requires_grad and reward.any()
    parts.q.loss(batch.with_reward(batch.reward + reward), Noise(0, 0)).value.backward()
    assert all(parameter.grad is None for parameter in bonus.parameters())
    assert any(parameter.grad is not None for parameter in parts.q.parameters())
    parts.q.zero_grad(set_to_none=True)
    before = [parameter.clone() for parameter in parts.q.parameters()]
    bonus.fit(batch, parts.q, Noise(0, 0))
    assert all(parameter.grad is None for parameter in parts.q.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, parts.q.parameters()))
    assert any(parameter.grad is not None for parameter in bonus.model.parameters())
    assert all(parameter.grad is None for parameter in bonus.slow_model.parameters())


def test_nothing_is_paid_before_the_delayed_model_was_copied_from_a_fitted_one():
    parts, batch = watched(of())
    bonus = parts.bonuses[0]
    for rounds, pays in ((0, False), (1, False), (2, True)):
        assert settled(bonus, rounds).reward(batch, parts.q, Noise(0, 0))[0].any() == pays


def test_without_counterfactuals_nothing_has_to_be_foreseen():
    parts, batch = watched(of(influence="change"))
    assert parts.bonuses[0].reward(batch, parts.q, NONE)[0].any()


def test_the_bonus_is_bounded_weighted_and_fades():
    parts, batch = watched(of(alpha=0.5, c_max=None))
    free = settled(parts.bonuses[0]).reward(batch, parts.q, Noise(0, 0))[0]
    bounded = settled(watched(of(alpha=0.5, c_max=0.1))[0].bonuses[0]).reward(batch, parts.q, Noise(0, 0))[0]
    torch.testing.assert_close(bounded, free.clamp(max=0.1))
    config = of(alpha=0.5, c_max=0.1, anneal=True, anneal_steps=58)
    bounded_first = settled(watched(config)[0].bonuses[0])
    bounded_first.fading.began.copy_(bounded_first.fading.seen)
    bounded_first.annotate(batch)
    torch.testing.assert_close(bounded_first.reward(batch, parts.q, NONE)[0], 0.5 * free.clamp(max=0.1))
    fading = settled(watched(of(alpha=0.5, c_max=None, anneal=True, anneal_steps=58))[0].bonuses[0])
    losing = batch.with_reward(-batch.reward.abs())
    torch.testing.assert_close(fading.reward(losing, parts.q, Noise(0, 0))[0], free)
    winning = batch.with_reward(batch.reward.abs())
    torch.testing.assert_close(fading.reward(winning, parts.q, Noise(0, 0))[0], free)
    for share in (0.5, 0.0, 0.0):
        fading.annotate(batch)
        torch.testing.assert_close(fading.reward(losing, parts.q, Noise(0, 0))[0], free * share)


def test_the_policy_marginal_weighs_the_greedy_action_most():
    parts, batch = watched(of(marginal="policy", marginal_epsilon=0.2))
    weights = parts.bonuses[0].marginal(batch, parts.q, Noise(0, 0))
    avail = batch.avail[:, :-1]
    values = parts.q.agent(batch.obs, batch.last_action)[0][:, :-1].masked_fill(~avail, -torch.inf)
    expected = 0.2 * uniform_marginal(avail)
    expected.scatter_add_(-1, values.argmax(-1, keepdim=True), torch.full((*avail.shape[:-1], 1), 0.8))
    played = batch.mask.bool()
    torch.testing.assert_close(weights[played], expected[played])


def test_sampling_alternatives_is_close_to_all_of_them_and_repeats():
    parts, batch = watched(of())
    bonus = settled(parts.bonuses[0])
    whole = bonus.influence(batch, parts.q, Noise(0, 0), bonus.statistic.target()).sum()
    bonus.config = of(cf_samples=200)
    drawn = [bonus.influence(batch, parts.q, Noise(0, n), bonus.statistic.target()).sum() for n in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].item() == pytest.approx(whole.item(), rel=0.1)


FORMS = {
    "marginal": (lambda gain: gain.clamp(min=0), lambda moved: moved.abs()),
    "signed": (lambda gain: gain, lambda moved: moved.abs()),
    "ate_sq": (torch.square, torch.clone),
}


@pytest.mark.parametrize("norm", ["max", "mean", "range"])
@pytest.mark.parametrize("influence", FORMS)
@torch.no_grad()
def test_influence_is_the_sum_of_what_each_agent_is_worth(influence, norm):
    """With the delayed model, of the actions that the world received."""
    parts, batch = watched(of(influence=influence, norm=norm))
    bonus = settled(parts.bonuses[0])
    if norm == "mean":  # displacements beyond ten means are cut
        bonus.slow_model.last.weight.mul_(30.0)
    for parameter in bonus.model.parameters():
        parameter.fill_(9.0)
    worth, size = FORMS[influence]
    measure = size if norm != "mean" or influence == "ate_sq" else lambda moved: size(moved).clamp(max=10)
    target, model = bonus.statistic.target(), bonus.slow_model
    now = measure(model(batch.state[:, :-1], batch.executed, target)[batch.mask.bool()])
    expected = by_hand(model, batch, target, uniform_marginal(batch.avail[:, :-1]), measure)
    found = bonus.influence(batch, parts.q, Noise(0, 0), target)
    torch.testing.assert_close(
        found[batch.mask.bool()], worth(now.unsqueeze(1) - expected).sum(1), atol=1e-4, rtol=1e-3
    )
    assert norm != "mean" or influence == "ate_sq" or (now == 10).any()


def test_without_counterfactuals_influence_is_the_change_in_units():
    parts, batch = watched(of(influence="change"))
    target = parts.bonuses[0].statistic.target()
    found = parts.bonuses[0].influence(batch, parts.q, Noise(0, 0), target)
    moved = (batch.state[:, 1:] - batch.state[:, :-1])[..., target.features].abs() / target.units
    torch.testing.assert_close(found, moved * batch.mask.unsqueeze(-1))


def test_the_model_learns_of_what_the_world_received():
    def fitted(**changed):
        parts, batch = watched(of(model_updates=5))
        parts.bonuses[0].fit(replace(batch, **{name: change(batch) for name, change in changed.items()}), parts.q, NONE)
        return parts.bonuses[0].model.first.weight

    assert torch.equal(fitted(), fitted(actions=lambda batch: 3 - batch.actions))
    assert not torch.equal(fitted(), fitted(executed=lambda batch: 3 - batch.executed))


@pytest.mark.parametrize("predicts", ["next", "change"])
def test_influence_is_exact_in_lower_precision(predicts):
    parts, batch = watched(of(model_predicts=predicts))
    bonus = settled(parts.bonuses[0])
    full, _ = bonus.reward(batch, parts.q, NONE)
    with torch.autocast("cpu", torch.bfloat16):
        lower, _ = bonus.reward(batch, parts.q, NONE)
        assert torch.isfinite(bonus.fit(batch, parts.q, NONE)["fim/model_loss"])
    assert torch.equal(full, lower)


# the statistic as a part of training


def test_the_statistic_is_of_the_first_steps_and_stays():
    parts = built(of(statistic_steps=20))
    bonus = parts.bonuses[0]
    first, second = episodes([12], seed=1), episodes([12], seed=2)
    bonus.annotate(first)
    assert not bonus.statistic.closed and bonus.records()
    bonus.annotate(second)
    states = [*first.state, *second.state]
    torch.testing.assert_close(bonus.statistic.sigma, scale(states, "max").unit)
    torch.testing.assert_close(bonus.statistic.entropy, entropy_per_dim(states, scale(states, "max"), 10))
    frozen = {name: value.clone() for name, value in bonus.statistic.state_dict().items() if name != "steps"}
    bonus.annotate(episodes([12, 12], seed=3))
    assert all(torch.equal(bonus.statistic.state_dict()[name], value) for name, value in frozen.items())
    assert not bonus.records()


def test_it_can_be_taken_again_from_the_last_steps():
    bonus = built(of(statistic_steps=20, recompute_every=24)).bonuses[0]
    batches = [episodes([12], seed=seed) for seed in range(5)]
    for batch in batches:
        bonus.annotate(batch)
    states = [batches[2].state[0], batches[3].state[0]]
    torch.testing.assert_close(bonus.statistic.sigma, scale(states, "max").unit)
    assert int(bonus.statistic.estimated_at) == 48


def test_a_new_statistic_pays_nothing_before_the_model_was_fitted_to_it():
    parts = built(of(statistic_steps=12, recompute_every=24))
    bonus, batch = parts.bonuses[0], episodes([12])

    def pays():
        return bool(bonus.reward(batch, parts.q, NONE)[0].any())

    bonus.annotate(batch)
    assert settled(bonus) and pays()
    bonus.annotate(batch)
    assert pays(), "not due again"
    bonus.annotate(batch)
    assert not pays()
    for _ in range(2):
        bonus.fit(batch, parts.q, NONE)
    assert not pays(), "the delayed copy is of before"
    bonus.slow_model.load_state_dict(bonus.model.state_dict())
    assert pays()


def test_half_a_statistic_survives_a_checkpoint():
    config = of(statistic_steps=30)
    one, other = built(config).bonuses[0], built(config).bonuses[0]
    one.annotate(episodes([12, 7], seed=1))
    other.load_state_dict(one.state_dict())
    other.restore({name: tensor.clone() for name, tensor in one.records().items()})
    for bonus in (one, other):
        bonus.annotate(episodes([12], seed=2))
        assert bonus.statistic.closed
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_too_short_a_statistic_is_said():
    parts = built(of(statistic_steps=1000))
    bonus, batch = parts.bonuses[0], episodes([12, 12])
    bonus.annotate(batch)
    with pytest.warns(UserWarning, match="algo.statistic_steps=1000: 24 came before the first update"):
        bonus.reward(batch, parts.q, Noise(0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bonus.reward(batch, parts.q, Noise(0, 1))


def test_candidates_by_group_and_without_unit_types():
    spec = replace(SPEC, state_groups={"time": (0,), "own": (1, 2), "far": (3, 4, 5)})
    batch = episodes([12, 12], spec)
    state = batch.state.clone()
    state[..., 5] = (torch.arange(13) < 7).float()
    state[..., 4] = (torch.arange(13) >= 7).float()
    batch = replace(batch, state=state)

    def chosen(**kw):
        bonus = built(of(selection="all", **kw), spec).bonuses[0]
        bonus.annotate(batch)
        return bonus.statistic.selected.nonzero().flatten().tolist()

    assert chosen() == [1, 2, 3, 4], "a bit that only falls is a unit's type"
    assert chosen(exclude_constant_onehots=False) == [1, 2, 3, 4, 5]
    assert chosen(candidates=["far"]) == [3, 4]
    assert chosen(not_native=["own"]) == [0, 3, 4]
    with pytest.raises(Mistake, match="algo.candidates=farr: no such group .* did you mean far"):
        built(of(candidates=["farr"]), spec)
    with pytest.raises(Mistake, match=r"algo.candidates=\[time\]: all of it is in algo.not_native; .* own, far$"):
        built(of(candidates=["time"]), spec)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"visibility_mask": True}, "algo.visibility_mask=true: env=yard has no column visible; allowed is false"),
        ({"not_native": ["owm"]}, "algo.not_native=owm: no such group .* did you mean own"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, line):
    with pytest.raises(Mistake, match=line):
        built(of(**options))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("trace_mode=none trace_norm=sum", "algo.trace_mode=none has no use for it; say algo.trace_mode=product too"),
        ("influence=change marginal=policy", "algo.influence=change has no use for it"),
        ("influence=change cf_samples=5", "algo.influence=change has no use for it"),
        ("influence=change visibility_mask=true", "algo.influence=change has no use for it"),
        ("delta=0.1", "algo.delta_mode=relative has no use for it; say algo.delta_mode=absolute too"),
        ("delta_mode=absolute rho=0.1", "algo.delta_mode=absolute has no use for it; say algo.delta_mode=relative too"),
        ("marginal_epsilon=0.1", "algo.marginal=uniform has no use for it; say algo.marginal=policy too"),
        ("anneal_steps=1000", "algo.anneal=false has no use for it; say algo.anneal=true too"),
    ],
)
def test_settings_without_effect_are_refused(arguments, line):
    typed = [f"algo.{argument}" for argument in arguments.split()]
    with pytest.raises(Mistake, match=f"^{typed[-1]}: {line}"):
        cli.parse(["algo=fim", "env=push_box", *typed], algos.ALGORITHMS, envs.ENVIRONMENTS)


def test_settings_are_those_of_the_specification():
    """Section 6, for SMAC; with the recurrent base of PyMARL2."""
    settings = cli.parse(["algo=fim", "env=push_box"], algos.ALGORITHMS, envs.ENVIRONMENTS)
    algo, base = settings.algo, settings.algo.base
    assert (algo.alpha, algo.c_max, algo.eta, algo.anneal, algo.bins, algo.norm) == (0.05, 1.0, 0.9, False, 10, "max")
    assert (algo.delta_mode, algo.rho, algo.delta, algo.statistic_steps) == ("relative", 0.5, 0.3, 100_000)
    assert (algo.model_hidden, algo.model_lr, algo.model_clip, algo.model_updates) == (128, 3e-4, 1.0, 25)
    assert (algo.influence, algo.marginal, algo.trace_mode, algo.trace_clip) == ("marginal", "uniform", "product", 10.0)
    assert (algo.recompute_every, algo.model_every_episodes, algo.visibility_mask) == (0, 200, False)
    assert (base.td_lambda, base.gamma, base.target_every_episodes, base.hidden) == (0.6, 0.99, 200, 64)
    assert (base.optimizer.name, base.optimizer.lr, base.optimizer.clip) == ("adam", 1e-3, 10.0)
    assert (settings.learner.batch, settings.replay.capacity) == (128, 5000)
    watching, training = settings.phases
    assert (watching.steps, watching.epsilon, watching.updates) == (algo.statistic_steps, 1.0, False)
    assert training.fresh_replay and training.epsilon_restart and training.updates


def test_only_selected_features_are_learned_and_they_are_learned():
    parts, _ = watched(
        of(model_updates=60, model_lr=1e-2, candidates=["far"], selection="all", model_predicts="change")
    )
    bonus, batch = parts.bonuses[0], episodes([12] * 16)
    state = batch.state.clone()
    pushes = (batch.executed == 1).sum(-1).float()
    state[:, 1:, 2] = pushes.cumsum(1)
    state[:, 0, 2] = 0
    batch = replace(batch, state=state)
    before = bonus.model.last.weight.clone()
    bonus.statistic.selected.zero_()[2] = True
    for number in range(5):
        stats = bonus.fit(batch, parts.q, Noise(0, number))
    assert stats["fim/model_r2"] > 0.9
    same = (bonus.model.last.weight == before).all(1).tolist()
    assert same == [True, True, False, True, True, True]


@pytest.mark.parametrize("predicts", ["next", "change"])
def test_a_model_that_reads_units_does_not_care_how_the_world_measures(predicts):
    def found(factor, shift, **kw):
        parts, batch = watched(of(model_predicts=predicts, model_updates=20, model_lr=1e-2, **kw))
        bonus, batch = parts.bonuses[0], replace(batch, state=batch.state * factor + shift)
        bonus.statistic = type(bonus.statistic)(bonus.statistic.native, bonus.config.watching())
        bonus.annotate(batch)
        for number in range(3):
            bonus.fit(batch, parts.q, Noise(0, number))
        settled(bonus)
        return bonus.influence(batch, parts.q, Noise(0, 0), bonus.statistic.target())

    shift = 0.0 if predicts == "next" else torch.tensor([3.0, 0.0, -1.0, 5.0, 0.0, 0.0])
    plain = found(1.0, 0.0, model_inputs="units")
    assert plain.max() > 0
    factor = torch.tensor([0.1, 7.0, 0.05, 1.0, 20.0, 1.0])
    torch.testing.assert_close(found(factor, shift, model_inputs="units"), plain, atol=1e-2, rtol=0)
    assert (found(factor, shift, model_inputs="raw") - found(1.0, 0.0, model_inputs="raw")).abs().max() > 0.1


def test_what_is_told():
    parts, batch = watched(of(candidates=["far"]))
    bonus = settled(parts.bonuses[0])
    stats = bonus.reward(batch, parts.q, Noise(0, 0))[1]
    influence = bonus.influence(batch, parts.q, Noise(0, 0), bonus.statistic.target())
    told = {name: float(value) for name, value in stats.items()}
    assert told["fim/influence/far"] == pytest.approx(influence.sum().item() / 29, rel=1e-4)
    _, traces = trace_scan(influence, batch.mask, decay=0.9, mode="product", clip=10.0, norm="none")
    assert told["fim/trace/far"] == pytest.approx((traces * batch.mask.unsqueeze(-1)).sum().item() / 29, rel=1e-4)
    assert told["fim/selected"] == told["fim/selected/far"] > 0 == told["fim/selected/own"]
    assert told["bonus/influence_return"] == pytest.approx(told["bonus/influence"] * 29 / 3, rel=1e-4)
    figures = bonus.figures()
    assert set(figures) == {"fim/entropies", "fim/traces"}
    assert figures["fim/entropies"].labels == ("own.0", "own.1", "far.0", "far.1", "far.2", "5")
    assert figures["fim/traces"].values[0] == 0


def test_a_chart_shows_heights_and_marks():
    picture = draw(Bars((1.0, 0.5, 0.0), ("a.0", "a.1", "b"), (True, False, True), line=0.75))
    orange, grey, green = ((picture == colour).all(-1) for colour in ((214, 90, 50), (176, 190, 210), (40, 130, 70)))
    heights = [colour.any(1).sum() for colour in (orange, grey)]
    assert heights[0] == pytest.approx(161, abs=2) and heights[1] == pytest.approx(81, abs=3) and green.any()


# Push-2-Box


def wander(width, horizon, steps=100_000, copies=200):
    """Uniform random play: its states episode by episode, and the share of episodes that are won."""
    env = push_box.make(push_box.Config(width=width, horizon=horizon), copies)
    rng, told, won, played = np.random.default_rng(0), [], [], 0
    while played < steps:
        now, live = env.reset(range(copies)), np.ones(copies, bool)
        states, lengths = [now.state.copy()], np.zeros(copies, int)
        while live.any():
            now = env.step(rng.integers(0, 5, (copies, 2)), live)
            states.append(now.state.copy())
            lengths += live
            live = live & ~(now.terminal | now.truncated)
        whole = torch.from_numpy(np.stack(states, 1))
        told += [whole[copy, : length + 1] for copy, length in enumerate(lengths)]
        won.append(now.columns["won"].mean())
        played += lengths.sum()
    return told, float(np.mean(won))


@pytest.mark.parametrize(
    ("width", "horizon", "boxes", "success"),
    [(15, 100, (0.028, 0.042), 0.03), (9, 60, (0.07, 0.085), 0.18), (7, 50, (0.088, 0.105), 0.43)],
)
def test_boxes_hardly_change_under_random_play_and_are_selected(width, horizon, boxes, success):
    states, won = wander(width, horizon)
    entropy = entropy_per_dim(states, scale(states, "max"), 10)
    every = torch.ones(8, dtype=torch.bool)
    for rule in (Rule("entropy", False, 0.3, None), Rule("entropy", True, 0.5, None)):
        chosen = select(entropy, mean_change(states), every, rule).chosen
        assert chosen.tolist() == [False] * 4 + [True] * 4
    low, high = boxes
    assert (entropy[4:] > low).all() and (entropy[4:] < high).all(), entropy
    assert won == pytest.approx(success, abs=0.02)
    if width == 15:
        moved = torch.cat([(episode[1:] != episode[:-1]).float() for episode in states]).mean(0)
        torch.testing.assert_close(moved[:4], torch.full((4,), 0.38), atol=0.01, rtol=0)
        torch.testing.assert_close(moved[4:], torch.full((4,), 0.0055), atol=0.001, rtol=0)
        torch.testing.assert_close(entropy[:4], torch.full((4,), 0.665), atol=0.005, rtol=0)


# memory

LARGE = """
import json, resource, time
import torch
from algos.influence.counterfactual import compare, uniform_marginal
from algos.influence.model import ForwardModel, Target
from marl.types import EnvSpec, Episodes
torch.set_num_threads(1)
B, T, N, A, S, C, steps = 32, 180, 27, 36, 1170, 150, {steps}
spec = EnvSpec("27m_vs_30m", N, A, 1, S, T)
generator = torch.Generator().manual_seed(0)
batch = Episodes(obs=torch.zeros(B, T + 1, N, 1), state=torch.rand(B, T + 1, S, generator=generator),
    avail=torch.rand(B, T + 1, N, A, generator=generator) < 0.25, executed=torch.zeros(B, T, N, dtype=torch.long),
    actions=torch.zeros(B, T, N, dtype=torch.long), reward=torch.zeros(B, T),
    terminal=torch.zeros(B, T, dtype=torch.bool), mask=(torch.arange(T) < steps).float().expand(B, T).contiguous())
model, target = ForwardModel(spec, 128, residual=False), Target(torch.arange(C), torch.ones(C))
marginal, told = uniform_marginal(batch.avail[:, :-1]), []
for chunk in {chunks}:
    began, rows = time.process_time(), 0
    for taken, expected in compare(model, batch, marginal, target, torch.abs, chunk):
        rows += len(taken)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told.append([rows, peak, time.process_time() - began])
print(json.dumps(told))
"""
"""27 agents, 36 actions of which a quarter is available, 32 episodes of 180 steps, of which ``steps`` are played."""


def large(steps, *chunks):
    """Steps compared, peak bytes of the process, CPU seconds; for each chunk."""
    code = LARGE.format(steps=steps, chunks=chunks)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_largest_map_of_smac_fits_two_gigabytes():
    """The first 10 steps only, which are more than fill the largest chunk; the batch is whole."""
    for rows, peak, _ in large(10, None, 65536):
        assert rows == 320 and peak < 2e9


# a whole run


PHASES = "phases=[{name:statistic,steps:400,updates:false,epsilon:1},{name:train,fresh_replay:true}]"
SHORT = ["env=push_box", "env.width=7", "env.horizon=10", "steps=700", "learner.batch=4", "learner.burn_in=4"]
SHORT += ["log.every_steps=100", "eval.every_steps=700", "eval.episodes=2", "log.terminal=false", PHASES]
FOCUSED = ["algo=fim", "algo.statistic_steps=400", "algo.delta_mode=absolute", "algo.model_updates=1"]


def trained(folder, *words):
    """A whole run, and what it logged: (step, tag, value)."""
    settings = cli.parse([*SHORT, *words], algos.ALGORITHMS, envs.ENVIRONMENTS)
    run = Run(settings, build.learner(settings, build.spec(settings), torch.device("cpu")), folder)
    try:
        run.play()
    finally:
        run.close()
    with (folder / "scalars.csv").open() as stream:
        return run, [(int(row["step"]), row["tag"], row["value"]) for row in csv.DictReader(stream)]


def test_a_run_watches_first_then_learns_and_draws_what_it_selected(tmp_path):
    run, told = trained(tmp_path, *FOCUSED)
    statistic = run.learner.parts.bonuses[0].statistic
    assert 400 <= int(statistic.estimated_at) <= 410 and statistic.selected.tolist() == [False] * 4 + [True] * 4
    assert {step > 400 for step, tag, _ in told if tag == "loss/td"} == {True}
    tags = {tag for _, tag, _ in told}
    assert {"fim/selected/boxes", "fim/entropy/agents", "train/pushes", "eval/joint_pushes"} <= tags
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "fim/entropies" in events.Tags()["images"]


def test_a_run_without_weight_is_that_of_its_base(tmp_path):
    """Section 10.6, with the phase in which a statistic is taken."""
    wrapped = trained(tmp_path / "fim", *FOCUSED, "algo.base=qmix", "algo.alpha=0", "algo.model_every_episodes=1")[1]
    base = trained(tmp_path / "qmix", "algo=qmix")[1]
    shared = {(step, tag) for step, tag, _ in base}
    assert len(base) > 50 and [row for row in wrapped if row[:2] in shared and repeats(row[1])] == [
        row for row in base if repeats(row[1])
    ]
