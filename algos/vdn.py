"""VDN: the joint value is the sum of the agents' utilities (Sunehag et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from algos.factored import FactoredConfig, FactoredQ, agent_net
from marl.mixers import Sum
from marl.parts import Parts
from marl.types import EnvSpec


@dataclass
class Config(FactoredConfig):
    """A sum adds nothing."""

    name: str = "vdn"


def build(spec: EnvSpec, config: Config) -> Parts:
    return Parts(FactoredQ(agent_net(spec, config), Sum(), config), config.scaling())
