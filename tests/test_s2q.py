"""Risk: S2Q computes something else than its specification says. Numbers typed in by hand, or by plain loops."""

from __future__ import annotations

import copy
from dataclasses import fields
from itertools import product

import numpy as np
import pytest
import torch

import algos
import envs
from algos import s2q
from algos.successive.rows import Rows
from algos.successive.selection import divergence, draw, softmax
from algos.successive.sub_values import SubAgents, suppressed, weights
from marl import build
from marl.command import cli, request
from marl.command.compose import Registries
from marl.dice import Dice, Noise
from marl.fields import Mistake
from marl.nets import AgentNet, Layers
from marl.ops import lambda_returns
from marl.parts import Parts
from marl.types import EnvSpec, Episodes, View
from tests.test_family_losses import drawn_to
from tests.yard import run

SPEC = EnvSpec("hand", n_agents=3, n_actions=4, obs_dim=6, state_dim=5, horizon=9)
SMAC = EnvSpec("5m_vs_6m", n_agents=5, n_actions=12, obs_dim=55, state_dim=98, horizon=70)
GRF = EnvSpec("3_vs_2", n_agents=3, n_actions=19, obs_dim=26, state_dim=26, horizon=150)
SMALL = {"hidden": 8, "central_embed": 16, "mixing_embed": 4, "hyper_embed": 6, "latent_dim": 3, "latent_hidden": 7}
SMALL |= {"heads": 2, "key_embed": 3, "advantage_embed": 5}
(MIXERS,) = [entry.metadata["allowed"] for entry in fields(s2q.Config) if entry.name == "mixer"]


def made(spec=SPEC, **options) -> s2q.S2Q:
    torch.manual_seed(0)
    q = algos.assemble(spec, s2q.Config(**{**SMALL, **options})).q
    assert isinstance(q, s2q.S2Q)
    q.equip()
    return q


def episodes(lengths=(7, 3, 5, 7), horizon=7, seed=0) -> Episodes:
    """Random ones, their padding zeros as replay leaves it. Every second one ends, the others are cut."""
    rng = np.random.default_rng(seed)
    records = []
    for number, length in enumerate(lengths):
        avail = rng.random((length + 1, SPEC.n_agents, SPEC.n_actions)) < 0.7
        avail[..., 0] = True
        actions = np.where(avail[:-1], rng.random(avail[:-1].shape), -1).argmax(-1)
        records.append(
            {
                "obs": rng.standard_normal((length + 1, SPEC.n_agents, SPEC.obs_dim)),
                "state": rng.standard_normal((length + 1, SPEC.state_dim)),
                "avail": avail,
                "actions": actions,
                "executed": actions,
                "reward": rng.random(length),
                "terminal": np.arange(length) == (length - 1 if number % 2 else length),
            }
        )
    batch = Episodes.of_records(records, SPEC.fields())
    fields = {name: value for name, value in vars(batch).items() if name != "columns"}
    extra = horizon - max(lengths)
    zeros = {name: value.new_zeros(len(value), extra, *value.shape[2:]) for name, value in fields.items()}
    return Episodes(**{name: torch.cat([value, zeros[name]], 1) for name, value in fields.items()})


# arithmetic


@pytest.mark.parametrize(
    ("taken", "targets"),
    [
        ((0,), (2.0, 0.5, 0.5)),
        ((1,), (2.0, 2.0, 0.5)),
        ((2,), (2.0, 2.0, 2.0)),
        ((0, 1), (2.0, 0.5, 0.5)),
        ((), (2.0, 2.0, 2.0)),
    ],
)
def test_what_an_earlier_sub_value_would_take_is_suppressed_once(taken, targets):
    chosen = torch.tensor([k in taken for k in range(3)]).view(3, 1, 1)
    got = suppressed(torch.full((1, 1), 2.0), torch.full((1, 1), 1.5), chosen)
    assert got.flatten().tolist() == list(targets)


