"""Qatten: the joint value is a sum of utilities weighted by attention over agents (Yang et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from algos.factored import FactoredConfig, FactoredQ, agent_net
from marl.config import Mistake, count, suggestion
from marl.mixers import two_layers
from marl.nets import AgentLinear
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
    head_hidden: int = count(64)  # hidden units of the network that makes w_h
    value_hidden: int = count(32)  # hidden units of the network that makes c(s)
    own_features: list[str] = field(default_factory=list)  # groups of the state told agent by agent; []: none


def own_features(spec: EnvSpec, groups: Sequence[str]) -> Tensor | None:
    """(N, U) long, the features of the state that describe each agent; None if no groups are named.

    Raises:
        Mistake: the world's state has no such group, or one that does not divide among the agents.
    """
    if not groups:
        return None
    divisible = [name for name, features in spec.state_groups.items() if len(features) % spec.n_agents == 0]
    for name in groups:
        if name not in divisible:
            allowed = ", ".join(["[]", *divisible])
            near = suggestion(name, divisible)
            raise Mistake(f"algo.own_features=[{name}]: not of env={spec.name}; allowed are lists of {allowed}{near}")
    parts = [torch.tensor(spec.state_groups[name]).view(spec.n_agents, -1) for name in groups]
    return torch.cat(parts, -1)


class Keys(nn.Module):
    """Keys of all agents for each head: linear in an agent's own features u_i, with parameters that all agents share.

    Where the state does not tell which features are whose, linear in the whole state, for each agent by parameters of
    its own: what is common to all keys would cancel in the softmax.
    """

    own: Tensor | None

    def __init__(self, spec: EnvSpec, config: Config) -> None:
        super().__init__()
        self.n_agents, self.heads = spec.n_agents, config.heads
        size = config.heads * config.key_embed
        own = own_features(spec, config.own_features)
        self.register_buffer("own", own, persistent=False)
        self.linear: nn.Module
        if own is None:
            self.linear = AgentLinear(spec.n_agents, spec.state_dim, size)
        else:
            self.linear = nn.Linear(own.shape[1], size)

    def forward(self, state: Tensor) -> Tensor:
        """(..., S) -> (..., N, heads, K)."""
        told = state.unsqueeze(-2).expand(*state.shape[:-1], self.n_agents, -1)
        keys: Tensor = self.linear(told if self.own is None else state[..., self.own])
        return keys.unflatten(-1, (self.heads, -1))


class AttentionMixer(nn.Module):
    """Q_tot = c(s) + sum_h w_h(s) sum_i lambda_ih(s) Q_i, lambda_h = softmax over agents of query_h(s) key_h(u_i)."""

    def __init__(self, spec: EnvSpec, config: Config) -> None:
        super().__init__()
        self.heads, self.key_embed = config.heads, config.key_embed
        self.query1 = nn.Linear(spec.state_dim, config.heads * config.query_hidden)
        self.query2 = AgentLinear(config.heads, config.query_hidden, config.key_embed)
        self.keys = Keys(spec, config)
        self.head_weight = (
            two_layers(spec.state_dim, config.head_hidden, config.heads) if config.weighted_heads else None
        )
        self.value = two_layers(spec.state_dim, config.value_hidden, 1)

    def attention(self, state: Tensor) -> Tensor:
        """(..., S) -> lambda (..., heads, N), which adds up to 1 over the agents."""
        query = self.query2(torch.relu(self.query1(state)).unflatten(-1, (self.heads, -1)))
        scores = torch.einsum("...hk,...nhk->...hn", query, self.keys(state)) / math.sqrt(self.key_embed)
        return scores.softmax(-1)

    def forward(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Utilities (..., N) in states (..., S) -> joint value (..., 1)."""
        heads = (self.attention(state) @ chosen.unsqueeze(-1)).squeeze(-1)
        if self.head_weight is not None:
            heads = heads * self.head_weight(state).abs()
        joint: Tensor = heads.sum(-1, keepdim=True) + self.value(state)
        return joint


def build(spec: EnvSpec, config: Config) -> Parts:
    return Parts(FactoredQ(agent_net(spec, config), AttentionMixer(spec, config), config), config.scaling())
