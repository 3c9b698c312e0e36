"""The suite's particle worlds: spread, speaker-listener, reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from envs import refusal
from envs.jax_suite.asked import COUNT, Config, Option, Task, checked_options
from marl.fields import number
from marl.types import EnvSpec

SHARE = Option(float, number(None, least=0, most=1))


def _particles(
    config: Config,
    agents: tuple[str, ...],
    widths: tuple[int, ...],
    choices: tuple[int, ...],
    options: Mapping[str, Any],
    **more: Any,
) -> Task:
    if config.scenario is not None:
        raise refusal("env.scenario", config.scenario, f"{config.id} has none")
    spec = EnvSpec(
        name=f"{config.name}:{config.id}",
        n_agents=len(agents),
        n_actions=max(choices),
        obs_dim=max(widths),
        state_dim=sum(widths),
        horizon=config.horizon or 26,
        agents=agents,
        reward_range=(-math.inf, 0.0),  # distances and collisions
        draws=True,
        **more,
    )
    return Task(config, None, spec, widths, choices, options)


def spread(config: Config) -> Task:
    """Observation: velocity, position, offsets of landmarks, offsets of team-mates, their (silent) communication."""
    options = checked_options(config, num_agents=COUNT, num_landmarks=COUNT, local_ratio=SHARE)
    n, landmarks = options.get("num_agents", 3), options.get("num_landmarks", 3)
    width, mates = 4 + 2 * landmarks + 4 * (n - 1), 4 + 2 * landmarks
    parts = {
        "ally_velocity": range(2),
        "ally_position": range(2, 4),
        "landmark_offset": range(4, mates),
        "ally_offset": range(mates, mates + 2 * (n - 1)),
    }
    groups = {name: tuple(a * width + f for a in range(n) for f in part) for name, part in parts.items()}
    block = tuple((mates + 2 * k, mates + 2 * k + 1) for k in range(n - 1))
    names = tuple(f"agent_{i}" for i in range(n))
    told = {"state_groups": groups, "by_agent": tuple(groups), "teammate_blocks": (block,) * n, "noop": 0}
    return _particles(config, names, (width,) * n, (5,) * n, options, **told)


def speaker_listener(config: Config) -> Task:
    """The speaker sees the goal's colour; the listener its velocity, offsets of landmarks, what was said."""
    options = checked_options(config)
    groups = {"goal": (0, 1, 2), "ally_velocity": (3, 4), "landmark_offset": tuple(range(5, 11)), "said": (11, 12, 13)}
    return _particles(config, ("speaker_0", "listener_0"), (3, 11), (3, 5), options, state_groups=groups)


def reference(config: Config) -> Task:
    """Observation: velocity, offsets of landmarks, the colour of the other's goal, what the other said.

    Action 5 s + m says s and moves as m.
    """
    options = checked_options(config, local_ratio=SHARE)
    parts = {"ally_velocity": range(2), "landmark_offset": range(2, 8), "goal": range(8, 11), "said": range(11, 21)}
    groups = {name: tuple(a * 21 + f for a in range(2) for f in part) for name, part in parts.items()}
    told = {"state_groups": groups, "by_agent": tuple(groups)}
    return _particles(config, ("agent_0", "agent_1"), (21, 21), (50, 50), options, **told)
