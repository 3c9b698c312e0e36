"""Risk: an episode changes between being played and being learned from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import marl.replay
from marl.replay import Replay, ReplayTooLarge
from marl.types import Column, EnvSpec, Episodes

SPEC = EnvSpec(
    "toy",
    n_agents=2,
    n_actions=3,
    obs_dim=4,
    state_dim=5,
    horizon=6,
    columns={"alive": Column((2,), "bool", "views"), "won": Column((), "bool", "episode")},
)
CPU = torch.device("cpu")


def record(length, seed):
    rng = np.random.default_rng(seed)
    fields = {}
    for name, column in SPEC.fields().items():
        shape = (*column.rows(length), *column.shape)
        fields[name] = rng.integers(0, 2, shape).astype(column.dtype)
        if column.dtype == "float32":
            fields[name] = rng.standard_normal(shape).astype("float32")
    return fields


def make(capacity=3, **kw):
    return Replay(SPEC, SPEC.fields(), capacity, CPU, **kw)


def assert_same(batch, row, rec):
    length = len(rec["reward"])
    for name, column in SPEC.fields().items():
        got = batch.columns[name] if name in SPEC.columns else vars(batch)[name]
        got = got[row][tuple(slice(0, n) for n in column.rows(length))]
        np.testing.assert_array_equal(got.numpy().astype(column.dtype), rec[name])


def test_what_goes_in_comes_out():
    replay, records = make(), [record(n, n) for n in (2, 6, 1)]
    for rec in records:
        replay.add(rec)
    slots, batch = replay.sample(3, torch.Generator().manual_seed(0))
    assert sorted(slots.tolist()) == [0, 1, 2]
    assert batch.mask.shape == (3, 6)
    for row, slot in enumerate(slots.tolist()):
        assert_same(batch, row, records[slot])
        assert batch.lengths[row] == len(records[slot]["reward"])


def test_padding_is_zero_even_where_a_longer_episode_lay():
    replay = make(capacity=2)
    for length, seed in ((6, 0), (4, 1), (2, 2)):
        replay.add(record(length, seed))
    batch = replay.episodes(torch.tensor([0, 1]))
    assert batch.mask.sum(1).tolist() == [2, 4]
    for value in (batch.obs, batch.state, batch.avail, batch.columns["alive"]):
        assert not value[0, 3:].any()
    for value in (batch.actions, batch.executed, batch.reward, batch.terminal):
        assert not value[0, 2:].any()
    assert_same(batch, 0, record(2, 2))


def test_the_oldest_is_replaced():
    replay = make(capacity=2)
    for seed in range(5):
        replay.add(record(3, seed))
    assert len(replay) == 2
    assert_same(replay.episodes(torch.tensor([0])), 0, record(3, 4))
    assert_same(replay.episodes(torch.tensor([1])), 0, record(3, 3))


def test_samples_are_cut_to_their_longest():
    replay = make()
    for length in (2, 3, 6):
        replay.add(record(length, length))
    assert replay.episodes(torch.tensor([0, 1])).obs.shape[:2] == (2, 4)


def test_priorities_decide_how_often():
    replay = make(capacity=4, alpha=0.5)
    for seed in range(4):
        replay.add(record(2, seed))
    replay.reprioritise(torch.arange(4), torch.tensor([16.0, 4.0, 1.0, 1.0]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([replay.sample(1, generator)[0] for _ in range(4000)]).bincount(minlength=4) / 4000
    torch.testing.assert_close(drawn, torch.tensor([4, 2, 1, 1]) / 8, atol=0.03, rtol=0)
    uniform = torch.cat([replay.sample(1, generator, uniform=True)[0] for _ in range(4000)]).bincount(minlength=4)
    torch.testing.assert_close(uniform / 4000, torch.full((4,), 0.25), atol=0.03, rtol=0)


def test_an_episode_that_takes_the_place_of_another_does_not_take_its_priority():
    replay = make(capacity=2, alpha=1.0)
    for seed in range(2):
        replay.add(record(3, seed))
    replay.reprioritise(torch.arange(2), torch.tensor([1000.0, 1.0]))
    replay.add(record(3, 9))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([replay.sample(1, generator)[0] for _ in range(200)])
    assert 60 < int((drawn == 0).sum()) < 140


def test_an_episode_without_error_can_still_be_drawn():
    replay = make(capacity=2, alpha=0.5)
    for seed in range(2):
        replay.add(record(3, seed))
    replay.reprioritise(torch.arange(2), torch.zeros(2))
    assert sorted(replay.sample(2, torch.Generator().manual_seed(0))[0].tolist()) == [0, 1]


def test_a_sample_has_no_episode_twice():
    replay = make(capacity=5, alpha=0.3)
    for seed in range(5):
        replay.add(record(2, seed))
    replay.reprioritise(torch.arange(5), torch.tensor([1e6, 1.0, 1.0, 1.0, 1.0]))
    assert len(set(replay.sample(5, torch.Generator().manual_seed(0))[0].tolist())) == 5


@pytest.mark.parametrize("piece", [1, 2**20])
@pytest.mark.parametrize("rounded", ["float32", "float16", "bfloat16"])
def test_save_and_restore(rounded, piece, monkeypatch):
    monkeypatch.setattr(marl.replay, "PIECE", piece)
    replay = make(capacity=4, alpha=0.3, rounded=rounded)
    for length, seed in ((6, 0), (1, 1), (4, 2)):
        replay.add(record(length, seed))
    replay.reprioritise(torch.arange(3), torch.tensor([3.0, 1.0, 2.0]))
    other = make(capacity=4, alpha=0.3, rounded=rounded)
    other.add(record(5, 9))
    assert len(replay.state()) == 1 + (3 if piece == 1 else 1)
    other.restore(replay.state())
    slots, batch = replay.sample(2, torch.Generator().manual_seed(5))
    again, copy = other.sample(2, torch.Generator().manual_seed(5))
    assert slots.tolist() == again.tolist() and other.added == replay.added
    torch.testing.assert_close(copy.obs, batch.obs, rtol=0, atol=0)
    torch.testing.assert_close(copy.columns["won"], batch.columns["won"], rtol=0, atol=0)


def test_an_empty_one_is_saved_too():
    other = make(capacity=4)
    other.add(record(5, 9))
    other.restore(make(capacity=4).state())
    assert len(other) == other.added == 0


def test_saved_state_holds_no_padding():
    replay = make(capacity=4)
    for length in (2, 3):
        replay.add(record(length, length))
    stored = replay.state()["replay-0000000"]()
    assert stored["obs"].shape[0] == 2 + 1 + 3 + 1
    assert stored["reward"].shape[0] == 5


def test_half_precision_halves_what_may_be_rounded():
    full, half = make(capacity=100), make(capacity=100, rounded="float16")
    rounded = 100 * (7 * 2 * 4 + 7 * 5)
    assert full.bytes - half.bytes == 2 * rounded


def test_a_replay_that_cannot_fit_is_refused_with_a_way_out():
    with pytest.raises(ReplayTooLarge, match=r"replay.capacity=\d+: needs .* GiB on cpu.*at most about \d+ episodes"):
        make(capacity=10**12)


def test_records_padded_at_once_equal_replay():
    records = [record(n, n) for n in (3, 5)]
    replay = make()
    for rec in records:
        replay.add(rec)
    stored, direct = replay.episodes(torch.tensor([0, 1])), Episodes.of_records(records, SPEC.fields())
    torch.testing.assert_close(direct.obs, stored.obs)
    torch.testing.assert_close(direct.last_action, stored.last_action)
    assert direct.seen.sum(1).tolist() == [4, 6]
