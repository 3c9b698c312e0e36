"""Risk: FoX sees other formations than its specification describes, or counts them otherwise."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from algos import fox
from algos.formation.counts import CountTable, fingerprints
from algos.formation.novelty import count_bonus
from algos.formation.vectors import formations
from marl.dice import Noise
from marl.fields import Mistake
from tests.foxes import SPEC, annotated, built, episodes

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


@pytest.mark.parametrize("source", ["place", "ball"])
def test_what_are_no_places_of_agents_is_refused(source):
    with pytest.raises(
        Mistake, match=f"formation_source={source}: not told agent by agent in env=field; allowed are obs, p"
    ):
        built(formation_source=source)


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
