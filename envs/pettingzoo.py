"""Any PettingZoo parallel environment with discrete actions, by module path: env.id=mpe2.simple_spread_v3.

Conventions:

- Team reward: the sum (`env.reward=sum`) or the mean over all N agents (`mean`) of what the acting agents receive.
  Published simple_spread numbers come in both scales: a return of -27 per agent is one of -81 for a team of three.
- Observations are flattened as Gymnasium flattens spaces (Box raveled and unscaled, Discrete one-hot, ...) and padded
  with zeros to the longest; actions are padded to the most, and those an agent lacks are unavailable.
- Action masks are taken from an observation {"observation", "action_mask"} or from `infos[agent]["action_mask"]`.
- State: `env.state=native` is the environment's own `state()`, `observations` the observations of all agents in a row,
  without padding, `auto` the first where the environment has one, else the second. MPE's own state is that row,
  computed anew: there `observations` saves some time.
- An agent that left (`alive` is False) is observed as zeros and can only take action 0, which nobody receives.
- The episode is terminal when every agent ended by termination, truncated when the last ones ran out of time or at
  `env.horizon`. The last views of agents that ran out of time stay what they saw: values are bootstrapped from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from envs import refusal
from envs.zoo import EXAMPLE, build
from marl.env import BatchedEnv, Env, Moment, SideBySide, no_pictures
from marl.fields import check_values, count, one_of
from marl.types import Array, Column, EnvSpec


@dataclass
class Config:
    name: str = "pettingzoo"
    id: str = EXAMPLE  # importable module with a `parallel_env`
    kwargs: dict[str, Any] = field(default_factory=dict)  # passed to `parallel_env`
    reward: str = one_of("sum", "mean")  # over the team
    state: str = one_of("auto", "native", "observations")  # the world's own, or all observations; auto: own if any
    horizon: int | None = count(None)  # most steps of an episode; by default what the environment calls max_cycles


class Seat(NamedTuple):
    """How one agent is read and moved."""

    flat: Callable[[Any], Any]
    width: int
    """Length of its flat observation."""
    masked: bool
    """Whether its observation is {"observation", "action_mask"}."""
    n_actions: int
    first_action: int


class Survey(NamedTuple):
    """What is known of a world before it plays."""

    spec: EnvSpec
    seats: Mapping[str, Seat]
    rows: Mapping[str, int]
    avail: Array
    """(N, A) bool: the actions each agent has."""
    unpadded: Array | None
    """Places of the observations in the padded ones in a row; None where nothing is padded."""
    native_state: bool


def seat(config: Config, agent: str, observed: Any, acted: Any) -> Seat:
    from gymnasium import spaces

    if not isinstance(acted, spaces.Discrete):
        raise refusal("env.id", config.id, f"only Discrete actions are allowed, {agent} acts in {acted}")
    masked = isinstance(observed, spaces.Dict) and set(observed.spaces) == {"observation", "action_mask"}
    space = observed["observation"] if masked else observed
    if not space.is_np_flattenable:
        raise refusal("env.id", config.id, f"only flat observations are allowed, {agent} sees {observed}")
    flat: Callable[[Any], Any] = partial(spaces.flatten, space)
    if isinstance(space, spaces.Box):
        flat = np.asarray if len(space.shape) == 1 else np.ravel
    return Seat(flat, spaces.flatdim(space), masked, int(acted.n), int(acted.start))


def horizon(config: Config, world: Any) -> int:
    try:
        own = world.unwrapped.max_cycles
    except AttributeError:
        own = config.kwargs.get("max_cycles")
    most = own if config.horizon is None else config.horizon
    if most is None:
        raise refusal("env.horizon", None, f"{config.id} does not say its longest episode, so give one")
    if not isinstance(most, Integral) or most < 1:
        raise refusal("env.kwargs.max_cycles", most, "allowed are whole numbers, 1 and more")
    if own is not None and most > own:
        longer = f"env.kwargs.max_cycles={most}"
        raise refusal("env.horizon", most, f"{config.id} ends after {own} steps; say {longer} too")
    return int(most)


def survey(config: Config) -> Survey:
    """Build a world, read its spaces, close it.

    Raises:
        EnvUnavailable: a package is missing.
        ValueError: a setting that cannot be, in one line.
    """
    check_values(config, "env.")
    world = build(config.id, config.kwargs)
    try:
        agents = list(world.possible_agents)
    except AttributeError as error:
        raise refusal("env.id", config.id, "allowed are worlds that say who may play: possible_agents") from error
    seats = {a: seat(config, a, world.observation_space(a), world.action_space(a)) for a in agents}
    n_actions = max(s.n_actions for s in seats.values())
    obs_dim = max(s.width for s in seats.values())
    held = [np.arange(obs_dim) < s.width for s in seats.values()]
    avail = np.asarray([np.arange(n_actions) < s.n_actions for s in seats.values()])
    avail.flags.writeable = False
    native = native_state(config, world)
    known = Survey(
        spec=EnvSpec(
            name=f"{config.name}:{config.id}",
            n_agents=len(agents),
            n_actions=n_actions,
            obs_dim=obs_dim,
            state_dim=int(np.sum(held)) if native is None else native.size,
            horizon=horizon(config, world),
            agents=tuple(str(agent) for agent in agents),
            draws="rgb_array" in world.metadata.get("render_modes", ()),
            columns={"alive": Column((len(agents),), "bool", "views")},
        ),
        seats=seats,
        rows={agent: i for i, agent in enumerate(agents)},
        avail=avail,
        unpadded=None if np.all(held) else np.flatnonzero(held),
        native_state=native is not None,
    )
    world.close()
    return known


def native_state(config: Config, world: Any) -> Array | None:
    """The environment's own state at a first moment; None where it has none and may lack it."""
    if config.state == "observations":
        return None
    world.reset(seed=0)
    try:
        return np.ravel(world.state())
    except (NotImplementedError, TypeError) as error:  # a TypeError where a world keeps a field of that name
        if config.state == "native":
            raise refusal("env.state", "native", f"{config.id} has no state(); use observations") from error
        return None


