"""Risk: FIM selects, pays or learns something else than its specification says."""

from __future__ import annotations

import csv
import warnings
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import algos
import envs
from algos import fim, qmix
from algos.influence.counterfactual import uniform_marginal
from algos.influence.selection import Rule, entropy_per_dim, mean_change, scale, select
from algos.influence.trace import trace_scan
from marl import build
from marl.command import cli
from marl.dice import Noise
from marl.fields import Mistake
from marl.parts import Bars
from marl.reporting.chart import draw
from marl.reporting.log import repeats
from marl.run import Run
from marl.types import Column, Episodes
from tests.yard import SPEC, built, by_hand, episodes, run, settled

NONE = Noise(0, 0)


# as parts of a learner


def of(**kw):
    plain = {"statistic_steps": 20, "model_hidden": 16, "model_updates": 2, "delta_mode": "relative", "rho": 2.0}
    return fim.Config(base=qmix.Config(), **{**plain, **kw})


def watched(config, spec=SPEC, **columns):
    parts = built(config, spec)
    batch = episodes([12, 12, 5], spec, **columns)
    parts.bonuses[0].annotate(batch)
    return parts, batch


def test_without_weight_it_is_its_base_bit_for_bit():
    base = run(qmix.Config())
    wrapped = run(of(alpha=0.0, statistic_steps=10, model_every_episodes=1, selection="all"))
    bonus = wrapped.parts.bonuses[0]
    assert int(bonus.slow_model.rounds) > 1 and bonus.statistic.selected.any()
    mine = wrapped.parts.q.state_dict()
    for name, value in base.parts.q.state_dict().items():
        assert torch.equal(value, mine[name]), name
    paying = run(of(alpha=1.0, statistic_steps=10, model_every_episodes=1, selection="all"))
    assert any(not torch.equal(value, paying.parts.q.state_dict()[name]) for name, value in mine.items())


@pytest.mark.parametrize("influence", ["marginal", "signed", "ate_sq", "change"])
def test_padding_has_no_influence_and_changes_none(influence):
    parts, batch = watched(of(influence=influence))
    bonus = settled(parts.bonuses[0])
    reward, _ = bonus.reward(batch, parts.q, Noise(0, 0))
    assert reward[2, :5].any() and not reward[2, 5:].any()
    dirty = batch.state.clone()
    dirty[2, 6:] = 77.0
    other, _ = bonus.reward(replace(batch, state=dirty), parts.q, Noise(0, 0))
    torch.testing.assert_close(other, reward)
    one, two = bonus.fit(batch, parts.q, Noise(0, 0)), parts.bonuses[0]
    again = settled(watched(of(influence=influence))[0].bonuses[0])
    other = again.fit(replace(batch, state=dirty), parts.q, Noise(0, 0))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for left, right in zip(two.parameters(), again.parameters()):
        assert torch.equal(left, right)


def test_dead_agents_and_what_is_not_seen_pay_nothing():
    spec = replace(SPEC, columns={"alive": Column((3,), "bool", "views"), "visible": Column((3, 6), "bool", "views")})
    alive, visible = torch.ones(3, 13, 3, dtype=torch.bool), torch.ones(3, 13, 3, 6, dtype=torch.bool)

    def influence(config, **columns):
        parts, batch = watched(config, spec, **columns)
        bonus = settled(parts.bonuses[0])
        return bonus.influence(batch, parts.q, Noise(0, 0), bonus.statistic.target())

    whole = influence(of(), alive=alive)
    parts = [influence(of(), alive=alive & (torch.arange(3) == agent)) for agent in range(3)]
    assert whole.sum() > 0 and all(part.sum() > 0 for part in parts)
    torch.testing.assert_close(sum(parts), whole)
    dying = torch.rand(3, 13, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    steps = parts[0].shape[1]
    before = dying[:, :steps].float().unsqueeze(-1)
    left = sum(part * before[:, :, agent] for agent, part in enumerate(parts))
    torch.testing.assert_close(influence(of(), alive=dying), left)
    enemies = torch.cat([dying, ~dying[..., :2]], -1)
    torch.testing.assert_close(influence(of(), alive=enemies), left)
    config = of(visibility_mask=True)
    torch.testing.assert_close(influence(config, alive=alive, visible=visible), whole)
    hidden = influence(config, alive=alive, visible=visible & (torch.arange(6) != 2))
    built_in = whole.clone()
    built_in[..., watched(of(), spec)[0].bonuses[0].statistic.target().features.tolist().index(2)] = 0
    torch.testing.assert_close(hidden, built_in)


def test_gradients_of_value_and_model_do_not_meet():
    parts, batch = watched(of())
    bonus = settled(parts.bonuses[0])
    reward, _ = bonus.reward(batch, parts.q, Noise(0, 0))
    assert not reward.requires_grad and reward.any()
    parts.q.loss(batch.with_reward(batch.reward + reward), Noise(0, 0)).value.backward()
    assert all(parameter.grad is None for parameter in bonus.parameters())
    assert any(parameter.grad is not None for parameter in parts.q.parameters())
    parts.q.zero_grad(set_to_none=True)
    before = [parameter.clone() for parameter in parts.q.parameters()]
    bonus.fit(batch, parts.q, Noise(0, 0))
    assert all(parameter.grad is None for parameter in parts.q.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, parts.q.parameters()))
    assert any(parameter.grad is not None for parameter in bonus.model.parameters())
    assert all(parameter.grad is None for parameter in bonus.slow_model.parameters())


