"""SMAX, the suite's battles after StarCraft."""

from __future__ import annotations

from collections.abc import Mapping

from envs.jax_suite.asked import COUNT, FLAG, Config, Option, Task, checked_options, chosen
from marl.fields import number, one_of
from marl.types import Column, EnvSpec

BATTLE = "SMAX"
SCENARIOS: Mapping[str, tuple[int, int]] = {
    "3m": (3, 3),
    "8m": (8, 8),
    "25m": (25, 25),
    "2s3z": (5, 5),
    "3s5z": (8, 8),
    "5m_vs_6m": (5, 6),
    "10m_vs_11m": (10, 11),
    "27m_vs_30m": (27, 30),
    "3s_vs_5z": (3, 5),
    "6h_vs_8z": (6, 8),
    "3s5z_vs_3s6z": (8, 9),
    "smacv2_5_units": (5, 5),
    "smacv2_10_units": (10, 10),
    "smacv2_20_units": (20, 20),
}
"""Allies and enemies."""
POSITIVE = Option(float, number(None, above=0))
OPTIONS = {
    "attack_mode": Option(str, one_of("closest", "random")),
    "enemy_shoots": FLAG,
    "map_height": POSITIVE,
    "map_width": POSITIVE,
    "see_enemy_actions": FLAG,
    "time_per_step": POSITIVE,
    "walls_cause_death": FLAG,
    "won_battle_bonus": Option(float, number(None)),
    "world_steps_per_env_step": COUNT,
}
UNIT_TYPES = 6
SEEN, OWN = 7 + UNIT_TYPES, 4 + UNIT_TYPES
"""Features of another unit in an observation, and of a unit in the state or in its own observation."""
SEEN_PARTS = {"health": range(1), "position": range(1, 3), "cooldown": range(6, 7), "type_bits": range(7, SEEN)}
OWN_PARTS = {"health": range(1), "position": range(1, 3), "cooldown": range(3, 4), "type_bits": range(4, OWN)}
LAST_ACTION = range(3, 6)
"""Of another unit in an observation: where it moved, whom it shot at."""
STOP = 4


def battle(config: Config) -> Task:
    """Observation: the other units, allies first, then oneself. Actions: four moves, stop, one attack per enemy."""
    options = checked_options(config, **OPTIONS)
    scenario = chosen(config, SCENARIOS)
    allies, enemies = SCENARIOS[scenario]
    units = allies + enemies
    width = SEEN * (units - 1) + OWN
    native = config.state == "auto"
    block = tuple(tuple(range(SEEN * k, SEEN * (k + 1))) for k in range(allies - 1))
    bonus = options.get("won_battle_bonus", 1.0)
    groups = (_unit_groups if native else _seen_groups)(allies, enemies)
    spec = EnvSpec(
        name=f"{config.name}:{config.id}:{scenario}",
        n_agents=allies,
        n_actions=5 + enemies,
        obs_dim=width,
        state_dim=(OWN + 2) * units if native else width * allies,
        horizon=config.horizon or 101,
        agents=tuple(f"ally_{i}" for i in range(allies)),
        state_groups=groups,
        by_agent=tuple(name for name in groups if not native or name.startswith("ally_")),
        teammate_blocks=(block,) * allies,
        noop=STOP,
        reward_range=(min(0.0, bonus), 1.0 + max(0.0, bonus)),
        draws=True,
        columns={
            "alive": Column((allies,), "bool", "views"),
            "enemy_alive": Column((enemies,), "bool", "views"),
            "won": Column((), "bool", "episode"),
        },
    )
    return Task(config, scenario, spec, (width,) * allies, (5 + enemies,) * allies, options)


def _unit_groups(allies: int, enemies: int) -> dict[str, tuple[int, ...]]:
    """Of the world state: a row per unit, zero once it is dead, then the teams and the types of all units."""
    units, groups = allies + enemies, {}
    for side, rows in (("ally", range(allies)), ("enemy", range(allies, units))):
        for name, part in OWN_PARTS.items():
            groups[f"{side}_{name}"] = tuple(OWN * row + feature for row in rows for feature in part)
        groups[f"{side}_team"] = tuple(OWN * units + row for row in rows)
        groups[f"{side}_type"] = tuple((OWN + 1) * units + row for row in rows)
    return groups


def _seen_groups(allies: int, enemies: int) -> dict[str, tuple[int, ...]]:
    """Of all observations in a row."""
    mates, others = allies - 1, allies - 1 + enemies
    told = {"last_action": [SEEN * row + feature for row in range(others) for feature in LAST_ACTION]}
    for side, rows in (("ally", range(mates)), ("enemy", range(mates, others))):
        for name, part in SEEN_PARTS.items():
            told[f"{side}_{name}"] = [SEEN * row + feature for row in rows for feature in part]
    for name, part in OWN_PARTS.items():
        told[f"ally_{name}"] += [SEEN * others + feature for feature in part]
    starts = [(SEEN * others + OWN) * agent for agent in range(allies)]
    return {name: tuple(start + feature for start in starts for feature in features) for name, features in told.items()}
