"""Risk: worlds that step many copies, or play through a package, pay, end, mask or repeat otherwise than they say."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from algos import fim
from algos.influence.features import native_mask
from envs import jaxmarl, lbf, pettingzoo, rware, stag_hunt
from marl.env import EnvUnavailable
from marl.fields import Mistake


def made(module, size, **settings):
    """Copies of a world; skips where its package is missing."""
    config = module.Config(**settings)
    try:
        module.probe(config)
    except EnvUnavailable as missing:
        pytest.skip(str(missing))
    return module.make(config, size)


def chosen(avail, rng):
    """(N,) uniform among the available."""
    return np.where(avail, rng.random(avail.shape), -1.0).argmax(-1)


def play(env, seeds, hold=None):
    """What each episode told, step by step, its actions decided by its seed; ``hold`` keeps copies still at times."""
    dice = [np.random.default_rng(seed) for seed in seeds]
    still = np.random.default_rng(hold)
    now = env.reset(seeds)
    told = [[(now.obs[row].copy(), now.state[row].copy(), 0.0)] for row in range(len(seeds))]
    open_rows = np.ones(len(seeds), np.bool_)
    while open_rows.any():
        live = open_rows & ((still.random(len(seeds)) < 0.7) if hold is not None else True)
        actions = np.zeros((len(seeds), env.spec.n_agents), np.int64)
        for row in np.flatnonzero(live):
            actions[row] = chosen(now.avail[row], dice[row])
        now = env.step(actions, live)
        for row in np.flatnonzero(live):
            told[row].append((now.obs[row].copy(), now.state[row].copy(), float(now.reward[row])))
        open_rows &= ~(live & (now.terminal | now.truncated))
    return told


def assert_same(one, other):
    assert len(one) == len(other)
    for (obs, state, paid), (obs_too, state_too, paid_too) in zip(one, other):
        np.testing.assert_array_equal(obs, obs_too)
        np.testing.assert_array_equal(state, state_too)
        assert paid == paid_too


# JaxMARL

TASKS = [
    {"id": "MPE_simple_spread_v3"},
    {"id": "MPE_simple_speaker_listener_v4"},
    {"id": "MPE_simple_reference_v3"},
    {"id": "SMAX", "scenario": "5m_vs_6m"},
    {"id": "overcooked", "horizon": 100},
]


@pytest.mark.parametrize("settings", TASKS, ids=lambda settings: settings["id"])
def test_an_episode_of_the_suite_is_the_same_bit_for_bit_beside_any_others(settings):
    alone, beside = made(jaxmarl, 1, **settings), made(jaxmarl, 40, **settings)
    expected = {seed: play(alone, [seed])[0] for seed in (7, 8)}
    seeds = [*range(100, 120), 7, *range(200, 213), 8]
    found = play(beside, seeds, hold=0)
    for seed, trace in expected.items():
        assert_same(trace, found[seeds.index(seed)])
    few = [8, 3, 7]
    again = play(beside, few)
    for seed, trace in expected.items():
        assert_same(trace, again[few.index(seed)])


@pytest.mark.parametrize("settings", [TASKS[0], {"id": "SMAX"}], ids=lambda settings: settings["id"])
def test_an_episode_is_the_one_that_the_suite_plays(settings):
    env = made(jaxmarl, 2, **settings)
    now = env.reset([3, 11])
    import jax
    import jaxmarl as package

    battle = settings["id"] == "SMAX"
    suite = package.make("HeuristicEnemySMAX" if battle else settings["id"], **(smax_3m() if battle else {}))
    reset, step = jax.jit(suite.reset), jax.jit(suite.step_env)
    first, key = jax.random.split(jax.random.PRNGKey(11))
    seen, world = reset(first)
    rng = np.random.default_rng(0)
    for count in range(12):
        rows = np.stack([seen[agent] for agent in suite.agents])
        np.testing.assert_allclose(now.obs[1], rows, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(now.state[1], seen["world_state"] if battle else rows.reshape(-1), atol=1e-5)
        actions = np.stack([chosen(avail, rng) for avail in now.avail])
        now = env.step(actions, np.ones(2, np.bool_))
        moves = {agent: actions[1, row] for row, agent in enumerate(suite.agents)}
        seen, world, rewards, *_ = step(jax.random.fold_in(key, count), world, moves)
        each = [float(rewards[agent]) for agent in suite.agents]
        assert now.reward[1] == pytest.approx(each[0] if battle else sum(each), rel=1e-4, abs=1e-6)


def smax_3m():
    from jaxmarl.environments.smax.smax_env import map_name_to_scenario

    return {"scenario": map_name_to_scenario("3m")}


def test_fewer_seeds_and_still_copies_compile_nothing_anew():
    env = made(jaxmarl, 6)
    env.reset(range(6))
    env.step(np.zeros((6, 3), np.int64), np.ones(6, np.bool_))
    import jax

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "compile" in event or "trace" in event else None
    )
    for count in (1, 4, 6):
        env.reset(range(count))
        env.step(np.ones((count, 3), np.int64), np.arange(count) % 2 == 0)
    assert compiled == []


def test_the_spec_and_the_registry_do_not_start_jax():
    made(jaxmarl, 1)
    told = (
        "import sys, algos, envs\n"
        "env = envs.module('jaxmarl').make(envs.module('jaxmarl').Config(id='SMAX', scenario='27m_vs_30m'), 4)\n"
        "env.close()\n"
        "assert 'jax' not in sys.modules and 'jaxmarl' not in sys.modules\n"
        "print(env.spec.n_agents, env.spec.n_actions, env.spec.obs_dim, env.spec.state_dim)"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["27", "35", str(13 * 56 + 10), str(12 * 57)]


def attack(now):
    """Everyone shoots at the first enemy in range, else walks east."""
    shoots = now.avail[..., 5:].any(-1)
    return np.where(shoots, 5 + now.avail[..., 5:].argmax(-1), np.where(now.avail[..., 1], 1, 4))


@pytest.mark.parametrize(("bonus", "kwargs"), [(1, {}), (3, {"won_battle_bonus": 3})])
def test_a_battle_is_won_when_the_enemy_alone_is_dead_and_pays_one_and_the_bonus(bonus, kwargs):
    """A whole number of a real quantity is one, though JAX tells them apart."""
    env = made(jaxmarl, 32, id="SMAX", kwargs=kwargs)
    now = env.reset(range(32))
    returns, live = np.zeros(32), np.ones(32, np.bool_)
    groups = env.spec.state_groups
    while live.any():
        alive, enemy = now.columns["alive"], now.columns["enemy_alive"]
        for side, there in (("ally", alive), ("enemy", enemy)):
            np.testing.assert_array_equal(now.state[:, groups[f"{side}_health"]] > 0, there)
            np.testing.assert_array_equal(now.state[:, groups[f"{side}_type_bits"]].reshape(32, 3, 6).sum(-1), there)
        position = now.state[:, groups["ally_position"]].reshape(32, 3, 2)
        np.testing.assert_allclose(now.obs[..., -9:-7], position / 32, atol=1e-6)
        assert not now.obs[~alive].any()
        np.testing.assert_array_equal(now.avail[~alive], np.broadcast_to(np.arange(8) == 4, ((~alive).sum(), 8)))
        now = env.step(attack(now), live)
        returns += np.where(live, now.reward, 0)
        live &= ~(now.terminal | now.truncated)
    won, alive, enemy = now.columns["won"], now.columns["alive"], now.columns["enemy_alive"]
    assert won.any() and not won.all()
    np.testing.assert_array_equal(won, alive.any(1) & ~enemy.any(1))
    np.testing.assert_array_equal(now.terminal, ~(alive.any(1) & enemy.any(1)))
    np.testing.assert_allclose(returns[won], 1 + bonus, atol=1e-5)
    assert (returns[~won] <= 1 + 1e-5).all()


@pytest.mark.parametrize(("settings", "steps"), [({}, 26), ({"horizon": 4}, 4), (TASKS[4], 100)])
def test_time_is_cut_at_the_horizon_and_not_terminal(settings, steps):
    env = made(jaxmarl, 2, **settings)
    now = env.reset([0, 1])
    for step in range(1, steps + 1):
        now = env.step(now.avail.argmax(-1), np.ones(2, np.bool_))
        assert not now.terminal.any() and (now.truncated == (step == steps)).all()


def test_a_listener_has_more_actions_and_features_than_a_speaker():
    env = made(jaxmarl, 1, id="MPE_simple_speaker_listener_v4")
    now = env.reset([4])
    np.testing.assert_array_equal(now.avail[0], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert env.spec.state_dim == 14 and not now.obs[0, 0, 3:].any()
    np.testing.assert_array_equal(now.state[0], np.concatenate([now.obs[0, 0, :3], now.obs[0, 1]]))


def test_the_shaped_reward_comes_on_top_of_the_soups():
    env, live = made(jaxmarl, 128, id="overcooked", shaping=0.5), np.ones(128, np.bool_)
    now, rng, returns = env.reset(range(128)), np.random.default_rng(0), np.zeros(128)
    while not now.truncated.all():
        busy = rng.random((128, 2)) < 0.4  # random cooks deliver a soup now and then if they interact often
        now = env.step(np.where(busy, 5, rng.integers(5, size=(128, 2))), live)
        returns += now.reward
    assert now.columns["soups"].any()
    beyond = returns - 20 * now.columns["soups"]
    # An onion in a pot or a plate taken pays 3, a soup taken 5, all halved here.
    assert beyond.max() > 0 and (beyond * 2 == (beyond * 2).round()).all() and (beyond >= 0).all()


def native(env):
    """(S,) features of the state that FIM may choose from."""
    return native_mask(env.spec, fim.NOT_NATIVE, "algo.not_native", fim.NOT_NATIVE).numpy()


def test_the_time_is_no_native_state_of_a_kitchen():
    env, live = made(jaxmarl, 2, id="overcooked", horizon=60), np.ones(2, np.bool_)
    width, height = 5, 4
    time = np.array(env.spec.state_groups["time"])
    assert len(time) == 2 * width * height and not native(env)[time].any() and native(env).sum() == 25 * len(time)
    now, shown = env.reset(range(2)), []
    while not now.truncated.all():
        shown.append(now.state[0, time].copy())
        now = env.step(np.full((2, 2), 4), live)
    assert [set(bits) for bits in shown] == [{0.0}] * 21 + [{1.0}] * 39
    everything = sorted(feature for group in env.spec.state_groups.values() for feature in group)
    assert everything == list(range(env.spec.state_dim))


def test_last_actions_are_no_native_state_of_a_battle():
    env = made(jaxmarl, 1, id="SMAX", scenario="5m_vs_6m", state="observations")
    groups = env.spec.state_groups
    assert sorted(feature for group in groups.values() for feature in group) == list(range(env.spec.state_dim))
    now, east, live = env.reset([0]), np.ones((1, 5), np.int64), np.ones(1, np.bool_)
    first, last = now.state[0].copy(), np.array(groups["last_action"])
    assert not first[last].any() and not native(env)[last].any() and native(env).sum() == len(first) - len(last)
    now = env.step(east, live)
    moved = now.state[0, last].reshape(5, 10, 3)[:, :4]  # of each agent's four team-mates
    np.testing.assert_allclose(moved[moved.any(-1)] - [1, 0, 0], 0, atol=1e-6)
    assert moved.any(-1).sum() > 5
    world = made(jaxmarl, 1, id="SMAX", scenario="5m_vs_6m")
    whole = world.reset([0]).state[0][list(world.spec.state_groups["ally_position"])]
    own = np.array(groups["ally_position"]).reshape(5, -1)[:, -2:]
    np.testing.assert_allclose(first[own].ravel(), whole / 32, atol=1e-6)
    for name in ("ally_health", "ally_type_bits"):
        width = len(world.spec.state_groups[name]) // 5
        seen = first[np.array(groups[name]).reshape(5, 5, width)]
        assert set(np.unique(seen)) <= {0.0, 1.0} and (seen[:, -1].sum(-1) == 1).all()


def test_mean_is_the_sum_divided_by_the_team():
    whole, mean = (play(made(jaxmarl, 1, reward=reward), [5])[0] for reward in ("team", "mean"))
    np.testing.assert_allclose([paid for *_, paid in whole], [3 * paid for *_, paid in mean], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"id": "SMAC"}, r"env.id=SMAC: allowed are .*did you mean SMAX\?"),
        ({"id": "SMAX", "scenario": "5m_vs_6n"}, r"env.scenario=5m_vs_6n: .*did you mean 5m_vs_6m\?"),
        ({"scenario": "3m"}, "env.scenario=3m: MPE_simple_spread_v3 has none"),
        ({"kwargs": {"num_agent": 4}}, r"env.kwargs=num_agent: .*did you mean num_agents\?"),
        ({"kwargs": {"max_steps": 4}}, "env.kwargs.max_steps=4: env.horizon says"),
        ({"shaping": 1.0}, "env.shaping=1.0: allowed are 0"),
        ({"device": "tpu"}, "env.device=tpu: allowed are cpu, gpu"),
        ({"kwargs": {"local_ratio": 2}}, "env.kwargs.local_ratio=2: allowed are 0 to 1"),
        ({"kwargs": {"num_agents": True}}, "env.kwargs.num_agents=True: allowed are whole numbers"),
        ({"id": "SMAX", "kwargs": {"map_width": "abc"}}, "env.kwargs.map_width=abc: allowed are numbers"),
        (
            {"id": "SMAX", "kwargs": {"world_steps_per_env_step": 0}},
            "world_steps_per_env_step=0: allowed are 1",
        ),
    ],
)
def test_what_the_suite_cannot_be_asked_is_refused_in_one_line(settings, told):
    with pytest.raises(Mistake, match=told) as refused:
        jaxmarl.probe(jaxmarl.Config(**settings))
    assert "\n" not in str(refused.value)


def test_words_that_the_warehouse_would_take_for_nothing_are_refused():
    with pytest.raises(Mistake, match="env.kwargs.reward_type=GLOBAL: left out"):
        rware.probe(rware.Config(kwargs={"reward_type": "GLOBAL"}))


@pytest.mark.parametrize(
    ("module", "kwargs"),
    [(lbf, {"min_player_level": 3}), (lbf, {"grid_observation": True}), (lbf, {"foo": 3})]
    + [(rware, {"shelf_columns": 2}), (rware, {"layout": "abc"}), (rware, {"n_agents": 500})]
    + [(rware, {"layout": 3}), (rware, {"n_agents": 0})]
    + [(rware, {"max_inactivity_steps": "a"})],  # noticed in a step
)
def test_arguments_that_a_package_cannot_take_are_refused_as_they_were_given(module, kwargs):
    made(module, 1)
    with pytest.raises(Mistake, match=re.escape(f"env.kwargs={kwargs}: ")) as refused:
        module.probe(module.Config(kwargs=kwargs))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("module", "key", "value"),
    [(lbf, "render_mode", "human"), (rware, "render_mode", "human"), (rware, "max_steps", 4), (lbf, "penalty", "a")],
)
def test_arguments_that_are_not_for_the_package_or_that_it_takes_unseen_are_refused(module, key, value):
    made(module, 1)
    with pytest.raises(Mistake, match=f"^env.kwargs.{key}={value}: [^\n]+$"):
        module.probe(module.Config(kwargs={key: value}))


@pytest.mark.parametrize(("module", "name"), [(jaxmarl, "jaxmarl"), (lbf, "lbforaging"), (rware, "rware")])
def test_a_missing_package_is_told_in_one_line(module, name, monkeypatch):
    known = sys.modules[module.__name__] if module is jaxmarl else module.gym_team
    monkeypatch.setattr(known, "find_spec", lambda package: None)
    with pytest.raises(EnvUnavailable, match=rf"needs the package {name}: pip install -e '.\[.*\]'") as missing:
        module.probe(module.Config())
    assert "\n" not in str(missing.value)


def test_a_gpu_that_jax_has_no_part_for_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(jaxmarl, "entry_points", lambda group: ())
    with pytest.raises(EnvUnavailable, match="env.device=gpu needs JAX's part for it"):
        jaxmarl.probe(jaxmarl.Config(device="gpu"))


# foraging and warehouse


def raw(module, config, seed, actions):
    """Observations, rewards one by one, and the package's own end, of a new world of the package."""
    world = module.team(config).build()
    observations, _ = world.reset(seed=seed)
    yield observations, [0.0], False
    for joint in actions:
        observations, rewards, done, *_ = world.step(joint.tolist())
        yield observations, rewards, done