def test_nothing_is_paid_before_the_delayed_model_was_copied_from_a_fitted_one():
    parts, batch = watched(of())
    bonus = parts.bonuses[0]
    for rounds, pays in ((0, False), (1, False), (2, True)):
        assert settled(bonus, rounds).reward(batch, parts.q, Noise(0, 0))[0].any() == pays


def test_without_counterfactuals_nothing_has_to_be_foreseen():
    parts, batch = watched(of(influence="change"))
    assert parts.bonuses[0].reward(batch, parts.q, NONE)[0].any()


def test_the_bonus_is_bounded_weighted_and_fades():
    parts, batch = watched(of(alpha=0.5, c_max=None))
    free = settled(parts.bonuses[0]).reward(batch, parts.q, Noise(0, 0))[0]
    bounded = settled(watched(of(alpha=0.5, c_max=0.1))[0].bonuses[0]).reward(batch, parts.q, Noise(0, 0))[0]
    torch.testing.assert_close(bounded, free.clamp(max=0.1))
    config = of(alpha=0.5, c_max=0.1, anneal=True, anneal_steps=58)
    bounded_first = settled(watched(config)[0].bonuses[0])
    bounded_first.fading.began.copy_(bounded_first.fading.seen)
    bounded_first.annotate(batch)
    torch.testing.assert_close(bounded_first.reward(batch, parts.q, NONE)[0], 0.5 * free.clamp(max=0.1))
    fading = settled(watched(of(alpha=0.5, c_max=None, anneal=True, anneal_steps=58))[0].bonuses[0])
    losing = batch.with_reward(-batch.reward.abs())
    torch.testing.assert_close(fading.reward(losing, parts.q, Noise(0, 0))[0], free)
    winning = batch.with_reward(batch.reward.abs())
    torch.testing.assert_close(fading.reward(winning, parts.q, Noise(0, 0))[0], free)
    for share in (0.5, 0.0, 0.0):
        fading.annotate(batch)
        torch.testing.assert_close(fading.reward(losing, parts.q, Noise(0, 0))[0], free * share)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.3},
        {"c_max": 0.05},
        {"eta": 0.5},
        {"trace_clip": 0.3},
        {"trace_norm": "sum"},
        {"trace_mode": "accumulate"},
        {"trace_mode": "none"},
    ],
)
def test_what_is_paid_is_of_the_trace_that_is_asked_for(options):
    def paid(**kw):
        parts, batch = watched(of(**kw))
        bonus = settled(parts.bonuses[0])
        reward, _ = bonus.reward(batch, parts.q, NONE)
        return reward, bonus.influence(batch, parts.q, NONE, bonus.statistic.target()), batch.mask

    plain = {"alpha": 0.1, "c_max": 1.0, "eta": 0.9, "trace_clip": 10.0, "trace_norm": "none", "trace_mode": "product"}
    asked = {**plain, **options}
    reward, influence, mask = paid(**asked)
    trace = {"decay": asked["eta"], "clip": asked["trace_clip"], "norm": asked["trace_norm"]}
    traced, _ = trace_scan(influence, mask, mode=asked["trace_mode"], **trace)
    torch.testing.assert_close(reward, (asked["alpha"] * traced).clamp(max=asked["c_max"]))
    assert (reward - paid(**plain)[0]).abs().max() > 0.01