def test_with_a_floor_what_the_first_would_take_falls_by_alpha_times_it_and_its_neighbours_do_not():
    """y = 2, Q*(u) = 1.5, alpha = 2, C = 5: 2 - 10 = -8; the next action differs in the choice of one agent."""
    q, batch = made(alpha=2.0, floor=5.0), episodes((1, 1), horizon=1)
    batch.avail[:], batch.terminal[:], batch.reward[:] = True, True, 2.0
    batch.actions[:] = torch.tensor([[[1, 2, 3]], [[1, 2, 0]]])
    greedy = torch.stack([torch.full((2, 2, 3), own) for own in (0, 2, 0)])
    greedy[0] = torch.tensor([1, 2, 3])
    with torch.no_grad():
        live = q.live(batch)._replace(greedy=greedy, central=torch.full((2, 1), 1.5))
    assert q.aims(live, batch).aims.squeeze(-1).T.tolist() == [[2.0, -8.0, -8.0], [2.0, 2.0, 2.0]]


def test_lambda_returns_of_the_specification():
    reward, values = torch.tensor([[[1.0], [0.0], [2.0]]]), torch.tensor([[[4.0], [3.0], [7.0]]])
    for ends, expected in ((True, (3.995344, 2.376, 2.0)), (False, (6.4404975, 6.49242, 8.93))):
        terminal = torch.tensor([[False, False, ends]])
        got = lambda_returns(reward, terminal, torch.ones(1, 3), values, 0.99, 0.6)
        torch.testing.assert_close(got.flatten(), torch.tensor(expected))


def test_probabilities_and_their_divergence():
    probabilities = softmax(torch.tensor([[[1.0, 0.9, 0.8]]]), 0.1)
    torch.testing.assert_close(probabilities.flatten(), torch.tensor([0.66524, 0.24473, 0.09003]), atol=1e-5, rtol=0)
    uniform = torch.full((1, 1, 3), 1 / 3)
    assert divergence(probabilities, uniform, torch.ones(1, 1)).item() == pytest.approx(0.0887389, abs=1e-6)


def test_weights():
    candidates = torch.tensor([[3.0, 3.0], [2.0, 3.1], [1.0, 1.0]]).view(3, 1, 2)
    error = torch.tensor([[9.0, 9.0], [-0.1, 0.1], [0.0, -0.1]]).view(3, 1, 2)
    got = weights(error, torch.tensor([[3.0, 3.0]]), candidates, 0.9).view(3, 2)
    torch.testing.assert_close(got, torch.tensor([[1.0, 0.9], [1.0, 0.9], [0.9, 1.0]]))


def test_draws_follow_probabilities():
    probabilities = torch.tensor([0.2, 0.0, 0.5, 0.3])
    got = draw(probabilities.expand(5, -1), torch.tensor([0.0, 0.19, 0.2, 0.69, 0.9999999]))
    assert got.tolist() == [0, 0, 2, 2, 3]
    assert draw(torch.tensor([[0.5, 0.49999]]), torch.tensor([0.9999999])).tolist() == [1]


def test_settings_are_the_published_ones():
    settings = cli.parse(["algo=s2q", "env=matrix"], algos.ALGORITHMS, envs.ENVIRONMENTS)
    algo, learner = settings.algo, settings.learner
    assert (algo.target_every_episodes, algo.target_tau, algo.optimizer.clip, algo.optimizer.name) == (
        200,
        0,
        10,
        "adam",
    )
    assert (algo.hidden, algo.mixing_embed, algo.hyper_embed, algo.central_embed) == (64, 32, 64, 256)
    assert (algo.central_outputs, algo.latent_dim, algo.latent_hidden, algo.td_weight) == (1, 32, 64, 1.0)
    assert (algo.suppress_by, algo.draw_from, algo.own_draws, algo.comm) == ("live", "learned", False, False)
    assert (learner.batch, learner.updates_per_episode, settings.replay.capacity) == (128, 0.125, 5000)
    assert (algo.successors, algo.temperature, algo.least_weight, algo.alpha, algo.floor) == (2, 0.1, 0.9, 1.0, None)
    assert (algo.td_lambda, algo.gamma, algo.agent_id, algo.optimizer.lr, algo.mixed) == (0.6, 0.99, False, 1e-3, 0.5)
    settings = request.one(["experiment=s2q_3v1"], Registries(algos.ALGORITHMS, envs.ENVIRONMENTS))
    assert build.schedule(settings).epsilon_at(50_000) == pytest.approx(0.525)
    assert (settings.algo.hidden, settings.algo.agent_id, settings.eval.episodes) == (256, True, 16)


