"""Risk: a member of the family is not what its paper says. Mixers and losses against plain arithmetic."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

import algos
import envs
from algos import pqn_vdn, qatten, qtran, wqmix
from algos.factored import Optimizer
from marl.attention import Attention, Keys
from marl.command import cli
from marl.config import Learning
from marl.dice import Noise
from marl.duplex import Duplex
from marl.fields import Mistake
from marl.learner import Learner
from marl.mixers import Unrestricted
from marl.replay import Replay
from marl.types import EnvSpec, Episodes
from tests.family import BUILDS, SPEC, batch, built

SMAC = EnvSpec("5m_vs_6m", n_agents=5, n_actions=12, obs_dim=55, state_dim=98, horizon=70)
PAIR = EnvSpec("pair", n_agents=2, n_actions=3, obs_dim=4, state_dim=5, horizon=6)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def two_layers(inputs: int, hidden: int, out: int) -> int:
    return inputs * hidden + hidden + hidden * out + out


def gradients(q, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    q.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in q.named_parameters() if p.grad is not None and p.grad.any()}


def heads(names) -> set[str]:
    """The networks that parameters belong to."""
    return {name.partition(".")[0] for name in names}


# sizes


def test_published_sizes():
    """184,066 is the S2Q page's; the others are counted layer by layer."""
    assert size(Unrestricted(SMAC)) == 184_066
    assert size(Unrestricted(SMAC, outputs=3)) == 184_066 + 2 * 5 * 256
    head = two_layers(98, 64, 1) + two_layers(98, 64, 5) + two_layers(98 + 60, 64, 5)
    assert size(Duplex(SMAC)) == 2 * two_layers(98, 64, 5) + 4 * head == 107_574
    encoder, deep = two_layers(64 + 12, 76, 76), 64 * 64 + 64
    joint, value = two_layers(98 + 76, 64, 1) + deep, two_layers(98, 64, 1) + deep
    assert size(qtran.JointValue(SMAC, qtran.Config())) == encoder + joint + value
    shared = 4 * two_layers(98, 64, 32) + two_layers(98, 64, 4) + two_layers(98, 32, 1)
    assert size(Attention(SMAC)) == shared + 5 * 4 * (98 * 32 + 32)


def test_an_unrestricted_mixer_takes_several_values_of_each_agent():
    torch.manual_seed(0)
    mixer, chosen, state = Unrestricted(SPEC, 8, outputs=2), torch.randn(5, 3, 2), torch.randn(5, 6)
    expected = mixer.net(torch.cat([state, chosen.reshape(5, 6)], -1)) + mixer.value(state)
    torch.testing.assert_close(mixer(chosen, state), expected)


# QPLEX


def answers(network, inputs) -> list[torch.Tensor]:
    """What each head says, layer by layer."""
    first, *others = network.layers
    hidden = [first.weight[k] @ inputs + first.bias[k] for k in range(network.heads)]
    for layer in others:
        hidden = [layer.weight[k] @ one.relu() + layer.bias[k] for k, one in enumerate(hidden)]
    return hidden


def by_hand(mixer: Duplex, chosen, best, state, actions) -> torch.Tensor:
    """Q_tot head by head and agent by agent."""
    networks = mixer.importance
    weight, bias = mixer.weight(state).abs() + 1e-10, mixer.bias(state)
    joint = torch.cat([state, one_hot(actions, networks.n_actions).flatten().float()])
    keys, agents, acts = answers(networks.key, state), answers(networks.agent, state), answers(networks.action, joint)
    total = torch.zeros(())
    for i in range(len(chosen)):
        importance = torch.zeros(())
        for key, agent, action in zip(keys, agents, acts, strict=True):
            importance = importance + (key[0].abs() + 1e-10) * agent[i].sigmoid() * action[i].sigmoid()
        total = total + weight[i] * chosen[i] + bias[i] + (importance - 1) * weight[i] * (chosen[i] - best[i])
    return total


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_qplex_follows_its_definition(layers):
    torch.manual_seed(1)
    mixer = Duplex(SPEC, advantage_layers=layers)
    for _ in range(4):
        chosen, state, actions = torch.randn(3), torch.randn(6), torch.randint(4, (3,))
        best = chosen + torch.rand(3)
        got = mixer(chosen, best, state, actions)
        torch.testing.assert_close(got, by_hand(mixer, chosen, best, state, actions).view(1))