def test_the_policy_marginal_weighs_the_greedy_action_most():
    parts, batch = watched(of(marginal="policy", marginal_epsilon=0.2))
    weights = parts.bonuses[0].marginal(batch, parts.q, Noise(0, 0))
    avail = batch.avail[:, :-1]
    values = parts.q.agent(batch.obs, batch.last_action)[0][:, :-1].masked_fill(~avail, -torch.inf)
    expected = 0.2 * uniform_marginal(avail)
    expected.scatter_add_(-1, values.argmax(-1, keepdim=True), torch.full((*avail.shape[:-1], 1), 0.8))
    played = batch.mask.bool()
    torch.testing.assert_close(weights[played], expected[played])


def test_sampling_alternatives_is_close_to_all_of_them_and_repeats():
    parts, batch = watched(of())
    bonus = settled(parts.bonuses[0])
    whole = bonus.influence(batch, parts.q, Noise(0, 0), bonus.statistic.target()).sum()
    bonus.config = of(cf_samples=200)
    drawn = [bonus.influence(batch, parts.q, Noise(0, n), bonus.statistic.target()).sum() for n in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].item() == pytest.approx(whole.item(), rel=0.1)


FORMS = {
    "marginal": (lambda gain: gain.clamp(min=0), lambda moved: moved.abs()),
    "signed": (lambda gain: gain, lambda moved: moved.abs()),
    "ate_sq": (torch.square, torch.clone),
}


@pytest.mark.parametrize("norm", ["max", "mean", "range"])
@pytest.mark.parametrize("influence", FORMS)
@torch.no_grad()
def test_influence_is_the_sum_of_what_each_agent_is_worth(influence, norm):
    """With the delayed model, of the actions that the world received."""
    parts, batch = watched(of(influence=influence, norm=norm))
    bonus = settled(parts.bonuses[0])
    if norm == "mean":  # displacements beyond ten means are cut
        bonus.slow_model.last.weight.mul_(30.0)
    for parameter in bonus.model.parameters():
        parameter.fill_(9.0)
    worth, size = FORMS[influence]
    measure = size if norm != "mean" or influence == "ate_sq" else lambda moved: size(moved).clamp(max=10)
    target, model = bonus.statistic.target(), bonus.slow_model
    now = measure(model(batch.state[:, :-1], batch.executed, target)[batch.mask.bool()])
    expected = by_hand(model, batch, target, uniform_marginal(batch.avail[:, :-1]), measure)
    found = bonus.influence(batch, parts.q, Noise(0, 0), target)
    torch.testing.assert_close(
        found[batch.mask.bool()], worth(now.unsqueeze(1) - expected).sum(1), atol=1e-4, rtol=1e-3
    )
    assert norm != "mean" or influence == "ate_sq" or (now == 10).any()


def test_without_counterfactuals_influence_is_the_change_in_units():
    parts, batch = watched(of(influence="change"))
    target = parts.bonuses[0].statistic.target()
    found = parts.bonuses[0].influence(batch, parts.q, Noise(0, 0), target)
    moved = (batch.state[:, 1:] - batch.state[:, :-1])[..., target.features].abs() / target.units
    torch.testing.assert_close(found, moved * batch.mask.unsqueeze(-1))


def test_the_model_learns_of_what_the_world_received():
    def fitted(**changed):
        parts, batch = watched(of(model_updates=5))
        parts.bonuses[0].fit(replace(batch, **{name: change(batch) for name, change in changed.items()}), parts.q, NONE)
        return parts.bonuses[0].model.first.weight

    assert torch.equal(fitted(), fitted(actions=lambda batch: 3 - batch.actions))
    assert not torch.equal(fitted(), fitted(executed=lambda batch: 3 - batch.executed))


