"""Risk: a formula is wrong. Numbers typed in by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from algos.factored import FactoredConfig, FactoredQ, Optimizer
from marl.dice import Noise
from marl.mixers import Monotonic, Separate, Sum
from marl.nets import AgentInput, AgentNet, Layers
from marl.ops import best_available, epsilon_greedy, lambda_returns, masked_mean, random_available
from marl.types import EnvSpec, Episodes

SPEC = EnvSpec("hand", n_agents=2, n_actions=3, obs_dim=4, state_dim=5, horizon=6)


def recursion(reward, terminal, mask, bootstrap, gamma, trace):
    """The definition, step by step from each episode's own last step."""
    returns = torch.zeros_like(bootstrap)
    for b in range(reward.shape[0]):
        length = int(mask[b].sum())
        ahead = bootstrap[b, length - 1]
        for t in reversed(range(length)):
            alive = 1.0 - float(terminal[b, t])
            ahead = reward[b, t] + gamma * alive * ((1 - trace) * bootstrap[b, t] + trace * ahead)
            returns[b, t] = ahead
    return returns


@pytest.mark.parametrize("trace", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("units", [1, 3])
def test_lambda_returns_equal_their_recursion(trace, units):
    torch.manual_seed(0)
    lengths = torch.tensor([1, 4, 7, 7])
    mask = (torch.arange(7) < lengths[:, None]).double()
    reward = torch.randn(4, 7, 1, dtype=torch.double) * mask[..., None]
    terminal = torch.zeros(4, 7, dtype=torch.bool)
    terminal[1, 3] = terminal[2, 6] = True
    bootstrap = torch.randn(4, 7, units, dtype=torch.double)
    got = lambda_returns(reward, terminal, mask, bootstrap, 0.9, trace)
    torch.testing.assert_close(got, recursion(reward, terminal, mask, bootstrap, 0.9, trace))


def test_lambda_returns_by_hand():
    """Two steps, cut by time: G1 = 2 + .5 v2 = 4; G0 = 1 + .5 (.5 v1 + .5 G1) = 1 + .5 (3 + 2) = 3.5."""
    ones = torch.ones(1, 2)
    reward, bootstrap = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[6.0], [4.0]]])
    got = lambda_returns(reward, torch.zeros(1, 2, dtype=torch.bool), ones, bootstrap, 0.5, 0.5)
    torch.testing.assert_close(got, torch.tensor([[[3.5], [4.0]]]))


def test_lambda_returns_ignore_the_value_beyond_a_terminal():
    reward, bootstrap = torch.ones(1, 2, 1), torch.full((1, 2, 1), 100.0)
    terminal = torch.tensor([[False, True]])
    got = lambda_returns(reward, terminal, torch.ones(1, 2), bootstrap, 0.5, 1.0)
    torch.testing.assert_close(got, torch.tensor([[[1.5], [1.0]]]))


