"""Risk: LAIES pays something else than its released code means to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import algos
import envs
from algos import laies, qmix
from algos.influence.model import Target
from marl.command import cli
from marl.dice import Noise
from marl.types import Column
from tests.yard import SPEC, built, by_hand, episodes, run, settled


def lazy(**kw):
    return laies.Config(base=qmix.Config(), **{"model_hidden": 16, "model_updates": 2, "anneal": False, **kw})


SIGHTED = replace(SPEC, columns={"alive": Column((3,), "bool", "views"), "visible": Column((3, 6), "bool", "views")})


@pytest.mark.parametrize("visibility", [False, True])
def test_the_diligence_of_single_agents(visibility):
    """IDI: the squared gap to the mean over the other available actions, cut for each living agent, then summed.

    With the delayed model, of the actions that the world received.
    """
    config = lazy(external=["far"], beta1=2.0, beta2=0.0, idi_clip=0.01, clip=None, visibility_mask=visibility)
    rng = torch.Generator().manual_seed(1)
    columns = {
        name: torch.rand(2, 6, *size, generator=rng) < 0.7 for name, size in (("alive", (3,)), ("visible", (3, 6)))
    }
    parts, batch = built(config, SIGHTED), episodes([5, 4], **columns)
    batch.avail[0, 1, 0] = torch.arange(4) == batch.executed[0, 1, 0]
    bonus, played = settled(parts.bonuses[0]), batch.mask.bool()
    for parameter in bonus.model.parameters():
        parameter.data.fill_(9.0)
    reward, _ = bonus.reward(batch, parts.q, Noise(0, 0))
    others = batch.avail[:, :-1].float().scatter(-1, batch.executed.unsqueeze(-1), 0.0)
    alone = others.sum(-1, keepdim=True) == 0
    assert alone[0, 1, 0] and not alone.all()
    others = torch.where(alone, torch.nn.functional.one_hot(batch.executed, 4).float(), others)
    target = Target(torch.tensor([2, 3, 4]), torch.ones(3))
    with torch.no_grad():
        now = bonus.slow_model(batch.state[:, :-1], batch.executed, target)[played]
    mean = by_hand(bonus.slow_model, batch, target, others / others.sum(-1, keepdim=True), torch.clone)
    effect = (now.unsqueeze(1) - mean).square()
    if visibility:
        effect = effect * columns["visible"][:, :-1][played][..., 2:5]
    each = effect.sum(-1).clamp(max=0.01) * columns["alive"][:, :-1][played]
    torch.testing.assert_close(reward[played], 2 * each.sum(-1), atol=1e-5, rtol=1e-3)
    assert (effect.sum(-1) > 0.01).any() and (effect.sum(-1) < 0.01).any()


@pytest.mark.parametrize("cdi", ["change", "counterfactual"])
def test_diligence_is_exact_in_lower_precision(cdi):
    parts, batch = built(lazy(cdi=cdi)), episodes([5, 4])
    bonus = settled(parts.bonuses[0])
    full, _ = bonus.reward(batch, parts.q, Noise(0, 0))
    with torch.autocast("cpu", torch.bfloat16):
        lower, _ = bonus.reward(batch, parts.q, Noise(0, 0))
    assert full.any() and torch.equal(full, lower)


def test_the_diligence_of_the_team_has_a_bound_of_its_own():
    parts, batch = built(lazy(beta1=0.0, beta2=1.0, cdi="change", cdi_clip=0.001, clip=None)), episodes([6, 4])
    reward, _ = settled(parts.bonuses[0]).reward(batch, parts.q, Noise(0, 0))
    assert reward.max().item() == pytest.approx(0.001)


def test_settings_are_those_of_the_released_code():
    settings = cli.parse(["algo=laies", "env=push_box"], algos.ALGORITHMS, envs.ENVIRONMENTS)
    algo = settings.algo
    assert (algo.beta1, algo.beta2, algo.idi_clip, algo.cdi_clip, algo.clip) == (100.0, 2.0, 0.002, 0.06, 1.0)
    assert (algo.cdi, algo.cdi_samples, algo.anneal, algo.anneal_steps) == ("change", 16, True, 2_000_000)
    assert (algo.model_hidden, algo.model_lr, algo.model_clip, algo.model_updates) == (128, 3e-4, 1.0, 25)
    assert (algo.model_every_episodes, algo.external) == (200, [])


def test_the_diligence_of_the_team_as_released():
    """CDI: the squared change of external features, cut at 0.15, a hundredth of it."""
    parts = built(lazy(external=["far"], beta1=0.0, beta2=1.0, cdi="change", clip=None))
    batch = episodes([6, 4])
    batch = replace(batch, state=batch.state * 0.2)
    reward, _ = settled(parts.bonuses[0]).reward(batch, parts.q, Noise(0, 0))
    moved = (batch.state[:, 1:, 2:5] - batch.state[:, :-1, 2:5]).square().sum(-1)
    torch.testing.assert_close(reward, moved.clamp(max=0.15) / 100 * batch.mask)
    assert (moved < 0.15).any() and (moved > 0.15).any()


def test_the_diligence_of_the_team_as_meant_averages_random_joint_actions():
    parts = built(lazy(external=["far"], beta1=0.0, beta2=1.0, cdi="counterfactual", cdi_samples=4000, clip=None))
    bonus, batch = settled(parts.bonuses[0]), episodes([3])
    reward, _ = bonus.reward(batch, parts.q, Noise(0, 0))
    target, model = Target(torch.tensor([2, 3, 4]), torch.ones(3)), bonus.slow_model
    rng = np.random.default_rng(0)
    draws = []
    with torch.no_grad():
        now = model(batch.state[:, :-1], batch.executed, target)[0]
        for step in range(3):
            avail = batch.avail[0, step].numpy()
            drawn = np.stack([rng.choice(np.flatnonzero(row), 4000) for row in avail], -1)
            actions = batch.executed[0, : step + 1].repeat(4000, 1, 1)
            actions[:, step] = torch.from_numpy(drawn)
            state = batch.state[:, : step + 1].repeat(4000, 1, 1)
            draws.append(model(state, actions, target)[:, step].mean(0))
    expected = (torch.stack(draws) - now).square().sum(-1).clamp(max=0.1) / 100
    torch.testing.assert_close(reward[0], expected, atol=1e-6, rtol=0.12)


def test_laies_without_weights_is_its_base_and_with_them_it_is_not():
    base, nothing = run(qmix.Config()), run(lazy(beta1=0.0, beta2=0.0))
    paying = run(lazy(model_every_episodes=1))
    same = [torch.equal(value, nothing.parts.q.state_dict()[name]) for name, value in base.parts.q.state_dict().items()]
    other = [torch.equal(value, paying.parts.q.state_dict()[name]) for name, value in base.parts.q.state_dict().items()]
    assert all(same) and not all(other)


def test_the_bonus_is_weighted_bounded_and_fades():
    batch, shared = episodes([6, 4]), {"cdi": "change", "idi_clip": 10.0, "cdi_clip": 10.0}

    def paying(**options):
        parts = built(lazy(**shared, **options))
        return parts, settled(parts.bonuses[0])

    def paid(parts, bonus, rewards):
        return bonus.reward(batch.with_reward(rewards * batch.mask), parts.q, Noise(0, 0))[0]

    nothing, something = torch.zeros_like(batch.reward), torch.ones_like(batch.reward)
    alone = paid(*paying(beta1=1.0, beta2=0.0, clip=None), nothing)
    together = paid(*paying(beta1=0.0, beta2=1.0, clip=None), nothing)
    whole = 3 * alone + 5 * together
    bound = whole[batch.mask.bool()].median().item()
    free, steps = whole.clamp(max=bound), int(batch.mask.sum())
    fading = paying(beta1=3.0, beta2=5.0, clip=bound, anneal=True, anneal_steps=2 * steps)
    torch.testing.assert_close(paid(*fading, nothing), free)
    fading[1].annotate(batch)
    torch.testing.assert_close(paid(*fading, something), free)
    for share in (0.5, 0.0, 0.0):
        fading[1].annotate(batch)
        torch.testing.assert_close(paid(*fading, nothing), free * share)


def test_it_begins_to_fade_with_the_first_pay_also_before_the_model_is_trusted():
    batch = episodes([6, 4])
    parts = built(lazy(anneal=True, anneal_steps=2 * int(batch.mask.sum()), cdi="change", clip=None))
    bonus = settled(parts.bonuses[0], rounds=0)
    won = batch.with_reward(batch.mask.clone())
    assert not bonus.reward(won, parts.q, Noise(0, 0))[0].any()
    full = settled(bonus).reward(batch, parts.q, Noise(0, 0))[0]
    bonus.annotate(batch)
    torch.testing.assert_close(bonus.reward(batch, parts.q, Noise(0, 0))[0], full / 2)


def test_nothing_is_paid_before_the_delayed_model_was_copied_from_a_fitted_one():
    parts, batch = built(lazy()), episodes([6, 4])
    bonus = parts.bonuses[0]
    for rounds, pays in ((0, False), (1, False), (2, True)):
        assert settled(bonus, rounds).reward(batch, parts.q, Noise(0, 0))[0].any() == pays
