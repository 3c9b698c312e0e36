"""QMIX: the joint value grows with every utility, through weights that the state sets (Rashid et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from algos.factored import FactoredConfig, FactoredQ, agent_net
from marl.fields import count
from marl.mixers import Monotonic
from marl.parts import Parts
from marl.types import EnvSpec


@dataclass
class Config(FactoredConfig):
    """The mixer's sizes."""

    name: str = "qmix"
    mixing_embed: int = count(32)
    hyper_embed: int = count(64)  # hidden units of the networks that make the mixer's weights


def build(spec: EnvSpec, config: Config) -> Parts:
    mixer = Monotonic(spec, config.mixing_embed, config.hyper_embed, state_norm=config.state_norm)
    return Parts(FactoredQ(agent_net(spec, config), mixer, config), config.scaling())
