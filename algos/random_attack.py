"""Training under random attacks, on any base: the baseline robust methods are compared with (ROMANCE's RANDOM)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from algos.attacks import random_actions
from marl.parts import Parts
from marl.types import EnvSpec


@dataclass
class Config:
    """A base algorithm and the attacker it is trained against."""

    name: str = "random_attack"
    base: Any = None  # algo.base=NAME, with the settings of that algorithm below it
    attack: random_actions.Config = field(default_factory=random_actions.Config)


def wrap(base: Parts, spec: EnvSpec, config: Config) -> Parts:
    return base.with_intervention(random_actions.make(config.attack))