@pytest.mark.parametrize(
    ("spec", "options", "agent", "mixer", "central", "chooser", "total"),
    [
        (SMAC, {}, 30_092, 31_521, 184_066, 39_621, 438_618),
        (GRF, {"hidden": 256, "agent_id": True}, 412_179, 13_537, 146_690, 63_613, 1_899_630),
    ],
)
def test_published_parameter_counts(spec, options, agent, mixer, central, chooser, total):
    q = algos.assemble(spec, s2q.Config(**options)).q

    def size(network):
        return sum(p.numel() for p in network.parameters() if p.requires_grad)

    assert size(q.agents) == 3 * agent and size(q.mixers) == 3 * mixer and size(q.chooser) == chooser
    assert size(q.central.agent) == agent and size(q.central.mixer) == central
    assert size(q) == total


# networks side by side


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize(("shared", "dense"), [(True, 1), (False, 1), (True, 3), (False, 2)])
def test_each_of_the_networks_side_by_side_is_an_agent_network(recurrent, layer_norm, shared, dense):
    torch.manual_seed(0)
    layers = Layers(8, recurrent, layer_norm, shared, dense)
    stacked, batch, single = SubAgents(SPEC, layers, 3), episodes(), AgentNet(SPEC, layers)
    for parameter in stacked.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    values, features = stacked(batch.obs, batch.last_action)
    memory = stacked.start(4)
    for t in range(8):
        now, recalled, memory = stacked.step(batch.obs[:, t], batch.last_action[:, t], memory)
        torch.testing.assert_close(now, values[:, :, t])
        torch.testing.assert_close(recalled, features[:, :, t])
    assert memory.shape == (4, 3, 3, 8 if recurrent else 0)
    own = dict(stacked.named_parameters())
    for k in range(3):
        for name, parameter in single.named_parameters():
            where = name.replace("body.trunk.", "").replace("rnn", "second").replace("last", "second")
            weight = own[where.removesuffix("_l0")].detach()
            rows = weight[k : k + 1] if shared else weight[3 * k : 3 * k + 3]
            parameter.data.copy_(rows.reshape(parameter.shape))
        expected = single(batch.obs, batch.last_action)
        torch.testing.assert_close(values[k], expected[0])
        torch.testing.assert_close(features[k], expected[1])


# losses


