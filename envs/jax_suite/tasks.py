"""What JaxMARL's tasks look like, known without JAX: a process that only learns never starts it.

The numbers are those of jaxmarl 0.2.0; `program.suite` compares them with the suite before anything is played.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from envs import refusal
from marl.types import Column, EnvSpec

REWARDS, STATES, DEVICES = ("team", "mean"), ("auto", "observations"), ("cpu", "gpu")

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
LAYOUTS: Mapping[str, tuple[int, int]] = {
    "cramped_room": (5, 4),
    "asymm_advantages": (9, 5),
    "coord_ring": (5, 5),
    "forced_coord": (5, 5),
    "counter_circuit": (8, 5),
}
"""Width and height."""
BATTLE_OPTIONS = (
    "attack_mode",
    "enemy_shoots",
    "map_height",
    "map_width",
    "see_enemy_actions",
    "time_per_step",
    "walls_cause_death",
    "won_battle_bonus",
    "world_steps_per_env_step",
)

UNIT_TYPES = 6
SEEN, OWN = 7 + UNIT_TYPES, 4 + UNIT_TYPES
"""Features of another unit in an observation, and of a unit in the state or in its own observation."""
STOP, STAY = 4, 4
LAYERS, OF_MATE = 26, (1, 6, 7, 8, 9)
"""Layers of a kitchen, and those that show the other cook."""
DELIVERY, SHAPED = 20.0, 5.0
"""What a soup pays, and the most that the shaped reward pays a cook in one step."""


@dataclass
class Config:
    name: str = "jaxmarl"
    id: str = "MPE_simple_spread_v3"  # MPE_simple_speaker_listener_v4 | MPE_simple_reference_v3 | SMAX | overcooked
    scenario: str | None = None  # SMAX: 3m, 2s3z, smacv2_5_units, ..; overcooked: the layout; null: the first of them
    kwargs: dict[str, Any] = field(default_factory=dict)  # options of the suite's environment, docs/worlds.md
    horizon: int | None = None  # steps of an episode; null: as many as the suite plays, 26, 101 or 400
    reward: str = "team"  # team: the suite's own team reward, docs/worlds.md | mean over the agents
    state: str = "auto"  # auto: the suite's own, SMAX's world state | observations of all agents in a row
    shaping: float = 0.0  # overcooked: weight of the suite's shaped reward; 0: soups alone
    device: str = "cpu"  # cpu | gpu: where JAX steps the copies


class Task(NamedTuple):
    """A task of the suite."""

    config: Config
    scenario: str | None
    spec: EnvSpec
    widths: tuple[int, ...]
    """Length of each agent's flat observation."""
    choices: tuple[int, ...]
    """Actions of each agent."""


def task(config: Config) -> Task:
    """The task that is asked for.

    Raises:
        ValueError: a setting that cannot be, in one line.
    """
    if config.id not in FAMILIES:
        raise refusal("env.id", config.id, FAMILIES)
    for key, value, allowed in (
        ("reward", config.reward, REWARDS),
        ("state", config.state, STATES),
        ("device", config.device, DEVICES),
    ):
        if value not in allowed:
            raise refusal(f"env.{key}", value, allowed)
    if config.horizon is not None and config.horizon < 1:
        raise refusal("env.horizon", config.horizon, "allowed are 1 and more")
    if config.shaping < 0 or (config.shaping > 0 and config.id != KITCHEN):
        raise refusal("env.shaping", config.shaping, f"allowed are 0 and, with env.id={KITCHEN}, more")
    return FAMILIES[config.id](config)


def _chosen(config: Config, known: Mapping[str, tuple[int, int]]) -> str:
    if config.scenario is None:
        return next(iter(known))
    if config.scenario not in known:
        raise refusal("env.scenario", config.scenario, known)
    return config.scenario


def _check_options(config: Config, *names: str) -> None:
    for name, value in config.kwargs.items():
        if name == "max_steps":
            raise refusal("env.kwargs.max_steps", value, "env.horizon says how long an episode is")
        if name not in names:
            raise refusal("env.kwargs", name, names or f"{config.id} has no options")


def _count(config: Config, name: str, default: int) -> int:
    value = config.kwargs.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise refusal(f"env.kwargs.{name}", value, "allowed are 1 and more")
    return value


# particles


def _particles(
    config: Config, agents: tuple[str, ...], widths: tuple[int, ...], choices: tuple[int, ...], **more: Any
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
        **more,
    )
    return Task(config, None, spec, widths, choices)


def _spread(config: Config) -> Task:
    """Observation: velocity, position, offsets of landmarks, offsets of team-mates, their (silent) communication."""
    _check_options(config, "num_agents", "num_landmarks", "local_ratio")
    n, landmarks = _count(config, "num_agents", 3), _count(config, "num_landmarks", 3)
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
    return _particles(config, names, (width,) * n, (5,) * n, state_groups=groups, teammate_blocks=(block,) * n, noop=0)