@pytest.mark.parametrize("predicts", ["next", "change"])
def test_influence_is_exact_in_lower_precision(predicts):
    parts, batch = watched(of(model_predicts=predicts))
    bonus = settled(parts.bonuses[0])
    full, _ = bonus.reward(batch, parts.q, NONE)
    with torch.autocast("cpu", torch.bfloat16):
        lower, _ = bonus.reward(batch, parts.q, NONE)
        assert torch.isfinite(bonus.fit(batch, parts.q, NONE)["fim/model_loss"])
    assert torch.equal(full, lower)


# the statistic as a part of training


def test_the_statistic_is_of_the_first_steps_and_stays():
    parts = built(of(statistic_steps=20))
    bonus = parts.bonuses[0]
    first, second = episodes([12], seed=1), episodes([12], seed=2)
    bonus.annotate(first)
    assert not bonus.statistic.closed and bonus.records()
    bonus.annotate(second)
    states = [*first.state, *second.state]
    torch.testing.assert_close(bonus.statistic.sigma, scale(states, "max").unit)
    torch.testing.assert_close(bonus.statistic.entropy, entropy_per_dim(states, scale(states, "max"), 10))
    frozen = {name: value.clone() for name, value in bonus.statistic.state_dict().items() if name != "steps"}
    bonus.annotate(episodes([12, 12], seed=3))
    assert all(torch.equal(bonus.statistic.state_dict()[name], value) for name, value in frozen.items())
    assert not bonus.records()


def rarely_changing() -> Episodes:
    """200 steps; the less often a feature of the state changes, the larger its changes are."""
    generator, batch = torch.Generator().manual_seed(0), episodes([70, 60, 70])
    often = torch.rand(batch.state.shape, generator=generator) < torch.tensor([0.01, 0.02, 0.1, 0.3, 0.6, 1.0])
    jumps = torch.randn(batch.state.shape, generator=generator) * torch.tensor([90.0, 8.0, 4.0, 1.0, 0.1, 0.01])
    return replace(batch, state=(often * jumps).cumsum(1))


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "mean"},
        {"norm": "range"},
        {"bins": 3},
        {"max_dims": 1},
        {"delta": 0.1},
        {"selection": "least_change"},
    ],
)
def test_the_statistic_is_the_one_that_is_asked_for(options):
    batch = rarely_changing()
    states = [state[: length + 1] for state, length in zip(batch.state, batch.lengths)]

    def calculated(norm, bins, selection, delta, max_dims):
        units = scale(states, norm)
        entropy = entropy_per_dim(states, units, bins)
        rule = Rule(selection, False, delta, max_dims)
        return units.unit, entropy, select(entropy, mean_change(states), torch.ones(6, dtype=torch.bool), rule).chosen

    plain = {"norm": "max", "bins": 10, "selection": "entropy", "delta": 0.3, "max_dims": None}
    asked = {**plain, **options}
    bonus = built(of(statistic_steps=200, delta_mode="absolute", **asked)).bonuses[0]
    bonus.annotate(batch)
    found, expected = bonus.statistic, calculated(**asked)
    torch.testing.assert_close((found.sigma, found.entropy, found.selected), expected)
    assert not all(map(torch.equal, expected, calculated(**plain)))


def test_it_can_be_taken_again_from_the_last_steps():
    bonus = built(of(statistic_steps=20, recompute_every=24)).bonuses[0]
    batches = [episodes([12], seed=seed) for seed in range(5)]
    for batch in batches:
        bonus.annotate(batch)
    states = [batches[2].state[0], batches[3].state[0]]
    torch.testing.assert_close(bonus.statistic.sigma, scale(states, "max").unit)
    assert int(bonus.statistic.estimated_at) == 48


def test_a_new_statistic_pays_nothing_before_the_model_was_fitted_to_it():
    parts = built(of(statistic_steps=12, recompute_every=24))
    bonus, batch = parts.bonuses[0], episodes([12])

    def pays():
        return bool(bonus.reward(batch, parts.q, NONE)[0].any())

    bonus.annotate(batch)
    assert settled(bonus) and pays()
    bonus.annotate(batch)
    assert pays(), "not due again"
    bonus.annotate(batch)
    assert not pays()
    for _ in range(2):
        bonus.fit(batch, parts.q, NONE)
    assert not pays(), "the delayed copy is of before"
    bonus.slow_model.load_state_dict(bonus.model.state_dict())
    assert pays()


