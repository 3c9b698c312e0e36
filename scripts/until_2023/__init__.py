"""Particle worlds as published figures have them: `env=pettingzoo env.id=scripts.until_2023.simple_spread`.

Until 2023 a move showed in the position a step earlier (PettingZoo 962): speeds changed first, places after them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any


def moves_show_early(world: Any) -> None:
    """Let a world of mpe2 change speeds first, places after them."""
    of_today = world.integrate_state

    def until_2023(self: Any, forces: Any) -> None:
        before = [entity.state.p_pos.copy() if entity.movable else None for entity in self.entities]
        of_today(forces)
        for entity, place in zip(self.entities, before, strict=True):
            if place is not None:
                entity.state.p_pos = place + entity.state.p_vel * self.dt

    world.integrate_state = MethodType(until_2023, world)


def older(module: ModuleType) -> Callable[..., Any]:
    """The `parallel_env` of a module of mpe2, whose moves show early."""

    def parallel_env(**kwargs: Any) -> Any:
        env = module.parallel_env(**kwargs)
        moves_show_early(env.unwrapped.world)
        return env

    return parallel_env
