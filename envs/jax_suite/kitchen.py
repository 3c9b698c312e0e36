"""Overcooked, the suite's kitchens."""

from __future__ import annotations

from collections.abc import Mapping

from envs.jax_suite.asked import FLAG, Config, Task, checked_options, chosen
from marl.types import Column, EnvSpec

KITCHEN = "overcooked"
LAYOUTS: Mapping[str, tuple[int, int]] = {
    "cramped_room": (5, 4),
    "asymm_advantages": (9, 5),
    "coord_ring": (5, 5),
    "forced_coord": (5, 5),
    "counter_circuit": (8, 5),
}
"""Width and height."""
STAY = 4
LAYERS, OF_MATE = 26, (1, 6, 7, 8, 9)
"""Layers of a kitchen, and those that show the other cook."""
GROUPS = {"ally_position": range(2), "ally_direction": range(2, 10), "kitchen": range(10, 25), "time": range(25, 26)}
"""Layers by meaning; that of the time rises in the last 40 steps."""
DELIVERY, SHAPED = 20.0, 5.0
"""What a soup pays, and the most that the shaped reward pays a cook in one step."""


def kitchen(config: Config) -> Task:
    """Observation: 26 layers of the whole kitchen, cell by cell, the cook's own layers first."""
    options = checked_options(config, random_reset=FLAG)
    layout = chosen(config, LAYOUTS)
    width, height = LAYOUTS[layout]
    cells = range(width * height)
    block = tuple(LAYERS * cell + layer for cell in cells for layer in OF_MATE)
    rows = [LAYERS * cell for cell in range(2 * len(cells))]
    spec = EnvSpec(
        name=f"{config.name}:{config.id}:{layout}",
        n_agents=2,
        n_actions=6,
        obs_dim=LAYERS * len(cells),
        state_dim=2 * LAYERS * len(cells),
        horizon=config.horizon or 400,
        agents=("agent_0", "agent_1"),
        state_groups={name: tuple(row + layer for row in rows for layer in part) for name, part in GROUPS.items()},
        by_agent=tuple(GROUPS),
        teammate_blocks=((block,), (block,)),
        noop=STAY,
        reward_range=(0.0, 2 * (DELIVERY + SHAPED * config.shaping)),
        draws=True,
        columns={"soups": Column((), "int16", "episode")},
    )
    return Task(config, layout, spec, (LAYERS * len(cells),) * 2, (6, 6), options)