def test_masked_mean_by_hand():
    value = torch.tensor([[1.0, 2.0, 99.0], [3.0, 99.0, 99.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert masked_mean(value, mask) == 2.0
    assert masked_mean(torch.stack([value, value + 1], -1), mask) == 2.5


def test_greedy_choice_is_among_available_actions_and_ties_go_to_the_lowest():
    values = torch.tensor([[5.0, 1.0, 1.0]])
    avail = torch.tensor([[False, True, True]])
    assert best_available(values, avail).tolist() == [1]


def test_random_choice_is_uniform_over_available_actions():
    avail = torch.tensor([False, True, False, True, True]).expand(3, -1)
    assert random_available(avail, torch.tensor([0.0, 0.34, 0.999])).tolist() == [1, 3, 4]
    many = torch.rand(30_000, generator=torch.Generator().manual_seed(0))
    counts = random_available(avail[0].expand(len(many), -1), many).bincount(minlength=5) / len(many)
    torch.testing.assert_close(counts, torch.tensor([0, 1 / 3, 0, 1 / 3, 1 / 3]), atol=0.01, rtol=0)


def test_epsilon_greedy_explores_each_agent_on_its_own():
    values, avail = torch.tensor([[[0.0, 9.0], [9.0, 0.0]]]), torch.ones(1, 2, 2, dtype=torch.bool)
    uniform = np.array([[[0.05, 0.0], [0.5, 0.99]]], np.float32)
    assert epsilon_greedy(values, avail, 0.1, uniform).tolist() == [[0, 0]]


def test_monotonic_mixer_grows_with_every_utility():
    torch.manual_seed(1)
    mixer, state = Monotonic(SPEC, 8, 16), torch.randn(20, 5)
    chosen = torch.randn(20, 2, requires_grad=True)
    joint = mixer(chosen, chosen, state, chosen.long())
    assert joint.shape == (20, 1)
    (slope,) = torch.autograd.grad(joint.sum(), chosen)
    assert (slope >= 0).all() and (slope > 0).any()


def test_mixer_follows_its_definition():
    """hidden = ELU(q^T |W1(s)| + b1(s)); Q_tot = hidden |w2(s)| + V(s)."""
    torch.manual_seed(2)
    mixer, state, chosen = Monotonic(SPEC, 3, 4), torch.randn(5), torch.randn(2)
    w1, w2 = mixer.w1(state).abs().view(2, 3), mixer.w2(state).abs()
    hidden = torch.nn.functional.elu(chosen @ w1 + mixer.b1(state))
    torch.testing.assert_close(mixer(chosen, chosen, state, chosen.long()), hidden @ w2 + mixer.value(state))


def test_published_parameter_counts():
    """5m_vs_6m of the S2Q page: agent 30,092 and mixer 31,521."""
    spec = EnvSpec("5m_vs_6m", n_agents=5, n_actions=12, obs_dim=55, state_dim=98, horizon=70)
    agent = AgentNet(spec, Layers(64, agent_id=False))
    assert sum(p.numel() for p in agent.parameters()) == 30_092
    assert sum(p.numel() for p in Monotonic(spec, 32, 64).parameters()) == 31_521


@pytest.mark.parametrize("agent_id", [False, True])
@pytest.mark.parametrize("last_action", [False, True])
def test_agents_are_fed_what_they_see_then_what_they_did_then_who_they_are(last_action, agent_id):
    feed = AgentInput(SPEC, last_action=last_action, agent_id=agent_id)
    obs, done = torch.randn(2, 3, 2, 4), torch.tensor([[-1, -1], [0, 2], [1, 0]]).expand(2, 3, 2)
    did = torch.stack([(done == action).float() for action in range(3)], -1)
    who = torch.eye(2).expand(2, 3, 2, 2)
    parts = [obs, *([did] if last_action else []), *([who] if agent_id else [])]
    assert torch.equal(feed(obs, done), torch.cat(parts, -1))
    assert feed.size == sum(part.shape[-1] for part in parts)


def test_step_and_sequence_agree():
    torch.manual_seed(3)
    agent = AgentNet(SPEC, Layers(16, agent_id=True))
    obs, last = torch.randn(4, 6, 2, 4), torch.randint(-1, 3, (4, 6, 2))
    values, histories = agent(obs, last)
    memory = agent.start(4)
    for t in range(6):
        step, memory = agent.step(obs[:, t], last[:, t], memory)
        torch.testing.assert_close(step, values[:, t])
        torch.testing.assert_close(memory, histories[:, t])


def test_agents_with_equal_observations_differ_only_by_their_index():
    torch.manual_seed(4)
    obs, last = torch.randn(1, 1, 1, 4).expand(1, 1, 2, 4), torch.full((1, 1, 2), -1)
    shared, _ = AgentNet(SPEC, Layers(8, agent_id=False))(obs, last)
    indexed, _ = AgentNet(SPEC, Layers(8, agent_id=True))(obs, last)
    torch.testing.assert_close(shared[0, 0, 0], shared[0, 0, 1])
    assert not torch.allclose(indexed[0, 0, 0], indexed[0, 0, 1])


class Table(torch.nn.Module):
    """An 'agent' whose values are a table over time, so that a loss can be done by hand."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.nn.Parameter(values)

    def forward(self, obs, last_action):
        return self.values[: obs.shape[1]].expand(obs.shape[0], -1, -1, -1), obs


def two_steps(reward=(1.0, 2.0), terminal=True, length=2):
    """One episode of two steps of agents (0, 1) taking actions (0, 1), then (2, 0)."""
    avail = torch.ones(1, 3, 2, 3, dtype=torch.bool)
    avail[0, 1, 0, 2] = False
    return Episodes(
        obs=torch.zeros(1, 3, 2, 4),
        state=torch.zeros(1, 3, 5),
        avail=avail,
        actions=torch.tensor([[[0, 1], [1, 0]]]),
        executed=torch.tensor([[[0, 1], [1, 0]]]),
        reward=torch.tensor([reward]),
        terminal=torch.tensor([[False, terminal]]),
        mask=(torch.arange(2) < length).float()[None],
    )


VALUES = torch.tensor(
    [
        [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]],
        [[3.0, 1.0, 9.0], [4.0, 0.0, 0.0]],
        [[5.0, 0.0, 0.0], [0.0, 0.0, 6.0]],
    ]
)


def test_vdn_loss_by_hand():
    """Q: 1+2 = 3, then 1+4 = 5. Greedy next value at t=1, action 2 of agent 0 masked: 3+4 = 7; terminal after t=1.

    y0 = 1 + .5 * 7 = 4.5, y1 = 2; errors -1.5 and 3; mean square (2.25 + 9) / 2 = 5.625.
    """
    q = FactoredQ(Table(VALUES.clone()), Sum(), FactoredConfig(gamma=0.5, td_lambda=0.0, td_weight=1.0))
    loss = q.loss(two_steps(), Noise(0, 0))
    assert loss.value.item() == pytest.approx(5.625)
    assert loss.priority.tolist() == pytest.approx([5.625])


def test_iql_loss_by_hand():
    """Each agent on its own: targets (1 + .5*3, 1 + .5*4) and (2, 2); values (1, 2) and (1, 4)."""
    q = FactoredQ(Table(VALUES.clone()), Separate(), FactoredConfig(gamma=0.5, td_lambda=0.0, td_weight=1.0))
    expected = ((1 - 2.5) ** 2 + (2 - 3) ** 2 + (1 - 2) ** 2 + (4 - 2) ** 2) / 4
    assert q.loss(two_steps(), Noise(0, 0)).value.item() == pytest.approx(expected)


def test_double_q_takes_the_live_choice_and_the_delayed_value():
    q = FactoredQ(Table(VALUES.clone()), Sum(), FactoredConfig(gamma=0.5, td_lambda=0.0, td_weight=1.0))
    q.slow_agent.values.data[1] = torch.tensor([[10.0, 20.0, 0.0], [30.0, 40.0, 0.0]])
    double = (3 - (1 + 0.5 * 40)) ** 2
    assert q.loss(two_steps(), Noise(0, 0)).value.item() == pytest.approx((double + 9) / 2)
    q.config.double_q = False
    single = (3 - (1 + 0.5 * 60)) ** 2
    assert q.loss(two_steps(), Noise(0, 0)).value.item() == pytest.approx((single + 9) / 2)


def test_a_time_limit_is_not_an_end():
    """Cut after t=1, the value of the last view counts: y1 = 2 + .5 * (5 + 6) = 7.5."""
    q = FactoredQ(Table(VALUES.clone()), Sum(), FactoredConfig(gamma=0.5, td_lambda=0.0, td_weight=1.0))
    loss = q.loss(two_steps(terminal=False), Noise(0, 0)).value.item()
    assert loss == pytest.approx(((3 - 4.5) ** 2 + (5 - 7.5) ** 2) / 2)


def test_optimisers_take_their_settings():
    parameter = torch.nn.Parameter(torch.ones(2))
    descent = Optimizer(name="rmsprop", lr=0.1, alpha=0.99, eps=1e-5, clip=1.0).make("x", [parameter])
    norm = descent((parameter * torch.tensor([3.0, 4.0])).sum())
    assert norm.item() == pytest.approx(5.0)
    clipped = torch.tensor([0.6, 0.8])
    expected = 1 - 0.1 * clipped / ((0.01 * clipped**2).sqrt() + 1e-5)
    torch.testing.assert_close(parameter.data, expected, atol=1e-4, rtol=1e-4)
