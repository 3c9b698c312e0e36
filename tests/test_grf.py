"""Football: the papers' rules on scripted frames (no engine), and the engine itself where it is built."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import grf
from envs.football.observation import Frame, Scene
from envs.football.scenarios import ACTIONS, SCENARIOS, Match
from marl.env import BatchedEnv, EnvUnavailable
from marl.types import Array

ROOT = Path(__file__).resolve().parent.parent
AGENTS = {
    "academy_empty_goal_close": (1, 1),
    "academy_run_pass_and_shoot_with_keeper": (2, 2),
    "academy_3_vs_1_with_keeper": (3, 2),
    "academy_counterattack_hard": (4, 3),
    "academy_counterattack_hard_stock": (4, 3),
    "academy_corner": (10, 11),
    "5_vs_5": (4, 5),
    "academy_3_vs_2_with_keeper": (3, 3),
    "academy_4_vs_2_with_keeper": (4, 3),
    "academy_run_pass_and_shoot_with_keeper_full_field": (2, 2),
    "academy_3_vs_1_with_keeper_full_field": (3, 2),
    "academy_3_vs_2_with_keeper_full_field": (3, 3),
    "academy_4_vs_2_with_keeper_full_field": (4, 3),
    "academy_counterattack_hard_full_field": (4, 3),
}
LIMITS = {"5_vs_5": (3000, -np.inf), "academy_counterattack_hard_full_field": (300, -0.4)}
"""Steps and x."""
LIMITS |= {name: (300, -0.75) if name.endswith("full_field") else (150, 0.0) for name in AGENTS if name not in LIMITS}
LEFT = np.array([[0.6, 0.0], [0.7, 0.2], [0.7, -0.2]])
RIGHT = np.array([[1.0, 0.0], [0.75, 0.0]])
BALL = np.array([0.62, 0.0, 0.11])


def frame(
    left: Array = LEFT, right: Array = RIGHT, ball: Array = BALL, gain: int = 0, over: bool = False, motion: float = 0.0
) -> Frame:
    """One step of a 3 against 2; ``motion`` makes every direction distinct."""
    count = len(left) + len(right)
    directions = motion * np.arange(1, 2 * count + 4)
    ours, theirs = directions[: 2 * len(left)], directions[2 * len(left) : 2 * count]
    features = np.concatenate([left.ravel(), ours, right.ravel(), theirs, ball, directions[2 * count :]])
    return Frame(features.tolist(), gain, over, tuple(range(1, len(left) + 1)))


class Script:
    """An engine that shows prepared frames, the last one for ever."""

    match: Match

    def __init__(self, *frames: Frame) -> None:
        self._frames = frames

    def begin(self, match: Match, seed: int) -> Frame:
        self.match, self._at = match, 0
        return self._frames[0]

    def step(self, actions: Sequence[int]) -> Frame:
        self._at += 1
        return self._frames[min(self._at, len(self._frames) - 1)]

    def scene(self) -> Scene:
        return Scene(np.concatenate([[[-1.0, 0.0]], LEFT]), RIGHT, np.zeros(3), (1, 2, 3))

    def close(self) -> None:
        pass


def play(*frames: Frame, config: grf.Config | None = None) -> grf.Football:
    """A match on scripted frames, after its reset."""
    match = grf.Football(config or grf.Config(), lambda: Script(*frames))
    match.reset(0)
    return match


IDLE = np.zeros(3, np.int64)


def distances(shown: Frame) -> Array:
    obs = grf.Football(grf.Config(), lambda: Script(shown)).reset(0).obs
    return np.array([np.linalg.norm(a - b) for a, b in ((obs[0], obs[1]), (obs[0], obs[2]), (obs[1], obs[2]))])


def test_observations_of_a_still_scene_have_the_published_distances() -> None:
    assert distances(frame()) == pytest.approx([0.670820, 0.781025, 1.2], abs=1e-6)
    moved = frame(LEFT + [0.05, -0.1], RIGHT + [0.05, -0.1], BALL + [0.05, -0.1, 0.0])
    # Only the agent's own position is absolute, and it moves by the same for all.
    assert distances(moved) == pytest.approx(distances(frame()), abs=1e-6)
    assert distances(frame(LEFT[[1, 0, 2]])) == pytest.approx([0.670820, 1.174734, 0.670820], abs=1e-6)


def test_every_block_of_the_observation_and_the_state_is_in_its_place() -> None:
    moment = grf.Football(grf.Config(), lambda: Script(frame(motion=0.001))).reset(0)
    ours, theirs, ball = np.arange(1, 7) / 1000, np.arange(7, 11) / 1000, np.arange(11, 14) / 1000
    state = [*LEFT.ravel(), *ours, *RIGHT.ravel(), *theirs, *BALL, *ball]
    assert moment.state == pytest.approx(state, abs=1e-6)
    own = LEFT[1]
    mates = [*(LEFT[0] - own), *(LEFT[2] - own)]
    directions = [*ours[2:4], *ours[0:2], *ours[4:6]]
    opponents = [*(RIGHT - own).ravel(), *theirs]
    expected = [*own, *mates, *directions, *opponents, *(BALL[:2] - own), BALL[2], *ball]
    assert moment.obs[1] == pytest.approx(expected, abs=1e-6)
    assert moment.avail.shape == (3, 19) and moment.avail.all()


@pytest.mark.parametrize("scenario", AGENTS)
def test_what_is_known_before_an_engine_starts(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gfootball_engine", None)
    spec = grf.make(grf.Config(scenario=scenario), 2).spec
    n, r = AGENTS[scenario]
    assert (spec.n_agents, spec.n_actions, spec.noop) == (n, 19, 0)
    assert spec.obs_dim == spec.state_dim == 4 * n + 4 * r + 6
    assert sorted(entry for group in spec.state_groups.values() for entry in group) == list(range(spec.state_dim))
    assert {name: len(group) for name, group in spec.state_groups.items()} == {
        "ally_position": 2 * n,
        "ally_direction": 2 * n,
        "enemy_position": 2 * r,
        "enemy_direction": 2 * r,
        "ball_position": 3,
        "ball_direction": 3,
    }
    assert len(spec.agents) == n and spec.agents[-1] == f"player_{len(SCENARIOS[scenario].left) - 1}"
    assert (spec.horizon, SCENARIOS[scenario].x_limit) == LIMITS[scenario]


def test_every_scenario_is_tried() -> None:
    assert set(AGENTS) == set(SCENARIOS)


def test_teammate_blocks_are_where_teammates_are() -> None:
    match = grf.Football(grf.Config(), lambda: Script(frame(motion=0.001)))
    moment = match.reset(0)
    blocks = match.spec.teammate_blocks
    assert blocks is not None
    directions = moment.state[list(match.spec.state_groups["ally_direction"])].reshape(3, 2)
    for agent, row in enumerate(blocks):
        mates = [mate for mate in range(3) if mate != agent]
        for mate, block in zip(mates, row, strict=True):
            expected = [*(LEFT[mate] - LEFT[agent]), *directions[mate]]
            assert moment.obs[agent, list(block)] == pytest.approx(expected, abs=1e-6)


BACK = np.array([[0.6, 0.0], [-0.001, 0.2], [0.7, -0.2]])


@pytest.mark.parametrize(
    ("shown", "reward", "ends", "won"),
    [
        (frame(), 0.0, False, None),
        (frame(gain=1, over=True), 100.0, True, True),
        (frame(gain=-1, over=True), -1.0, True, False),
        (frame(over=True), -1.0, True, False),
        (frame(ball=np.array([-0.001, 0.0, 0.11])), -1.0, True, False),
        (frame(ball=np.array([0.0, 0.0, 0.11])), 0.0, False, None),
        (frame(BACK), -1.0, True, False),
    ],
    ids=["play goes on", "goal", "conceded", "engine ends", "ball behind", "ball on the line", "agent behind"],
)
def test_rewards_and_ends_of_the_academy(shown: Frame, reward: float, ends: bool, won: bool | None) -> None:
    moment = play(frame(), shown).step(IDLE)
    assert (moment.reward, moment.terminal, moment.truncated) == (reward, ends, False)
    assert moment.columns.get("won") == won


@pytest.mark.parametrize("terminal", [True, False])
def test_the_time_limit_ends_or_cuts(terminal: bool) -> None:
    match = play(frame(), config=grf.Config(limit_is_terminal=terminal))
    moments = [match.step(IDLE) for _ in range(150)]
    assert [m.reward for m in moments] == [0.0] * 149 + [-1.0]
    assert not any(m.terminal or m.truncated for m in moments[:-1])
    assert (moments[-1].terminal, moments[-1].truncated) == (terminal, not terminal)
    assert moments[-1].columns == {"won": False}


def test_a_goal_on_the_last_step_is_an_end_and_not_a_cut() -> None:
    match = play(frame(), frame(gain=1, over=True), config=grf.Config(time_limit=1, limit_is_terminal=False))
    moment = match.step(IDLE)
    assert (moment.reward, moment.terminal, moment.truncated) == (100.0, True, False)


FULL_FIELD = "academy_3_vs_1_with_keeper_full_field"


@pytest.mark.parametrize(
    ("config", "last"),
    [
        (grf.Config(), 0.0),
        (grf.Config(x_limit=-0.1), -0.1),
        (grf.Config(x_limit=0.5), 0.5),
        (grf.Config(scenario=FULL_FIELD), -0.75),
        (grf.Config(scenario=FULL_FIELD, x_limit=-0.9), -0.9),
    ],
)
def test_the_ball_or_an_agent_behind_the_limit_ends_an_episode(config: grf.Config, last: float) -> None:
    def ends(x: float, places: Array, **shown: Array) -> bool:
        places[0] = x
        moment = play(frame(), frame(**shown), config=config).step(IDLE)
        assert moment.reward == (-1.0 if moment.terminal else 0.0)
        return moment.terminal

    for x, over in ((last + 1e-6, False), (last, False), (last - 1e-6, True)):
        ball, left, right = BALL.copy(), LEFT.copy(), RIGHT.copy()
        assert ends(x, ball, ball=ball) == ends(x, left[1], left=left) == over
        assert not ends(x, right[1], right=right)


def test_everybody_may_go_anywhere() -> None:
    moment = play(frame(), frame(BACK - [1.1, 0.0]), config=grf.Config(x_limit=-2)).step(IDLE)
    assert (moment.reward, moment.terminal) == (0.0, False)


@pytest.mark.parametrize("scenario", [name for name in AGENTS if name.endswith("full_field")])
def test_over_the_full_field_a_team_starts_further_back_in_the_same_formation(scenario: str) -> None:
    near, far = SCENARIOS[scenario.removesuffix("_full_field")], SCENARIOS[scenario]
    assert far.left[: -far.n_agents] == near.left[: -far.n_agents] and far.right == near.right
    shifts = [x - y for (x, *_), (y, *_) in zip(near.left[-near.n_agents :], far.left[-far.n_agents :], strict=True)]
    assert shifts == pytest.approx([near.ball[0] - far.ball[0]] * far.n_agents)
    assert [spot[1:] for spot in near.left] == [spot[1:] for spot in far.left] and near.ball[1] == far.ball[1]
    assert far.hindmost == pytest.approx(far.x_limit + 0.15)


def test_more_agents_and_opponents_join_those_of_three_against_one() -> None:
    few, more, most = (SCENARIOS[f"academy_{name}_with_keeper"] for name in ("3_vs_1", "3_vs_2", "4_vs_2"))
    assert (more.left, more.right[:-1]) == (few.left, few.right) and more.ball == most.ball == few.ball
    assert (most.left[:-1], most.right) == (more.left, more.right)


def test_a_match_counts_goals_and_goes_on() -> None:
    frames = [frame(), frame(gain=1), frame(gain=-1), frame(gain=1), frame()]
    config = grf.Config(reward="goals", time_limit=4, limit_is_terminal=False)
    match = play(*frames, config=config)
    moments = [match.step(IDLE) for _ in range(4)]
    assert [m.reward for m in moments] == [1.0, -1.0, 1.0, 0.0]
    assert moments[-1].truncated and moments[-1].columns == {"won": True}
    match.reset(1)
    assert not [match.step(IDLE) for _ in range(2)][-1].terminal


def test_fixed_agents_must_keep_their_players() -> None:
    hop = frame()._replace(controlled=(0, 2, 3))
    with pytest.raises(RuntimeError, match=r"env\.mapping=fixed: .*\(1, 2, 3\).*\(0, 2, 3\)"):
        grf.Football(grf.Config(), lambda: Script(hop)).reset(0)
    with pytest.raises(RuntimeError, match=r"env\.mapping=fixed"):
        play(frame(), hop).step(IDLE)
    assert play(frame(), hop, config=grf.Config(mapping="legacy")).step(IDLE).reward == 0.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            grf.Config(scenario="academy_3_vs_1"),
            "env.scenario=academy_3_vs_1: allowed are .*mean academy_3_vs_1_with_keeper",
        ),
        (grf.Config(mapping="fix"), "env.mapping=fix: allowed are fixed, legacy; did you mean fixed?"),
        (grf.Config(reward="dense"), "env.reward=dense: allowed are scoring, goals"),
        (grf.Config(time_limit=0), "env.time_limit=0: allowed are 1 and more"),
        (grf.Config(time_limit=401), "env.time_limit=401"),
        (grf.Config(x_limit=-2.5), "env.x_limit=-2.5: allowed are -2 to 1"),
        (grf.Config(x_limit=0.61), "env.x_limit=0.61: academy_3_vs_1_with_keeper takes -2 to 0.6, its start, or null"),
        (grf.Config(scenario="5_vs_5", x_limit=0.0), "env.x_limit=0.0: 5_vs_5 takes -2 to -0.1, its start, or null"),
        (grf.Config(render_width=641), "env.render_width=641: allowed are even numbers"),
    ],
)
def test_wrong_values_are_named_in_one_line(config: grf.Config, message: str) -> None:
    for refuse in (lambda: grf.check(config), lambda: grf.probe(config), lambda: grf.make(config, 1)):
        with pytest.raises(ValueError, match=message) as refused:
            refuse()
        assert "\n" not in str(refused.value)


def test_a_missing_engine_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gfootball_engine", None)
    with pytest.raises(EnvUnavailable, match=r"make setup.*gfootball==2.10.2") as refused:
        grf.probe(grf.Config())
    assert "\n" not in str(refused.value)


def test_a_missing_library_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = "libboost_python311.so.1.74.0: cannot open shared object file: No such file or directory"
    (tmp_path / "gfootball_engine.py").write_text(f"raise ImportError({missing!r})")
    monkeypatch.delitem(sys.modules, "gfootball_engine", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvUnavailable, match=r"libboost_python311.*apt-get install .*libboost-python-dev") as refused:
        grf.probe(grf.Config())
    assert "\n" not in str(refused.value)


def test_the_flat_drawing_shows_both_teams_and_the_ball() -> None:
    picture = play(frame(), config=grf.Config(render_width=320, render_height=180)).render()
    assert picture.shape == (180, 320, 3) and picture.dtype == np.uint8
    assert picture[90, 160].min() > 240  # the ball, on the centre spot
    red, green, blue = picture[90, 160 + round(54.4 * 0.75 * 180 / 78.2)].astype(int)
    assert red > 180 and red > green + 60 and red > blue + 60
    red, green, blue = picture[90, 160 + round(54.4 * 0.6 * 180 / 78.2)].astype(int)
    assert blue > 180 and blue > red + 60


# --- with the engine ---------------------------------------------------------------------------------------------


def _unavailable() -> str:
    try:
        grf.probe(grf.Config())
    except EnvUnavailable as error:
        return str(error)
    return ""


needs_engine = pytest.mark.skipif(bool(_unavailable()), reason=_unavailable() or "the engine is here")


Start = Callable[..., BatchedEnv]


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes environments that are closed at the end."""
    opened: list[BatchedEnv] = []

    def open_one(size: int = 1, **values: Any) -> BatchedEnv:
        opened.append(grf.make(replace(grf.Config(), **values), size))
        return opened[-1]

    yield open_one
    for env in opened:
        env.close()


