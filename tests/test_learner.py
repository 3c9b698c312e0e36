"""Risk: learning depends on what it must not depend on, or skips what it must do."""

from __future__ import annotations

import copy

import pytest
import torch

import algos
import envs
from algos import iql, qmix, vdn
from algos.factored import Optimizer
from marl import build
from marl.command import cli
from marl.config import Learning
from marl.descent import Descent, NonFinite
from marl.dice import TRAIN, Noise, generator
from marl.env import SideBySide
from marl.fields import Mistake
from marl.learner import Learner
from marl.parts import Bonus, Cadence, Intervention
from marl.replay import Replay
from marl.types import Column, Episodes
from marl.worker import Plan, Worker
from tests.toys import Clockwork
from tests.yard import snapshot

SPEC = Clockwork.spec
CPU = torch.device("cpu")


def learner(config=None, *bonuses, learning=None, seed=0, **kw):
    torch.manual_seed(seed)
    parts = algos.assemble(SPEC, config or qmix.Config(hidden=8))
    for bonus in bonuses:
        parts = parts.with_bonus(bonus)
    replay = Replay(SPEC, {**SPEC.fields(), **parts.columns()}, 64, CPU, alpha=kw.pop("alpha", None))
    return Learner(parts, replay, learning or Learning(batch=4, updates_per_episode=1.0, burn_in=4), seed, **kw)


def episodes(count, first=0):
    parts = algos.assemble(SPEC, vdn.Config(hidden=8))
    return Worker(parts, SideBySide(Clockwork, count), 0).play(Plan(0, TRAIN, first, count, 1.0)).records


@pytest.mark.parametrize("config", [iql.Config(hidden=8), vdn.Config(hidden=8), qmix.Config(hidden=8)])
def test_padding_changes_nothing(config):
    torch.manual_seed(0)
    q = algos.assemble(SPEC, config).q
    batch = Episodes.of_records(episodes(4), SPEC.fields())

    def padded(value, steps):
        return torch.cat([value, value.new_ones((len(value), steps, *value.shape[2:]))], 1)

    fields = {name: padded(value, 3) for name, value in vars(batch).items() if name != "columns"}
    longer = Episodes(**{**fields, "mask": torch.nn.functional.pad(batch.mask, (0, 3))})
    short, long = q.loss(batch, Noise(0, 0)), q.loss(longer, Noise(0, 0))
    torch.testing.assert_close(short.value, long.value)
    assert short.priority is not None
    torch.testing.assert_close(short.priority, long.priority)
    grads = [torch.autograd.grad(loss.value, q.learned()) for loss in (short, long)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.25, 1.0, 2.0])
def test_updates_are_due_from_the_last_episode_of_the_burn_in_on(ratio):
    subject, updates = learner(learning=Learning(batch=4, updates_per_episode=ratio, burn_in=8)), []
    for record in episodes(64):
        subject.absorb(record)
        subject.improve()
        updates.append(subject.clock.updates)
    assert updates == [int(max(0, number - 7) * ratio) for number in range(1, 65)]


def test_environments_side_by_side_do_not_change_what_is_learned():
    one, other = learner(), learner()
    for record in episodes(12):
        one.absorb(record)
        one.improve()
    for first in range(0, 12, 4):
        for record in episodes(4, first):
            other.absorb(record)
            other.improve()
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(tensor, other.tensors()[name], rtol=0, atol=0)


def test_hard_copies_follow_every_so_many_episodes():
    subject = learner(qmix.Config(hidden=8, target_every_episodes=6))
    before = copy.deepcopy(subject.parts.q.slow_mixer.state_dict())
    changed = []
    for record in episodes(14):
        subject.absorb(record)
        subject.improve()
        now = subject.parts.q.slow_mixer.state_dict()
        changed.append(any(not torch.equal(now[key], before[key]) for key in now))
        before = copy.deepcopy(now)
    assert [i + 1 for i, c in enumerate(changed) if c] == [6, 12]


def test_soft_copies_follow_after_every_update():
    subject = learner(vdn.Config(hidden=8, target_tau=0.25, optimizer=Optimizer(lr=0.1)))
    for record in episodes(4):
        subject.absorb(record)
    slow = subject.parts.q.slow_agent.head.weight.detach().clone()
    subject.improve()
    live = subject.parts.q.agent.head.weight.detach()
    torch.testing.assert_close(subject.parts.q.slow_agent.head.weight, slow + 0.25 * (live - slow))


@pytest.mark.parametrize("name", ["adam", "radam", "rmsprop"])
def test_a_learning_rate_falls_with_the_steps_of_the_run(name):
    """Linearly to 0: what is left of the run when an update is made is what is left of the rate."""
    optimizer = Optimizer(name, lr=0.01, lr_decay=True)
    subject = learner(vdn.Config(hidden=8, optimizer=optimizer), total_steps=40)
    (descent,) = subject.parts.q.descents()
    rates = []
    for record in episodes(12):
        subject.absorb(record)
        rates.append(descent.rate)
        assert rates[-1] == pytest.approx(0.01 * max(0.0, 1 - subject.clock.steps / 40))
        before = subject.parts.q.agent.head.weight.detach().clone()
        if subject.improve():
            assert torch.equal(subject.parts.q.agent.head.weight, before) == (rates[-1] == 0)
    assert subject.clock.steps > 40 and rates[0] > rates[1] > rates[-1] == 0