@pytest.mark.parametrize(
    ("module", "settings"), [(lbf, {"id": "5x5-2p-1f"}), (lbf, {"id": "2s-8x8-3p-2f"}), (rware, {"horizon": 60})]
)
def test_a_team_is_paid_the_sum_of_what_the_package_pays_and_the_state_is_what_all_see(module, settings):
    env = made(module, 3, **settings)
    config = module.Config(**settings)
    for seed in range(12):
        now, rng, actions = env.reset([99, seed, 98]), np.random.default_rng(seed), []
        views = [(now.obs[1].copy(), now.state[1].copy(), 0.0)]
        while not (now.terminal[1] or now.truncated[1]):
            joint = rng.integers(env.spec.n_actions, size=env.spec.n_agents)
            actions.append(joint)
            now = env.step(np.stack([joint] * 3), np.arange(3) == 1)
            views.append((now.obs[1].copy(), now.state[1].copy(), float(now.reward[1])))
        told = list(raw(module, config, seed, actions))
        for (obs, state, paid), (observations, rewards, _) in zip(views, told):
            np.testing.assert_array_equal(obs, np.stack(observations))
            np.testing.assert_array_equal(state, np.concatenate(observations))
            assert paid == pytest.approx(sum(rewards))
        assert told[-1][-1] and not told[-2][-1]