@torch.no_grad()
def expected_losses(q: s2q.S2Q, batch: Episodes):
    """Sections 4.1 to 4.5, step by step: L_c, [L_0 ..], L_z."""
    config = q.config
    values, features = q.agents(batch.obs, batch.last_action)
    known, slow = (net.utilities(batch.obs, batch.last_action) for net in (q.central, q.slow_central))
    k1, n_batch = len(values), len(batch.mask)
    masked = values.masked_fill(~batch.avail, -torch.inf)
    greedy, best = masked.argmax(-1), masked.amax(-1)

    def worth(b, t, actions):
        return q.slow_central(slow[b, t], batch.state[b, t], actions).item()

    def joint(k, b, t, actions):
        chosen = values[k, b, t, torch.arange(SPEC.n_agents), actions]
        return q.mixers[k](chosen, best[k, b, t], batch.state[b, t], actions).item()

    total = batch.mask.sum().item()
    central, subs, kl, rebuilt = 0.0, [0.0] * k1, 0.0, 0.0
    for b in range(n_batch):
        length = int(batch.mask[b].sum())
        made = batch.actions[b, :length]
        scores = [[worth(b, t, greedy[k, b, t]) for k in range(k1)] for t in range(length + 1)]
        taken = [worth(b, t, actions) for t, actions in enumerate(made)]
        own = [[bool((actions == greedy[k, b, t]).all()) for k in range(k1)] for t, actions in enumerate(made)]
        following, first = [score[0] for score in scores[1:]], [mine[0] for mine in own]
        ended = bool(batch.terminal[b].any())
        returns = drawn_to(config, batch.reward[b, :length].tolist(), ended, following, taken, first)
        for t, (y, actions) in enumerate(zip(returns, made, strict=True)):
            cq = q.central(known[b, t], batch.state[b, t], actions).item()
            central += (cq - y) ** 2 / total
            amount = cq if config.suppress_by == "live" else taken[t]
            amount = amount if config.floor is None else max(amount, config.floor)
            for k in range(k1):
                error = joint(k, b, t, actions) - (y - config.alpha * amount * any(own[t][:k]))
                full = all(cq >= v for v in scores[t]) if k == 0 else error < 0
                subs[k] += (1 if full else config.least_weight) * error**2 / total
            p = np.exp(np.array(scores[t]) / config.temperature - max(scores[t]) / config.temperature)
            p /= p.sum()
            guess = q.chooser(features[0, b, t])
            kl += float((p * (np.log(p) - np.log(guess.probabilities.numpy() + 1e-8))).sum()) / (total * k1)
            rebuilt += (guess.state - batch.state[b, t]).square().mean().item() / total
    weight = config.td_weight
    return weight * central, [weight * sub for sub in subs], kl + rebuilt


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 2.0, "floor": 5.0, "suppress_by": "delayed", "least_weight": 0.1},
        {"successors": 3, "mixer": "sum", "central_outputs": 2, "temperature": 1.0, "td_lambda": 0.0},
        {"successors": 0},
        {"mixer": "duplex", "floor": 1.0, "td_weight": 0.5},
        {"mixer": "duplex", "advantage_layers": 3, "returns": "watkins", "td_lambda": 0.7, "successors": 1},
        {"returns": "harutyunyan", "td_lambda": 0.4, "suppress_by": "delayed"},
        {"returns": "n_step", "n_step": 2},
        {"mixer": "attention"},
    ],
)
def test_losses_are_those_of_the_specification(options):
    q, batch = made(**options), episodes()
    for parameter in q.slow_central.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    # Half of the choices are a candidate's, so that there is something to suppress.
    greedy = q.live(batch).values.masked_fill(~batch.avail, -torch.inf).argmax(-1)[:, :, :-1]
    which = torch.randint(len(greedy), batch.mask.shape)
    candidate = greedy.gather(0, which[None, ..., None].expand(1, -1, -1, 3))[0]
    batch.actions[:, ::2] = (candidate * batch.mask.long().unsqueeze(-1))[:, ::2]
    losses = q.losses(batch)[0]
    central, subs, selection = expected_losses(q, batch)
    assert losses.central.item() == pytest.approx(central, rel=1e-4)
    assert losses.sub_values.tolist() == pytest.approx(subs, rel=1e-4)
    assert losses.selection.item() == pytest.approx(selection, rel=1e-4)
    loss = q.loss(batch, Noise(0, 0))
    assert loss.value.item() == pytest.approx(central + sum(subs) + selection, rel=1e-4)
    _, live, aims, _ = q.losses(batch)
    of_team = (live.joint[0] - aims.target).square() * batch.mask
    torch.testing.assert_close(loss.priority, of_team.sum(1) / batch.mask.sum(1))


@pytest.mark.parametrize("draw_from", ["learned", "central", "uniform"])
def test_what_is_told(draw_from):
    """The metrics of docs/s2q.md, step by step."""
    q, batch = made(draw_from=draw_from, mixed=0.8), episodes()
    greedy = q.live(batch).values.masked_fill(~batch.avail, -torch.inf).argmax(-1)
    batch.actions[:, ::2] = greedy[1, :, :-1:2] * batch.mask[:, ::2].long().unsqueeze(-1)
    _, live, aims, told = q.losses(batch)
    kl, counts, drawn = 0.0, np.zeros(3), np.zeros(3)
    for b, t in batch.mask.nonzero().tolist():
        p, guess = aims.probabilities[b, t], q.chooser(live.histories[b, t]).probabilities.detach()
        kl += (p * (p.log() - (guess + 1e-8).log())).sum().item()
        drawn += {"learned": guess, "central": p, "uniform": torch.full((3,), 1 / 3)}[draw_from].numpy()
        own = [bool((batch.actions[b, t] == live.greedy[k, b, t]).all()) for k in range(3)]
        counts += [any(own[:k]) for k in range(3)]
    steps = batch.mask.sum().item()
    assert counts[1:].all() and told["choice/kl"].item() == pytest.approx(kl / steps, rel=1e-4)
    for k in range(3):
        share = 0.8 * drawn[k] / steps + (0.2 if k == 0 else 0.0)
        assert told[f"choice/share{k}"].item() == pytest.approx(share, rel=1e-4)
        assert told[f"candidate/suppressed{k}"].item() == pytest.approx(counts[k] / steps)
        assert told[f"candidate/value{k}"].item() == pytest.approx(aims.scores[k][batch.mask.bool()].mean().item())


