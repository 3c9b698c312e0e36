"""Risk: a world pays, ends, hides or masks otherwise than it says."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from itertools import product

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

from envs import gymnasium as single
from envs import matrix, meet, pettingzoo, push_box
from marl.env import EnvUnavailable


def random_actions(avail, rng):
    """(E, N): uniform among the available ones."""
    return np.where(avail, rng.random(avail.shape), -1.0).argmax(-1)


def play(env, seeds, policy):
    """Returns (E,), lengths (E,) and the last moments of one episode per seed."""
    now = env.reset(seeds)
    live = np.ones(len(seeds), np.bool_)
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), int)
    while live.any():
        now = env.step(policy(now), live)
        returns += np.where(live, now.reward, 0.0)
        lengths += live
        live = live & ~(now.terminal | now.truncated)
    return returns, lengths, now


# matrix

TABLES = {
    "climbing": [[11, -30, 0], [-30, 7, 6], [0, 0, 5]],
    "penalty": [[10, 0, -50], [0, 2, 0], [-50, 0, 10]],
    "monotonic": [[0, 1], [1, 8]],
    "nonmonotonic": [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]],
    "nonmonotonic_small": [[2, 1], [1, 8]],
}


@pytest.mark.parametrize("game", TABLES)
def test_a_one_step_game_pays_its_table(game):
    table = np.asarray(TABLES[game])
    joint = np.asarray(list(product(range(len(table)), repeat=2)))
    config = matrix.Config(game=game, k=-50.0)
    env = matrix.make(config, len(joint))
    assert (env.reset(range(len(joint))).obs == 1).all()
    now = env.step(joint, np.ones(len(joint), np.bool_))
    np.testing.assert_array_equal(now.reward, table.reshape(-1))
    assert now.terminal.all() and not now.truncated.any()
    np.testing.assert_array_equal(now.columns["won"], table.reshape(-1) == table.max())
    assert matrix.optimum(config) == table.max()


def test_the_first_agent_of_two_step_chooses_between_safe_seven_and_a_game_worth_eight():
    ways = np.asarray(list(product(range(2), repeat=4)))
    env = matrix.make(matrix.Config(game="two_step"), len(ways))
    live = np.ones(len(ways), np.bool_)
    first = env.reset(range(len(ways)))
    assert (first.state.argmax(1) == 0).all()
    now = env.step(ways[:, :2], live)
    assert (now.reward == 0).all() and not now.terminal.any()
    np.testing.assert_array_equal(now.state.argmax(1), 1 + ways[:, 0])
    np.testing.assert_array_equal(now.obs.argmax(2), 1 + ways[:, [0, 0]])
    now = env.step(ways[:, 2:], live)
    risky = np.asarray([[0, 1], [1, 8]])[ways[:, 2], ways[:, 3]]
    np.testing.assert_array_equal(now.reward, np.where(ways[:, 0] == 0, 7, risky))
    assert now.terminal.all() and env.spec.horizon == 2
    np.testing.assert_array_equal(now.columns["won"], now.reward == 8)


@pytest.mark.parametrize(
    ("game", "best", "optimum"),
    [("climbing", [0, 0], 275), ("penalty", [2, 2], 250), ("two_step", [1, 1], 200)],
)
def test_repeated_games_add_up_and_are_won_only_by_the_best_play_throughout(game, best, optimum):
    config = matrix.Config(game=game, repeats=25)
    env = matrix.make(config, 2)
    slips = iter([[0, 1]])

    def policy(now):
        return np.asarray([best, next(slips, best)])

    returns, lengths, now = play(env, [0, 1], policy)
    assert matrix.optimum(config) == optimum == returns[0] > returns[1]
    assert (lengths == env.spec.horizon).all()
    assert now.terminal.all() and not now.truncated.any()
    assert now.columns["won"].tolist() == [True, False]


# meet


def lead_and_follow(now):
    """The guide goes to the place and waits there; the others go to the guide."""
    compass = np.concatenate([now.obs[:, :1, 3:5], now.obs[:, 1:, 5:7]], 1)
    vertical, horizontal = compass[..., 0], compass[..., 1]
    return np.where(vertical < 0, 1, np.where(vertical > 0, 2, np.where(horizontal < 0, 3, (horizontal > 0) * 4)))


@pytest.mark.parametrize(("agents", "grid", "horizon"), [(2, 3, 10), (2, 2, 3), (3, 5, 9), (6, 4, 20)])
def test_following_the_guide_reaches_the_optimum_from_every_start(agents, grid, horizon):
    config = meet.Config(agents=agents, grid=grid, horizon=horizon)
    env, seeds = meet.make(config, 500), range(500)
    returns, lengths, now = play(env, seeds, lead_and_follow)
    assert now.terminal.all() and now.columns["won"].all()
    best = [meet.optimum(config, [seed]) for seed in seeds]
    np.testing.assert_allclose(returns, best, atol=1e-5)
    np.testing.assert_allclose(returns, 1 - lengths / horizon, atol=1e-5)


def test_nobody_beats_the_optimum_of_meet():
    config = meet.Config(grid=2, horizon=12)
    seeds = range(5000)
    rng = np.random.default_rng(0)
    returns, _, now = play(meet.make(config, 5000), seeds, lambda now: random_actions(now.avail, rng))
    best = np.asarray([meet.optimum(config, [seed]) for seed in seeds])
    assert (returns <= best + 1e-5).all() and (returns > best - 1e-5).any()
    assert (now.terminal != now.truncated).all() and now.truncated.any()
    np.testing.assert_array_equal(now.columns["won"], now.terminal)


def test_the_optimum_of_meet_is_the_mean_over_starts():
    config = meet.Config(grid=4, horizon=20)
    assert meet.optimum(config) == pytest.approx(meet.optimum(config, range(100_000)), abs=0.002)


def test_followers_cannot_see_where_to_meet():
    config = meet.Config(agents=3)
    seeds = range(400)
    now = meet.make(config, len(seeds)).reset(seeds)
    team, place = meet.starts(config, seeds)
    for cell in product(range(3), repeat=2):
        here = (team == cell).all(1)
        assert len(np.unique(place[here], axis=0)) == 8
        assert len(np.unique(now.obs[here, 1:].reshape(here.sum(), -1), axis=0)) == 1
        assert len(np.unique(now.obs[here, 0], axis=0)) > 1


def test_moves_off_the_grid_and_away_from_the_guide_are_unavailable():
    env = meet.make(meet.Config(), 200)
    now = env.reset(range(200))
    row, column = now.state[:, 0], now.state[:, 1]
    inside = np.stack([row >= 0, row > 0, row < 1, column > 0, column < 1], 1)
    np.testing.assert_array_equal(now.avail[:, 0], inside)
    np.testing.assert_array_equal(now.avail[:, 1], np.broadcast_to(np.arange(5) == 0, (200, 5)))
    with pytest.raises(ValueError, match="unavailable"):
        env.step(np.ones((200, 2), int), np.ones(200, np.bool_))


def test_meet_draws_place_guide_and_followers():
    env = meet.make(meet.Config(), 2)
    env.reset([0, 1])
    picture = env.render(1)
    assert picture.shape == (96, 96, 3) and picture.dtype == np.uint8
    colours = {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)}
    assert {(120, 200, 120), (40, 80, 220), (240, 140, 30)} <= colours


# push_box

KEYS = {".": 0, "u": 1, "d": 2, "l": 3, "r": 4}


def pushed(moves, **config):
    """The last moments of an episode in which the agents move as said, and places (8,) in cells."""
    config = push_box.Config(**config)
    env = push_box.make(config, 1)
    env.reset([0])
    for both in moves.split():
        now = env.step(np.asarray([[KEYS[key] for key in both]]), np.ones(1, np.bool_))
    return now, np.rint(now.state[0] * (config.width - 1)).astype(int).tolist()


@pytest.mark.parametrize(
    ("config", "moves", "agents", "boxes"),
    [
        ({"width": 9}, "..", [4, 3, 4, 5], [3, 4, 5, 4]),
        ({"width": 9}, "u.", [4, 4, 4, 5], [3, 4, 5, 4]),
        ({"width": 9}, "ud", [4, 3, 4, 5], [3, 4, 5, 4]),  # both want the middle
        ({"width": 9}, "u. .d", [4, 4, 4, 5], [3, 4, 5, 4]),  # one stands there
        ({"width": 9}, "u. ud", [4, 4, 4, 5], [3, 4, 5, 4]),  # nobody changes places
        ({"width": 9}, "u. l.", [3, 4, 4, 5], [2, 4, 5, 4]),  # a push, and who pushes follows
        ({"width": 9}, "u. .l ld", [4, 4, 3, 5], [2, 3, 5, 4]),  # at a right angle; both want the cell that it left
        ({"width": 9}, "ul .l .d lr", [4, 4, 2, 4], [3, 4, 5, 4]),  # against each other
        ({"width": 15}, "u. l. ld .l ll", [3, 7, 4, 7], [2, 7, 10, 7]),  # two in a line: two cells
        ({"width": 15}, "u. l. l. l.", [4, 7, 7, 8], [3, 7, 10, 7]),
        ({"width": 15, "two_needed": True}, "u. l. l. l.", [5, 7, 7, 8], [4, 7, 10, 7]),  # alone nothing moves
        ({"width": 15, "two_needed": True}, "u. l. ld ll ll", [3, 7, 4, 7], [2, 7, 10, 7]),
    ],
)
def test_a_box_goes_where_the_pushes_on_it_add_up_to(config, moves, agents, boxes):
    now, places = pushed(moves, **config)
    assert places == agents + boxes
    assert not now.terminal.any() and now.reward == 0


def test_a_box_at_the_border_pays_and_ends_and_late_is_cut():
    now, places = pushed("u. l. l. l.", width=9)
    assert places[4:6] == [0, 4] and now.terminal.all() and now.reward == 1 and now.columns["won"].all()
    now, _ = pushed("u. l. l.", width=9, horizon=3)
    assert now.truncated.all() and not now.terminal.any() and now.reward == 0


@pytest.mark.parametrize(
    ("moves", "counts"),
    [
        ("u. .d", (0, 0, 0)),
        ("u. l. l.", (2, 0, 0)),
        ("u. l. r. r.", (2, 0, 1)),  # back, and the other box
        ("u. .l ld", (1, 1, 0)),
    ],
)
def test_pushes_are_counted_by_who_pushes_what(moves, counts):
    now, _ = pushed(moves, width=9)
    assert tuple(now.columns[name].item() for name in push_box.PUSHES) == counts


# PettingZoo


class Odd(ParallelEnv):
    """Three different agents: an action mask each in its own way, one that leaves early."""

    metadata = {"name": "odd", "render_modes": []}
    possible_agents = ["box", "dict", "number"]
    acted = {"box": spaces.Discrete(2), "dict": spaces.Discrete(4), "number": spaces.Discrete(3, start=5)}
    observed = {
        "box": spaces.Box(-1, 1, (2, 2)),
        "dict": spaces.Dict({"observation": spaces.MultiBinary(2), "action_mask": spaces.MultiBinary(4)}),
        "number": spaces.Discrete(3),
    }

    def __init__(self, ends="terminated", long=3, received=None):
        self.ends, self.long, self.received = ends, long, [] if received is None else received

    def observation_space(self, agent):
        return self.observed[agent]

    def action_space(self, agent):
        return self.acted[agent]

    def reset(self, seed=None, options=None):
        self.agents, self.now = self.possible_agents[:], 0
        return self._tell()[:2]

    def step(self, actions):
        self.received.append(actions)
        self.now += 1
        observations, infos = self._tell()
        rewards = {agent: 1.0 + index for index, agent in enumerate(self.agents)}
        over = self.now == self.long
        terminated = {agent: agent == "box" or (over and self.ends == "terminated") for agent in self.agents}
        truncated = {agent: over and self.ends == "truncated" for agent in self.agents}
        self.agents = [] if over else [agent for agent in self.agents if agent != "box"]
        return observations, rewards, terminated, truncated, infos

    def _tell(self):
        mask = np.asarray([0, 1, 0, 1], np.int8)
        observations = {
            "box": np.full((2, 2), 0.5, np.float32),
            "dict": {"observation": np.asarray([1, 0], np.int8), "action_mask": mask},
            "number": self.now % 3,
        }
        infos = {"box": {}, "dict": {}, "number": {"action_mask": np.asarray([1, 0, 1], np.int8)}}
        return {a: observations[a] for a in self.agents}, {a: infos[a] for a in self.agents}


def parallel_env(**kwargs):
    """What `env.id` of this module names."""
    return Odd(**kwargs)


def odd(**settings):
    return pettingzoo.make(pettingzoo.Config(id=__name__, **{"horizon": 10, **settings}), 1)


LIVE = np.ones(1, np.bool_)


def test_different_agents_are_padded_and_masked():
    env = odd()
    spec = env.spec
    assert (spec.n_agents, spec.n_actions, spec.obs_dim, spec.state_dim) == (3, 4, 4, 9)
    assert spec.agents == ("box", "dict", "number")
    now = env.reset([0])
    np.testing.assert_array_equal(now.obs[0], [[0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(now.state[0], [0.5, 0.5, 0.5, 0.5, 1, 0, 1, 0, 0])
    np.testing.assert_array_equal(now.avail[0], [[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    assert now.columns["alive"].all()


def test_an_agent_that_left_is_seen_as_zeros_with_one_action_that_nobody_receives():
    received = []
    env = odd(kwargs={"received": received})
    env.reset([0])
    now = env.step(np.asarray([[1, 3, 2]]), LIVE)
    np.testing.assert_array_equal(now.obs[0], [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(now.avail[0, 0], [1, 0, 0, 0])
    np.testing.assert_array_equal(now.columns["alive"][0], [False, True, True])
    assert now.reward[0] == 6 and not now.terminal[0]
    now = env.step(np.asarray([[0, 1, 0]]), LIVE)
    assert now.reward[0] == 3
    assert received == [{"box": 1, "dict": 3, "number": 7}, {"dict": 1, "number": 5}]


@pytest.mark.parametrize(
    ("settings", "steps", "terminal", "seen"),
    [
        ({"kwargs": {"ends": "terminated"}}, 3, True, False),
        ({"kwargs": {"ends": "truncated"}}, 3, False, True),
        ({"kwargs": {"ends": "terminated"}, "horizon": 2}, 2, False, True),
    ],
)
def test_time_is_cut_and_only_the_end_of_all_agents_is_terminal(settings, steps, terminal, seen):
    _, lengths, now = play(odd(**settings), [0], lambda now: now.avail.argmax(-1))
    assert lengths[0] == steps
    assert (now.terminal[0], now.truncated[0]) == (terminal, not terminal)
    np.testing.assert_array_equal(now.columns["alive"][0], [False, seen, seen])
    assert now.obs[0, 1].any() == seen


def raw_episode(module, seed, actions, **kwargs):
    """Observations, states and rewards of PettingZoo's own loop."""
    world = module.parallel_env(**kwargs)
    observations, _ = world.reset(seed=seed)
    told = [(observations, world.state(), {})]
    for chosen in actions:
        moves = {a: int(chosen[i]) for i, a in enumerate(world.possible_agents)}
        observations, rewards, *_ = world.step(moves)
        told.append((observations, world.state(), rewards))
    return told


