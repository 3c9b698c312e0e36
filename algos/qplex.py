"""QPLEX: duplex dueling, the joint advantage is a positive combination of the agents' (Wang et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from algos.factored import FactoredConfig, FactoredQ, agent_net
from marl.duplex import Duplex
from marl.fields import count
from marl.parts import Parts
from marl.types import EnvSpec


@dataclass
class Config(FactoredConfig):
    """The mixer's sizes."""

    name: str = "qplex"
    hyper_embed: int = count(64)  # hidden units of the networks that make w and b
    heads: int = count(4)  # K, of the attention that makes lambda
    advantage_embed: int = count(64)  # hidden units of each layer of the three networks of a head
    advantage_layers: int = count(3)  # layers of each of them; the fewer, the more slowly lambda grows


def mixer(spec: EnvSpec, config: Config) -> Duplex:
    """V_tot(s) + sum_i lambda_i(s, u) A_i(s, u_i)."""
    return Duplex(
        spec,
        config.hyper_embed,
        config.heads,
        config.advantage_embed,
        config.advantage_layers,
        state_norm=config.state_norm,
    )


def build(spec: EnvSpec, config: Config) -> Parts:
    return Parts(FactoredQ(agent_net(spec, config), mixer(spec, config), config), config.scaling())