def test_a_harvest_pays_one_and_is_terminal_while_time_is_cut():
    env = made(lbf, 60, id="5x5-2p-1f", horizon=12)
    now, rng = env.reset(range(60)), np.random.default_rng(0)
    returns, live = np.zeros(60), np.ones(60, np.bool_)
    while live.any():
        now = env.step(rng.integers(6, size=(60, 2)), live)
        returns += np.where(live, now.reward, 0)
        live &= ~(now.terminal | now.truncated)
    assert now.terminal.any() and now.truncated.any() and not (now.terminal & now.truncated).any()
    np.testing.assert_array_equal(now.columns["won"], now.terminal)
    np.testing.assert_allclose(returns, now.terminal, atol=1e-6)


def test_a_field_is_the_same_whatever_was_played_before():
    used, env = made(lbf, 1, id="5x5-4p-1f"), made(lbf, 1, id="5x5-4p-1f")
    for seed in range(60):
        np.testing.assert_array_equal(used.reset([seed]).obs, made(lbf, 1, id="5x5-4p-1f").reset([seed]).obs)
        used.step(np.asarray([[1, 2, 3, 4]]), np.ones(1, np.bool_))
    assert env.spec.state_dim == 4 * env.spec.obs_dim


def test_sizes_that_the_package_lacks_are_added_by_its_rule():
    spec = made(lbf, 1, id="15x15-3p-5f").spec
    assert (spec.n_agents, spec.n_actions, spec.obs_dim, spec.horizon) == (3, 6, 3 * (5 + 3), 50)
    near = lbf.entry(lbf.Config(id="15x15-3p-4f")).kwargs
    assert lbf.entry(lbf.Config(id="15x15-3p-5f")).kwargs == {**near, "max_num_food": 5}
    assert made(lbf, 1, id="2s-20x20-3p-5f").spec.obs_dim == 24