def choices(seed: int, steps: int, n_agents: int) -> Array:
    return np.random.default_rng(seed).integers(0, len(ACTIONS), (steps, 1, n_agents))


def trajectory(env: BatchedEnv, seed: int, steps: int = 60) -> bytes:
    """Everything that follows from a seed and random actions."""
    shown = [env.reset([seed]).obs.tobytes()]
    for actions in choices(seed, steps, env.spec.n_agents):
        moments = env.step(actions, np.array([True]))
        shown += [moments.obs.tobytes(), moments.state.tobytes(), moments.reward.tobytes()]
        if moments.terminal[0] or moments.truncated[0]:
            break
    return b"".join(shown)


@needs_engine
@pytest.mark.parametrize("scenario", AGENTS)
def test_agents_stand_and_stay_where_the_scenario_says(scenario: str, start: Start) -> None:
    """The mapping is checked by the environment at every step; here it must not complain."""
    env = start(scenario=scenario)
    moments, spec = env.reset([3]), env.spec
    assert moments.obs.shape == (1, spec.n_agents, spec.obs_dim) and moments.state.shape == (1, spec.state_dim)
    assert set(moments.columns) == set(spec.columns)
    ours, theirs = Match(SCENARIOS[scenario], True, True).sides(3)
    mates = moments.state[0][list(spec.state_groups["ally_position"])].reshape(-1, 2)
    assert mates == pytest.approx(np.array([spot[:2] for spot in ours[-spec.n_agents :]]) * 1.011, abs=0.015)
    others = moments.state[0][list(spec.state_groups["enemy_position"])].reshape(-1, 2)
    mirrored = -1.011 * np.array([spot[:2] for spot in theirs[: AGENTS[scenario][1]]])
    assert others == pytest.approx(mirrored, abs=0.015)
    for actions in choices(3, 40, spec.n_agents):
        moments = env.step(actions, np.array([True]))
        if moments.terminal[0]:
            break


