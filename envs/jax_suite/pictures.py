"""Pictures of one copy, from its world's state."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.jax_suite.asked import Task
from envs.jax_suite.battle import BATTLE
from envs.jax_suite.kitchen import KITCHEN
from envs.painting import PAPER, Colour, board, plane
from marl.types import Array

SIDE = 400
ALLY, ENEMY, PLACE = (40, 98, 214), (214, 58, 48), (60, 60, 60)
GOALS: tuple[Colour, ...] = ((214, 58, 48), (60, 160, 70), (40, 98, 214))
KITCHEN_LAYERS: dict[int, Colour] = {
    11: (150, 120, 90),
    10: (60, 60, 60),
    12: (230, 190, 60),
    14: (210, 210, 230),
    15: (90, 170, 90),
    23: (245, 220, 120),
    22: (225, 225, 245),
    21: (240, 120, 60),
    0: (40, 98, 214),
    1: (214, 58, 48),
}
"""Counter, pot, onions, plates, delivery, an onion, a plate, a soup, the two cooks; later ones above."""


def drawn(task: Task, suite: Any, worlds: Any, row: int) -> Array:
    """(height, width, 3) uint8 of one of the copies' ``worlds``."""
    if task.config.id == KITCHEN:
        return _kitchen(suite, worlds, row)
    return _battle(task, suite, worlds.state, row) if task.config.id == BATTLE else _particles(task, suite, worlds, row)


def _particles(task: Task, suite: Any, worlds: Any, row: int) -> Array:
    """The square from -1.2 to 1.2: agents blue, landmarks grey, or in three colours where they are goals."""
    places, n = np.asarray(worlds.p_pos[row]), task.spec.n_agents
    radii, scale = np.asarray(suite.rad), SIDE / 2.4
    plain = [PLACE] * (len(places) - n) if worlds.goal is None else GOALS
    colours = [*plain, *[ALLY] * n]
    # Agents come first in the suite's lists, and above the rest in the picture.
    order = [*range(n, len(places)), *range(n)]
    discs = [
        ((places[i, 0] + 1.2) * scale, (places[i, 1] + 1.2) * scale, radii[i] * scale, colour)
        for i, colour in zip(order, colours)
    ]
    return plane(discs, SIDE, SIDE)


def _battle(task: Task, suite: Any, worlds: Any, row: int) -> Array:
    """Living units: allies blue, enemies red, paler as they lose health."""
    places, alive = np.asarray(worlds.unit_positions[row]), np.asarray(worlds.unit_alive[row])
    kinds = np.asarray(worlds.unit_types[row])
    health = np.asarray(worlds.unit_health[row]) / np.asarray(suite.unit_type_health)[kinds]
    radii, scale = np.asarray(suite.unit_type_radiuses)[kinds], SIDE / max(suite.map_width, suite.map_height)
    discs = []
    for unit in np.flatnonzero(alive).tolist():
        full = np.asarray(ALLY if unit < task.spec.n_agents else ENEMY)
        r, g, b = (255 - (255 - full) * (0.3 + 0.7 * health[unit])).astype(int).tolist()
        discs.append((places[unit, 0] * scale, places[unit, 1] * scale, radii[unit] * scale, (r, g, b)))
    return plane(discs, round(suite.map_width * scale), round(suite.map_height * scale))


def _kitchen(suite: Any, worlds: Any, row: int) -> Array:
    import jax

    seen = np.asarray(suite.get_obs(jax.tree.map(lambda x: x[row], worlds))["agent_0"])
    cells = np.full((*seen.shape[:2], 3), PAPER, np.uint8)
    for layer, colour in KITCHEN_LAYERS.items():
        cells[seen[..., layer] > 0] = colour
    return board(cells)