def test_qplex_at_the_greedy_action_is_a_weighted_sum():
    torch.manual_seed(2)
    mixer, best, state = Duplex(SPEC), torch.randn(20, 3), torch.randn(20, 6)
    expected = ((mixer.weight(state).abs() + 1e-10) * best + mixer.bias(state)).sum(-1, keepdim=True)
    torch.testing.assert_close(mixer(best, best, state, torch.randint(4, (20, 3))), expected)


def test_qplex_chooses_jointly_what_its_agents_choose_alone():
    """IGM for any parameters: the best of all 64 joint actions is every agent's own best."""
    for seed in range(20):
        torch.manual_seed(seed)
        mixer, values, state = Duplex(SPEC), torch.randn(3, 4), torch.randn(6)
        joint = torch.tensor(list(product(range(4), repeat=3)))
        chosen = values.gather(1, joint.T).T
        best = values.amax(-1).expand(64, -1)
        with torch.no_grad():
            totals = mixer(chosen, best, state.expand(64, -1), joint)
        assert joint[totals.argmax()].tolist() == values.argmax(-1).tolist()


def test_no_gradient_goes_through_the_advantage_of_qplex():
    torch.manual_seed(3)
    mixer, state, actions = Duplex(SPEC), torch.randn(6), torch.tensor([0, 1, 2])
    chosen, best = torch.randn(3, requires_grad=True), torch.full((3,), 3.0, requires_grad=True)
    slope_chosen, slope_best = torch.autograd.grad(
        mixer(chosen, best, state, actions).sum(), (chosen, best), allow_unused=True
    )
    torch.testing.assert_close(slope_chosen, mixer.weight(state).abs() + 1e-10)
    assert slope_best is None
    mixer(chosen, chosen.detach(), state, actions).sum().backward()
    assert not mixer.importance.key.layers[0].weight.grad.any(), "nothing is learned without advantage"


# Qatten


def test_qatten_follows_its_definition():
    torch.manual_seed(4)
    mixer, state, chosen = Attention(SPEC, heads=2, key_embed=3), torch.randn(6), torch.randn(3)
    total = mixer.value(state)
    keys = torch.stack([(mixer.keys.linear.weight[i] @ state + mixer.keys.linear.bias[i]).view(2, 3) for i in range(3)])
    for h in range(2):
        hidden = mixer.query1(state).relu().view(2, -1)[h]
        query = mixer.query2.weight[h] @ hidden + mixer.query2.bias[h]
        share = torch.stack([query @ keys[i, h] / 3**0.5 for i in range(3)]).softmax(0)
        total = total + mixer.head_weight(state)[h].abs() * (share @ chosen)
    torch.testing.assert_close(mixer(chosen, chosen, state, chosen.long()), total)