@needs_engine
def test_idling_through_the_trimmed_counter_attack(start: Start) -> None:
    env = start(scenario="academy_counterattack_hard")
    env.reset([0])
    moments = []
    for _ in range(150):
        now = env.step(np.zeros((1, 4), np.int64), np.array([True]))
        moments.append((float(now.reward[0]), bool(now.terminal[0]), bool(now.truncated[0])))
    assert moments == [(0.0, False, False)] * 149 + [(-1.0, True, False)]


@needs_engine
def test_who_walks_back_from_the_full_fields_start_comes_to_its_limit(start: Start) -> None:
    env = start(scenario=FULL_FIELD)
    moments, hindmost, left = env.reset([0]), [0.0], np.full((1, 3), ACTIONS.index("left"))
    places = [*env.spec.state_groups["ally_position"][::2], env.spec.state_groups["ball_position"][0]]
    while not moments.terminal[0]:
        moments = env.step(left, np.array([True]))
        hindmost.append(float(moments.state[0, places].min()))
    assert hindmost[-2] >= -0.75 > hindmost[-1] and len(hindmost) < 60 and moments.reward[0] == -1


@needs_engine
def test_a_cut_is_no_end(start: Start) -> None:
    env = start(time_limit=5, limit_is_terminal=False)
    env.reset([0])
    for _ in range(5):
        moments = env.step(np.zeros((1, 3), np.int64), np.array([True]))
    assert moments.truncated[0] and not moments.terminal[0]


