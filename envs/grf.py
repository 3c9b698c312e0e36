"""Google Research Football: academy attacks and 5 against 5, played by the left team's outfield players.

N agents face R opponents; observation and state have 4N + 4R + 6 features (`envs.football.observation`), every agent
has the 19 actions of `envs.football.scenarios.ACTIONS`, all always available. N, R and the start positions stand in
`envs.football.scenarios`. The academy is played by the rules of the wrapper that CDS and FoX share, and S2Q and FIM
with more levels:

- the episode ends with the engine's own rules (a goal, the ball out of play, and in all but academy_corner the ball
  lost), when the ball or an agent comes to x < 0, and after 150 steps, which is an end of the task like the others;
  in the levels called _full_field, which begin in the own half, at x < -0.75 (the counter-attack: -0.4) and after 300;
- reward ``scoring``: 100 at a goal, else -1 at the end of the episode for whatever reason, else 0.

No paper's wrapper covers academy_empty_goal_close; it follows the same rules. 5_vs_5 is a match of 3000 steps that
nothing interrupts: its reward ``goals`` is 1 for a goal and -1 for one conceded, its end is a time limit (truncated,
not terminal), both goalkeepers belong to the engine, and the episode's seed draws who kicks off. The counter-attack is
CDS's file, without those who start in their own half; academy_counterattack_hard_stock is gfootball's, with the same
four agents and the first three opponents of its list. docs/worlds.md has all levels and what papers call them.

Which player an agent moves: ``fixed``, its own, for the whole episode, which is checked at every step; ``legacy``,
whoever gfootball's own file gives it, which changes during play and is often not the player it observes. Where only
time ends an episode, its last reward is the same whether the limit is terminal or not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from envs import refusal
from envs.football.drawing import Pitch
from envs.football.observation import Frame, Layout
from envs.football.scenarios import ACTIONS, SCENARIOS, Match, Scenario
from marl.env import BatchedEnv, Env, EnvUnavailable, Moment, SideBySide
from marl.fields import check_values, count, number, one_of
from marl.types import Array, Column, EnvSpec

if TYPE_CHECKING:
    from envs.football.engine import Engine

T = TypeVar("T")
REWARDS = {"scoring": (-1.0, 100.0), "goals": (-1.0, 1.0)}


@dataclass
class Config:
    """What null leaves to the scenario: see the module."""

    name: str = "grf"
    scenario: str = "academy_3_vs_1_with_keeper"
    mapping: str = one_of("fixed", "legacy")  # which player an agent moves
    reward: str | None = one_of(None, "scoring", "goals")  # null: scoring in the academy, goals in 5_vs_5
    time_limit: int | None = count(None)  # steps; null: 150 in the academy, 300 over the full field, 3000 in 5_vs_5
    limit_is_terminal: bool | None = None  # no value beyond the time limit; null: true in the academy, false in 5_vs_5
    end_on_possession: bool | None = None  # losing the ball ends the episode; null: as in gfootball's file
    x_limit: float | None = number(None, least=-2, most=1)  # the ball or an agent at a smaller x ends the episode
    render: bool = False  # pictures by the game's 3-D renderer (6 s to start, 0.2 s each); false: a flat drawing
    render_width: int = number(640, least=64, most=4096)  # pixels, an even number
    render_height: int = number(360, least=64, most=4096)  # pixels, an even number


def check(config: Config) -> None:
    """Refuse values that make no sense.

    Raises:
        ValueError: one line with the key, the value and what is allowed.
    """
    check_values(config, "env.")
    if config.scenario not in SCENARIOS:
        raise refusal("env.scenario", config.scenario, SCENARIOS)
    duration, hindmost = SCENARIOS[config.scenario].duration, SCENARIOS[config.scenario].hindmost
    if config.time_limit is not None and config.time_limit > duration:
        raise refusal("env.time_limit", config.time_limit, f"{config.scenario} takes 1 to {duration} steps, or null")
    if config.x_limit is not None and config.x_limit > hindmost:
        raise refusal("env.x_limit", config.x_limit, f"{config.scenario} takes -2 to {hindmost}, its start, or null")
    for key in ("render_width", "render_height"):
        if vars(config)[key] % 2:
            raise refusal(f"env.{key}", vars(config)[key], "allowed are even numbers from 64 to 4096")


def probe(config: Config) -> None:
    """Check the configuration and that the engine can be loaded; starts nothing.

    Raises:
        ValueError: a value that is not allowed.
        EnvUnavailable: the engine is not built, or a library it needs is missing.
    """
    check(config)
    threshold = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the library's own advice is wrong where a shared library is missing
    try:
        import_module("gfootball_engine")
    except ModuleNotFoundError as error:
        raise EnvUnavailable(
            "env=grf: the football engine is not installed; `make setup` builds it, or, on Python 3.11: pip install "
            "psutil setuptools wheel && pip install --no-build-isolation --no-deps gfootball==2.10.2"
        ) from error
    except ImportError as error:
        raise EnvUnavailable(
            f"env=grf: {error}; install it: apt-get install libsdl2-dev libsdl2-image-dev libsdl2-ttf-dev "
            "libsdl2-gfx-dev libboost-python-dev libboost-filesystem-dev libegl1-mesa-dev libgl1-mesa-dri"
        ) from error
    finally:
        logging.disable(threshold)


def make(config: Config, size: int) -> BatchedEnv:
    """``size`` matches side by side; no engine starts before the first reset.

    Raises:
        ValueError: a value that is not allowed.
    """
    check(config)
    return SideBySide(lambda: Football(config), size)


def _chosen(value: T | None, default: T) -> T:
    return default if value is None else value


@dataclass(frozen=True)
class Rules:
    """A configuration with every null filled in."""

    reward: str
    limit: int
    limit_is_terminal: bool
    possession_ends: bool
    x_limit: float

    @classmethod
    def of(cls, config: Config, scenario: Scenario) -> Rules:
        return cls(
            reward=_chosen(config.reward, scenario.reward),
            limit=_chosen(config.time_limit, scenario.limit),
            limit_is_terminal=_chosen(config.limit_is_terminal, scenario.limit_is_terminal),
            possession_ends=_chosen(config.end_on_possession, scenario.possession_ends),
            x_limit=_chosen(config.x_limit, scenario.x_limit),
        )


def _engine() -> Engine:
    from envs.football.engine import acquire

    return acquire()


class Football(Env):
    """One match: the papers' rules around an engine.

    Args:
        config: checked by `check`.
        engine: where an engine comes from at the first reset.
    """

    def __init__(self, config: Config, engine: Callable[[], Engine] = _engine) -> None:
        scenario = SCENARIOS[config.scenario]
        self._config, self._start = config, engine
        self._rules = rules = Rules.of(config, scenario)
        self._match = Match(scenario, config.mapping == "fixed", rules.possession_ends)
        self._layout = layout = Layout(scenario.n_agents, scenario.opponents)
        self._own_players = tuple(range(self._match.first, len(scenario.left)))
        self._avail = np.ones((scenario.n_agents, len(ACTIONS)), np.bool_)
        self._avail.flags.writeable = False
        self._running: Engine | None = None
        self._pitch: Pitch | None = None
        self._steps = self._lead = 0
        self.spec = EnvSpec(
            name=f"{config.name}/{config.scenario}",
            n_agents=scenario.n_agents,
            n_actions=len(ACTIONS),
            obs_dim=layout.dim,
            state_dim=layout.dim,
            horizon=rules.limit,
            agents=tuple(f"player_{player}" for player in self._own_players),
            state_groups=layout.groups,
            by_agent=("ally_position", "ally_direction"),
            teammate_blocks=layout.teammate_blocks(),
            noop=0,
            reward_range=REWARDS[rules.reward],
            draws=True,
            columns={"won": Column((), "bool", "episode")},
        )

    def reset(self, seed: int) -> Moment:
        if self._running is None:
            self._running = self._start()
        self._steps = self._lead = 0
        frame = self._running.begin(self._match, seed)
        self._check_players(frame)
        return self._moment(frame)

    def step(self, actions: Array) -> Moment:
        if self._running is None:
            raise RuntimeError("reset this match before its first step")
        frame = self._running.step(actions.tolist())
        self._check_players(frame)
        self._steps += 1
        self._lead += frame.gain
        rules = self._rules
        over = frame.over or self._hindmost(frame) < rules.x_limit
        late = self._steps >= rules.limit
        terminal = over or (late and rules.limit_is_terminal)
        return self._moment(frame, self._reward(frame.gain, over or late), terminal, late and not terminal)

    def render(self) -> Array:
        if self._running is None:
            raise RuntimeError("reset this match before its first picture")
        width, height = self._config.render_width, self._config.render_height
        if self._config.render:
            from envs.football.camera import camera

            return camera(width, height).picture(self._running)
        if self._pitch is None:
            self._pitch = Pitch(width, height)
        return self._pitch.draw(self._running.scene(), self._steps / self._rules.limit)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def _moment(self, frame: Frame, reward: float = 0.0, terminal: bool = False, truncated: bool = False) -> Moment:
        state = np.array(frame.features, np.float32)
        columns = {"won": self._lead > 0} if terminal or truncated else {}
        return Moment(self._layout.observe(state), state, self._avail, reward, terminal, truncated, columns)

    def _reward(self, gain: int, ended: bool) -> float:
        if self._rules.reward == "goals":
            return float(gain)
        return 100.0 if gain > 0 else -1.0 if ended else 0.0

    def _hindmost(self, frame: Frame) -> float:
        """The smallest x of the ball and the agents."""
        agents, ball = frame.features[0 : 2 * self.spec.n_agents : 2], frame.features[-6]
        return min(ball, *agents)

    def _check_players(self, frame: Frame) -> None:
        if self._match.fixed and frame.controlled != self._own_players:
            raise RuntimeError(
                f"env.mapping=fixed: agents must move players {self._own_players}, the engine gave {frame.controlled}"
            )