def foods_and_players(name):
    """Levels of all foods, and of all players together, at the start of each of some episodes."""
    obs = np.concatenate([made(lbf, 8, id=name).reset(range(first, first + 8)).obs[:, 0] for first in range(0, 160, 8)])
    foods, players = obs[:, :9].reshape(-1, 3, 3)[..., 2], obs[:, 9:18].reshape(-1, 3, 3)[..., 2]
    return foods, players.sum(1, keepdims=True)


def test_version_2_of_foraging_leaves_out_the_strongest_food():
    """lb-foraging, pull request 21: levels are drawn from 1 to the players' sum, which older versions never drew."""
    (foods, most), (older, older_most) = foods_and_players("10x10-3p-3f"), foods_and_players("10x10-3p-3f-v2")
    np.testing.assert_array_equal(most, older_most)
    assert (foods <= most).all() and (foods == most).mean() > 0.15
    assert (older >= 1).all() and (older < most).all() and (older == most - 1).any()


def test_foraging_that_needs_all_is_one_world_in_both_versions():
    for seed in range(5):
        three, two = (made(lbf, 1, id=f"8x8-2p-2f-coop{version}").reset([seed]).obs for version in ("-v3", "-v2"))
        np.testing.assert_array_equal(three, two)


def test_a_warehouse_never_ends_by_itself():
    env = made(rware, 1, horizon=7)
    env.reset([0])
    for step in range(1, 8):
        now = env.step(np.zeros((1, 2), np.int64), np.ones(1, np.bool_))
        assert not now.terminal[0] and now.truncated[0] == (step == 7)