def test_half_a_statistic_survives_a_checkpoint():
    config = of(statistic_steps=30)
    one, other = built(config).bonuses[0], built(config).bonuses[0]
    one.annotate(episodes([12, 7], seed=1))
    other.load_state_dict(one.state_dict())
    other.restore({name: tensor.clone() for name, tensor in one.records().items()})
    for bonus in (one, other):
        bonus.annotate(episodes([12], seed=2))
        assert bonus.statistic.closed
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_too_short_a_statistic_is_said():
    parts = built(of(statistic_steps=1000))
    bonus, batch = parts.bonuses[0], episodes([12, 12])
    bonus.annotate(batch)
    with pytest.warns(UserWarning, match="algo.statistic_steps=1000: 24 came before the first update"):
        bonus.reward(batch, parts.q, Noise(0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bonus.reward(batch, parts.q, Noise(0, 1))


def test_candidates_by_group_and_without_unit_types():
    spec = replace(SPEC, state_groups={"time": (0,), "own": (1, 2), "far": (3, 4, 5)})
    batch = episodes([12, 12], spec)
    state = batch.state.clone()
    state[..., 5] = (torch.arange(13) < 7).float()
    state[..., 4] = (torch.arange(13) >= 7).float()
    batch = replace(batch, state=state)

    def chosen(**kw):
        bonus = built(of(selection="all", **kw), spec).bonuses[0]
        bonus.annotate(batch)
        return bonus.statistic.selected.nonzero().flatten().tolist()

    assert chosen() == [1, 2, 3, 4], "a bit that only falls is a unit's type"
    assert chosen(exclude_constant_onehots=False) == [1, 2, 3, 4, 5]
    assert chosen(candidates=["far"]) == [3, 4]
    assert chosen(not_native=["own"]) == [0, 3, 4]
    with pytest.raises(Mistake, match="algo.candidates=farr: no such group .* did you mean far"):
        built(of(candidates=["farr"]), spec)
    with pytest.raises(Mistake, match=r"algo.candidates=\[time\]: all of it is in algo.not_native; .* own, far$"):
        built(of(candidates=["time"]), spec)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"visibility_mask": True}, "algo.visibility_mask=true: env=yard has no column visible; allowed is false"),
        ({"not_native": ["owm"]}, "algo.not_native=owm: no such group .* did you mean own"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, line):
    with pytest.raises(Mistake, match=line):
        built(of(**options))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("trace_mode=none trace_norm=sum", "algo.trace_mode=none has no use for it; say algo.trace_mode=product too"),
        ("influence=change marginal=policy", "algo.influence=change has no use for it"),
        ("influence=change cf_samples=5", "algo.influence=change has no use for it"),
        ("influence=change visibility_mask=true", "algo.influence=change has no use for it"),
        ("delta=0.1", "algo.delta_mode=relative has no use for it; say algo.delta_mode=absolute too"),
        ("delta_mode=absolute rho=0.1", "algo.delta_mode=absolute has no use for it; say algo.delta_mode=relative too"),
        ("marginal_epsilon=0.1", "algo.marginal=uniform has no use for it; say algo.marginal=policy too"),
        ("anneal_steps=1000", "algo.anneal=false has no use for it; say algo.anneal=true too"),
    ],
)
def test_settings_without_effect_are_refused(arguments, line):
    typed = [f"algo.{argument}" for argument in arguments.split()]
    with pytest.raises(Mistake, match=f"^{typed[-1]}: {line}"):
        cli.parse(["algo=fim", "env=push_box", *typed], algos.ALGORITHMS, envs.ENVIRONMENTS)