def test_qatten_grows_with_every_utility_and_its_attention_adds_up():
    torch.manual_seed(5)
    mixer, state = Attention(SPEC), torch.randn(20, 6)
    torch.testing.assert_close(mixer.attention(state).sum(-1), torch.ones(20, 4))
    chosen = torch.randn(20, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(mixer(chosen, chosen, state, chosen.long()).sum(), chosen)
    assert (slope > 0).all()
    plain = Attention(SPEC, head_hidden=None)
    (slope,) = torch.autograd.grad(plain(chosen, chosen, state, chosen.long()).sum(), chosen)
    torch.testing.assert_close(slope.sum(-1), torch.full((20,), 4.0))


def test_agents_told_apart_by_the_state_have_keys_of_their_own_features():
    torch.manual_seed(6)
    keys, state = Keys(SPEC, 4, 32, qatten.own_features(SPEC, ["places"])), torch.randn(6)
    swapped = state[[2, 3, 0, 1, 4, 5]]
    torch.testing.assert_close(keys(swapped), keys(state)[[1, 0, 2]])
    assert size(keys) == 4 * (2 * 32 + 32)


@pytest.mark.parametrize("name", ["clock", "placs"])
def test_features_that_are_nobody_s_are_refused(name):
    with pytest.raises(
        Mistake,
        match=rf"^algo.own_features=\[{name}\]: not told agent by agent in env=hand; allowed are lists of \[\], places",
    ):
        built("qatten", own_features=[name])


# losses by hand


class Table(nn.Module):
    """An agent whose values are a table over time; what it remembers is the time."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, obs, last_action):
        steps = torch.arange(float(obs.shape[1])).view(-1, 1, 1).expand(obs.shape[0], -1, 2, 1)
        return self.values[: obs.shape[1]].expand(obs.shape[0], -1, -1, -1), steps


class Total(nn.Module):
    """A central value that is the sum, three times."""

    def forward(self, chosen, state):
        return 3 * chosen.sum(-1, keepdim=True)


def two_steps() -> Episodes:
    """Agents take (0, 1), rewarded 1, then (1, 0), rewarded 2, which ends it."""
    fields = {
        "obs": torch.zeros(1, 3, 2, 4),
        "state": torch.zeros(1, 3, 5),
        "avail": torch.ones(1, 3, 2, 3, dtype=torch.bool),
        "actions": torch.tensor([[[0, 1], [1, 0]]]),
        "executed": torch.tensor([[[0, 1], [1, 0]]]),
        "reward": torch.tensor([[1.0, 2.0]]),
        "terminal": torch.tensor([[False, True]]),
    }
    return Episodes.of(fields, torch.tensor([2]))


LIVE = [[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [[3.0, 1.0, 0.0], [4.0, 0.0, 0.0]], [[0.0] * 3] * 2]
"""Q_tot is 1+2 = 3, the greedy action, then 1+4 = 5, below the greedy 3+4."""


def weighted(**settings):
    q = built("cw_qmix", PAIR, gamma=0.5, td_lambda=0.0, td_weight=1.0, **settings)
    q.agent, q.mixer = Table(LIVE), built("vdn").mixer
    q.central_agent = Table([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]], [[0.0] * 3] * 2])
    q.slow_central_agent = Table([[[0.0] * 3] * 2, [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[9.0] * 3] * 2])
    q.central_mixer = q.slow_central_mixer = Total()
    return q


def test_cw_qmix_loss_by_hand():
    """Delayed Q* of the greedy action: 0 now, 3 (1+1) = 6 next; y = 1 + .5*6 = 4 and 2. Q* = 3 (1+1) = 6, 3 (2+1) = 9.

    Step 0 is greedy: weight 1. Step 1 is not, and y = 2 is below 6: weight .1.
    Q_tot: (1 (3-4)^2 + .1 (5-2)^2) / 2 = .95; Q*: .5 ((6-4)^2 + (9-2)^2) / 2 = 13.25.
    """
    loss = weighted().loss(two_steps(), Noise(0, 0))
    assert loss.stats["loss/td"].item() == pytest.approx(0.95)
    assert loss.stats["loss/central"].item() == pytest.approx(13.25)
    assert loss.value.item() == pytest.approx(0.95 + 13.25)
    assert loss.stats["wqmix/weight"].item() == pytest.approx(0.55)
    assert loss.priority.tolist() == pytest.approx([(4 + 49) / 2])


def test_ow_qmix_loss_by_hand():
    """Weight 1 below the target, 3 < 4, and .1 above it, 5 > 2: the same here as CW; with weights .5, (1 + 4.5) / 2."""
    loss = weighted(weighting="optimistic", alpha=0.5, central_weight=1.0).loss(two_steps(), Noise(0, 0))
    assert loss.stats["loss/td"].item() == pytest.approx(2.75)
    assert loss.stats["loss/central"].item() == pytest.approx(26.5)


def test_tables_of_weights():
    """Greedy or y above the greedy action's central value, strictly; Q_tot below y, strictly."""
    greedy = torch.tensor([[True, False, False, False]])
    target, best = torch.tensor([[[0.0], [2.0], [1.0], [0.0]]]), torch.ones(1, 4, 1)
    assert wqmix.central_weights(greedy, target, best, 0.25).flatten().tolist() == [1.0, 1.0, 0.25, 0.25]
    assert wqmix.optimistic_weights(best, target, 0.25).flatten().tolist() == [0.25, 1.0, 0.25, 0.25]


def test_losses_of_wqmix_reach_their_own_networks():
    q = built("cw_qmix")
    first = gradients(q, q.loss(batch(), Noise(0, 0)).value)
    assert heads(first) == {"agent", "mixer", "central_agent", "central_mixer"}
    q.config = replace(q.config, central_weight=5.0)
    second = gradients(q, q.loss(batch(), Noise(0, 0)).value)
    for name, gradient in first.items():
        scale = 10.0 if name.startswith("central") else 1.0
        torch.testing.assert_close(second[name], scale * gradient, msg=name)


class Known(nn.Module):
    """A joint value that is the time plus the number of the action, and a V that is 2."""

    def forward(self, histories, state, actions):
        return histories[..., 0, :] + (actions[..., :1] * 3 + actions[..., 1:]).float()

    def worth(self, state):
        return torch.full((*state.shape[:-1], 1), 2.0, requires_grad=True)


def test_qtran_loss_by_hand():
    """Q_jt of what was taken: 0 + 1 = 1 and 1 + 3 = 4; of the greedy (0, 1), (0, 0): 1 and 1; y = 1 + .5*1 and 2.

    L_td = ((1-1.5)^2 + (4-2)^2) / 2. L_opt: 3 - 1 + 2 = 4 and 7 - 1 + 2 = 8. L_nopt: 3 - 1 + 2 = 4, 5 - 4 + 2 = 3,
    none below 0.
    """
    q = built("qtran", PAIR, gamma=0.5, td_lambda=0.0)
    q.agent, q.mixer = Table(LIVE), Known()
    q.slow_agent, q.slow_mixer = Table(LIVE), Known()
    loss = q.loss(two_steps(), Noise(0, 0))
    stats = loss.stats
    assert stats["loss/td"].item() == pytest.approx((0.25 + 4) / 2) and loss.priority.tolist() == [(0.25 + 4) / 2]
    assert stats["loss/opt"].item() == pytest.approx((16 + 64) / 2)
    assert stats["loss/nopt"].item() == 0


def test_qtran_holds_sums_to_the_joint_value_from_above():
    joint, value = torch.tensor([[5.0]] * 3), torch.tensor([[1.0]] * 3)
    sums = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    assert qtran.optimum_error(sums, joint, value).flatten().tolist() == [-2.0, 0.0, 4.0]
    assert qtran.other_error(sums, joint, value).flatten().tolist() == [-2.0, 0.0, 0.0]


def test_losses_of_qtran_reach_what_they_should():
    """L_td: Q_jt and the histories; L_opt and L_nopt: utilities and V, never Q_jt, which they are held to."""
    free = ("mixer.encoder", "mixer.joint")
    q = built("qtran", opt_weight=0.0, nopt_weight=0.0)
    td = gradients(q, q.loss(batch(), Noise(0, 0)).value)
    assert {name for name in td if name.startswith("agent.head") or name.startswith("mixer.value")} == set()
    assert any(name.startswith("agent.body") for name in td) and any(name.startswith(free) for name in td)
    for only in ("opt_weight", "nopt_weight"):
        weights = {"td_weight": 1e-38, "opt_weight": 0.0, "nopt_weight": 0.0, only: 1.0}
        q.config = replace(q.config, **weights)
        held = gradients(q, q.loss(batch(), Noise(0, 0)).value)
        strong = {name for name, gradient in held.items() if gradient.abs().max() > 1e-20}
        assert {name for name in strong if name.startswith(free)} == set(), only
        assert any(name.startswith("agent.head") for name in strong), only
        assert any(name.startswith("mixer.value") for name in strong), only


def test_pqn_loss_by_hand():
    """Its own values are its targets: y = 1 + .5 (3+4) and 2, and no gradient comes from there."""
    q = built("pqn_vdn", PAIR, gamma=0.5, td_lambda=0.0)
    q.agent = Table(LIVE)
    loss = q.loss(two_steps(), Noise(0, 0))
    assert loss.value.item() == pytest.approx(((3 - 4.5) ** 2 + (5 - 2) ** 2) / 2)
    slope = gradients(q, loss.value)["agent.values"]
    expected = torch.zeros_like(slope)
    expected[0, 0, 0] = expected[0, 1, 1] = 3 - 4.5
    expected[1, 0, 1] = expected[1, 1, 0] = 5 - 2
    torch.testing.assert_close(slope, expected)


def test_pqn_keeps_no_delayed_copies():
    q = built("pqn_vdn")
    assert q.targets() == []
    assert heads(q.state_dict()) == {"agent"}


def test_pqn_may_keep_the_values_of_a_round():
    """The copy's maxima, not what it says of the live network's choice (0, 0): y = 1 + .5 (6+2) and 2."""
    q = built("pqn_vdn", PAIR, gamma=0.5, td_lambda=0.0, target_every_episodes=128)
    assert q.delay.every_episodes == 128 and heads(q.state_dict()) == {"agent", "slow_agent"}
    q.agent = Table(LIVE)
    q.slow_agent = Table([[[0.0] * 3] * 2, [[1.0, 6.0, 0.0], [0.0, 2.0, 0.0]], [[9.0] * 3] * 2])
    assert q.loss(two_steps(), Noise(0, 0)).value.item() == pytest.approx(((3 - 5) ** 2 + (5 - 2) ** 2) / 2)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("algo=pqn_vdn algo.target_tau=0.1", "algo.target_tau=0.1: pqn_vdn has no copies that follow softly"),
        ("algo=pqn_vdn recipe=pymarl", "algo.double_q=true: pqn_vdn values what it chooses by the same network"),
        ("algo=wqmix algo.double_q=false", "algo.double_q=false: wqmix values the actions"),
        ("algo=fim algo.base=wqmix algo.base.double_q=false", "algo.base.double_q=false: wqmix values the actions"),
    ],
)
def test_what_a_paper_leaves_no_room_for_is_refused_before_anything_starts(line, told):
    with pytest.raises(Mistake, match=told):
        cli.parse([*line.split(), "env=meet"], algos.ALGORITHMS, envs.ENVIRONMENTS)