def test_a_warehouse_may_end_where_nothing_is_delivered():
    env = made(rware, 1, kwargs={"max_inactivity_steps": 5})
    env.reset([0])
    for step in range(1, 6):
        now = env.step(np.zeros((1, 2), np.int64), np.ones(1, np.bool_))
        assert now.terminal[0] == (step == 5) and not now.truncated[0]


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [
        (lbf, "8x9-2p-2f", "allowed are"),
        (lbf, "8x8-2p", "allowed are"),
        (lbf, "8x8-2p-2f-v1", "allowed are"),
        (lbf, "5x5-25p-1f", "places for all"),
        (lbf, "5x5-2p-5f", "food lies apart"),
        (rware, "tiny-16ag-easy", "the package refuses it: request_queue_size=32 of 32 shelves; fewer are allowed"),
        (rware, "tiny-2gg", r"did you mean tiny-2ag\?"),
    ],
)
def test_ids_that_no_package_has_are_refused(module, name, told):
    made(module, 1)
    with pytest.raises(Mistake, match=f"env.id={name}: .*{told}"):
        module.probe(module.Config(id=name))


@pytest.mark.parametrize(
    ("name", "shape"), [("simple_reference_v3", (2, 50, 21, 42)), ("simple_speaker_listener_v4", (2, 5, 11, 14))]
)
def test_worlds_of_speech_play_through_the_adapter(name, shape):
    env = made(pettingzoo, 1, id=f"mpe2.{name}")
    spec = env.spec
    assert (spec.n_agents, spec.n_actions, spec.obs_dim, spec.state_dim) == shape and spec.horizon == 25
    trace = play(env, [0])[0]
    assert len(trace) == 26 and all(paid < 0 for *_, paid in trace[1:])
    env.close()