@pytest.mark.parametrize("every_row", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_changes_no_loss(mixer, every_row, monkeypatch):
    """On a GPU mixers see padding too: here they are made to."""
    q = made(mixer=mixer)
    short = q.losses(episodes(horizon=7))[0]
    gradients = torch.autograd.grad(short.total(), q._descent.parameters, allow_unused=True)
    if every_row:
        monkeypatch.setattr(Rows, "apply", lambda _, network, *inputs: network(*inputs))
    long = q.losses(episodes(horizon=9))[0]
    for one, other in zip(short, long, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(
        gradients, torch.autograd.grad(long.total(), q._descent.parameters, allow_unused=True), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_sub_value_never_falls_as_a_utility_rises(mixer):
    q, batch = made(mixer=mixer), episodes()
    chosen, actions = torch.randn(4, 7, 3), batch.actions
    for mix in q.mixers:
        before = mix(chosen, chosen + 1, batch.state[:, :-1], actions)
        for agent in range(3):
            after = mix(chosen + torch.eye(3)[agent], chosen + 1, batch.state[:, :-1], actions)
            assert (after >= before).all() and (after > before).any()


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_sub_value_is_highest_where_its_agents_are(mixer):
    """IGM: of all 64 joint actions, the best one is made of every agent's own."""
    q, state = made(mixer=mixer), torch.randn(5)
    joint = torch.tensor(list(product(range(4), repeat=3)))
    for mix in q.mixers:
        values = torch.randn(3, 4)
        chosen, best = values.gather(1, joint.T).T, values.amax(-1).expand(64, -1)
        totals = mix(chosen, best, state.expand(64, -1), joint)
        assert joint[totals.argmax()].tolist() == values.argmax(-1).tolist()


def reached(q: s2q.S2Q, loss: torch.Tensor) -> set[str]:
    """Networks that the gradient of a loss is not zero at; sub-values by their index."""
    q.zero_grad()
    loss.backward(retain_graph=True)
    found = set()
    for name, parameter in q.named_parameters():
        if parameter.grad is None or not parameter.grad.any():
            continue
        if name.startswith("agents."):
            found |= {f"agent{k}" for k in range(len(q.mixers)) if parameter.grad[k].any()}
        elif name.startswith("mixers."):
            found.add(f"mixer{name.split('.')[1]}")
        else:
            found.add(".".join(name.split(".")[: 2 if "central" in name or "encoder" in name else 1]))
    return found


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("comm", [False, True])
def test_each_loss_reaches_its_own_networks_only(comm, mixer):
    q = made(comm=comm, mixer=mixer, layer_norm=True)
    losses = q.losses(episodes())[0]
    encoder = {"chooser.encoder"} if comm else set()
    for k in range(3):
        own = {f"agent{k}"} if mixer == "sum" else {f"agent{k}", f"mixer{k}"}
        assert reached(q, losses.sub_values[k]) == own | encoder
    assert reached(q, losses.central) == {"central.agent", "central.mixer"}
    assert reached(q, losses.selection) == {"chooser", "chooser.encoder"}


# acting


def telling(spec=SPEC, **options) -> s2q.S2Q:
    """Sub-value k always takes action k, so that actions tell who plays."""
    q = made(spec, **options)
    q.agents.head.weight.data.zero_()
    q.agents.head.bias.data.copy_(torch.eye(spec.n_actions)[: len(q.mixers)])
    q.ready.fill_(True)
    return q.requires_grad_(False)


def look(numbers) -> View:
    obs = np.stack([np.random.default_rng(n).standard_normal((3, 6)) for n in numbers]).astype(np.float32)
    state = torch.from_numpy(obs[:, 0, :5].copy())
    everything = torch.ones(len(obs), 3, 4, dtype=torch.bool)
    return View(torch.from_numpy(obs), state, everything, torch.full((len(obs), 3), -1))


def play(q: s2q.S2Q, numbers, steps=20, purpose="train", epsilon=0.0) -> torch.Tensor:
    """(T, E, N) choices in episodes of these numbers, whose observations never change."""
    view, memory, dice, chosen = look(numbers), q.memory(len(numbers)), Dice(0, purpose, numbers), []
    for _ in range(steps):
        actions, memory = q.act(view, memory, epsilon, dice)
        chosen.append(actions)
        view = view._replace(last_action=actions)
    return torch.stack(chosen)


def test_one_sub_value_plays_for_the_team_in_half_of_the_episodes():
    played = play(telling(draw_from="uniform"), range(400))
    assert (played == played[..., :1]).all()
    team = played[..., 0]
    mixed = (team > 0).any(0)
    assert 0.42 < mixed.float().mean() < 0.58
    shares = team[:, mixed].flatten().bincount(minlength=3) / team[:, mixed].numel()
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    assert (team[1:, mixed] != team[:-1, mixed]).any(0).float().mean() > 0.9
    assert len(team[:, mixed].T.unique(dim=0)) > 150


def test_noise_comes_on_top_of_the_sub_value_that_is_drawn():
    q = telling(mixed=1.0, draw_from="uniform")
    drawn, noisy = play(q, range(200)), play(q, range(200), epsilon=0.2)
    for k in range(3):
        kept = (noisy == k)[drawn == k].float().mean().item()
        assert kept == pytest.approx(0.8 + 0.2 / 4, abs=0.03), "random choices take it too, once in four"


def test_sub_values_are_drawn_as_the_decoder_tells():
    q = telling(mixed=1.0)
    q.chooser.probabilities.weight.data.zero_()
    q.chooser.probabilities.bias.data.copy_(torch.tensor([0.7, 0.1, 0.2]).log())
    shares = play(q, range(300))[..., 0].flatten().bincount(minlength=3) / 6000
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.1, 0.2]), atol=0.03, rtol=0)
    guess = made().chooser(torch.randn(5, 3, 8)).probabilities
    torch.testing.assert_close(guess.sum(-1), torch.ones(5))


