"""Who stands where at the start, and when the engine itself ends an episode.

Positions are written as in the scenario files of gfootball 2.10.2: each team in its own frame, attacking towards
x = +1, y in [-0.42, 0.42] (the engine mirrors the right team). Football is played by the last ``n_agents`` of the left
team; ``opponents`` of the right team, in the order written, are observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

ACTIONS = (
    "idle left top_left top top_right right bottom_right bottom bottom_left long_pass high_pass short_pass shot "
    "sprint release_direction release_sprint sliding dribble release_dribble"
).split()
"""The default action set of gfootball, in its order."""

Spot = tuple[float, float, str]
"""x, y, role."""


@dataclass(frozen=True)
class Scenario:
    """A start position and its rules. Defaults: gfootball's academy in the wrapper of CDS and FoX."""

    n_agents: int
    opponents: int
    ball: tuple[float, float]
    left: tuple[Spot, ...]
    right: tuple[Spot, ...]
    possession_ends: bool = True
    """The episode ends when the ball changes hands."""
    score_ends: bool = True
    out_of_play_ends: bool = True
    x_limit: float = 0.0
    """The wrapper's rule: the ball or an agent at a smaller x ends the episode; -inf: nothing does."""
    limit: int = 150
    """Steps of an episode unless the configuration says otherwise."""
    limit_is_terminal: bool = True
    reward: str = "scoring"
    duration: int = 400
    """The engine's own end of the game."""
    offsides: bool = False
    difficulty: tuple[float, float] | None = None
    """Skill of the built-in players, left and right, in [0, 1]; None leaves the engine's 1.0 and 0.6."""
    free_keepers: bool = True
    """gfootball's file lets an agent take over a goalkeeper."""
    kick_off_drawn: bool = False
    """The lists belong to the team that kicks off and the other; the episode's seed says which one is left."""

    @property
    def hindmost(self) -> float:
        """The smallest x at which the ball or an agent starts."""
        teams = (self.left, self.right) if self.kick_off_drawn else (self.left,)
        return min(self.ball[0], *(x for team in teams for x, _, _ in team[-self.n_agents :]))


@dataclass(frozen=True)
class Match:
    """All that an engine needs to know of an episode but its seed."""

    scenario: Scenario
    fixed: bool
    """Agents move the last ``n_agents`` of the left team; False: whomever gfootball's file lets the engine choose."""
    possession_ends: bool

    @property
    def first(self) -> int:
        """Index of the first agent's player in the left team."""
        return len(self.scenario.left) - self.scenario.n_agents

    def sides(self, seed: int) -> tuple[tuple[Spot, ...], tuple[Spot, ...]]:
        """The left and the right team at the start of the episode that ``seed`` fixes."""
        scenario = self.scenario
        swapped = scenario.kick_off_drawn and seed >> 1 & 1
        return (scenario.right, scenario.left) if swapped else (scenario.left, scenario.right)


_COUNTERATTACK = ((0.5, -0.3161, "CM"), (0.25, -0.1, "LM"), (0.25, 0.1, "RM"), (0.35, 0.316102, "CF"))
_KEEPER = (-1.0, 0.0, "GK")


def _joined(scenario: Scenario, attackers: tuple[Spot, ...] = (), defenders: tuple[Spot, ...] = ()) -> Scenario:
    """The same attack with more agents and more opponents, all observed."""
    return replace(
        scenario,
        n_agents=scenario.n_agents + len(attackers),
        opponents=scenario.opponents + len(defenders),
        left=(*scenario.left, *attackers),
        right=(*scenario.right, *defenders),
    )


def _over_full_field(scenario: Scenario, x_limit: float) -> Scenario:
    """The same attack from further back: agents and ball keep their formation, all others their places.

    The hindmost agent starts 0.15 in front of the limit, that is at -0.6 where the limit is -0.75.
    """
    back = scenario.hindmost - (x_limit + 0.15)
    first = len(scenario.left) - scenario.n_agents
    agents = ((round(x - back, 6), y, role) for x, y, role in scenario.left[first:])
    ball = (round(scenario.ball[0] - back, 6), scenario.ball[1])
    return replace(scenario, ball=ball, left=(*scenario.left[:first], *agents), x_limit=x_limit, limit=300)


