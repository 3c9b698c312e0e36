"""Any world of ours as a PettingZoo `ParallelEnv`, for libraries and tests that speak that language.

- An observation is ``{"observation": (O,) float32, "action_mask": (A,) int8}``, the form PettingZoo's own games and
  `parallel_api_test` use; the mask stands in ``infos[agent]["action_mask"]`` too.
- Every agent receives the reward of the team, so the sum over agents is N times the return.
- All agents stay until the episode ends; those that died are told by the columns of the world, which are in ``infos``
  under their names (a column of N entries: the agent's own).
- PettingZoo's seed test samples actions without masks. An action that is unavailable is replaced by the first
  available one and reported as ``infos[agent]["unavailable_action"]``, or, with ``strict``, raises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv  # type: ignore[import-untyped]

from marl.env import BatchedEnv, Env, Moments, SideBySide
from marl.types import Array

Observation = dict[str, Array]


class ParallelTeam(ParallelEnv):  # type: ignore[misc]
    """One copy of a world.

    Args:
        world: one copy, or several of which only the first plays.
        strict: refuse unavailable actions with a ValueError.
    """

    def __init__(self, world: Env | BatchedEnv, strict: bool = False) -> None:
        self._world = SideBySide(lambda: world, 1) if isinstance(world, Env) else world
        self._strict = strict
        self._live = np.ones(1, np.bool_)
        self._seeds = np.random.default_rng()
        self.spec = spec = self._world.spec
        self.metadata = {"name": spec.name, "render_modes": ["rgb_array"], "is_parallelizable": True}
        self.render_mode = "rgb_array"
        self.possible_agents = list(spec.agents or (f"agent_{i}" for i in range(spec.n_agents)))
        self.agents: list[str] = []
        self._observed = {
            agent: spaces.Dict(
                {
                    "observation": spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32),
                    "action_mask": spaces.MultiBinary(spec.n_actions),
                }
            )
            for agent in self.possible_agents
        }
        self._acted: dict[str, spaces.Space[Any]] = {
            agent: spaces.Discrete(spec.n_actions) for agent in self.possible_agents
        }
        self.state_space = spaces.Box(-np.inf, np.inf, (spec.state_dim,), np.float32)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._observed[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._acted[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        """Start an episode; without a seed, one drawn from the generator that the last seed started."""
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        episode = int(self._seeds.integers(2**31)) if seed is None else seed
        self.agents = self.possible_agents[:]
        self._now = self._world.reset([episode])
        return self._observations(), self._infos(np.zeros(len(self.agents), np.bool_))

    def step(
        self, actions: dict[str, int]
    ) -> tuple[dict[str, Observation], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Move every agent.

        Raises:
            ValueError: the episode is over, or, when strict, an action is unavailable.
        """
        if not self.agents:
            raise ValueError(f"{self.spec.name}: the episode is over, reset first")
        chosen = np.asarray([[actions[agent] for agent in self.agents]], np.int64)
        available = np.take_along_axis(self._now.avail, chosen[..., None], -1)[..., 0]
        if self._strict and not available.all():
            agent = self.agents[int(np.argmin(available[0]))]
            raise ValueError(f"{self.spec.name}: action {actions[agent]} of {agent} is unavailable")
        executed = np.where(available, chosen, self._now.avail.argmax(-1))
        self._now = now = self._world.step(executed, self._live)
        terminal, truncated = bool(now.terminal[0]), bool(now.truncated[0])
        told = (
            self._observations(),
            dict.fromkeys(self.agents, float(now.reward[0])),
            dict.fromkeys(self.agents, terminal),
            dict.fromkeys(self.agents, truncated),
            self._infos(~available[0]),
        )
        if terminal or truncated:
            self.agents = []
        return told

    def _observations(self) -> dict[str, Observation]:
        now = self._now
        return {
            agent: {"observation": now.obs[0, i].copy(), "action_mask": now.avail[0, i].astype(np.int8)}
            for i, agent in enumerate(self.agents)
        }

    def _infos(self, replaced: Array) -> dict[str, dict[str, Any]]:
        return {
            agent: {
                "action_mask": self._now.avail[0, i].astype(np.int8),
                "unavailable_action": bool(replaced[i]),
                **self._columns(self._now, i),
            }
            for i, agent in enumerate(self.agents)
        }

    def _columns(self, now: Moments, agent: int) -> dict[str, Any]:
        """Whether this agent is ``alive``, and all else as the world tells it."""
        return {name: np.copy(rows[0, agent] if name == "alive" else rows[0]) for name, rows in now.columns.items()}

    def state(self) -> Array:
        """(S,) float32: the global state."""
        return np.array(self._now.state[0])

    def render(self) -> Array:
        """A picture, (height, width, 3) uint8.

        Raises:
            EnvUnavailable: this world has no pictures.
        """
        return self._world.render(0)

    def close(self) -> None:
        self._world.close()