@pytest.mark.parametrize("name", ["simple_spread_v3", "simple_speaker_listener_v4"])
@pytest.mark.parametrize("state", ["auto", "native", "observations"])
@pytest.mark.parametrize("reward", ["sum", "mean"])
def test_a_particle_world_is_the_one_that_pettingzoo_plays(name, state, reward):
    mpe2 = pytest.importorskip("mpe2")
    config = pettingzoo.Config(id=f"mpe2.{name}", kwargs={"max_cycles": 6}, reward=reward, state=state)
    env = pettingzoo.make(config, 2)
    assert env.spec.horizon == 6
    rng = np.random.default_rng(1)
    now = env.reset([5, 11])
    views = [(now.obs[1].copy(), now.state[1].copy(), 0.0)]
    actions = []
    while not now.truncated.any():
        actions.append(random_actions(now.avail, rng))
        now = env.step(actions[-1], np.ones(2, np.bool_))
        views.append((now.obs[1].copy(), now.state[1].copy(), float(now.reward[1])))
    assert not now.terminal.any()
    raw = raw_episode(vars(mpe2)[name], 11, [chosen[1] for chosen in actions], max_cycles=6)
    assert len(raw) == len(views) == 7
    share = env.spec.n_agents if reward == "mean" else 1
    for (obs, seen, paid), (observations, own, rewards) in zip(views, raw):
        for row, observation in zip(obs, observations.values()):
            np.testing.assert_array_equal(row[: len(observation)], observation)
            assert not row[len(observation) :].any()
        np.testing.assert_array_equal(seen, own)
        assert paid == pytest.approx(sum(rewards.values()) / share, rel=1e-6)
    env.close()