@needs_engine
@pytest.mark.parametrize("mapping", ["fixed", "legacy"])
def test_an_episode_is_its_seed_and_its_actions_alone(mapping: str, start: Start) -> None:
    fresh, used = start(mapping=mapping), start(mapping=mapping)
    expected = trajectory(fresh, 77)
    for seed in (5, 6, 93, 77 + 16):
        trajectory(used, seed)
    assert trajectory(used, 77) == expected
    assert trajectory(fresh, 77) == expected
    assert trajectory(used, 78) != expected


@needs_engine
def test_an_engine_that_played_another_scenario_leaves_no_trace(start: Start) -> None:
    corner = start(scenario="academy_corner")
    trajectory(corner, 1, 20)
    corner.close()
    assert trajectory(start(), 11) == trajectory(start(), 11)


@needs_engine
@pytest.mark.parametrize("scenario", ["5_vs_5", "academy_corner", "academy_counterattack_hard"])
def test_an_episode_is_the_same_whatever_its_engine_played_before(scenario: str, start: Start) -> None:
    seeds = range(8)
    one, other = start(scenario=scenario), start(scenario=scenario)
    upwards = {seed: trajectory(one, seed) for seed in seeds}
    downwards = {seed: trajectory(other, seed) for seed in reversed(seeds)}
    assert [seed for seed in seeds if upwards[seed] != downwards[seed]] == []
    assert [seed for seed in seeds if trajectory(one, seed) != upwards[seed]] == []