def probe(config: Config) -> None:
    survey(config)


def make(config: Config, size: int) -> BatchedEnv:
    known = survey(config)
    return SideBySide(lambda: ParallelWorld(config, known), size)


class ParallelWorld(Env):
    """One PettingZoo parallel environment as a team."""

    def __init__(self, config: Config, known: Survey) -> None:
        self._config, self._known = config, known
        self.spec = known.spec
        self._share = 1.0 if config.reward == "sum" else 1.0 / known.spec.n_agents
        self._world: Any = None
        self._twin: Any = None

    def reset(self, seed: int) -> Moment:
        if self._world is None:
            self._world = build(self._config.id, self._config.kwargs)
        observations, infos = self._world.reset(seed=seed)
        self._seed = seed
        self._played: list[dict[str, int]] = []
        self._drawn: int | None = None
        self._acting = list(self._world.agents)
        self._appeared = set(self._acting)
        self._terminated: set[str] = set()
        return self._moment(self._acting, observations, infos)

    def step(self, actions: Array) -> Moment:
        known, world, acting = self._known, self._world, self._acting
        chosen = actions.tolist()
        moves = {agent: chosen[known.rows[agent]] + known.seats[agent].first_action for agent in acting}
        observations, rewards, terminations, _, infos = world.step(moves)
        self._played.append(moves)
        reward = self._share * sum(rewards[agent] for agent in acting)
        ended = [agent for agent in acting if terminations[agent]]
        self._terminated.update(ended)
        self._acting = list(world.agents)
        self._appeared.update(self._acting)
        over = not self._acting
        terminal = over and self._terminated == self._appeared
        truncated = not terminal and (over or len(self._played) >= self.spec.horizon)
        alive = [agent for agent in acting if agent not in ended] if over else self._acting
        return self._moment(alive, observations, infos, reward, terminal, truncated)

    def _moment(
        self,
        alive: Sequence[str],
        observations: Mapping[str, Any],
        infos: Mapping[str, Any],
        reward: float = 0.0,
        terminal: bool = False,
        truncated: bool = False,
    ) -> Moment:
        known, spec = self._known, self.spec
        obs = np.zeros((spec.n_agents, spec.obs_dim), np.float32)
        avail = known.avail
        lives = np.zeros(spec.n_agents, np.bool_)
        for agent in alive:
            row, (flat, width, masked, n_actions, _) = known.rows[agent], known.seats[agent]
            seen, mask = observations[agent], infos[agent].get("action_mask")
            if masked:
                seen, mask = seen["observation"], seen["action_mask"]
            obs[row, :width] = flat(seen)
            if mask is not None:
                avail = avail if avail.flags.writeable else avail.copy()
                avail[row, :n_actions] = mask
            lives[row] = True
        if len(alive) < spec.n_agents:
            avail = np.where(lives[:, None], avail, np.arange(spec.n_actions) == 0)
        return Moment(obs, self._state(obs), avail, reward, terminal, truncated, {"alive": lives})

    def _state(self, obs: Array) -> Array:
        if self._known.native_state:
            return np.ravel(self._world.state()).astype(np.float32)
        row = obs.reshape(-1)
        return row if self._known.unpadded is None else row[self._known.unpadded]

    def render(self) -> Array:
        """The picture of a twin that replays this episode, so that worlds which are not looked at draw nothing."""
        if not self.spec.draws:
            raise no_pictures(self.spec)
        if self._twin is None:
            self._twin = build(self._config.id, {**self._config.kwargs, "render_mode": "rgb_array"})
        if self._drawn is None:
            self._twin.reset(seed=self._seed)
            self._drawn = 0
        for moves in self._played[self._drawn :]:
            self._twin.step(moves)
        self._drawn = len(self._played)
        return np.asarray(self._twin.render(), np.uint8)

    def close(self) -> None:
        for world in (self._world, self._twin):
            if world is not None:
                world.close()
        self._world = self._twin = None