def test_settings_are_those_of_the_specification():
    """Section 6, for SMAC; with the recurrent base of PyMARL2."""
    settings = cli.parse(["algo=fim", "env=push_box"], algos.ALGORITHMS, envs.ENVIRONMENTS)
    algo, base = settings.algo, settings.algo.base
    assert (algo.alpha, algo.c_max, algo.eta, algo.anneal, algo.bins, algo.norm) == (0.05, 1.0, 0.9, False, 10, "max")
    assert (algo.delta_mode, algo.rho, algo.delta, algo.statistic_steps) == ("relative", 0.5, 0.3, 100_000)
    assert (algo.model_hidden, algo.model_lr, algo.model_clip, algo.model_updates) == (128, 3e-4, 1.0, 25)
    assert (algo.influence, algo.marginal, algo.trace_mode, algo.trace_clip) == ("marginal", "uniform", "product", 10.0)
    assert (algo.recompute_every, algo.model_every_episodes, algo.visibility_mask) == (0, 200, False)
    assert (base.td_lambda, base.gamma, base.target_every_episodes, base.hidden) == (0.6, 0.99, 200, 64)
    assert (base.optimizer.name, base.optimizer.lr, base.optimizer.clip) == ("adam", 1e-3, 10.0)
    assert (settings.learner.batch, settings.replay.capacity) == (128, 5000)
    watching, training = settings.phases
    assert (watching.steps, watching.epsilon, watching.updates) == (algo.statistic_steps, 1.0, False)
    assert training.fresh_replay and training.epsilon_restart and training.updates


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("algo=fim env=push_box algo.statistic_steps=20000", 20_000),
        ("algo=fim algo.base=fim env=push_box algo.statistic_steps=300 algo.base.statistic_steps=200", 300),
        ("algo=random_attack algo.base=fim env=push_box", 100_000),
        ("algo=random_attack algo.base=fim env=push_box algo.base.statistic_steps=20000", 20_000),
        ("algo=random_attack algo.base=laies algo.base.base=fim env=push_box algo.base.base.statistic_steps=70", 70),
        ("experiment=fim_push_box", 4_000),
        ("experiment=fim_push_box algo.statistic_steps=1500", 1_500),
    ],
)
def test_what_is_watched_and_not_learned_from_is_the_statistic(words, steps):
    settings = cli.parse(words.split(), algos.ALGORITHMS, envs.ENVIRONMENTS)
    assert [phase.steps for phase in settings.phases] == [steps, None]
    assert not settings.phases[0].updates and settings.phases[0].epsilon == 1


def test_a_statistic_that_takes_the_whole_run_is_refused():
    with pytest.raises(Mistake, match=r"^steps=3000: allowed is more than 4000, which other phases take"):
        cli.parse(
            "algo=fim env=push_box steps=3000 algo.statistic_steps=4000".split(), algos.ALGORITHMS, envs.ENVIRONMENTS
        )


def test_only_selected_features_are_learned_and_they_are_learned():
    parts, _ = watched(
        of(model_updates=60, model_lr=1e-2, candidates=["far"], selection="all", model_predicts="change")
    )
    bonus, batch = parts.bonuses[0], episodes([12] * 16)
    state = batch.state.clone()
    pushes = (batch.executed == 1).sum(-1).float()
    state[:, 1:, 2] = pushes.cumsum(1)
    state[:, 0, 2] = 0
    batch = replace(batch, state=state)
    before = bonus.model.last.weight.clone()
    bonus.statistic.selected.zero_()[2] = True
    for number in range(5):
        stats = bonus.fit(batch, parts.q, Noise(0, number))
    assert stats["fim/model_r2"] > 0.9
    same = (bonus.model.last.weight == before).all(1).tolist()
    assert same == [True, True, False, True, True, True]


@pytest.mark.parametrize("predicts", ["next", "change"])
def test_a_model_that_reads_units_does_not_care_how_the_world_measures(predicts):
    def found(factor, shift, **kw):
        parts, batch = watched(of(model_predicts=predicts, model_updates=20, model_lr=1e-2, **kw))
        bonus, batch = parts.bonuses[0], replace(batch, state=batch.state * factor + shift)
        bonus.statistic = type(bonus.statistic)(bonus.statistic.native, bonus.config.watching())
        bonus.annotate(batch)
        for number in range(3):
            bonus.fit(batch, parts.q, Noise(0, number))
        settled(bonus)
        return bonus.influence(batch, parts.q, Noise(0, 0), bonus.statistic.target())

    shift = 0.0 if predicts == "next" else torch.tensor([3.0, 0.0, -1.0, 5.0, 0.0, 0.0])
    plain = found(1.0, 0.0, model_inputs="units")
    assert plain.max() > 0
    factor = torch.tensor([0.1, 7.0, 0.05, 1.0, 20.0, 1.0])
    torch.testing.assert_close(found(factor, shift, model_inputs="units"), plain, atol=1e-2, rtol=0)
    assert (found(factor, shift, model_inputs="raw") - found(1.0, 0.0, model_inputs="raw")).abs().max() > 0.1