def test_the_oracle_draws_by_the_central_values_of_the_candidates():
    q, numbers = telling(mixed=1.0, draw_from="central", temperature=0.05), range(200)
    played = play(q, numbers, steps=30)[..., 0]
    view, memory = look(numbers), q.memory(200)
    utilities, _ = q.central.agent.step(view.obs, view.last_action, memory.central)
    actions = torch.arange(3).view(3, 1, 1).expand(3, 200, 3)
    first = softmax(q.central(utilities, view.state, actions).T, 0.05).mean(0)
    torch.testing.assert_close(played[0].bincount(minlength=3) / 200, first, atol=0.1, rtol=0)
    assert (play(telling(mixed=1.0), numbers)[..., 0][0] != played[0]).any()


@pytest.mark.parametrize("options", [{"mixed": 0.0}, {"successors": 0}])
def test_without_mixing_only_the_first_sub_value_plays(options):
    assert not play(telling(**options), range(50)).any()


def test_only_training_after_an_update_mixes():
    q = telling(mixed=1.0, draw_from="uniform")
    assert play(q, range(20)).any()
    assert not play(q, range(20), purpose="evaluate").any()
    q.ready.fill_(False)
    assert not play(q, range(20)).any()


def test_agents_may_draw_on_their_own():
    played = play(telling(own_draws=True, draw_from="uniform", mixed=1.0), range(100))
    assert 0.05 < (played == played[..., :1]).all(-1).float().mean() < 0.2


@pytest.mark.parametrize("options", [{}, {"comm": True}, {"draw_from": "central"}, {"own_draws": True}])
def test_an_episode_does_not_depend_on_those_beside_it(options):
    q = telling(**options)
    together = play(q, range(16))
    assert together.any()
    alone = torch.cat([play(q, [number]) for number in range(16)], 1)
    halves = torch.cat([play(q, range(8)), play(q, range(8, 16))], 1)
    assert torch.equal(together, alone) and torch.equal(together, halves)