@pytest.mark.parametrize(("decay", "steps"), [(False, 40), (True, None)])
def test_a_learning_rate_stays_unless_it_is_to_fall_over_a_known_run(decay, steps):
    config = vdn.Config(hidden=8, optimizer=Optimizer(lr=0.01, lr_decay=decay))
    subject = learner(config, total_steps=steps)
    for record in episodes(12):
        subject.absorb(record)
    assert [descent.rate for descent in subject.parts.q.descents()] == [0.01]


def test_a_restored_learner_has_the_learning_rate_of_where_it_was():
    config = vdn.Config(hidden=8, optimizer=Optimizer(lr=0.01, lr_decay=True))
    one, other = (learner(config, total_steps=100) for _ in range(2))
    for record in episodes(8):
        one.absorb(record)
        one.improve()
    other.restore({name: tensor.clone() for name, tensor in one.tensors().items()}, one.state())
    other.replay.restore(snapshot(one.replay))
    assert 0 < other.parts.q.descents()[0].rate == one.parts.q.descents()[0].rate < 0.01
    for record in episodes(4, first=8):
        for subject in (one, other):
            subject.absorb(record)
            subject.improve()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


class Novelty(Bonus):
    """Counts episodes in order of arrival; rewards 10 per step; fits a number of its own."""

    def __init__(self, every, batch):
        super().__init__()
        self.cadence = Cadence(every, batch)
        self.seen = 0
        self.fits = []
        self.level = torch.nn.Parameter(torch.zeros(()))

    def columns(self):
        return {"order": Column((), "int64", "episode"), "steps_left": Column((), "float32", "steps")}

    def annotate(self, fresh):
        self.seen += 1
        left = fresh.mask.flip(1).cumsum(1).flip(1)
        return {"order": torch.tensor([self.seen]), "steps_left": left}

    def reward(self, batch, q, noise):
        return torch.full_like(batch.reward, 10.0), {"bonus/mean": 10.0}

    def fit(self, batch, q, noise):
        self.fits.append((len(batch.reward), q.histories(batch).shape[-1]))
        return {"loss/novelty": 1.0}

    def records(self):
        return {"seen": torch.tensor(self.seen)}

    def restore(self, records):
        self.seen = int(records["seen"])


def test_a_bonus_sees_each_episode_once_in_order_and_replaces_the_reward():
    subject, plain = learner(None, Novelty(0, 0)), learner()
    for record in episodes(4):
        subject.absorb(record)
        plain.absorb(record)
    stored = subject.replay.episodes(torch.arange(4))
    assert stored.columns["order"].tolist() == [1, 2, 3, 4]
    assert stored.columns["steps_left"][:, 0].tolist() == stored.lengths.tolist()
    (stats,), (base,) = subject.improve(), plain.improve()
    assert stats["bonus/mean"] == 10.0
    assert stats["q/target"] > base["q/target"] + 5
    assert float(stored.reward.max()) < 10


@pytest.mark.parametrize(
    ("slip", "told"),
    [
        ({"annotate": lambda self, fresh: {"ordre": torch.tensor([1])}}, "Slip: annotate wrote .'ordre'., .*'order'"),
        ({"annotate": lambda self, fresh: {}}, "Slip: annotate wrote ..*'order', 'steps_left'"),
        ({"reward": lambda self, batch, q, noise: (batch.reward.mean(), {})}, "Slip.reward is .*is needed"),
        ({"reward": lambda self, batch, q, noise: (batch.reward.mean(1), {})}, "Slip.reward is .4,.; .4, "),
    ],
)
def test_what_a_bonus_writes_and_pays_is_held_to_what_it_said(slip, told):
    subject = learner(None, type("Slip", (Novelty,), slip)(0, 0))
    with pytest.raises(ValueError, match=told):
        for record in episodes(4):
            subject.absorb(record)
        subject.improve()


def test_a_part_keeps_its_own_cadence():
    every_update, by_episodes = Novelty(0, 0), Novelty(5, 3)
    one, other = learner(None, every_update), learner(None, by_episodes)
    for record in episodes(12):
        for subject in (one, other):
            subject.absorb(record)
            subject.improve()
    assert every_update.fits == [(4, 8)] * 9
    assert by_episodes.fits == [(3, 8)] * 2


def test_a_bonus_of_zero_leaves_learning_bit_for_bit():
    class Nothing(Bonus):
        def reward(self, batch, q, noise):
            return torch.randn(batch.reward.shape, generator=noise("nothing")) * 0, {}

    one, other = learner(), learner(None, Nothing())
    for record in episodes(8):
        for subject in (one, other):
            subject.absorb(record)
            subject.improve()
    for name, array in one.weights().items():
        assert (array == other.weights()[name]).all()