# stag hunt

STAY, CATCH = 4, 5


def close(seeds):
    """Two hunters and a stag on four cells, and who stands beside the stag: (E,) hunters, (E, 2) bool."""
    env = stag_hunt.make(stag_hunt.Config(hunters=2, stags=1, grid=2, penalty=-1.5), len(seeds))
    now = env.reset(seeds)
    return env, now, now.avail[..., CATCH].copy()


def test_two_who_catch_are_paid_and_leave_and_one_alone_costs():
    env, now, beside = close(range(300))
    both = beside.all(1)
    assert both.any() and (~both).any() and beside.any(1).all()
    alone = np.arange(300) % 2 == 0
    actions = np.where(beside, CATCH, STAY)
    actions[both & alone, 1] = STAY
    now = env.step(actions, np.ones(300, np.bool_))
    caught = both & ~alone
    np.testing.assert_allclose(now.reward, np.where(caught, 10, -1.5))
    np.testing.assert_array_equal(now.terminal, caught)
    np.testing.assert_array_equal(now.columns["won"], caught)
    np.testing.assert_array_equal(now.columns["alive"], np.broadcast_to(~caught[:, None], (300, 2)))
    assert not now.state[caught].any() and not now.obs[caught].any()
    # A stag between two hunters cannot leave; one beside a single hunter went to the free cell, diagonal to it or not.
    np.testing.assert_array_equal(now.avail[both & alone][..., CATCH], True)
    with pytest.raises(ValueError, match="unavailable"):
        env.step(np.full((300, 2), CATCH), np.ones(300, np.bool_))