@pytest.mark.parametrize(("path", "late"), [("mpe2.simple_spread_v3", 1), ("scripts.until_2023.simple_spread", 0)])
def test_moves_show_a_step_earlier_in_the_worlds_of_before_2023(path, late):
    pytest.importorskip("mpe2")
    env = pettingzoo.make(pettingzoo.Config(id=path), 1)
    views = [env.reset([3]).obs[0].copy()]
    rng = np.random.default_rng(0)
    for _ in range(6):
        views.append(env.step(rng.integers(5, size=(1, 3)), LIVE).obs[0].copy())
    speed, place = np.asarray(views)[..., :2], np.asarray(views)[..., 2:4]
    assert np.abs(speed[1]).max() > 0
    np.testing.assert_allclose(np.diff(place, axis=0), 0.1 * (speed[:-1] if late else speed[1:]), atol=1e-6)
    env.close()


def test_a_world_that_starts_pygame_leaves_sigterm_alone():
    told = (
        "import os, signal\n"
        "from envs import pettingzoo\n"
        "pettingzoo.make(pettingzoo.Config(), 1).reset([0])\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.sigtimedwait([], 5)\n"
    )
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == -signal.SIGTERM


def test_the_speaker_has_fewer_actions_than_the_listener():
    pytest.importorskip("mpe2")
    env = pettingzoo.make(pettingzoo.Config(id="mpe2.simple_speaker_listener_v4"), 1)
    np.testing.assert_array_equal(env.reset([0]).avail[0], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def test_pictures_show_the_moment_and_change_nothing():
    mpe2 = pytest.importorskip("mpe2")
    seen, unseen = (pettingzoo.make(pettingzoo.Config(), 1) for _ in range(2))
    world = mpe2.simple_spread_v3.parallel_env(render_mode="rgb_array")
    rng = np.random.default_rng(0)
    for seed in (3, 4):
        seen.reset([seed]), unseen.reset([seed]), world.reset(seed=seed)
        for step in range(4):
            actions = rng.integers(5, size=(1, 3))
            now, same = seen.step(actions, LIVE), unseen.step(actions, LIVE)
            world.step(dict(zip(world.agents, actions[0].tolist())))
            np.testing.assert_array_equal(now.obs, same.obs)
            if step % 2:
                np.testing.assert_array_equal(seen.render(), world.render())
    seen.close()
    with pytest.raises(EnvUnavailable, match="draws no pictures"):
        (env := odd()).reset([0]), env.render()


# Gymnasium


class Countdown(gymnasium.Env):
    """Ends by itself after three steps; a mask in `info`; actions count from 2."""

    observation_space, action_space = spaces.Discrete(4), spaces.Discrete(3, start=2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 3
        return self.left, {"action_mask": np.asarray([1, 0, 1], np.int8)}

    def step(self, action):
        assert self.action_space.contains(action)
        self.left -= 1
        return self.left, float(action), self.left == 0, False, {}


@pytest.fixture
def countdown():
    gymnasium.register("Countdown-v0", Countdown)
    yield "Countdown-v0"
    del gymnasium.registry["Countdown-v0"]


@pytest.mark.parametrize(("horizon", "terminal"), [(2, False), (3, True), (9, True)])
def test_a_gymnasium_world_ends_by_itself_or_is_cut(countdown, horizon, terminal):
    env = single.make(single.Config(id=countdown, horizon=horizon), 1)
    now = env.reset([0])
    np.testing.assert_array_equal(now.obs[0], [[0, 0, 0, 1]])
    np.testing.assert_array_equal(now.avail[0], [[1, 0, 1]])
    returns, lengths, now = play(env, [0], lambda now: np.asarray([[2]]))
    assert (lengths[0], returns[0]) == (min(3, horizon), 4 * min(3, horizon))
    assert (now.terminal[0], now.truncated[0]) == (terminal, not terminal)


def test_cart_pole_is_the_one_that_gymnasium_plays():
    env, world = single.make(single.Config(), 3), gymnasium.make("CartPole-v1")
    assert (env.spec.n_agents, env.spec.horizon) == (1, 500)
    rng = np.random.default_rng(0)
    now = env.reset([1, 2, 3])
    expected, _ = world.reset(seed=2)
    ended = False
    while not ended:
        np.testing.assert_array_equal(now.obs[1, 0], expected)
        np.testing.assert_array_equal(now.state[1], expected)
        action = int(rng.integers(2))
        now = env.step(np.full((3, 1), action), np.arange(3) == 1)
        expected, reward, ended, *_ = world.step(action)
        assert (now.reward[1], now.terminal[1]) == (reward, ended)


def test_a_pole_that_is_drawn_falls_as_one_that_is_not():
    pytest.importorskip("pygame")
    seen, world = single.make(single.Config(), 1), gymnasium.make("CartPole-v1", render_mode="rgb_array")
    seen.reset([5]), world.reset(seed=5)
    for action in (0, 1, 1, 0):
        seen.step(np.asarray([[action]]), LIVE), world.step(action)
    np.testing.assert_array_equal(seen.render(), world.render())
    seen.close()


# settings

WRONG = [
    (matrix, {"game": "climbin"}, "env.game=climbin: allowed are .*did you mean climbing?"),
    (matrix, {"repeats": 0}, "env.repeats=0: allowed are 1 and more"),
    (matrix, {"game": "penalty", "k": 3.0}, "env.k=3.0: allowed are numbers up to 0"),
    (meet, {"agents": 1}, "env.agents=1: allowed are 2 and more"),
    (meet, {"grid": 1}, "env.grid=1: allowed are 2 and more"),
    (meet, {"grid": 9}, "env.horizon=10: a grid of 9 allows 17 and more"),
    (pettingzoo, {"id": "mpe2.simple_sprad_v3"}, "env.id=mpe2.simple_sprad_v3: .*did you mean mpe2.simple_spread_v3?"),
    (pettingzoo, {"id": "mpe2.envs.simple.simple_spread_v3"}, "env.id=mpe2.envs.simple.simple_spread_v3: allowed are"),
    (pettingzoo, {"id": "simple_spread_v3"}, "env.id=simple_spread_v3: allowed are module paths"),
    (pettingzoo, {"id": "mpe2.simple_spread_v3", "kwargs": {"M": 3}}, "env.kwargs={'M': 3}: .*unexpected"),
    (pettingzoo, {"kwargs": {"continuous_actions": True}}, "env.id=mpe2.*only Discrete actions"),
    (pettingzoo, {"reward": "max"}, "env.reward=max: allowed are sum, mean"),
    (pettingzoo, {"state": "nativ"}, "env.state=nativ: .*did you mean native?"),
    (pettingzoo, {"id": __name__, "horizon": 9, "state": "native"}, r"env.state=native: .* has no state\(\)"),
    (pettingzoo, {"id": __name__}, "env.horizon=None: .* give one"),
    (pettingzoo, {"horizon": 0}, "env.horizon=0: allowed are 1 and more"),
    (pettingzoo, {"kwargs": {"max_cycles": 0}}, "env.kwargs.max_cycles=0: allowed are whole numbers, 1 and more"),
    (pettingzoo, {"kwargs": {"max_cycles": "a"}}, "env.kwargs.max_cycles=a: allowed are whole numbers, 1 and more"),
    (pettingzoo, {"kwargs": {"local_ratio": 2}}, "env.kwargs={'local_ratio': 2}: mpe2.* refuses them"),
    (pettingzoo, {"kwargs": {"N": 0}}, "env.kwargs={'N': 0}: mpe2.* refuses them"),
    (pettingzoo, {"id": ".mpe2"}, "env.id=.mpe2: allowed are module paths"),
    (pettingzoo, {"id": "pettingzoo.test.example_envs.generated_agents_parallel_v0"}, "env.id=.*: .* possible_agents"),
    (pettingzoo, {"horizon": 50}, "env.horizon=50: .* ends after 25 steps; say env.kwargs.max_cycles=50 too"),
    (single, {"id": "CartPol-v1"}, "env.id=CartPol-v1: .*did you mean CartPole-v1?"),
    (single, {"id": "Pendulum-v1"}, "env.id=Pendulum-v1: only Discrete actions"),
    (single, {"id": "Blackjack-v1"}, "env.horizon=None: .* give one"),
    (single, {"horizon": 0}, "env.horizon=0: allowed are 1 and more"),
    (single, {"id": "FrozenLake-v1", "kwargs": {"map_name": "5x5"}}, "env.kwargs={'map_name': '5x5'}: .* refuses them"),
    (single, {"kwargs": {"wind": 1}}, "env.kwargs={'wind': 1}: .*unexpected"),
    (single, {"kwargs": {"render_mode": 3}}, "env.kwargs={'render_mode': 3}: .* refuses them"),
]


@pytest.mark.parametrize(("world", "settings", "message"), WRONG)
def test_a_wrong_setting_is_refused_in_one_line(world, settings, message):
    if world is pettingzoo and "mpe2" in settings.get("id", "mpe2"):
        pytest.importorskip("mpe2")
    config = world.Config(**settings)
    for start in (world.probe, lambda config: world.make(config, 1)):
        with pytest.raises(ValueError, match=message) as caught:
            start(config)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["not_there.simple_v1", "tests.needs_something_missing"])
def test_a_missing_package_is_named_with_what_installs_it(path, tmp_path, monkeypatch):
    import tests

    (tmp_path / "needs_something_missing.py").write_text("import not_there")
    monkeypatch.setattr(tests, "__path__", [*tests.__path__, str(tmp_path)])
    with pytest.raises(EnvUnavailable, match=f"env.id={path} needs .* pip install not_there"):
        pettingzoo.probe(pettingzoo.Config(id=path))


def test_a_gymnasium_world_that_needs_more_says_what():
    try:
        import Box2D  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(EnvUnavailable, match="env.id=LunarLander-v3: .*install"):
            single.probe(single.Config(id="LunarLander-v3"))
    else:
        single.probe(single.Config(id="LunarLander-v3"))


@pytest.mark.parametrize("world", [matrix, meet, pettingzoo, single])
def test_worlds_that_run_here_are_found_to_do_so(world):
    if world is pettingzoo:
        pytest.importorskip("mpe2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world.probe(world.Config())
