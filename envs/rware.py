"""Multi-Robot Warehouse (rware 2): env.id=tiny-2ag.

Robots bring requested shelves to a goal and back to a free place. Ids are those of the package without what all share:
`tiny-2ag` is rware-tiny-2ag-v2, `small-4ag-hard` one with half as many requests as robots.

The team's reward is the sum over robots, 1 for a delivery, and the state all observations in a row, as in the EPyMARL
benchmark; so is the time limit of 500 steps. The package calls that an end; the task has none: episodes are cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from envs import gym_team, refusal
from envs.painting import board
from marl.env import BatchedEnv, SideBySide
from marl.fields import check_values, count
from marl.types import Array

FORM = re.compile(r"(?:rware-)?(.+?)(?:-v2)?")
ENUMERATED = {"reward_type", "observation_type", "image_observation_layers"}
"""Arguments that the package compares with members of its own enumerations: a word is none of them."""
SHELVES, AGENTS = 1, 0
"""Layers of the package's grid."""


@dataclass
class Config:
    name: str = "rware"
    id: str = "tiny-2ag"  # tiny | small | medium | large, -1ag to -19ag, and -easy, -hard or nothing
    kwargs: dict[str, Any] = field(default_factory=dict)  # other arguments of the package's Warehouse
    horizon: int = count(500)  # steps


def team(config: Config) -> gym_team.Team:
    """The world that is asked for, looked over.

    Raises:
        EnvUnavailable: rware is not installed.
        ValueError: a setting that cannot be, in one line.
    """
    check_values(config, "env.")
    gym_team.refuse_fixed(config.kwargs, max_steps="env.horizon says it")
    for key in ENUMERATED.intersection(config.kwargs):
        raise refusal(f"env.kwargs.{key}", config.kwargs[key], "left out: the package takes no word for it")
    registry = gym_team.registered("rware", "rware")
    known = {name.removeprefix("rware-").removesuffix("-v2"): name for name in registry if name.startswith("rware-")}
    form = FORM.fullmatch(config.id)
    if form is None or form[1] not in known:
        raise refusal("env.id", config.id, known)
    build = gym_team.builder(registry[known[form[1]]], **config.kwargs, max_steps=config.horizon)
    outline = gym_team.outline(f"{config.name}:{config.id}", config.horizon)
    return gym_team.read(
        gym_team.Team(outline, partial(stocked, build), keep, is_idle, None, drawn), config.id, config.kwargs
    )


def stocked(build: Callable[[], Any]) -> Any:
    """A warehouse with shelves that are not requested: after a delivery the package draws the next request of them.

    Raises:
        ValueError: it has none.
    """
    world = build()
    shelves = int((world.highways == 0).sum())
    if world.request_queue_size >= shelves:
        raise ValueError(f"request_queue_size={world.request_queue_size} of {shelves} shelves; fewer are allowed")
    return world


def keep(world: Any) -> None:
    """`reset` makes robots, shelves and requests anew."""


def is_idle(world: Any) -> bool:
    """Whether nothing was delivered for as long as `max_inactivity_steps` allows, which is for ever by default."""
    return bool(world.max_inactivity_steps) and world._cur_inactive_steps >= world.max_inactivity_steps


def drawn(world: Any) -> Array:
    """Goals grey, shelves brown, requested ones orange, robots blue, dark while they carry."""
    colours = np.full((*world.grid_size, 3), 255, np.uint8)
    for column, row in world.goals:
        colours[row, column] = (120, 120, 120)
    colours[world.grid[SHELVES] > 0] = (190, 150, 110)
    for shelf in world.request_queue:
        colours[shelf.y, shelf.x] = (240, 140, 30)
    for agent in world.agents:
        colours[agent.y, agent.x] = (20, 40, 140) if agent.carrying_shelf else (90, 130, 250)
    return board(colours)


def probe(config: Config) -> None:
    team(config)


def make(config: Config, size: int) -> BatchedEnv:
    return SideBySide(partial(gym_team.TeamWorld, team(config)), size)