def test_two_hunters_cannot_enter_one_cell_and_either_may_be_first():
    """On four cells with hunters across the diagonal, both want the free cell."""
    env, now, beside = close(range(2000))
    both = beside.all(1)
    hunters, stag = now.state.copy().reshape(-1, 2, 2, 2).transpose(1, 0, 2, 3)
    free = ~(hunters + stag).astype(bool)
    before = now.obs.copy().reshape(-1, 2, 2, 5, 5)[:, :, 0]
    row, column = np.nonzero(free)[1:]
    places = np.stack([place(window) for window in before.transpose(1, 0, 2, 3)], 1)
    step = np.stack([row, column], -1)[:, None] - places
    moves = [[-1, 0], [1, 0], [0, -1], [0, 1]]
    actions = np.stack([(step == move).all(-1) for move in moves], -1).argmax(-1)
    actions[~both] = STAY
    now = env.step(actions, both)
    moved = now.state[both, :4].reshape(-1, 2, 2)
    assert (moved.sum((1, 2)) == 2).all() and moved[free[both]].all()
    stayed, lower = ((cells.reshape(-1, 4) > 0).argmax(1) for cells in (moved * hunters[both], hunters[both]))
    share = np.mean(stayed == lower)
    assert 0.4 < share < 0.6


def place(window):
    """Where a hunter stands on four cells, (E, 2): its window shows the other across the diagonal."""
    other = np.stack(np.nonzero(window * (np.arange(25).reshape(5, 5) != 12))[1:], -1) - 2
    return (other < 0).astype(int)


def test_the_books_balance_in_random_hunts():
    env = stag_hunt.make(stag_hunt.Config(grid=6, horizon=60), 64)
    now, rng, live = env.reset(range(64)), np.random.default_rng(0), np.ones(64, np.bool_)
    returns = np.zeros(64)
    while live.any():
        state, alive = now.state.copy(), now.columns["alive"].copy()
        actions = np.where(now.avail[..., CATCH], CATCH, chosen(now.avail, rng))
        now = env.step(actions, live)
        caught = (state[:, 36:].sum(1) - now.state[:, 36:].sum(1)).astype(int)
        left = (alive.sum(1) - now.columns["alive"].sum(1)).astype(int)
        lone = (now.reward - 10 * caught) / -2
        moved = np.flatnonzero(live)
        assert (lone[moved] == lone[moved].round()).all() and (lone[moved] >= 0).all()
        assert (left[moved] >= 2 * caught[moved]).all() and (left[moved] <= 4 * caught[moved]).all()
        assert not (now.state[:, :36] * now.state[:, 36:]).any()
        np.testing.assert_array_equal(now.state[:, :36].sum(1), now.columns["alive"].sum(1))
        returns += np.where(live, now.reward, 0)
        live &= ~(now.terminal | now.truncated)
    stags, hunters = now.state[:, 36:].sum(1), now.columns["alive"].sum(1)
    np.testing.assert_array_equal(now.terminal, (stags == 0) | (hunters == 0))
    np.testing.assert_array_equal(now.columns["won"], stags == 4)
    assert now.columns["won"].any() and now.truncated.any() and (returns <= 40).all()


