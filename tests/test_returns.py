"""Risk: returns, scaled rewards or layers are not what they are called. Plain recursions stand beside them."""

from __future__ import annotations

import pytest
import torch

from algos.factored import FactoredConfig
from marl.dice import Noise
from marl.nets import AgentNet, Layers
from marl.ops import corrected_returns, lambda_returns, n_step_returns
from marl.parts import JointQ
from marl.scaling import RewardScaling
from marl.types import EnvSpec, Episodes

GAMMA = 0.9
LENGTHS = (1, 4, 7, 7)
SPEC = EnvSpec("hand", n_agents=2, n_actions=3, obs_dim=4, state_dim=5, horizon=6)


class Steps:
    """Four episodes of random numbers: one is over after a step, two end by themselves, one is cut at full length."""

    def __init__(self, units: int = 2) -> None:
        draw = torch.Generator().manual_seed(units)
        self.mask = (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).double()
        self.reward = torch.randn(4, 7, 1, generator=draw, dtype=torch.double)
        self.terminal = torch.zeros(4, 7, dtype=torch.bool)
        self.terminal[1, 3] = self.terminal[2, 6] = True
        self.following = torch.randn(4, 7, units, generator=draw, dtype=torch.double)
        self.taken = torch.randn(4, 7, units, generator=draw, dtype=torch.double)
        self.kept = torch.rand(4, 7, generator=draw) < 0.6

    def given(self) -> tuple[torch.Tensor, ...]:
        return self.reward, self.terminal, self.mask, self.following

    def where(self):
        """(b, t, r[t], 1 - terminal[t], v[t+1]) of every step that was played, the last one of each episode first."""
        for b, length in enumerate(LENGTHS):
            for t in reversed(range(length)):
                yield b, t, self.reward[b, t], 1.0 - float(self.terminal[b, t]), self.following[b, t]


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_n_step_returns_are_n_rewards_and_a_value(n):
    steps, expected = Steps(), torch.zeros(4, 7, 2, dtype=torch.double)
    for b, t, *_ in steps.where():
        last = min(t + n, LENGTHS[b])
        expected[b, t] = sum(GAMMA ** (k - t) * steps.reward[b, k] for k in range(t, last))
        if not steps.terminal[b, last - 1]:
            expected[b, t] += GAMMA ** (last - t) * steps.following[b, last - 1]
    torch.testing.assert_close(n_step_returns(*steps.given(), GAMMA, n), expected)


@pytest.mark.parametrize("trace", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("form", ["watkins", "harutyunyan"])
def test_corrected_returns_equal_their_recursion(form, trace):
    """G[t] = r[t] + gamma (1 - terminal[t]) (v[t+1] + lambda kept[t+1] (G[t+1] - Q[t+1])), from each last step on."""
    steps, expected = Steps(), torch.zeros(4, 7, 2, dtype=torch.double)
    kept = steps.kept if form == "watkins" else torch.ones_like(steps.kept)
    for b, t, reward, ongoing, following in steps.where():
        ahead = torch.zeros(2, dtype=torch.double)
        if t + 1 < LENGTHS[b]:
            ahead = trace * float(kept[b, t + 1]) * (expected[b, t + 1] - steps.taken[b, t + 1])
        expected[b, t] = reward + GAMMA * ongoing * (following + ahead)
    got = corrected_returns(*steps.given(), GAMMA, trace, steps.taken, kept)
    torch.testing.assert_close(got, expected)


def test_without_traces_all_returns_are_one_step_targets():
    steps = Steps()
    one_step = n_step_returns(*steps.given(), GAMMA, 1)
    torch.testing.assert_close(lambda_returns(*steps.given(), GAMMA, 0.0), one_step)
    torch.testing.assert_close(corrected_returns(*steps.given(), GAMMA, 0.0, steps.taken, steps.kept), one_step)


def test_peng_with_full_traces_is_a_return_of_all_steps():
    steps = Steps()
    torch.testing.assert_close(lambda_returns(*steps.given(), GAMMA, 1.0), n_step_returns(*steps.given(), GAMMA, 99))


def test_greedy_episodes_make_the_corrected_returns_peng_s():
    """Where the choice made is the greedy one, Q[t] = v[t], and nothing is left to correct."""
    steps = Steps()
    greedy = torch.cat([torch.zeros(4, 1, 2, dtype=torch.double), steps.following[:, :-1]], 1)
    got = corrected_returns(*steps.given(), GAMMA, 0.7, greedy, torch.ones_like(steps.kept))
    peng = lambda_returns(*steps.given(), GAMMA, 0.7)
    torch.testing.assert_close(got[:, 1:], peng[:, 1:])


def test_a_choice_that_was_not_greedy_cuts_watkins_trace():
    """By hand, gamma .5, lambda 1, v = (6, 4), Q = (0, 5), cut by time: G1 = 2 + 2 = 4; cut at 1: G0 = 1 + 3."""
    ones, never = torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)
    reward, following = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[6.0], [4.0]]])
    taken = torch.tensor([[[0.0], [5.0]]])
    cut = corrected_returns(reward, never, ones, following, 0.5, 1.0, taken, torch.tensor([[True, False]]))
    kept = corrected_returns(reward, never, ones, following, 0.5, 1.0, taken, torch.tensor([[False, True]]))
    assert cut.flatten().tolist() == [4.0, 4.0]
    assert kept.flatten().tolist() == [1 + 0.5 * (6 + 4 - 5), 4.0]