def test_agents_that_communicate_are_told_nothing_before_the_first_update():
    q, view = made(comm=True, latent_dim=3), look(range(4))
    untold = SubAgents(SPEC, q.config.layers(), 3, 3)
    untold.load_state_dict(q.agents.state_dict())
    start = q.memory(4)
    expected = untold.step(view.obs, view.last_action, start.hidden, torch.zeros(4, 3))[0][0]
    torch.testing.assert_close(q.utilities(view, start), expected)
    q.ready.fill_(True)
    assert not torch.allclose(q.utilities(view, start), expected)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_acting_and_learning_see_the_same_with_messages(layer_norm):
    q, batch = made(comm=True, layer_norm=layer_norm), episodes(lengths=(5, 5), horizon=5)
    for parameter in q.agents.norm.parameters():
        parameter.data += torch.randn_like(parameter)
    q.ready.fill_(True)
    memory, dice = q.memory(2), Dice(0, "evaluate", range(2))
    values, histories = q.unroll(batch)
    assert q.agents.dense[0].weight.shape[-1] == SPEC.obs_dim + SPEC.n_actions + 3
    for t in range(6):
        view = View(batch.obs[:, t], batch.state[:, t], batch.avail[:, t], batch.last_action[:, t])
        torch.testing.assert_close(q.utilities(view, memory), values[0, :, t])
        actions, memory = q.act(view, memory, 0.0, dice)
        greedy = values[0, :, t].masked_fill(~view.avail, -torch.inf).argmax(-1)
        assert torch.equal(actions, greedy)
        torch.testing.assert_close(q.agents.remembered(memory.hidden), histories[:, t])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_workers_ask_the_decoder_what_the_learner_teaches_it(layer_norm):
    """Network 0's histories, step by step."""
    q, batch, asked = made(layer_norm=layer_norm), episodes(lengths=(5, 5), horizon=5), []
    q.ready.fill_(True)
    q.chooser.register_forward_hook(lambda network, inputs, guess: asked.append(inputs[0]))
    memory, dice = q.memory(2), Dice(0, "train", range(2))
    for t in range(6):
        view = View(batch.obs[:, t], batch.state[:, t], batch.avail[:, t], batch.last_action[:, t])
        _, memory = q.act(view, memory, 0.0, dice)
    torch.testing.assert_close(torch.stack(asked, 1), q.histories(batch))


@pytest.mark.parametrize("state_norm", [False, True])
def test_the_oracle_scores_candidates_by_the_live_central_value_at_every_step(monkeypatch, state_norm):
    batch, scored = episodes(lengths=(5, 5), horizon=5), []
    q = made(draw_from="central", layer_norm=True, state_norm=state_norm)
    for parameter in q.slow_central.parameters():
        parameter.data.fill_(7.0)
    monkeypatch.setattr(
        s2q, "softmax", lambda scores, temperature: scored.append(scores) or softmax(scores, temperature)
    )
    memory, dice = q.memory(2), Dice(0, "train", range(2))
    for t in range(6):
        view = View(batch.obs[:, t], batch.state[:, t], batch.avail[:, t], batch.last_action[:, t])
        _, memory = q.act(view, memory, 0.0, dice)
    greedy = q.unroll(batch)[0].masked_fill(~batch.avail, -torch.inf).argmax(-1)
    state = torch.nn.functional.layer_norm(batch.state, (5,)) if state_norm else batch.state
    expected = q.central(q.central.utilities(batch.obs, batch.last_action), state, greedy)
    torch.testing.assert_close(torch.stack(scored, 1), expected.movedim(0, -1))


@pytest.mark.parametrize("mixer", MIXERS)
def test_attackers_see_the_first_sub_value(mixer):
    q, batch = made(mixer=mixer), episodes()
    live = q.live(batch)
    values = live.values[0, :, :-1]
    chosen = values.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
    best = values.masked_fill(~batch.avail[:, :-1], -torch.inf).amax(-1)
    mixed = q.mix(chosen, best, batch.state[:, :-1], batch.actions) * batch.mask
    torch.testing.assert_close(mixed, live.joint[0])
    torch.testing.assert_close(q.histories(batch), live.histories)


def test_workers_learn_that_there_was_an_update_and_delayed_copies_stay():
    q = made()
    names = Parts(q).travelling()
    assert "q.ready" in names and not q.ready
    assert not any("central" in name for name in names)
    oracle = Parts(made(draw_from="central")).travelling()
    assert any(name.startswith("q.central.") for name in oracle) and not any("slow" in name for name in oracle)
    q.descend(q.loss(episodes(), Noise(0, 0)))
    assert Parts(q).travelling()["q.ready"]


def test_the_delayed_central_networks_follow_as_they_are_told():
    def learner(**pace):
        return run(s2q.Config(**SMALL, **pace), updates=0)

    def moved(q):
        pairs = zip(q.slow_central.parameters(), q.central.parameters(), strict=True)
        return any(not torch.equal(slow, live) for slow, live in pairs)

    assert moved(learner(target_every_episodes=10_000).parts.q), "they stay behind"
    assert not moved(learner(target_every_episodes=1).parts.q)
    soft = learner(target_tau=0.25)
    q = soft.parts.q
    before = copy.deepcopy(list(q.slow_central.parameters()))
    soft.update()
    for old, slow, live in zip(before, q.slow_central.parameters(), q.central.parameters(), strict=True):
        torch.testing.assert_close(slow, old + 0.25 * (live - old))