# all of them


@pytest.mark.parametrize("name", BUILDS)
def test_a_joint_value_is_one_number(name):
    q, (chosen, best) = built(name), torch.randn(2, 5, 3).sort(0).values
    joint = q.mix(chosen, best, torch.randn(5, 6), torch.zeros(5, 3, dtype=torch.long))
    assert joint.shape == (5,)
    if name == "iql":
        torch.testing.assert_close(joint, chosen.mean(-1))


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("returns", ["peng", "watkins"])
def test_padding_changes_nothing(name, returns):
    q = built(name, returns=returns)
    short, long = (q.loss(batch(padding=padding), Noise(0, 0)) for padding in (0, 3))
    assert torch.isfinite(long.value)
    torch.testing.assert_close(long.value, short.value)
    torch.testing.assert_close(long.priority, short.priority)
    first, second = gradients(q, short.value), gradients(q, long.value)
    assert first.keys() == second.keys() and first
    for key, gradient in first.items():
        torch.testing.assert_close(second[key], gradient, msg=key)


@pytest.mark.parametrize("name", BUILDS)
def test_an_optimiser_has_every_parameter_that_learns_once(name):
    q = built(name)
    q.equip()
    (descent,) = q.descents()
    mine = [id(p) for p in descent.parameters]
    assert sorted(mine) == sorted({id(p) for p in q.parameters() if p.requires_grad})
    assert {id(p) for _, source in q.targets() for p in source.parameters()} <= set(mine)


