"""Risk: FoX learns, plays or is set otherwise than its specification says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from algos import assemble, fox
from algos.factored import Optimizer
from algos.formation.agent import FormationAgent
from algos.formation.prediction import Balance, Encoder, FormationDecoder, HistoryDecoder, Prediction, Trio, predict
from algos.formation.vectors import draw_projection
from envs import meet
from marl.config import Learning, Settings, check
from marl.dice import TRAIN, Dice, Noise
from marl.env import SideBySide
from marl.learner import Learner
from marl.ops import lambda_returns
from marl.replay import Replay
from marl.types import EnvSpec, View
from marl.worker import Plan, Worker
from tests.foxes import annotated, built, episodes
from tests.toys import Clockwork

FOOTBALL = EnvSpec("football", n_agents=3, n_actions=19, obs_dim=26, state_dim=26, horizon=150)


def test_agents_that_share_nothing_learn_nothing_of_one_another():
    torch.manual_seed(4)
    agent = FormationAgent(FOOTBALL, fox.Config(hidden=8, shared=False), latent=4)
    histories = agent(torch.randn(2, 5, 3, 26), torch.randint(-1, 19, (2, 5, 3)))
    agent.heads(histories, torch.randn(2, 5, 3, 4)).values[..., 0, :].sum().backward()
    for name, parameter in agent.named_parameters():
        assert parameter.grad is not None and parameter.grad[0].any(), name
        assert not parameter.grad[1:].any(), name


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


# gradients


def test_a_td_step_leaves_fnet_alone_but_flows_through_the_encoder():
    parts = built()
    batch = annotated(episodes([7, 5]), parts)
    before = [snapshot(part) for part in (parts.q, *parts.bonuses)]
    parts.q.descend(parts.q.loss(batch, Noise(0, 0)))
    names = changed(parts.q, before[0])
    assert not any(name.startswith(("encoder.", "slow_")) for name in names)
    assert {"agent.formation.weight", "agent.body.trunk.rnn.weight_hh_l0", "agent.body.trunk.dense.0.weight"} <= names
    assert not changed(parts.bonuses[1], before[2])
    assert all(p.grad is None for p in parts.q.encoder.parameters())


def test_without_the_other_heads_the_memory_still_learns_through_the_encoder():
    parts = built(local_l1=0.0)
    agent = parts.q.agent
    with torch.no_grad():
        for parameter in (agent.shared.weight, agent.shared.bias, agent.local.weight, agent.local.bias):
            parameter.zero_()
    parts.q.loss(annotated(episodes([7, 5]), parts), Noise(0, 0)).value.backward()
    assert agent.body.trunk.rnn.weight_hh_l0.grad.abs().max() > 0
    assert all(p.grad is None for p in parts.q.encoder.parameters())


@pytest.mark.parametrize("profile", ["fixed", "reference"])
def test_an_fnet_phase_leaves_agent_and_mixer_alone(profile):
    parts = built(profile=profile)
    batch = annotated(episodes([7, 5]), parts)
    before = [snapshot(part) for part in (parts.q, *parts.bonuses)]
    stats = parts.bonuses[1].fit(batch, parts.q, Noise(0, 0))
    names = changed(parts.q, before[0])
    assert names and all(name.startswith("encoder.") for name in names)
    assert any(name.startswith("decoder.") for name in changed(parts.bonuses[1], before[2]))
    assert any(name.startswith("historian.") for name in changed(parts.bonuses[1], before[2]))
    assert {"fnet/error", "fnet/r2", "fnet/kl", "fnet/history", "gradient_norm/fnet"} == stats.keys()


@pytest.mark.parametrize("repaired", [True, False])
def test_each_network_of_fnet_follows_its_own_loss(repaired):
    torch.manual_seed(0)
    kl = 0.01
    encoder, decoder = Encoder(10, 16, 6), FormationDecoder(6, 16, 8)
    historian = HistoryDecoder(6, 16, 10, squashed=not repaired)
    trio = Trio(*torch.randn(3, 32, 10), torch.rand(32, 8))
    noise = torch.randn(3, 32, 6)
    balance = (Balance.intended if repaired else Balance.released)(0.1)
    predict(encoder, decoder, historian, trio, noise, balance).objective(balance, kl).backward()

    l_f, l_tau = torch.zeros(()), torch.zeros(())
    latents = []
    for role in range(3):
        mean, log_variance = encoder(trio[role])
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1).mean()
        l_f = l_f + kl * divergence
        l_tau = l_tau + (kl * divergence if role == 0 else 0)
        latents.append(mean + (0.5 * log_variance).exp() * noise[role])
    l_f = l_f + (decoder(*latents) - trio.formation).square().mean(-1).mean()
    l_tau = l_tau + (historian(latents[0]) - trio.own).square().mean(-1).mean()
    if repaired:
        wanted = [(encoder, l_f - 0.1 * l_tau), (decoder, l_f), (historian, l_tau)]
    else:
        wanted = [(encoder, 2 * l_f + 0.9 * l_tau), (decoder, 2 * l_f), (historian, 0.9 * l_tau)]
    for network, loss in wanted:
        parameters = list(network.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-7, rtol=1e-4)


def test_prediction_takes_partners_of_its_own_moment():
    histories = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    farthest, nearest = torch.tensor([[1, 2, 0], [2, 0, 1]]), torch.tensor([[2, 0, 1], [1, 2, 0]])
    formation = torch.tensor([[10.0], [20.0]])
    drawn = Trio.draw(histories, farthest, nearest, formation, 50, torch.Generator().manual_seed(0))
    seen = set()
    for own, far, near, f in zip(*(tensor[:, 0].tolist() for tensor in drawn), strict=True):
        moment, agent = divmod(int(own) // 4, 3)
        seen.add((moment, agent))
        assert far == histories[moment, farthest[moment, agent], 0]
        assert near == histories[moment, nearest[moment, agent], 0]
        assert f == formation[moment, 0]
    assert len(seen) == 6


def test_the_local_penalty_reaches_local_heads_and_what_feeds_them():
    parts = built()
    live = parts.q.unroll(parts.q.agent, episodes([6]), Noise(0, 0), "live")
    batch = episodes([6])
    penalty, stats = parts.q.penalty(live, batch)
    penalty.backward()
    touched = {name for name, p in parts.q.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"agent.local.weight", "agent.local.bias"} <= touched
    assert touched <= {n for n, _ in parts.q.named_parameters() if n.startswith(("agent.local", "agent.body"))}
    by_hand = live.aside[0][:-1].abs().sum() / (6 * 3 * 5)
    torch.testing.assert_close(penalty, 0.1 * by_hand)
    torch.testing.assert_close(stats["loss/local"], by_hand.detach())


def test_the_target_is_one_step_and_the_loss_a_mean_over_steps():
    parts = built()
    batch = episodes([7, 5])
    loss = parts.q.loss(batch, Noise(0, 0))
    noise = Noise(0, 0)
    with torch.no_grad():
        live = parts.q.unroll(parts.q.agent, batch, noise, "live")
        slow = parts.q.unroll(parts.q.slow_agent, batch, noise, "target")
        best = live.values.argmax(-1, keepdim=True)
        nexts = parts.q.slow_mixer(
            slow.values.gather(-1, best)[:, 1:, :, 0], None, batch.state[:, 1:], best[:, 1:, :, 0]
        )[..., 0]
        target = batch.reward + 0.99 * ~batch.terminal * nexts
        chosen = live.values[:, :-1].gather(-1, batch.actions[..., None])[..., 0]
        error = (parts.q.mixer(chosen, None, batch.state[:, :-1], batch.actions)[..., 0] - target) * batch.mask
        penalty, _ = parts.q.penalty(live, batch)
    torch.testing.assert_close(loss.value, error.square().sum() / batch.mask.sum() + penalty)
    torch.testing.assert_close(loss.priority, error.square().sum(1) / batch.mask.sum(1))


# the agent


def view_of(batch, step):
    return View(batch.obs[:, step], batch.state[:, step], batch.avail[:, step], batch.last_action[:, step])


def test_playing_and_learning_agree_when_latents_are_means():
    parts = built()
    batch = episodes([6, 6])
    with torch.no_grad():
        histories = parts.q.histories(batch)
        whole = parts.q.agent.heads(histories, parts.q.encoder(histories).mean).values
        memory = parts.q.memory(2)
        for step in range(7):
            values, memory = parts.q.step(view_of(batch, step), memory, Dice(0, "evaluate", range(2)))
            torch.testing.assert_close(values, whole[:, step], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(memory, histories[:, step], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "drawn"), [({}, False), ({"eval_latent": "sample"}, True), ({"profile": "reference"}, True)]
)
def test_latents_are_drawn_in_training_and_where_asked_in_evaluation(settings, drawn):
    parts = built(**settings)
    view, memory = view_of(episodes([2]), 0), parts.q.memory(1)
    with torch.no_grad():
        train = [parts.q.step(view, memory, Dice(seed, "train", range(1)))[0] for seed in (0, 0, 1)]
        test = [parts.q.step(view, memory, Dice(seed, "evaluate", range(1)))[0] for seed in (0, 1)]
    assert torch.equal(train[0], train[1]) and not torch.equal(train[0], train[2])
    assert torch.equal(*test) != drawn


@pytest.mark.parametrize("encoder", ["live", "lagged"])
def test_the_delayed_agent_reads_the_encoder_it_is_given(encoder):
    parts = built(target_encoder=encoder)
    batch = episodes([4])
    before = parts.q.unroll(parts.q.slow_agent, batch, Noise(0, 0), "target").values
    with torch.no_grad():
        parts.q.encoder.mean.bias.add_(1.0)
    after = parts.q.unroll(parts.q.slow_agent, batch, Noise(0, 0), "target").values
    assert torch.equal(before, after) == (encoder == "lagged")
    assert len(parts.q.targets()) == (3 if encoder == "lagged" else 2)
    assert not any("slow_" in name for name in parts.travelling())


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_on_three_against_one():
    parts = built(FOOTBALL)
    agent, awareness_part = parts.q.agent, parts.bonuses[1]
    assert size(parts.q.encoder) == 41344
    assert size(awareness_part.historian) == 33088
    assert size(awareness_part.decoder) == 42764
    assert size(agent.body.trunk.dense) == 2944 and size(agent.body.trunk.rnn) == 24960
    assert size(agent.shared) == size(agent.formation) == 1235
    assert agent.local.weight.numel() + agent.local.bias.numel() == 3 * 1235
    assert sum(p.numel() for p in parts.q.learned()) == size(agent) + size(parts.q.mixer)


def test_local_heads_start_as_layers_of_their_own():
    weight = built(FOOTBALL).q.agent.local.weight
    assert weight.abs().max() <= 1 / 8 and weight.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.05)
    assert not torch.equal(weight[0], weight[1])


# settings


def test_profiles():
    assert fox.Config().settled() == fox.PROFILES["fixed"] == (True, 1, "gaussian", 1e-5, 64, "mean")
    assert fox.Config(profile="reference").settled() == (False, 3, "uniform01", 1.0, 1, "sample")
    mixed = fox.Config(profile="reference", round=0, kl_weight=1e-4)
    assert mixed.settled() == (False, 0, "uniform01", 1e-4, 1, "sample")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile": "fixd"}, "algo.profile=fixd: .*fixed, reference; did you mean fixed"),
        ({"hash_init": "normal"}, "algo.hash_init=normal: .*gaussian, uniform01"),
        ({"kl_weight": -1.0}, "algo.kl_weight=-1.0: .*0 and more"),
        ({"hash_bits": 0}, "algo.hash_bits=0: .*1 to 24"),
        ({"bonus_dtype": "float16"}, "algo.bonus_dtype=float16: .*float32, bfloat16"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        check(Settings(algo=fox.Config(**settings), env=meet.Config()))


def test_cadence_follows_the_settings():
    assert built().bonuses[1].cadence == (16, 8)
    assert built(fnet_every_episodes=0).bonuses[1].cadence.every_episodes == 0


def test_one_adam_is_three_with_a_joint_clip():
    together, apart = built().bonuses[1], built().bonuses[1]
    networks = [apart.encoder, apart.decoder, apart.historian]
    adams = [torch.optim.Adam(network.parameters(), lr=1e-3) for network in networks]
    for step in range(3):
        torch.manual_seed(step)
        trio = Trio(*torch.randn(3, 16, 64), torch.rand(16, 12))
        loss = together.predict(trio, Noise(0, step)("t")).objective(Balance.intended(0.1), 1.0)
        assert together.descents()[0](loss) > 1
        for adam in adams:
            adam.zero_grad()
        apart.predict(trio, Noise(0, step)("t")).objective(Balance.intended(0.1), 1.0).backward()
        torch.nn.utils.clip_grad_norm_([p for network in networks for p in network.parameters()], 1.0)
        for adam in adams:
            adam.step()
    for one, other in zip(networks, (together.encoder, together.decoder, together.historian), strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_lambda_zero_is_what_the_settings_ask_for():
    config = fox.Config()
    assert (config.td_lambda, config.td_weight, config.agent_id) == (0.0, 1.0, False)
    assert config.optimizer == Optimizer("rmsprop", lr=5e-4, alpha=0.99, eps=1e-5, clip=10.0)
    ones = torch.ones(1, 3)
    returns = lambda_returns(ones[..., None], ones.bool(), ones, ones[..., None], 0.99, config.td_lambda)
    assert torch.equal(returns[..., 0], ones)


def test_a_projection_of_another_law_is_not_the_same():
    torch.manual_seed(0)
    assert draw_projection(9, 400, "gaussian").std() == pytest.approx(1.0, abs=0.05)
    assert draw_projection(9, 400, "uniform01").mean() == pytest.approx(0.5, abs=0.02)


# with the engine


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"profile": "reference"},
        {"reward_shift": "nonpos", "fnet_every_episodes": 0, "target_encoder": "lagged", "count_refresh": "requery"},
    ],
)
def test_a_restored_learner_goes_on_as_the_saved_one(settings, precision):
    def fresh(seed):
        torch.manual_seed(seed)
        parts = assemble(Clockwork.spec, fox.Config(hidden=16, fnet_updates=2, fnet_batch=4, beta2=0.5, **settings))
        layout = {**Clockwork.spec.fields(), **parts.columns()}
        replay = Replay(Clockwork.spec, layout, 32, torch.device("cpu"), alpha=0.3)
        return Learner(parts, replay, Learning(batch=4, updates_per_episode=1.0, burn_in=4), 0, precision=precision)

    def go_on(learner, records):
        for record in records:
            learner.absorb(record)
            told = learner.improve()
        return {name: float(value) for stats in told for name, value in stats.items()}

    old, new = fresh(0), fresh(1)
    worker = Worker(assemble(Clockwork.spec, fox.Config(hidden=16, **settings)), SideBySide(Clockwork, 20), 0)
    worker.load(old.weights())
    records = worker.play(Plan(0, TRAIN, 0, 20, 0.5)).records
    go_on(old, records[:17])
    new.restore({name: value.clone() for name, value in old.tensors().items()}, old.state())
    new.replay.restore(old.replay.state())
    told, again = go_on(old, records[17:]), go_on(new, records[17:])
    assert told == again and all(np.isfinite(list(told.values())))
    for name, value in old.tensors().items():
        assert torch.equal(new.tensors()[name], value), name


def test_fnet_learns_the_formation_of_the_moment_from_the_partners_of_the_moment(monkeypatch):
    parts = built()
    batch, drawn, draw = annotated(episodes([7, 4]), parts), [], Trio.draw
    monkeypatch.setattr(Trio, "draw", lambda *given: drawn.append(given) or draw(*given))
    parts.bonuses[1].fit(batch, parts.q, Noise(0, 0))
    histories, farthest, nearest, formation = drawn[0][:4]
    acted = batch.mask.bool()
    assert torch.equal(farthest, batch.columns["farthest"][:, :-1][acted].long())
    assert torch.equal(nearest, batch.columns["nearest"][:, :-1][acted].long())
    torch.testing.assert_close(formation, batch.columns["formation"][:, :-1][acted] / 1000)
    torch.testing.assert_close(histories, parts.q.histories(batch)[:, :-1][acted])


def test_settings_of_the_bonus_and_of_fnet_reach_what_they_are_of(monkeypatch):
    learning = {"fnet_updates": 3, "fnet_minibatch": 7, "fnet_batch": 11, "fnet_every_episodes": 4, "fnet_lr": 0.02}
    parts = built(hash_bits=5, flip_weight=0.3, kl_weight=0.25, n_latent_samples=6, **learning)
    novelty, aware = parts.bonuses
    assert novelty.projection.shape[0] == 5 and tuple(aware.cadence) == (4, 11)
    assert {group["lr"] for descent in aware.descents() for group in descent.optimizer.param_groups} == {0.02}
    batch = annotated(episodes([7, 5]), parts)
    assert aware.gains(batch, parts.q, Noise(0, 0))[1].gain.shape[-1] == 6
    weighed, objective = [], Prediction.objective
    monkeypatch.setattr(Prediction, "objective", lambda *given: weighed.append(given[1:]) or objective(*given))
    aware.fit(batch, parts.q, Noise(0, 0))
    assert weighed == [(Balance.intended(0.3), 0.25)] * 3
