"""Risk: FoX's awareness bonus pays for something else than its specification says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from algos.formation.awareness import (
    Partners,
    awareness,
    normalised,
    partners,
    relative_surprise,
    surprise,
    surprise_as_released,
)
from algos.formation.prediction import FormationDecoder, Gaussian
from marl.dice import Noise
from marl.types import Episodes
from tests.foxes import SPEC, annotated, built, episodes


def laws(moments, agents, latent, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: Gaussian(*torch.randn(2, moments, agents, latent, generator=generator))  # noqa: E731
    return Partners(draw(), draw(), draw())


def judged(decoder, latents, formation, samples=4, dtype=torch.float32, seed=5):
    return awareness(decoder, latents, formation, samples, torch.Generator().manual_seed(seed), dtype)


@torch.no_grad()
def test_awareness_is_its_definition():
    moments, agents, latent, samples = 11, 3, 8, 4
    torch.manual_seed(0)
    decoder, latents = FormationDecoder(latent, 16, 12), laws(moments, agents, latent)
    formation = torch.rand(moments, 12)
    told = judged(decoder, latents, formation, samples)
    generator = torch.Generator().manual_seed(5)
    one, other = torch.randn((2, agents, latent), generator=generator)
    noise = torch.randn((3, moments, 1, samples, latent), generator=generator).expand(-1, -1, agents, -1, -1)
    for i in range(agents):
        for s in range(samples):
            own, far, near = (law.sample(noise[k, :, :, s])[:, i] for k, law in enumerate(latents))
            xi1, xi2 = one[i].expand_as(own), other[i].expand_as(own)
            triples = [(own, far, near), (own, xi1, xi2), (xi1, far, xi2), (xi1, xi2, near)]
            log_q, *log_p = (-(decoder(*triple) - formation).square().sum(-1) for triple in triples)
            torch.testing.assert_close(told.gain[:, i, s], log_q - sum(log_p) / 3, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(told.likelihood[:, i, s], log_q, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_blocks_of_moments_do_not_matter(monkeypatch):
    torch.manual_seed(0)
    decoder, formation = FormationDecoder(8, 16, 12), torch.rand(40, 12)
    silent = Partners(*(Gaussian(law.mean, torch.full_like(law.mean, -60.0)) for law in laws(40, 3, 8)))
    whole = judged(decoder, silent, formation)
    monkeypatch.setattr("algos.formation.awareness.CACHED", 7 * 12)
    torch.testing.assert_close(judged(decoder, silent, formation).gain, whole.gain, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_half_precision_ranks_alike():
    torch.manual_seed(0)
    decoder, latents, formation = FormationDecoder(64, 128, 12), laws(400, 3, 64), torch.rand(400, 12)
    exact, fast = (
        judged(decoder, latents, formation, 20, dtype).gain.mean(-1) for dtype in (torch.float32, torch.bfloat16)
    )
    for agent in range(3):
        ranks = torch.stack([exact[:, agent], fast[:, agent]]).argsort(-1).argsort(-1).float()
        assert torch.corrcoef(ranks)[0, 1] > 0.99


@torch.no_grad()
def test_a_decoder_that_ignores_its_input_gives_nothing():
    parts = built(beta2=0.02)
    bonus = parts.bonuses[1]
    bonus.decoder.layers[0].weight.zero_()
    batch = annotated(episodes([9, 4]), parts)
    _, told = bonus.gains(batch, parts.q, Noise(0, 0))
    assert told.gain.abs().max() < 1e-6
    reward, stats = bonus.reward(batch, parts.q, Noise(0, 0))
    assert not reward.any() and stats["formation/rho"] > 0


@torch.no_grad()
def test_a_perfect_decoder_gives_nothing():
    decoder = FormationDecoder(4, 8, 6)
    target = torch.linspace(0.1, 0.9, 6)
    decoder.layers[-1].weight.zero_()
    decoder.layers[-1].bias.copy_(target.logit())
    told = judged(decoder, laws(5, 2, 4), target.expand(5, 6))
    torch.testing.assert_close(told.likelihood, torch.zeros(5, 2, 4), atol=1e-10, rtol=0)
    torch.testing.assert_close(told.gain, torch.zeros(5, 2, 4), atol=1e-10, rtol=0)


@torch.no_grad()
def test_the_gain_is_the_error_of_the_marginals():
    """One unit fires only when all three latents are large, and moves every output from ``wrong`` to ``right``."""
    decoder = FormationDecoder(4, 8, 6)
    for parameter in decoder.parameters():
        parameter.zero_()
    first, second, third = decoder.layers[0], decoder.layers[2], decoder.layers[4]
    first.weight[0, ::4], first.bias[0], second.weight[0, 0] = 1.0, -250.0, 0.02
    right, wrong = torch.linspace(0.2, 0.8, 6), torch.full((6,), 0.4)
    third.weight[:, 0] = right.logit() - wrong.logit()
    third.bias.copy_(wrong.logit())
    large = Gaussian(torch.tensor([100.0, 0, 0, 0]).expand(5, 2, 4), torch.full((5, 2, 4), -60.0))
    told = judged(decoder, Partners(large, large, large), right.expand(5, 6))
    torch.testing.assert_close(told.gain, (right - wrong).square().sum().expand(5, 2, 4), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("shift", "worth"), [("nonneg", [0, 1, 1 / 3]), ("nonpos", [-1, 0, -2 / 3])])
def test_normalisation(shift, worth):
    gain = torch.tensor([2.0, 5.0, 3.0])[:, None, None]
    for repaired in (True, False):
        torch.testing.assert_close(
            normalised(gain, torch.ones(1), shift, repaired=repaired).flatten(), torch.tensor(worth)
        )


def test_a_flat_gain_gives_nothing_where_the_released_code_gives_not_a_number():
    flat = torch.full((4, 2, 3), 0.3)
    assert not normalised(flat, torch.ones(2), "nonneg").any()
    assert normalised(flat, torch.ones(2), "nonneg", repaired=False).isnan().all()
    assert not normalised(flat, torch.ones(2), "nonpos", repaired=False).any()


@pytest.mark.parametrize("profile", ["fixed", "reference"])
@pytest.mark.parametrize(("shift", "low", "high"), [("nonneg", 0.0, 1.0), ("nonpos", -1.0, 0.0)])
def test_the_bonus_is_bounded(profile, shift, low, high):
    parts = built(profile=profile, reward_shift=shift, beta2=0.02)
    batch = annotated(episodes([10, 7]), parts)
    reward, _ = parts.bonuses[1].reward(batch, parts.q, Noise(0, 0))
    bound = SPEC.n_agents * 0.02 + 1e-6
    assert low * bound <= reward.min() and reward.max() <= high * bound and reward.any()
    assert not reward.requires_grad


def test_decay_follows_the_largest_surprise():
    rhos, largest = [], torch.zeros(())
    for surprises in ([4.0], [2.0], [8.0, 4.0]):
        rho, largest = relative_surprise(torch.tensor(surprises), largest)
        rhos += rho.tolist()
    assert rhos == [1.0, 0.5, 1.0, 0.5] and largest == 8
    assert relative_surprise(torch.zeros(2), torch.zeros(()))[0].tolist() == [0.0, 0.0]


def test_surprise():
    likelihood = -torch.arange(12.0).reshape(2, 3, 2)
    torch.testing.assert_close(surprise(likelihood), torch.tensor([3.5, 5.5, 7.5]))
    likelihood[0, 1, 0] = torch.nan
    torch.testing.assert_close(surprise_as_released(likelihood, 4), torch.tensor([3.5, 6.0, 7.5]))


def with_farthest(batch, step, values):
    farthest = batch.columns["farthest"].clone()
    farthest[0, step] = torch.tensor(values)
    return replace(batch, columns={**batch.columns, "farthest": farthest})


def gains_of(parts, batch):
    return parts.bonuses[1].gains(batch, parts.q, Noise(0, 0))[1].gain


def test_partners_are_those_at_the_time_of_the_reward():
    parts = built()
    batch = annotated(episodes([6]), parts)
    old = batch.columns["farthest"][0, 3]
    other = with_farthest(batch, 3, ((old + 1) % 3).tolist())
    moved = (gains_of(parts, batch) != gains_of(parts, other)).any(-1).any(-1)
    assert moved.tolist() == [False, False, True, False, False, False]


def test_partners_by_agent():
    law = Gaussian(torch.arange(12.0).reshape(2, 3, 2), torch.zeros(2, 3, 2))
    found = partners(law, torch.tensor([[2, 0, 0], [1, 2, 1]]), torch.tensor([[1, 2, 1], [1, 0, 0]]))
    assert found.farthest.mean[..., 0].tolist() == [[4, 0, 0], [8, 10, 8]]
    assert found.nearest.mean[..., 0].tolist() == [[2, 4, 2], [8, 6, 6]]
    assert torch.equal(found.own.mean, law.mean)


def test_the_released_partner_is_a_time():
    parts = built(profile="reference")
    batch = annotated(episodes([6]), parts)
    one, other = with_farthest(batch, 2, [0, 0, 0]), with_farthest(batch, 2, [1, 1, 1])
    gains = gains_of(parts, one), gains_of(parts, other)
    assert (gains[0] != gains[1]).any(-1).any(-1).tolist() == [False, False, True, False, False, False]


def test_more_agents_than_steps():
    with pytest.raises(IndexError):
        parts = built(profile="reference")
        gains_of(parts, with_farthest(annotated(episodes([2]), parts), 1, [2, 2, 2]))
    parts = built()
    assert gains_of(parts, with_farthest(annotated(episodes([2]), parts), 1, [2, 2, 2])).isfinite().all()


def test_padding_does_not_matter():
    """Latents that hardly vary, so that the only difference is what stands beside an episode."""
    parts = built(beta2=1.0)
    with torch.no_grad():
        parts.q.encoder.log_variance.bias.fill_(-60.0)
        parts.q.encoder.log_variance.weight.zero_()
    batch = annotated(episodes([9, 4]), parts)
    padded = {name: torch.cat([value, value[:, :3] * 0], 1) for name, value in batch.columns.items()}
    fields = {n: v for n, v in vars(batch).items() if n not in ("columns", "mask")}
    longer = {n: torch.cat([v, v[:, :3] * 0 if v.dtype != torch.bool else v[:, :3]], 1) for n, v in fields.items()}
    wide = Episodes(**longer, mask=torch.nn.functional.pad(batch.mask, (0, 3)), columns=padded)
    narrow, _ = parts.bonuses[1].reward(batch, parts.q, Noise(0, 0))
    parts.bonuses[1].largest_surprise.zero_()
    broad, _ = parts.bonuses[1].reward(wide, parts.q, Noise(0, 0))
    torch.testing.assert_close(broad[:, :9], narrow)
    assert not broad[:, 9:].any() and not narrow[1, 4:].any()


def targets_of(parts, batch, noise, bonuses):
    reward = batch.reward
    for bonus in bonuses:
        reward = reward + bonus.reward(batch, parts.q, noise)[0]
    with torch.no_grad():
        live = parts.q.unroll(parts.q.agent, batch, noise, "live").values
        return parts.q.td_target(live, batch.with_reward(reward), noise)


def test_without_weights_the_targets_are_those_of_the_base_learner():
    parts = built(beta1=0.0, beta2=0.0)
    for update in range(3):
        batch = annotated(episodes([7, 5], seed=update), parts)
        with_bonuses = targets_of(parts, batch, Noise(0, update), parts.bonuses)
        assert torch.equal(with_bonuses, targets_of(parts, batch, Noise(0, update), ()))
        parts.q.descend(parts.q.loss(batch, Noise(0, update)))


def test_awareness_draws_nothing_from_the_base_learner():
    parts = built(beta1=0.0, beta2=0.5)
    batch = annotated(episodes([7, 5]), parts)
    noise = Noise(0, 0)
    reward, _ = parts.bonuses[1].reward(batch, parts.q, noise)
    difference = targets_of(parts, batch, noise, ()) - targets_of(parts, batch, Noise(0, 0), ())
    assert reward.any() and not difference.any()


def test_the_cds_base():
    parts = built(beta1=0.0, beta2=0.0, formation_head=False)
    assert parts.bonuses == ()
    live = parts.q.unroll(parts.q.agent, episodes([4]), Noise(0, 0), "live")
    h = live.histories
    local = torch.stack([h[:, :, i] @ parts.q.agent.local.weight[i].T for i in range(3)], 2) + parts.q.agent.local.bias
    torch.testing.assert_close(live.values, parts.q.agent.shared(h) + local)
    assert len(built(beta2=0.0, formation_head=False).bonuses) == 1


# the bonus of formations, part by part


def test_the_bonus_of_a_step_is_the_sum_of_its_agents_shares():
    """beta_2 sum_i mean_s of the gain, stretched agent by agent to [0, rho_i]."""
    parts = built(beta2=0.5)
    bonus, batch = parts.bonuses[1], annotated(episodes([7, 4]), parts)
    valid, aware = bonus.gains(batch, parts.q, Noise(0, 0))
    rho, _ = relative_surprise(surprise(aware.likelihood), torch.zeros(()))
    assert rho.min() < 0.9999
    expected = torch.zeros_like(batch.reward)
    for agent in range(3):
        gain = aware.gain[:, agent]
        expected[valid] += 0.5 * rho[agent] * ((gain - gain.min()) / (gain.max() - gain.min())).mean(-1)
    told, _ = bonus.reward(batch, parts.q, Noise(0, 0))
    torch.testing.assert_close(told, expected, atol=1e-4, rtol=1e-3)


def test_gains_are_stretched_agent_by_agent_and_scaled_by_rho():
    gain = torch.tensor([[[2.0], [10.0]], [[5.0], [30.0]], [[3.0], [20.0]]])
    told = normalised(gain, torch.tensor([1.0, 0.5]), "nonneg")
    torch.testing.assert_close(told[..., 0], torch.tensor([[0, 0], [1, 0.5], [1 / 3, 0.25]]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gains_are_of_the_histories_and_the_formation_that_a_step_reached():
    parts = built()
    bonus, batch = parts.bonuses[1], annotated(episodes([7, 4]), parts)
    valid, told = bonus.gains(batch, parts.q, Noise(0, 0))
    reached = torch.cat([torch.zeros(2, 1, dtype=torch.bool), valid], 1)
    laws = parts.q.encoder(parts.q.histories(batch)[reached])
    columns = {name: value[reached] for name, value in batch.columns.items()}
    then, scale = partners(laws, columns["farthest"].long(), columns["nearest"].long()), 1000
    noise = Noise(0, 0)("fox.awareness")
    expected = awareness(bonus.decoder, then, columns["formation"] / scale, 20, noise, torch.float32)
    torch.testing.assert_close(told.gain, expected.gain)


def test_the_largest_surprise_is_never_forgotten():
    parts = built(beta2=1.0)
    batch, aware = annotated(episodes([7, 5]), parts), parts.bonuses[1]
    aware.largest_surprise.fill_(1e6)
    reward, _ = aware.reward(batch, parts.q, Noise(0, 0))
    assert aware.largest_surprise == 1e6 and 0 < reward.max() < 1e-3