def test_hunters_see_the_grid_around_them():
    env = stag_hunt.make(stag_hunt.Config(), 20)
    now = env.reset(range(20))
    planes = np.pad(now.state.reshape(20, 2, 10, 10), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for copy in range(20):
        around = {
            planes[copy, :, r : r + 5, c : c + 5].tobytes() for r, c in zip(*np.nonzero(planes[copy, 0, 2:-2, 2:-2]))
        }
        assert {view.tobytes() for view in now.obs[copy]} == around
    np.testing.assert_array_equal(
        now.avail[..., CATCH], now.obs.reshape(20, 8, 2, 25)[:, :, 1][..., [7, 11, 13, 17]].any(-1)
    )


def test_a_free_stag_goes_every_way_alike():
    env = stag_hunt.make(stag_hunt.Config(hunters=2, stags=1, grid=9), 6000)
    now = env.reset(range(6000))
    start = now.state[:, 81:].argmax(1)
    inner = ((start // 9 % 8) > 0) & ((start % 9 % 8) > 0) & ~now.avail[..., CATCH].any(1)
    now = env.step(np.full((6000, 2), STAY), np.ones(6000, np.bool_))
    way = now.state[:, 81:].argmax(1) - start
    shares = [np.mean(way[inner] == step) for step in (-9, 9, -1, 1)]
    assert sum(shares) == 1 and max(shares) - min(shares) < 0.04


def test_hunts_do_not_depend_on_their_neighbours():
    config = stag_hunt.Config(grid=5, hunters=4, stags=3, horizon=30)
    alone = {seed: play(stag_hunt.make(config, 1), [seed])[0] for seed in (7, 8)}
    seeds = [1, 8, 2, 3, 7]
    beside = play(stag_hunt.make(config, 5), seeds, hold=1)
    for seed, trace in alone.items():
        assert_same(trace, beside[seeds.index(seed)])


# pictures


@pytest.mark.parametrize(
    ("module", "settings"),
    [*((jaxmarl, settings) for settings in TASKS[1:]), (lbf, {}), (rware, {}), (stag_hunt, {})],
)
def test_worlds_are_drawn_and_drawing_changes_nothing(module, settings):
    drawn, twin, rng = made(module, 3, **settings), made(module, 3, **settings), np.random.default_rng(0)
    now, unseen, pictures, live = drawn.reset([0, 1, 2]), twin.reset([0, 1, 2]), [], np.ones(3, np.bool_)
    for _ in range(40):
        pictures.append([drawn.render(copy) for copy in range(3)][1])
        actions = np.stack([chosen(avail, rng) for avail in now.avail])
        now, unseen = drawn.step(actions, live), twin.step(actions, live)
        for told, expected in zip(now[:6], unseen[:6], strict=True):
            np.testing.assert_array_equal(told, expected)
        live &= ~(now.terminal | now.truncated)
        if not live.any():
            break
    assert pictures[0].ndim == 3 and pictures[0].shape[2] == 3 and pictures[0].dtype == np.uint8
    assert any((picture != pictures[0]).any() for picture in pictures)
    for env in (drawn, twin):
        env.close()
        env.close()
