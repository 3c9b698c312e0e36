"""Risk: FoX counts, rewards or learns something else than its specification says."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from algos import assemble, fox
from algos.factored import Optimizer
from algos.formation.awareness import (
    Partners,
    awareness,
    normalised,
    partners,
    relative_surprise,
    surprise,
    surprise_as_released,
)
from algos.formation.counts import CountTable, fingerprints
from algos.formation.novelty import count_bonus
from algos.formation.prediction import (
    Balance,
    Encoder,
    FormationDecoder,
    Gaussian,
    HistoryDecoder,
    Prediction,
    Trio,
    predict,
)
from algos.formation.vectors import draw_projection, formations
from envs import meet
from marl.config import Learning, Settings, check
from marl.dice import TRAIN, Dice, Noise
from marl.env import SideBySide
from marl.fields import Mistake
from marl.learner import Learner
from marl.ops import lambda_returns
from marl.replay import Replay
from marl.types import EnvSpec, Episodes, View
from marl.worker import Plan, Worker
from tests.toys import Clockwork

SPEC = EnvSpec(
    "field", n_agents=3, n_actions=5, obs_dim=7, state_dim=6, horizon=12, state_groups={"positions": tuple(range(6))}
)
FOOTBALL = EnvSpec("football", n_agents=3, n_actions=19, obs_dim=26, state_dim=26, horizon=150)


def episodes(lengths, spec=SPEC, seed=0):
    rng = np.random.default_rng(seed)
    records = []
    for length in lengths:
        team = (length, spec.n_agents)
        records.append(
            {
                "obs": rng.standard_normal((length + 1, spec.n_agents, spec.obs_dim)).astype(np.float32),
                "state": rng.standard_normal((length + 1, spec.state_dim)).astype(np.float32),
                "avail": np.ones((length + 1, spec.n_agents, spec.n_actions), bool),
                "actions": rng.integers(0, spec.n_actions, team).astype(np.uint8),
                "executed": np.zeros(team, np.uint8),
                "reward": rng.standard_normal(length).astype(np.float32),
                "terminal": np.arange(length) == length - 1,
            }
        )
    return Episodes.of_records(records, spec.fields())


def annotated(batch, parts):
    columns = {name: value for bonus in parts.bonuses for name, value in bonus.annotate(batch).items()}
    return replace(batch, columns=columns)


def built(spec=SPEC, seed=0, equipped=True, **settings):
    torch.manual_seed(seed)
    parts = assemble(spec, fox.Config(**settings))
    for _, part in parts.named():
        if equipped:
            part.equip()
    return parts


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


# formations


def line(*places):
    return np.array(places, float)[None, :, None]


def test_formation_of_two():
    told = formations(np.array([[[0.0, 0, 1], [3, 4, 1]]]), np.eye(3), 3)
    np.testing.assert_array_equal(told.vectors, [[5, 5, 0, 0, 5, 5, 6, 6]])
    assert told.farthest.tolist() == told.nearest.tolist() == [[1, 0]]


def test_formation_of_three_on_a_line():
    told = formations(line(0, 1, 3), np.ones((1, 1)), 3)
    np.testing.assert_array_equal(told.vectors, [[3, 1, 0, 0, 2, 1, 0, 1, 3, 2, 1, 1]])
    assert told.farthest.tolist() == [[2, 2, 0]] and told.nearest.tolist() == [[1, 0, 1]]


def test_all_in_one_place():
    told = formations(np.ones((1, 3, 4)), np.random.default_rng(0).random((9, 4)), 3)
    assert not told.vectors.any()
    assert told.farthest.tolist() == [[0, 0, 0]] and told.nearest.tolist() == [[1, 0, 0]]


def test_ties_go_to_the_lowest_index():
    told = formations(line(0, 2, -2), np.ones((1, 1)), 3)
    assert told.farthest[0, 0] == told.nearest[0, 0] == 1


def test_opposite_directions_have_opposite_keys():
    rng = np.random.default_rng(1)
    told = formations(rng.standard_normal((200, 2, 6)), rng.standard_normal((9, 6)), 3)
    first, second = told.vectors.reshape(200, 2, 4).transpose(1, 0, 2)
    np.testing.assert_array_equal(first[:, 2] + second[:, 2], 2**9 - 1)
    for agent in (first, second):
        np.testing.assert_array_equal(agent[:, 0], agent[:, 1])
        np.testing.assert_array_equal(agent[:, 2], agent[:, 3])


def test_rounding_decides_what_is_the_same():
    def seen(distance, decimals):
        return formations(line(0.0, distance), np.ones((1, 1)), decimals)

    assert seen(0.12345, 3).vectors[0, 0] == 0.123
    codes = {decimals: [seen(d, decimals).codes.tolist() for d in (0.1234, 0.1231)] for decimals in (3, 4)}
    assert codes[3][0] == codes[3][1] and codes[4][0] != codes[4][1]


def one_by_one(places, projection, decimals):
    vectors, farthest, nearest = [], [], []
    for moment in places:
        vector, far, near = [], [], []
        for i, here in enumerate(moment):
            distances = np.array([np.round(np.linalg.norm(here - there), decimals) for there in moment])
            others = distances.copy()
            others[i] = np.inf
            partners = int(distances.argmax()), int(others.argmin())
            keys = [int("".join("1" if w @ (here - moment[j]) > 0 else "0" for w in projection), 2) for j in partners]
            vector += [distances[partners[0]], distances[partners[1]], *keys]
            far.append(partners[0])
            near.append(partners[1])
        vectors.append(vector)
        farthest.append(far)
        nearest.append(near)
    return vectors, farthest, nearest


def test_all_moments_at_once_as_one_by_one(monkeypatch):
    monkeypatch.setattr("algos.formation.vectors.BLOCK", 1000)
    rng = np.random.default_rng(2)
    places, projection = rng.standard_normal((60, 5, 8)).round(1), rng.standard_normal((9, 8))
    told = formations(places, projection, 2)
    for batched, single in zip(told[:3], one_by_one(places, projection, 2), strict=True):
        np.testing.assert_array_equal(batched, np.array(single))


def football_view(left, right, ball):
    """Observations (N, O) of a scene at rest, in the order of blocks of the released wrapper."""
    rows = []
    for i, me in enumerate(left):
        mates = [mate - me for j, mate in enumerate(left) if j != i]
        still = np.zeros(2 * len(left))
        foes = [foe - me for foe in right]
        rows.append(
            np.concatenate([me, *mates, still, *foes, np.zeros(2 * len(right)), ball[:2] - me, ball[2:], [0, 0, 0]])
        )
    return np.array(rows)


def distances(view):
    return np.linalg.norm(view[:, None] - view[None], axis=-1).round(6)


def test_football_formation_is_not_equivariant_but_ignores_where_the_scene_is():
    left, right = np.array([[0.6, 0], [0.7, 0.2], [0.7, -0.2]]), np.array([[1.0, 0], [0.75, 0]])
    ball = np.array([0.62, 0, 0.11])
    view = football_view(left, right, ball)
    assert view.shape == (3, 26)
    told = formations(view[None], np.eye(26)[:9], 6).vectors.reshape(3, 4)
    np.testing.assert_allclose(told[:, 0], [0.781025, 1.2, 1.2])
    np.testing.assert_allclose(told[:, 1], [0.670820, 0.670820, 0.781025])
    shift = np.array([0.1, -0.05])
    moved = football_view(left + shift, right + shift, ball + [*shift, 0])
    np.testing.assert_array_equal(distances(moved), distances(view))
    swapped = formations(football_view(left[[1, 0, 2]], right, ball)[None], np.eye(26)[:9], 6).vectors.reshape(3, 4)
    np.testing.assert_allclose(swapped[:, 0], [1.174734, 0.670820, 1.174734])
    np.testing.assert_allclose(swapped[:, 1], [0.670820, 0.670820, 0.670820])


def test_formations_of_positions_permute_with_the_agents():
    parts = built(formation_source="positions", round=3)
    batch = episodes([6])
    order = [2, 0, 1]
    state = batch.state.unflatten(-1, (3, 2))[:, :, order].flatten(-2)
    one = annotated(batch, parts).columns["formation"].unflatten(-1, (3, 4))
    other = annotated(replace(batch, state=state), parts).columns["formation"].unflatten(-1, (3, 4))
    assert torch.equal(one[:, :, order], other) and one.any()


def test_unknown_places_are_refused():
    with pytest.raises(Mistake, match="formation_source=place: not of env=field; allowed are obs, positions"):
        built(formation_source="place")


def test_a_team_of_one_has_no_formation_to_see_or_to_reward():
    parts = fox.build(replace(SPEC, n_agents=1), fox.Config())
    assert parts.bonuses == () and parts.q.agent.formation is None


@pytest.mark.parametrize("law", ["gaussian", "uniform01"])
def test_the_projection_is_fixed_by_the_run_seed(law):
    one, again, other = (built(seed=seed, hash_init=law).bonuses[0].projection for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.shape == (9, 7) and bool((one < 0).any()) == (law == "gaussian") and one.abs().max() < 6


# counts and alignment


def places(*kinds):
    """Observations of SPEC whose formations differ exactly as ``kinds`` do."""
    shape = np.random.default_rng(0).standard_normal((SPEC.n_agents, SPEC.obs_dim))
    return torch.tensor(np.array([shape * (1 + "abc".index(kind)) for kind in kinds]), dtype=torch.float32)[None]


def aba():
    return replace(episodes([3]), obs=places("a", "b", "a", "c"))


def test_visits_in_order_with_the_final_view():
    batch = annotated(aba(), built())
    assert batch.columns["visits"].tolist() == [[1, 1, 2, 1]]


@pytest.mark.parametrize(("profile", "last"), [("fixed", 0.01), ("reference", 0.0)])
def test_the_reward_of_a_step_is_of_the_formation_it_reached(profile, last):
    parts = built(profile=profile, beta1=0.01)
    bonus, stats = parts.bonuses[0].reward(annotated(aba(), parts), parts.q, Noise(0, 0))
    torch.testing.assert_close(bonus, torch.tensor([[0.01, 0.01 / 2**0.5, last]]))
    torch.testing.assert_close(stats["bonus/count"], bonus.mean())


def test_the_released_profile_leaves_the_final_view_blank():
    columns = annotated(aba(), built(profile="reference")).columns
    assert columns["visits"].tolist() == [[1, 1, 2, 0]]
    assert not any(columns[name][0, -1].any() for name in ("formation", "farthest", "nearest"))
    assert columns["formation"][0, :3].any()


def test_bonuses_below_zero():
    visits, mask = torch.tensor([[1.0, 4.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    released = count_bonus(visits, mask, 0.02, "nonpos", repaired=False)
    torch.testing.assert_close(released, 0.02 * torch.tensor([[0.0, -0.5, -1.0]]))
    torch.testing.assert_close(count_bonus(visits, mask, 0.02, "nonpos"), 0.02 * torch.tensor([[0.0, -0.5, 0.0]]))


def test_padding_does_not_set_the_largest_count_bonus():
    visits, mask = torch.tensor([[4.0, 16.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    torch.testing.assert_close(count_bonus(visits, mask, 1.0, "nonpos"), torch.tensor([[0.0, -0.25, 0.0]]))


def test_two_actors_meet_a_new_formation():
    for order in ((0, 1), (1, 0)):
        parts = built()
        fresh = [replace(episodes([1], seed=seed), obs=places("a", "b")) for seed in order]
        visits = [annotated(batch, parts).columns["visits"].tolist() for batch in fresh]
        assert visits == [[[1, 1]], [[2, 2]]]


def test_reading_rewards_counts_nothing():
    parts = built()
    batch = annotated(episodes([5, 3]), parts)
    before = parts.bonuses[0].records()
    for bonus in parts.bonuses:
        bonus.reward(batch, parts.q, Noise(0, 0))
    after = parts.bonuses[0].records()
    assert before["total"] == 10
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_padding_is_not_counted_and_is_zero():
    parts = built()
    columns = annotated(episodes([5, 2]), parts).columns
    assert parts.bonuses[0].table.total == 6 + 3
    assert not any(value[1, 3:].any() for value in columns.values())


def test_columns_are_as_declared():
    for settings in ({}, {"count_refresh": "requery"}):
        parts = built(**settings)
        written = annotated(episodes([4]), parts).columns
        declared = parts.columns()
        assert written.keys() == declared.keys()
        for name, column in declared.items():
            assert tuple(written[name].shape) == (1, 5, *column.shape)
            assert str(written[name].dtype).removeprefix("torch.") == column.dtype


def test_requeried_counts_follow_the_table():
    parts = built(count_refresh="requery", beta1=1.0)
    batch = annotated(aba(), parts)
    first, _ = parts.bonuses[0].reward(batch, parts.q, Noise(0, 0))
    torch.testing.assert_close(first, torch.tensor([[1.0, 2**-0.5, 1.0]]))
    annotated(aba(), parts)
    second, _ = parts.bonuses[0].reward(batch, parts.q, Noise(0, 0))
    torch.testing.assert_close(second, torch.tensor([[2**-0.5, 0.5, 2**-0.5]]))


def keys_of(values):
    return fingerprints(np.asarray(values)[:, None])


def test_the_table_counts_as_a_dictionary_does():
    rng = np.random.default_rng(3)
    table, truth = CountTable(30000), {}
    for _ in range(40):
        values = rng.integers(0, rng.integers(10, 20000), 700)
        visits = table.visit(keys_of(values))
        for value, visit in zip(values, visits, strict=True):
            truth[value] = truth.get(value, 0) + 1
            assert visit == truth[value]
    known = np.array(list(truth))
    np.testing.assert_array_equal(table.look_up(keys_of(known)), list(truth.values()))
    assert table.size == len(truth) > 4096 and table.total == 40 * 700
    assert table.look_up(keys_of([99999]))[0] == 0


def test_fingerprints_tell_rows_apart():
    rows = np.stack(np.meshgrid(*[np.arange(-6, 6)] * 5), -1).reshape(-1, 5)
    assert len(np.unique(fingerprints(rows))) == len(rows) == 12**5
    assert len(np.unique(fingerprints(np.array([[1, 2], [2, 1], [0, 3], [3, 0]])))) == 4


def test_a_full_table_says_so_once_and_keeps_counting_what_it_knows():
    table = CountTable(12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert table.visit(keys_of(range(10))).tolist() == [1] * 10
    with pytest.warns(UserWarning, match="full with 12: .*algo.table_capacity"):
        visits = table.visit(keys_of([20, 0, 21, 22, 22, 20]))
    assert visits.tolist() == [1, 2, 1, 1, 1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert table.visit(keys_of([22, 23, 0])).tolist() == [1, 1, 3]
    assert table.size == table.capacity == 12 and table.total == 19


def test_saving_keeps_table_projection_and_largest_surprise():
    old, new = built(seed=0, round=3), built(seed=1, round=3)
    batch = annotated(episodes([8, 8]), old)
    old.bonuses[1].reward(batch, old.q, Noise(0, 0))
    for mine, theirs in zip(new.bonuses, old.bonuses, strict=True):
        mine.load_state_dict(theirs.state_dict())
        mine.restore(theirs.records())
    assert torch.equal(new.bonuses[0].projection, old.bonuses[0].projection)
    assert new.bonuses[1].largest_surprise == old.bonuses[1].largest_surprise > 0
    again = episodes([8, 4], seed=0)
    left, right = annotated(again, old).columns, annotated(again, new).columns
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert left["visits"].max() == 2


def test_encoder_is_saved_once():
    parts = built()
    pointers = [value.data_ptr() for _, part in parts.named() for value in part.state_dict().values()]
    assert len(pointers) == len(set(pointers))
    assert any(name.startswith("q.encoder.") for name in parts.travelling())


# awareness


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


def test_the_largest_surprise_is_never_forgotten():
    parts = built(beta2=1.0)
    batch, aware = annotated(episodes([7, 5]), parts), parts.bonuses[1]
    aware.largest_surprise.fill_(1e6)
    reward, _ = aware.reward(batch, parts.q, Noise(0, 0))
    assert aware.largest_surprise == 1e6 and 0 < reward.max() < 1e-3


@pytest.mark.parametrize(("dtype", "warned"), [("bfloat16", True), ("float32", False)])
def test_a_cpu_without_products_of_bfloat16_is_told(dtype, warned):
    told = subprocess.run(
        [sys.executable, "-c", STARTS.format(dtype=dtype)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}, capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert ("algo.bonus_dtype=float32 is many times as fast" in told) == warned


STARTS = """
import algos, envs
from marl import build
from marl.command import cli
settings = cli.parse(["algo=fox", "env=meet", "algo.bonus_dtype={dtype}"], algos.ALGORITHMS, envs.ENVIRONMENTS)
build.learner(settings, build.spec(settings), build.device(settings))
"""
