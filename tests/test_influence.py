"""Risk: entropies, counterfactuals and traces are others than FIM's specification says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from algos.influence.counterfactual import compare, sampled, uniform_marginal
from algos.influence.model import ForwardModel, Target
from algos.influence.selection import Rule, entropy_per_dim, mean_change, scale, select
from algos.influence.trace import trace_scan
from envs import push_box
from marl.dice import Noise
from marl.types import EnvSpec, Episodes
from tests.yard import SPEC, by_hand, episodes


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