def test_delayed_copies_do_not_travel():
    for name in BUILDS:
        module, config = BUILDS[name]
        assert not any("slow" in key for key in module.build(SPEC, config).travelling()), name


def test_radam_is_torch_s():
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    descent, reference = Optimizer("radam", lr=0.1, clip=100.0).make("x", [ours]), torch.optim.RAdam([theirs], lr=0.1)
    for _ in range(8):
        descent((ours * torch.tensor([1.0, 2.0, 3.0])).sum())
        theirs.grad = torch.tensor([1.0, 2.0, 3.0])
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_settings_of_qplex_are_the_released_ones():
    """wjh720/QPLEX: PyMARL's optimiser and replay; sizes of its matrix games, but as many heads as on SMAC."""

    def chosen(*arguments):
        return cli.parse(["algo=qplex", "env=matrix", *arguments], algos.ALGORITHMS, envs.ENVIRONMENTS)

    algo, learner = chosen().algo, chosen().learner
    assert (algo.heads, algo.advantage_layers, algo.advantage_embed, algo.hyper_embed) == (4, 3, 64, 64)
    assert (algo.optimizer.name, algo.optimizer.lr, algo.optimizer.clip, algo.td_lambda) == ("rmsprop", 5e-4, 10.0, 0.0)
    assert (learner.batch, learner.updates_per_episode) == (32, 1.0)
    assert chosen("recipe=pymarl2").algo.optimizer.name == "adam"