@needs_engine
def test_engines_in_one_process_do_not_disturb_one_another(start: Start) -> None:
    alone = start()
    expected = [trajectory(alone, seed, 40) for seed in (21, 22, 23)]
    three = start(3)
    moments = three.reset([21, 22, 23])
    shown = [[moments.obs[row].tobytes()] for row in range(3)]
    live = np.ones(3, np.bool_)
    actions = [choices(seed, 40, 3)[:, 0] for seed in (21, 22, 23)]
    for step in range(40):
        moments = three.step(np.stack([rows[step] for rows in actions]), live)
        for row in np.flatnonzero(live):
            shown[row] += [part[row].tobytes() for part in (moments.obs, moments.state, moments.reward)]
        if step % 7 == 0:
            three.render(step % 3)
        live &= ~(moments.terminal | moments.truncated)
    assert [b"".join(row) for row in shown] == expected


@needs_engine
def test_another_process_plays_the_same_episode(start: Start) -> None:
    here = hashlib.sha256(trajectory(start(), 31)).hexdigest()
    script = (
        "import hashlib, test_grf as t; from envs import grf;"
        "print(hashlib.sha256(t.trajectory(grf.make(grf.Config(), 1), 31)).hexdigest())"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]!r}; {script}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == here + "\n"


@needs_engine
@pytest.mark.parametrize("scenario", ["academy_3_vs_1_with_keeper", "academy_corner", "academy_empty_goal_close"])
def test_gfootball_plays_the_same_episode(scenario: str, start: Start) -> None:
    """Its own scenario files, rules and conversion to numbers, against ours: bit for bit."""
    core = pytest.importorskip("gfootball.env.football_env_core")
    settings = pytest.importorskip("gfootball.env.config")
    env = start(scenario=scenario, mapping="legacy", x_limit=-2, time_limit=400)
    n, r = AGENTS[scenario]
    for seed in (2, 5):
        values = {"players": [f"agent:left_players={n},right_players=0"], "level": scenario}
        theirs = core.FootballEnvCore(settings.Config({**values, "game_engine_random_seed": seed}))
        theirs.reset()
        moments, done = env.reset([seed]), False
        for actions in choices(seed, 60, n):
            assert not done
            raw = theirs.observation()
            ours = [raw["left_team"][-n:], raw["left_team_direction"][-n:]]
            others = [raw["right_team"][:r], raw["right_team_direction"][:r]]
            parts = [*ours, *others, raw["ball"], raw["ball_direction"]]
            state = np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)
            assert np.array_equal(moments.state[0], state)
            moments = env.step(actions, np.array([True]))
            _, reward, done, _ = theirs.step(actions[0].tolist())
            assert moments.terminal[0] == done
            assert moments.reward[0] == (100 if reward > 0 else -1 if done else 0)
            if done:
                break
        theirs.close()