SCENARIOS: dict[str, Scenario] = {
    "academy_empty_goal_close": Scenario(
        n_agents=1,
        opponents=1,
        ball=(0.77, 0.0),
        left=(_KEEPER, (0.75, 0.0, "CB")),
        right=((1.0, 0.0, "GK"),),
    ),
    "academy_run_pass_and_shoot_with_keeper": Scenario(
        n_agents=2,
        opponents=2,
        ball=(0.7, -0.28),
        left=(_KEEPER, (0.7, 0.0, "CB"), (0.7, -0.3, "CB")),
        right=(_KEEPER, (-0.75, 0.1, "CB")),
    ),
    "academy_3_vs_1_with_keeper": Scenario(
        n_agents=3,
        opponents=2,
        ball=(0.62, 0.0),
        left=(_KEEPER, (0.6, 0.0, "CM"), (0.7, 0.2, "CM"), (0.7, -0.2, "CM")),
        right=(_KEEPER, (-0.75, 0.0, "CB")),
    ),
    # CDS deletes from gfootball's file whoever starts in an own half; the papers' opponents are these three.
    "academy_counterattack_hard": Scenario(
        n_agents=4,
        opponents=3,
        ball=(0.26, -0.11),
        left=(_KEEPER, *_COUNTERATTACK),
        right=(_KEEPER, (-0.4, -0.06356, "CB"), (-0.4, 0.063559, "CB")),
    ),
    "academy_counterattack_hard_stock": Scenario(
        n_agents=4,
        opponents=3,
        ball=(0.26, -0.11),
        left=(
            _KEEPER,
            (-0.672, -0.19576, "LB"),
            (-0.75, -0.06356, "CB"),
            (-0.75, 0.063559, "CB"),
            (-0.672, 0.19576, "RB"),
            (-0.434, -0.10568, "CM"),
            (-0.434, 0.10568, "CM"),
            *_COUNTERATTACK,
        ),
        right=(
            _KEEPER,
            (0.128, -0.19576, "LB"),
            (-0.4, -0.06356, "CB"),
            (-0.4, 0.063559, "CB"),
            (0.128, -0.19576, "RB"),
            (0.365, -0.10568, "CM"),
            (0.282, 0.0, "CM"),
            (0.365, 0.10568, "CM"),
            (0.54, -0.3161, "LM"),
            (0.51, 0.0, "RM"),
            (0.54, 0.316102, "CF"),
        ),
    ),
    "academy_corner": Scenario(
        n_agents=10,
        opponents=11,
        possession_ends=False,
        ball=(0.99, 0.41),
        left=(
            _KEEPER,
            (1.0, 0.42, "LB"),
            (0.7, 0.15, "CB"),
            (0.7, 0.05, "CB"),
            (0.7, -0.05, "RB"),
            (0.0, 0.0, "CM"),
            (0.6, 0.35, "CM"),
            (0.8, 0.07, "CM"),
            (0.8, -0.03, "LM"),
            (0.8, -0.13, "RM"),
            (0.7, -0.3, "CF"),
        ),
        right=(
            _KEEPER,
            (-0.75, -0.18, "LB"),
            (-0.75, -0.08, "CB"),
            (-0.75, 0.02, "CB"),
            (-1.0, -0.1, "RB"),
            (-0.8, -0.25, "CM"),
            (-0.88, -0.07, "CM"),
            (-0.88, 0.03, "CM"),
            (-0.88, 0.13, "LM"),
            (-0.75, 0.25, "RM"),
            (-0.2, 0.0, "CF"),
        ),
    ),
    "5_vs_5": Scenario(
        n_agents=4,
        opponents=5,
        ball=(0.0, 0.0),
        left=(_KEEPER, (0.0, 0.02, "RM"), (0.0, -0.02, "CF"), (-0.1, -0.1, "LB"), (-0.1, 0.1, "CB")),
        right=(_KEEPER, (-0.04, 0.04, "RM"), (-0.04, -0.04, "CF"), (-0.1, -0.1, "LB"), (-0.1, 0.1, "CB")),
        possession_ends=False,
        score_ends=False,
        out_of_play_ends=False,
        x_limit=-math.inf,
        limit=3000,
        limit_is_terminal=False,
        reward="goals",
        duration=3000,
        offsides=True,
        difficulty=(0.05, 0.05),
        free_keepers=False,
        kick_off_drawn=True,
    ),
}

# S2Q and FIM name the levels below; their files were not released.
_MORE_DEFENDERS = _joined(SCENARIOS["academy_3_vs_1_with_keeper"], defenders=((-0.75, 0.1, "CB"),))
SCENARIOS |= {
    "academy_3_vs_2_with_keeper": _MORE_DEFENDERS,
    "academy_4_vs_2_with_keeper": _joined(_MORE_DEFENDERS, attackers=((0.7, 0.0, "CM"),)),
}
SCENARIOS |= {
    f"{name}_full_field": _over_full_field(SCENARIOS[name], x_limit)
    for name, x_limit in {
        "academy_run_pass_and_shoot_with_keeper": -0.75,
        "academy_3_vs_1_with_keeper": -0.75,
        "academy_3_vs_2_with_keeper": -0.75,
        "academy_4_vs_2_with_keeper": -0.75,
        "academy_counterattack_hard": -0.4,
    }.items()
}