def test_settings_of_pqn_are_the_released_ones():
    algo = cli.parse(["algo=pqn_vdn", "env=matrix"], algos.ALGORITHMS, envs.ENVIRONMENTS).algo
    assert (algo.hidden, algo.dense_layers, algo.layer_norm, algo.td_lambda) == (512, 2, True, 0.85)
    assert algo.optimizer == Optimizer("radam", lr=2.5e-4, clip=1.0, lr_decay=True)
    tuned = cli.parse(["algo=pqn_vdn", "env=matrix", "recipe=tuned"], algos.ALGORITHMS, envs.ENVIRONMENTS).algo
    assert tuned.dense_layers == 2
    assert tuned.optimizer == Optimizer("radam", lr=5e-4, eps=1e-5, clip=1.0, lr_decay=True)


# fresh episodes


def test_updates_wait_for_the_episodes_they_are_of():
    """Two updates for each four episodes, all at once: neither one after every second, nor before the fourth."""
    parts = pqn_vdn.build(PAIR, pqn_vdn.Config(hidden=8))
    replay = Replay(PAIR, PAIR.fields(), 4, torch.device("cpu"))
    learner = Learner(parts, replay, Learning(2, 0.5, 4, every_episodes=4), 0)
    episode = {
        "obs": torch.zeros(2, 2, 4).numpy(),
        "state": torch.zeros(2, 5).numpy(),
        "avail": torch.ones(2, 2, 3, dtype=torch.bool).numpy(),
        "actions": torch.zeros(1, 2, dtype=torch.uint8).numpy(),
        "executed": torch.zeros(1, 2, dtype=torch.uint8).numpy(),
        "reward": torch.ones(1).numpy(),
        "terminal": torch.ones(1, dtype=torch.bool).numpy(),
    }
    made = []
    for _ in range(12):
        learner.absorb(episode)
        made.append(len(learner.improve()))
    assert made == [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2]


def test_fresh_episodes_have_to_fit():
    with pytest.raises(Mistake, match=r"^learner.every_episodes=200: allowed are up to replay.capacity \(128\)"):
        cli.parse(["algo=pqn_vdn", "env=meet", "learner.every_episodes=200"], algos.ALGORITHMS, envs.ENVIRONMENTS)