def test_interventions_are_fitted_and_their_unwritten_columns_are_zero():
    class Watcher(Intervention):
        fitted = 0

        def columns(self):
            return {"watched": Column((2,), "float32", "steps")}

        def fit(self, batch, q, noise):
            self.fitted += 1
            assert not batch.columns["watched"].any()
            return {"loss/watcher": 0.5}

    torch.manual_seed(0)
    watcher = Watcher()
    parts = algos.assemble(SPEC, vdn.Config(hidden=8)).with_intervention(watcher)
    replay = Replay(SPEC, {**SPEC.fields(), **parts.columns()}, 8, CPU)
    subject = Learner(parts, replay, Learning(2, 1.0, 2), 0)
    for record in episodes(3):
        subject.absorb(record)
        subject.improve()
    assert watcher.fitted == 2


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_a_restored_learner_goes_on_as_if_nothing_had_happened(alpha):
    records = episodes(20)

    def go_on(subject, some):
        for record in some:
            subject.absorb(record)
            subject.improve()

    unbroken = learner(None, Novelty(3, 2), alpha=alpha)
    go_on(unbroken, records[:10])
    tensors = {name: tensor.clone() for name, tensor in unbroken.tensors().items()}
    state, replay = unbroken.state(), snapshot(unbroken.replay)
    resumed = learner(None, Novelty(3, 2), alpha=alpha, seed=0)
    resumed.restore(tensors, state)
    resumed.replay.restore(replay)
    go_on(unbroken, records[10:])
    go_on(resumed, records[10:])
    assert resumed.state() == unbroken.state()
    for name, tensor in unbroken.tensors().items():
        torch.testing.assert_close(resumed.tensors()[name], tensor, rtol=0, atol=0)


def test_episodes_get_the_error_of_their_last_draw_as_priority():
    subject = learner(alpha=0.5)
    for record in episodes(8):
        subject.absorb(record)
    slots, batch = subject.replay.sample(4, generator(0, "learner/sample", 0))
    expected = torch.ones(8).index_put_((slots,), subject.parts.q.loss(batch, Noise(0, 0)).priority)
    subject.update()
    torch.testing.assert_close(subject.replay.state()["replay"]()["priorities"], expected)


def test_a_loss_that_is_not_finite_stops_with_its_name_and_changes_nothing():
    subject = learner()
    for record in episodes(4):
        record["reward"][0] = float("nan")
        subject.absorb(record)
    before = subject.weights()
    with pytest.raises(NonFinite, match="td_loss is not finite"):
        subject.improve()
    assert all((before[name] == array).all() for name, array in subject.weights().items())
    assert subject.batch is not None


def test_a_weight_that_is_not_finite_is_not_given_out():
    subject = learner()
    subject.parts.q.agent.head.weight.data[0, 0] = float("inf")
    with pytest.raises(NonFinite, match="weight q.agent.head.weight is not finite"):
        subject.weights()


def test_what_is_forgotten_earns_no_update():
    """Updates wait for four episodes; two had come when a phase with a fresh replay began."""
    subject = learner(learning=Learning(batch=4, updates_per_episode=1.0, burn_in=4, every_episodes=4))
    for record in episodes(6):
        subject.absorb(record)
        subject.improve()
    assert subject.clock.updates == 1
    subject.forget()
    made = []
    for record in episodes(6, first=6):
        subject.absorb(record)
        made.append(len(subject.improve()))
    assert made == [0, 0, 0, 0, 0, 3], "the 10th to 12th episode earned one each"


def test_bf16_losses_stay_close_to_float32():
    full, half = learner(), learner(precision="bf16")
    for record in episodes(4):
        full.absorb(record)
        half.absorb(record)
    (one,), (other,) = full.improve(), half.improve()
    assert float(other["loss/td"]) == pytest.approx(float(one["loss/td"]), rel=0.05)


def test_a_step_is_seen_by_the_next_pass_in_lower_precision():
    """Autocast keeps a copy of each parameter while its context lasts, and a fit is many steps in one context."""
    layer, inputs = torch.nn.Linear(4, 4), torch.randn(8, 4)
    descent = Descent("loss", torch.optim.SGD(layer.parameters(), lr=1.0), clip=10.0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = []
        for _ in range(3):
            loss = layer(inputs).float().square().mean()
            losses.append(loss.item())
            descent(loss)
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.slow
def test_compiled_networks_compute_the_same():
    full, fast = learner(), learner(compiled=True)
    for record in episodes(6):
        for subject in (full, fast):
            subject.absorb(record)
            subject.improve()
    for name, array in full.weights().items():
        torch.testing.assert_close(torch.tensor(array), torch.tensor(fast.weights()[name]), rtol=1e-3, atol=1e-4)


def test_a_replay_too_small_for_networks_of_their_own_is_refused():
    line = "algo=fox env=meet algo.fnet_batch=32 replay.capacity=16 learner.batch=8 learner.burn_in=8"
    settings = cli.parse(line.split(), algos.ALGORITHMS, envs.ENVIRONMENTS)
    with pytest.raises(Mistake, match="replay.capacity=16: fox fits networks of its own to 32 episodes"):
        build.learner(settings, build.spec(settings), CPU)
