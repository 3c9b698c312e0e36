"""Level-Based Foraging (lbforaging 2): env.id=8x8-2p-2f-coop.

A team collects food on a grid; food of a level is loaded by neighbours whose levels add up to it. Ids are those of the
package without what all share: `8x8-2p-2f-coop` is Foraging-8x8-2p-2f-coop-v3, `2s-10x10-3p-3f` a world in which agents
see two cells far. The package registers up to 4 foods; `15x15-3p-5f` and the like are registered here by its own rule.

`10x10-3p-3f-v2` is the world that published figures are of. Until version 2 no food was as strong as the three weakest
players together, unless all food was (`coop`); in version 3 it can be (lb-foraging, pull request 21). Of food for
three players a fourth needs all three then; of version 2's, one in forty.

The team's reward is the sum over agents: each food pays its share of all levels, so that a full harvest pays 1, also
in the EPyMARL benchmark, whose state (all observations in a row) this is too. The time limit of 50 steps is the
package's; the commands that EPyMARL gives as examples set 25. The package does not tell time from an empty field: here
the episode is terminal, and `won`, when all food is gone, and cut at `horizon`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from envs import gym_team, refusal
from envs.painting import board
from marl.env import BatchedEnv, SideBySide
from marl.fields import check_values, count
from marl.types import Array

FORM = re.compile(r"(?:Foraging-)?((?:2s-)?(\d+)x(\d+)-(\d+)p-(\d+)f(?:-coop)?)(?:-v([23]))?")
ALLOWED = (
    "allowed are [2s-]SIZExSIZE-PLAYERSp-FOODSf[-coop][-v2], such as 8x8-2p-2f-coop, "
    "from 5x5, 2 players and 1 food on, with places for all: food lies apart and not at the border"
)


@dataclass
class Config:
    name: str = "lbf"
    id: str = "8x8-2p-2f-coop"  # [2s-]SIZExSIZE-PLAYERSp-FOODSf[-coop][-v2]; 2s: sight of 2 cells; coop: all must load
    kwargs: dict[str, Any] = field(default_factory=dict)  # other arguments of the package's ForagingEnv
    horizon: int = count(50)  # steps


def entry(config: Config) -> Any:
    """The line of Gymnasium's registry, written if the package has none.

    Raises:
        ValueError: no such world, in one line.
    """
    form = FORM.fullmatch(config.id)
    if form is None:
        raise refusal("env.id", config.id, ALLOWED)
    size, width, players, foods = map(int, form.groups()[1:5])
    if size != width or size < 5 or players < 2 or foods < 1 or players + foods > size * size:
        raise refusal("env.id", config.id, ALLOWED)
    apart = ((size - 1) // 2) ** 2
    registry, whole = gym_team.registered("lbforaging", "lbf"), f"Foraging-{form[1]}-v3"
    if whole not in registry:
        if foods > apart:
            raise refusal("env.id", config.id, ALLOWED)
        near = registry[re.sub(r"\d+x\d+-\d+p-\d+f", "8x8-2p-2f", whole)]
        sight = near.kwargs["sight"] if form[1].startswith("2s-") else size
        sizes = {"players": players, "field_size": (size, size), "max_num_food": foods, "sight": sight}
        from gymnasium import register

        register(whole, near.entry_point, kwargs={**near.kwargs, **sizes})
    return replace(registry[whole], entry_point=version_2) if form[6] == "2" else registry[whole]


def version_2(**kwargs: Any) -> Any:
    """A world whose strongest food is left out, as it was in versions 1 and 2."""
    from lbforaging.foraging import ForagingEnv

    class WithoutStrongest(ForagingEnv):  # type: ignore[misc]
        def spawn_food(self, max_num_food: int, min_levels: Array, max_levels: Array) -> None:
            highest = max_levels if self.force_coop else np.maximum(min_levels, max_levels - 1)
            super().spawn_food(max_num_food, min_levels, highest)

    return WithoutStrongest(**kwargs)


def team(config: Config) -> gym_team.Team:
    """The world that is asked for, looked over.

    Raises:
        EnvUnavailable: lbforaging is not installed.
        ValueError: a setting that cannot be, in one line.
    """
    check_values(config, "env.")
    gym_team.refuse_fixed(config.kwargs, max_episode_steps="env.horizon says it")
    penalty = config.kwargs.get("penalty", 0.0)
    if isinstance(penalty, bool) or not isinstance(penalty, int | float):  # the package asks when a load has failed
        raise refusal("env.kwargs.penalty", penalty, "allowed are numbers")
    build = gym_team.builder(entry(config), **config.kwargs, max_episode_steps=config.horizon)
    outline = gym_team.outline(f"{config.name}:{config.id}", config.horizon, pays=penalty <= 0)
    world = gym_team.Team(outline, partial(unchecked, build), forget_places, is_empty, is_harvested, drawn)
    return gym_team.read(world, config.id, config.kwargs)


def unchecked(build: Callable[[], Any]) -> Any:
    """A field that does not look its observations over: that costs an eighth of a step."""
    world = build()
    for space in world.observation_space:
        space.contains = lambda _: True
    return world


def forget_places(world: Any) -> None:
    """Players start where none of the last episode's places are, unless these are forgotten."""
    for player in world.players:
        player.position = None


def is_empty(world: Any) -> bool:
    return not world.field.any()


def is_harvested(world: Any) -> bool:
    """Whether all food is gone; where none found a place there was no task."""
    return is_empty(world) and bool(world._food_spawned)


def drawn(world: Any) -> Array:
    """Food green, players blue, darker the higher their level."""
    colours = np.full((*world.field.shape, 3), 255, np.uint8)
    for row, column in zip(*np.nonzero(world.field)):
        colours[row, column] = np.asarray((190, 230, 190)) - 18 * min(int(world.field[row, column]), 8)
    for player in world.players:
        shade = min(int(player.level) - 1, 2)
        colours[player.position] = np.asarray((120, 150, 255)) - shade * np.asarray((40, 40, 30))
    return board(colours)


def probe(config: Config) -> None:
    team(config)


def make(config: Config, size: int) -> BatchedEnv:
    return SideBySide(partial(gym_team.TeamWorld, team(config)), size)