@pytest.mark.parametrize("returns", ["peng", "n_step", "watkins", "harutyunyan"])
def test_the_setting_chooses_the_returns(returns):
    steps = Steps(1)
    batch = Episodes(
        *(torch.zeros(4, 8, 1) for _ in range(3)),
        *(torch.zeros(4, 7, 1) for _ in range(2)),
        steps.reward.squeeze(-1),
        steps.terminal,
        steps.mask,
    )
    config = FactoredConfig(gamma=GAMMA, returns=returns, td_lambda=0.4, n_step=2)
    every = torch.ones_like(steps.kept)
    expected = {
        "peng": lambda_returns(*steps.given(), GAMMA, 0.4),
        "n_step": n_step_returns(*steps.given(), GAMMA, 2),
        "watkins": corrected_returns(*steps.given(), GAMMA, 0.4, steps.taken, steps.kept),
        "harutyunyan": corrected_returns(*steps.given(), GAMMA, 0.4, steps.taken, every),
    }
    torch.testing.assert_close(config.td_target(batch, steps.following, steps.taken, steps.kept), expected[returns])
    assert len({tuple(value.flatten().tolist()) for value in expected.values()}) == 4


# rewards


def episodes(*rewards: list[float]) -> Episodes:
    longest = max(map(len, rewards))
    mask = torch.tensor([[1.0] * len(r) + [0.0] * (longest - len(r)) for r in rewards])
    filled = torch.tensor([r + [77.0] * (longest - len(r)) for r in rewards])
    nothing = torch.zeros(len(rewards), longest + 1, 1)
    return Episodes(nothing, nothing, nothing, nothing[:, 1:], nothing[:, 1:], filled, mask.bool(), mask)


@pytest.mark.parametrize("centred", [False, True])
def test_rewards_are_brought_to_unit_size_by_all_that_arrived(centred):
    """2, 4, 4, 4, 5, 5, 7, 9 have mean 5 and deviation 2, in whatever pieces they come; padding does not count."""
    scaling = RewardScaling(centred=centred)
    for fresh in (episodes([2.0, 4.0, 4.0]), episodes([4.0], [5.0, 5.0]), episodes([7.0, 9.0])):
        assert scaling.annotate(fresh) == {}
    batch = episodes([5.0, 9.0], [1.0])
    addition, stats = scaling.reward(batch, JointQ(), Noise(0, 0))
    expected = [[0.0, 2.0], [-2.0, 0.0]] if centred else [[2.5, 4.5], [0.5, 0.0]]
    torch.testing.assert_close(((batch.reward + addition) * batch.mask).float(), torch.tensor(expected))
    assert addition[1, 1] == 0
    assert (float(stats["reward/mean"]), float(stats["reward/deviation"])) == pytest.approx((5.0, 2.0))


def test_large_rewards_lose_no_digits_on_the_way():
    scaling, batch = RewardScaling(centred=False), episodes([1e6, -2e6, 3e6, 5e5])
    scaling.annotate(batch)
    addition, _ = scaling.reward(batch, JointQ(), Noise(0, 0))
    learned = (batch.reward.double() + addition).float()
    torch.testing.assert_close(learned, (batch.reward.double() / scaling.deviation).float(), rtol=1e-6, atol=0)


def test_equal_rewards_are_left_as_they_are():
    scaling = RewardScaling(centred=False)
    scaling.annotate(episodes([3.0, 3.0]))
    assert scaling.reward(episodes([3.0]), JointQ(), Noise(0, 0))[0].tolist() == [[0.0]]


def test_the_measure_of_rewards_is_saved():
    """Only the deviation of all that arrived makes numbers comparable after a run goes on."""
    first, second = RewardScaling(centred=True), RewardScaling(centred=True)
    first.annotate(episodes([1.0, 2.0, 6.0]))
    second.load_state_dict(first.state_dict())
    second.annotate(episodes([3.0]))
    assert (float(second.seen), float(second.mean)) == (4.0, 3.0)
    assert float(second.deviation) == pytest.approx(3.5**0.5)


# layers


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_an_agent_plays_as_it_learns(recurrent, shared, layer_norm):
    """Step by step and in one sequence, every layout gives the same values."""
    torch.manual_seed(3)
    agent = AgentNet(SPEC, Layers(16, recurrent, layer_norm, shared), outputs=2)
    obs, last = torch.randn(4, 6, 2, 4), torch.randint(-1, 3, (4, 6, 2))
    values, features = agent(obs, last)
    assert (values.shape, features.shape) == ((4, 6, 2, 3, 2), (4, 6, 2, 16))
    memory = agent.start(4)
    for t in range(6):
        step, memory = agent.step(obs[:, t], last[:, t], memory)
        torch.testing.assert_close(step, values[:, t])


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
def test_agents_that_share_nothing_learn_nothing_of_one_another(recurrent, layer_norm):
    torch.manual_seed(4)
    agent = AgentNet(SPEC, Layers(8, recurrent, layer_norm, shared=False))
    values, _ = agent(torch.randn(3, 5, 2, 4), torch.randint(-1, 3, (3, 5, 2)))
    values[..., 0, :].sum().backward()
    for name, parameter in agent.named_parameters():
        assert parameter.grad is not None and parameter.grad[0].any(), name
        assert not parameter.grad[1].any(), name
