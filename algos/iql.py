"""IQL: every agent learns its own value of the team's reward (Tan 1993; Tampuu et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

from algos.factored import FactoredConfig, FactoredQ, agent_net
from marl.mixers import Separate
from marl.parts import Parts
from marl.types import EnvSpec


@dataclass
class Config(FactoredConfig):
    """Independent learners add nothing."""

    name: str = "iql"


def build(spec: EnvSpec, config: Config) -> Parts:
    return Parts(FactoredQ(agent_net(spec, config), Separate(), config), config.scaling())
