"""Qatten: the joint value is a sum of utilities weighted by attention over agents (Yang et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from algos.factored import FactoredConfig, FactoredQ, agent_net
from marl.attention import Attention
from marl.fields import Mistake, count, only_with, suggestion
from marl.parts import Parts
from marl.types import EnvSpec


@dataclass
class Config(FactoredConfig):
    """The mixer's sizes."""

    name: str = "qatten"
    heads: int = count(4)  # H
    key_embed: int = count(32)  # size of queries and keys
    query_hidden: int = count(64)  # hidden units of the network that makes queries
    weighted_heads: bool = True  # heads have weights w_h(s); False: they are added up
    head_hidden: int = only_with(count(64), weighted_heads=True)  # hidden units of the network that makes w_h
    value_hidden: int = count(32)  # hidden units of the network that makes c(s)
    own_features: list[str] = field(default_factory=list)  # groups of the state told agent by agent; []: none


def own_features(spec: EnvSpec, groups: Sequence[str]) -> Tensor | None:
    """(N, U) long, the features of the state that describe each agent; None if no groups are named.

    Raises:
        Mistake: the world's state has no such group, or one that is not told agent by agent.
    """
    if not groups:
        return None
    known = spec.groups_by_agent()
    for name in groups:
        if name not in known:
            allowed = f"{', '.join(['[]', *known])}{suggestion(name, known)}"
            asked = f"algo.own_features=[{name}]: not told agent by agent in env={spec.name}"
            raise Mistake(f"{asked}; allowed are lists of {allowed}")
    parts = [torch.tensor(known[name]).view(spec.n_agents, -1) for name in groups]
    return torch.cat(parts, -1)


def mixer(spec: EnvSpec, config: Config) -> Attention:
    """c(s) + sum_h w_h(s) sum_i lambda_ih(s) Q_i."""
    weighted = config.head_hidden if config.weighted_heads else None
    own = own_features(spec, config.own_features)
    return Attention(
        spec,
        config.heads,
        config.key_embed,
        config.query_hidden,
        weighted,
        config.value_hidden,
        own,
        state_norm=config.state_norm,
    )


def build(spec: EnvSpec, config: Config) -> Parts:
    return Parts(FactoredQ(agent_net(spec, config), mixer(spec, config), config), config.scaling())