@needs_engine
def test_random_play_lasts_as_long_as_was_measured(start: Start) -> None:
    """gfootball's file in the papers' wrapper: 57.6 and 70 steps in the mean over 80 and 60 episodes, a goal in 200."""
    env = start(mapping="legacy")
    lengths, goals = [], 0
    for seed in range(30):
        env.reset([seed])
        for length, actions in enumerate(choices(seed, 150, 3), 1):  # noqa: B007
            moments = env.step(actions, np.array([True]))
            if moments.terminal[0]:
                break
        lengths.append(length)
        goals += int(moments.columns["won"][0])
    assert 45 <= np.mean(lengths) <= 90
    assert goals <= 3


@needs_engine
def test_the_seed_draws_who_kicks_off(start: Start) -> None:
    env = start(scenario="5_vs_5")
    forwards = [float(env.reset([seed]).state[0, 0]) for seed in (0, 2, 4, 6)]
    assert len(set(forwards)) == 2 and all(a != b for a, b in pairwise(forwards))


@needs_engine
@pytest.mark.slow
def test_the_renderer_films_every_copy_and_disturbs_none(start: Start) -> None:
    values = {"render": True, "render_width": 320, "render_height": 180}
    expected = trajectory(start(), 41, 20)
    env = start(2, **values)
    env.reset([41, 42])
    shown = [env.reset([41, 42]).obs[0].tobytes()]
    for actions in choices(41, 20, 3):
        moments = env.step(np.concatenate([actions, actions]), np.array([True, True]))
        shown += [part[0].tobytes() for part in (moments.obs, moments.state, moments.reward)]
        pictures = [env.render(copy) for copy in (0, 1)]
    assert b"".join(shown) == expected
    for picture in pictures:
        assert picture.shape == (180, 320, 3) and picture.dtype == np.uint8
        red, green, blue = picture.reshape(-1, 3).mean(0)
        assert green > red and green > blue and picture.std() > 5
    assert not np.array_equal(*pictures)
    other = start(render=True, render_width=640, render_height=360)
    other.reset([1])
    with pytest.raises(EnvUnavailable, match=r"render_width=640"):
        other.render()