# settings


@pytest.mark.parametrize(
    "options",
    [
        {"successors": 0},
        {"successors": 1},
        {"successors": 4},
        {"mixer": "sum"},
        {"mixer": "duplex"},
        {"mixer": "duplex", "advantage_layers": 1, "successors": 4, "comm": True, "shared": False},
        {"mixer": "attention"},
        {"mixer": "attention", "successors": 0, "recurrent": False, "returns": "watkins"},
        {"recurrent": False},
        {"layer_norm": True},
        {"dense_layers": 2, "layer_norm": True, "comm": True},
        {"shared": False},
        {"shared": False, "recurrent": False, "layer_norm": True},
        {"agent_id": True, "last_action": False},
        {"returns": "n_step"},
        {"returns": "watkins"},
        {"returns": "harutyunyan", "suppress_by": "delayed"},
        {"comm": True, "shared": False, "layer_norm": True},
        {"central_outputs": 3, "draw_from": "central", "shared": False},
        {"rewards": "standardised", "floor": 2.0},
    ],
)
def test_options_play_and_learn(options):
    q, batch = made(**options), episodes()
    before = {name: tensor.clone() for name, tensor in q.named_parameters() if tensor.requires_grad}
    loss = q.loss(batch, Noise(0, 0))
    assert loss.priority.shape == (4,) and torch.isfinite(loss.value)
    q.descend(loss)
    now = dict(q.named_parameters())
    changed = {name.split(".")[0] for name, tensor in before.items() if (now[name] != tensor).any()}
    parts = {"agents", "central", "chooser"} | ({"mixers"} if q.config.mixer != "sum" else set())
    assert changed == parts
    (descent,) = q.descents()
    held = [id(parameter) for group in descent.optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(now[name]) for name in before), "the optimiser has each once"
    with torch.no_grad():
        assert play(q, range(4), steps=3).shape == (3, 4, 3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixer": "duplex"},
        {"mixer": "attention"},
        {"comm": True, "layer_norm": True},
        {"recurrent": False, "shared": False},
    ],
)
def test_lower_precision_changes_little(options):
    q, batch = made(**options), episodes()
    full = q.loss(batch, Noise(0, 0)).value.item()
    with torch.autocast("cpu", torch.bfloat16):
        lower = q.loss(batch, Noise(0, 0))
    q.descend(lower)
    assert lower.value.item() == pytest.approx(full, rel=0.05)


@pytest.mark.parametrize(
    ("options", "reward_range", "key"),
    [
        ({}, (-30.0, 11.0), "algo.floor=null"),
        ({}, (-np.inf, 0.0), "algo.floor=null"),
        ({"rewards": "standardised"}, (0.0, 1.0), "algo.rewards=standardised"),
        ({"double_q": False}, (0.0, 1.0), "algo.double_q=false"),
        ({"comm": True, "recurrent": False}, (0.0, 1.0), "algo.comm=true"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, reward_range, key):
    spec = EnvSpec("paid", 2, 3, 1, 1, 1, reward_range=reward_range)
    config = s2q.Config(**options)
    with pytest.raises(Mistake, match=key) as refusal:
        s2q.check(config)
        algos.assemble(spec, config)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("options", [{"successors": 0}, {"alpha": 0.0}])
def test_where_nothing_is_suppressed_no_floor_is_asked_for(options):
    algos.assemble(EnvSpec("paid", 2, 3, 1, 1, 1, reward_range=(-30.0, 11.0)), s2q.Config(**options))


def test_unknown_rewards_are_let_in_with_a_word_and_a_floor_without():
    with pytest.warns(UserWarning, match="algo.floor=null: unknown does not say what it pays"):
        algos.assemble(EnvSpec("unknown", 2, 3, 1, 1, 1), s2q.Config()).q.equip()
    algos.assemble(EnvSpec("paid", 2, 3, 1, 1, 1, reward_range=(-30.0, 11.0)), s2q.Config(floor=50.0))