def _speaker_listener(config: Config) -> Task:
    """The speaker sees the goal's colour; the listener its velocity, offsets of landmarks, what was said."""
    _check_options(config)
    groups = {"goal": (0, 1, 2), "ally_velocity": (3, 4), "landmark_offset": tuple(range(5, 11)), "said": (11, 12, 13)}
    return _particles(config, ("speaker_0", "listener_0"), (3, 11), (3, 5), state_groups=groups)


def _reference(config: Config) -> Task:
    """Observation: velocity, offsets of landmarks, the colour of the other's goal, what the other said.

    Action 5 s + m says s and moves as m.
    """
    _check_options(config, "local_ratio")
    parts = {"ally_velocity": range(2), "landmark_offset": range(2, 8), "goal": range(8, 11), "said": range(11, 21)}
    groups = {name: tuple(a * 21 + f for a in range(2) for f in part) for name, part in parts.items()}
    return _particles(config, ("agent_0", "agent_1"), (21, 21), (50, 50), state_groups=groups)


# battle


def _battle(config: Config) -> Task:
    """Observation: the other units, allies first, then oneself. Actions: four moves, stop, one attack per enemy."""
    _check_options(config, *BATTLE_OPTIONS)
    scenario = _chosen(config, SCENARIOS)
    allies, enemies = SCENARIOS[scenario]
    units = allies + enemies
    width = SEEN * (units - 1) + OWN
    native = config.state == "auto"
    block = tuple(tuple(range(SEEN * k, SEEN * (k + 1))) for k in range(allies - 1))
    bonus = float(config.kwargs.get("won_battle_bonus", 1.0))
    spec = EnvSpec(
        name=f"{config.name}:{config.id}:{scenario}",
        n_agents=allies,
        n_actions=5 + enemies,
        obs_dim=width,
        state_dim=(OWN + 2) * units if native else width * allies,
        horizon=config.horizon or 101,
        agents=tuple(f"ally_{i}" for i in range(allies)),
        state_groups=_unit_groups(allies, enemies) if native else {},
        teammate_blocks=(block,) * allies,
        noop=STOP,
        reward_range=(min(0.0, bonus), 1.0 + max(0.0, bonus)),
        columns={
            "alive": Column((allies,), "bool", "views"),
            "enemy_alive": Column((enemies,), "bool", "views"),
            "won": Column((), "bool", "episode"),
        },
    )
    return Task(config, scenario, spec, (width,) * allies, (5 + enemies,) * allies)


def _unit_groups(allies: int, enemies: int) -> dict[str, tuple[int, ...]]:
    """Of the world state: a row per unit, zero once it is dead, then the teams and the types of all units."""
    units, groups = allies + enemies, {}
    for side, rows in (("ally", range(allies)), ("enemy", range(allies, units))):
        parts = {"health": range(1), "position": range(1, 3), "cooldown": range(3, 4), "type_bits": range(4, OWN)}
        for name, part in parts.items():
            groups[f"{side}_{name}"] = tuple(OWN * row + feature for row in rows for feature in part)
        groups[f"{side}_team"] = tuple(OWN * units + row for row in rows)
        groups[f"{side}_type"] = tuple((OWN + 1) * units + row for row in rows)
    return groups


# kitchen


def _kitchen(config: Config) -> Task:
    """Observation: 26 layers of the whole kitchen, cell by cell, the cook's own layers first."""
    _check_options(config, "random_reset")
    layout = _chosen(config, LAYOUTS)
    width, height = LAYOUTS[layout]
    cells = range(width * height)
    block = tuple(LAYERS * cell + layer for cell in cells for layer in OF_MATE)
    spec = EnvSpec(
        name=f"{config.name}:{config.id}:{layout}",
        n_agents=2,
        n_actions=6,
        obs_dim=LAYERS * len(cells),
        state_dim=2 * LAYERS * len(cells),
        horizon=config.horizon or 400,
        agents=("agent_0", "agent_1"),
        teammate_blocks=((block,), (block,)),
        noop=STAY,
        reward_range=(0.0, 2 * (DELIVERY + SHAPED * config.shaping)),
        columns={"soups": Column((), "int16", "episode")},
    )
    return Task(config, layout, spec, (LAYERS * len(cells),) * 2, (6, 6))


BATTLE, KITCHEN = "SMAX", "overcooked"
FAMILIES: Mapping[str, Callable[[Config], Task]] = {
    "MPE_simple_spread_v3": _spread,
    "MPE_simple_speaker_listener_v4": _speaker_listener,
    "MPE_simple_reference_v3": _reference,
    BATTLE: _battle,
    KITCHEN: _kitchen,
}
