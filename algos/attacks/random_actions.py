"""The random attacker: at random steps one random agent is made to act at random, within a budget (WALL's baseline)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl.dice import Dice
from marl.fields import count, number
from marl.ops import random_available
from marl.parts import Intervention, JointQ, Memory
from marl.types import Column, View


@dataclass
class Config:
    """When and how often it strikes."""

    name: str = "random_actions"
    probability: float = number(0.1, least=0, most=1)  # of an attack at a step (released WALL code)
    budget: int = count(8, least=0)  # most attacked steps in one episode (K)


class RandomActions(Intervention):
    """State: (E,) long, attacks left. Costs one unit whether or not the drawn action differs from the intended one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def columns(self) -> dict[str, Column]:
        return {"attacked": Column((), "bool", "steps")}

    def begin(self, n: int, seats: tuple[str, ...], dice: Dice) -> Tensor:
        return torch.full((n,), self.config.budget)

    def act(
        self, view: View, actions: Tensor, q: JointQ, memory: Memory, state: Tensor, dice: Dice
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        copies, agents = actions.shape
        strike, victim, choice = torch.from_numpy(dice.uniform("random_actions", (3,))).unbind(-1)
        attacked = (strike < self.config.probability) & (state > 0)
        victim = (victim * agents).long().clamp(max=agents - 1)
        rows = torch.arange(copies)
        forced = random_available(view.avail[rows, victim], choice)
        executed = actions.clone()
        executed[rows, victim] = torch.where(attacked, forced, actions[rows, victim])
        return executed, {"attacked": attacked}, state - attacked.long()


def make(config: Config) -> RandomActions:
    return RandomActions(config)