def test_what_is_told():
    parts, batch = watched(of(candidates=["far"]))
    bonus = settled(parts.bonuses[0])
    stats = bonus.reward(batch, parts.q, Noise(0, 0))[1]
    influence = bonus.influence(batch, parts.q, Noise(0, 0), bonus.statistic.target())
    told = {name: float(value) for name, value in stats.items()}
    assert told["fim/influence/far"] == pytest.approx(influence.sum().item() / 29, rel=1e-4)
    _, traces = trace_scan(influence, batch.mask, decay=0.9, mode="product", clip=10.0, norm="none")
    assert told["fim/trace/far"] == pytest.approx((traces * batch.mask.unsqueeze(-1)).sum().item() / 29, rel=1e-4)
    assert told["fim/selected"] == told["fim/selected/far"] > 0 == told["fim/selected/own"]
    assert told["bonus/influence_return"] == pytest.approx(told["bonus/influence"] * 29 / 3, rel=1e-4)
    figures = bonus.figures()
    assert set(figures) == {"fim/entropies", "fim/traces"}
    assert figures["fim/entropies"].labels == ("own.0", "own.1", "far.0", "far.1", "far.2", "5")
    assert figures["fim/traces"].values[0] == 0


def test_a_chart_shows_heights_and_marks():
    picture = draw(Bars((1.0, 0.5, 0.0), ("a.0", "a.1", "b"), (True, False, True), line=0.75))
    orange, grey, green = ((picture == colour).all(-1) for colour in ((214, 90, 50), (176, 190, 210), (40, 130, 70)))
    heights = [colour.any(1).sum() for colour in (orange, grey)]
    assert heights[0] == pytest.approx(161, abs=2) and heights[1] == pytest.approx(81, abs=3) and green.any()


# a whole run


PHASES = "phases=[{name:statistic,steps:400,updates:false,epsilon:1},{name:train,fresh_replay:true}]"
SHORT = ["env=push_box", "env.width=7", "env.horizon=10", "steps=700", "learner.batch=4", "learner.burn_in=4"]
SHORT += ["log.every_steps=100", "eval.every_steps=700", "eval.episodes=2", "log.terminal=false", PHASES]
FOCUSED = ["algo=fim", "algo.statistic_steps=400", "algo.delta_mode=absolute", "algo.model_updates=1"]


def trained(folder, *words):
    """A whole run, and what it logged: (step, tag, value)."""
    settings = cli.parse([*SHORT, *words], algos.ALGORITHMS, envs.ENVIRONMENTS)
    run = Run(settings, build.learner(settings, build.spec(settings), torch.device("cpu")), folder)
    try:
        run.play()
    finally:
        run.close()
    with (folder / "scalars.csv").open() as stream:
        return run, [(int(row["step"]), row["tag"], row["value"]) for row in csv.DictReader(stream)]


def test_a_run_watches_first_then_learns_and_draws_what_it_selected(tmp_path):
    run, told = trained(tmp_path, *FOCUSED)
    statistic = run.learner.parts.bonuses[0].statistic
    assert 400 <= int(statistic.estimated_at) <= 410 and statistic.selected.tolist() == [False] * 4 + [True] * 4
    assert {step > 400 for step, tag, _ in told if tag == "loss/td"} == {True}
    tags = {tag for _, tag, _ in told}
    assert {"fim/selected/boxes", "fim/entropy/agents", "train/pushes", "eval/joint_pushes"} <= tags
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "fim/entropies" in events.Tags()["images"]


def test_a_run_without_weight_is_that_of_its_base(tmp_path):
    """Section 10.6, with the phase in which a statistic is taken."""
    wrapped = trained(tmp_path / "fim", *FOCUSED, "algo.base=qmix", "algo.alpha=0", "algo.model_every_episodes=1")[1]
    base = trained(tmp_path / "qmix", "algo=qmix")[1]
    shared = {(step, tag) for step, tag, _ in base}
    assert len(base) > 50 and [row for row in wrapped if row[:2] in shared and repeats(row[1])] == [
        row for row in base if repeats(row[1])
    ]
