"""Any Gymnasium world with discrete actions, as a team of one: env.id=CartPole-v1.

Observations are flattened as Gymnasium flattens spaces (Box raveled and unscaled, Discrete one-hot, ...); the state is
the observation. `info["action_mask"]` says which actions are available where a world gives one. A time limit is cut,
not terminal, also where the task ends in its very last step by itself: then it is terminal alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from envs import REFUSALS, refusal, refused, without_screen
from marl.env import BatchedEnv, Env, EnvUnavailable, Moment, SideBySide, no_pictures
from marl.fields import check_values, count, first_line
from marl.types import Array, EnvSpec


@dataclass
class Config:
    name: str = "gymnasium"
    id: str = "CartPole-v1"  # a registered id; module:id imports the module first
    kwargs: dict[str, Any] = field(default_factory=dict)  # passed to gymnasium.make
    horizon: int | None = count(None)  # most steps of an episode; by default the world's own time limit


class Survey(NamedTuple):
    """What is known of a world before it plays."""

    spec: EnvSpec
    flat: Callable[[Any], Any]
    first_action: int


def build(config: Config, **more: Any) -> Any:
    """One Gymnasium environment.

    Raises:
        EnvUnavailable: a package is missing.
        ValueError: no such environment, or settings it refuses.
    """
    without_screen()
    try:
        import gymnasium
        from gymnasium.error import DependencyNotInstalled, Error
    except ModuleNotFoundError as error:
        raise EnvUnavailable(f"env=gymnasium needs the package {error.name}: pip install {error.name}") from error
    try:
        return gymnasium.make(
            config.id, max_episode_steps=config.horizon, disable_env_checker=True, **{**config.kwargs, **more}
        )
    except (DependencyNotInstalled, ModuleNotFoundError) as error:
        raise EnvUnavailable(f"env.id={config.id}: {first_line(error)}") from error
    except REFUSALS as error:
        raise refused(config.kwargs, config.id, error) from error
    except Error as error:
        if config.id in gymnasium.registry:
            raise refusal("env.id", config.id, first_line(error)) from error
        raise refusal("env.id", config.id, gymnasium.registry) from error


def survey(config: Config) -> Survey:
    """Build a world, read its spaces, close it.

    Raises:
        EnvUnavailable: a package is missing.
        ValueError: a setting that cannot be, in one line.
    """
    check_values(config, "env.")
    world = build(config)
    from gymnasium import spaces

    seen, acted = world.observation_space, world.action_space
    if not isinstance(acted, spaces.Discrete):
        raise refusal("env.id", config.id, f"only Discrete actions are allowed, this world acts in {acted}")
    if not seen.is_np_flattenable:
        raise refusal("env.id", config.id, f"only flat observations are allowed, this world shows {seen}")
    horizon = world.spec.max_episode_steps
    if horizon is None:
        raise refusal("env.horizon", None, f"{config.id} has no time limit of its own, so give one")
    world.close()
    spec = EnvSpec(
        name=f"{config.name}:{config.id}",
        n_agents=1,
        n_actions=int(acted.n),
        obs_dim=spaces.flatdim(seen),
        state_dim=spaces.flatdim(seen),
        horizon=horizon,
        draws="rgb_array" in world.metadata.get("render_modes", ()),
    )
    flat: Callable[[Any], Any] = np.ravel if isinstance(seen, spaces.Box) else partial(spaces.flatten, seen)
    return Survey(spec, flat, int(acted.start))


def probe(config: Config) -> None:
    survey(config)


def make(config: Config, size: int) -> BatchedEnv:
    known = survey(config)
    return SideBySide(lambda: SingleWorld(config, known), size)


class SingleWorld(Env):
    """One Gymnasium environment as a team of one."""

    def __init__(self, config: Config, known: Survey) -> None:
        self._config, self._known = config, known
        self.spec = known.spec
        self._world: Any = None
        self._twin: Any = None

    def reset(self, seed: int) -> Moment:
        if self._world is None:
            self._world = build(self._config)
        observation, info = self._world.reset(seed=seed)
        self._seed = seed
        self._played: list[int] = []
        self._drawn: int | None = None
        return self._moment(observation, info)

    def step(self, actions: Array) -> Moment:
        action = int(actions[0]) + self._known.first_action
        observation, reward, terminated, truncated, info = self._world.step(action)
        self._played.append(action)
        return self._moment(observation, info, float(reward), bool(terminated), bool(truncated and not terminated))

    def _moment(
        self, observation: Any, info: dict[str, Any], reward: float = 0.0, terminal: bool = False, cut: bool = False
    ) -> Moment:
        state = np.asarray(self._known.flat(observation), np.float32)
        avail = np.ones((1, self.spec.n_actions), np.bool_)
        if "action_mask" in info:
            avail[0] = info["action_mask"]
        return Moment(state[None], state, avail, reward, terminal, cut)

    def render(self) -> Array:
        """The picture of a twin that replays this episode, so that worlds which are not looked at draw nothing."""
        if not self.spec.draws:
            raise no_pictures(self.spec)
        if self._twin is None:
            self._twin = build(self._config, render_mode="rgb_array")
        if self._drawn is None:
            self._twin.reset(seed=self._seed)
            self._drawn = 0
        for action in self._played[self._drawn :]:
            self._twin.step(action)
        self._drawn = len(self._played)
        return np.asarray(self._twin.render(), np.uint8)

    def close(self) -> None:
        for world in (self._world, self._twin):
            if world is not None:
                world.close()
        self._world = self._twin = None
