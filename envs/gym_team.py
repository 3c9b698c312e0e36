"""Gymnasium worlds of a whole team: a tuple of spaces, lists of observations, actions and rewards.

What `envs.lbf` and `envs.rware` share. The team's reward is the sum over agents and the state all observations in a
row, as in the EPyMARL benchmark; all actions are available, for these worlds take one that cannot be done for a wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from envs import REFUSALS, refusal, refused
from marl.env import Env, EnvUnavailable, Moment
from marl.types import Array, Column, EnvSpec


class Team(NamedTuple):
    """What is known of a world before it plays."""

    spec: EnvSpec
    build: Callable[[], Any]
    """One world, without wrappers: they check what this adapter obeys."""
    fresh: Callable[[Any], None]
    """Makes a world forget its last episode, as far as `reset` does not."""
    ended: Callable[[Any], bool]
    """Whether the task itself has ended, time apart."""
    won: Callable[[Any], bool] | None
    draw: Callable[[Any], Array]


def registered(package: str, extra: str) -> Mapping[str, Any]:
    """Gymnasium's registry with the worlds of a package.

    Raises:
        EnvUnavailable: it is not installed.
    """
    if find_spec(package) is None:
        raise EnvUnavailable(f"env={extra} needs the package {package}: pip install -e '.[{extra}]'")
    import gymnasium

    import_module(package)
    return gymnasium.registry


def refuse_fixed(kwargs: Mapping[str, Any], **said: str) -> None:
    """Refuse arguments that are not the user's to give: those of ``said``, which has why, and pictures of another kind.

    Raises:
        ValueError: one of them was given.
    """
    for key, why in {"render_mode": "pictures are drawn here", **said}.items():
        if key in kwargs:
            raise refusal(f"env.kwargs.{key}", kwargs[key], why)


def builder(entry: Any, **arguments: Any) -> Callable[[], Any]:
    """Builds what a line of the registry says, with other arguments."""
    from gymnasium.envs.registration import load_env_creator

    point = entry.entry_point
    creator = point if callable(point) else load_env_creator(point)
    return partial(creator, **{**entry.kwargs, **arguments})


def read(team: Team, name: str, kwargs: Mapping[str, Any]) -> Team:
    """The same with the spec filled in: build a world, play a step of it, read its spaces, close it.

    Args:
        name, kwargs: what the user asked for, for errors.

    Raises:
        ValueError: the world refuses its arguments, or is not one of a team that sees and acts alike.
    """
    try:
        world = team.build()
        n, seen, acted = len(world.action_space), world.observation_space[0], world.action_space[0]
        world.reset(seed=0)
    except REFUSALS as error:
        raise refused(kwargs, name, error) from error
    if not set(map(type, world.action_space)) == {type(acted)} or "n" not in vars(acted):
        raise refusal("env.kwargs", dict(kwargs), f"only Discrete actions are allowed, agents act in {acted}")
    if seen.shape is None:
        raise refusal("env.kwargs", dict(kwargs), f"only flat observations are allowed, agents see {seen}")
    try:
        world.step([team.spec.noop] * n)
    except REFUSALS as error:
        raise refused(kwargs, name, error) from error
    width = int(np.prod(seen.shape))
    spec = replace(
        team.spec,
        n_agents=n,
        n_actions=int(acted.n),
        obs_dim=width,
        state_dim=n * width,
        agents=tuple(f"agent_{i}" for i in range(n)),
        columns={} if team.won is None else {"won": Column((), "bool", "episode")},
    )
    world.close()
    return team._replace(spec=spec)


def outline(name: str, horizon: int, *, pays: bool = True) -> EnvSpec:
    """A spec of which `read` knows the rest; ``pays``: no reward is below 0."""
    paid = (0.0, np.inf) if pays else (-np.inf, np.inf)
    return EnvSpec(
        name,
        n_agents=1,
        n_actions=1,
        obs_dim=1,
        state_dim=1,
        horizon=horizon,
        noop=0,
        reward_range=paid,
        draws=True,
    )


class TeamWorld(Env):
    """One such world."""

    def __init__(self, team: Team) -> None:
        self._team, self.spec = team, team.spec
        self._world: Any = None
        self._avail = np.ones((team.spec.n_agents, team.spec.n_actions), np.bool_)

    def reset(self, seed: int) -> Moment:
        if self._world is None:
            self._world = self._team.build()
        self._team.fresh(self._world)
        self._played = 0
        observations, _ = self._world.reset(seed=seed)
        return self._moment(observations)

    def step(self, actions: Array) -> Moment:
        observations, rewards, *_ = self._world.step(actions.tolist())
        self._played += 1
        return self._moment(observations, float(sum(rewards)))

    def _moment(self, observations: Any, reward: float = 0.0) -> Moment:
        obs = np.asarray(observations, np.float32).reshape(self.spec.n_agents, self.spec.obs_dim)
        terminal = self._played > 0 and self._team.ended(self._world)
        cut = not terminal and self._played >= self.spec.horizon
        won = {} if self._team.won is None else {"won": self._team.won(self._world)}
        return Moment(obs, obs.reshape(-1), self._avail, reward, terminal, cut, won)

    def render(self) -> Array:
        return self._team.draw(self._world)

    def close(self) -> None:
        if self._world is not None:
            self._world.close()
        self._world = None
