"""Qatten's mixer: a sum of utilities weighted by attention over agents (Yang et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from marl.mixers import StateInput
from marl.nets import AgentLinear, mlp
from marl.precision import in_float32
from marl.types import EnvSpec


class Keys(nn.Module):
    """Keys of all agents for each head: linear in an agent's own features u_i, with parameters that all agents share.

    Where the state does not tell which features are whose, linear in the whole state, for each agent by parameters of
    its own: what is common to all keys would cancel in the softmax.

    Args:
        own: (N, U) long, the features of the state that describe each agent; None if it does not tell.
    """

    own: Tensor | None

    def __init__(self, spec: EnvSpec, heads: int, key_embed: int, own: Tensor | None = None) -> None:
        super().__init__()
        self.n_agents, self.heads = spec.n_agents, heads
        size = heads * key_embed
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
        return keys.view(*keys.shape[:-1], self.heads, -1)


class Attention(nn.Module):
    """Q_tot = c(s) + sum_h w_h(s) sum_i lambda_ih(s) Q_i, lambda_h = softmax over agents of query_h(s) key_h(u_i).

    Args:
        heads: how many queries.
        key_embed: size of queries and keys.
        query_hidden: hidden units of the network that makes queries.
        head_hidden: hidden units of the network that makes w_h; None: heads are added up.
        value_hidden: hidden units of the network that makes c(s).
        own: as that of `Keys`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        heads: int = 4,
        key_embed: int = 32,
        query_hidden: int = 64,
        head_hidden: int | None = 64,
        value_hidden: int = 32,
        own: Tensor | None = None,
        *,
        state_norm: bool = False,
    ) -> None:
        super().__init__()
        self.state = StateInput(state_norm)
        self.heads, self.key_embed = heads, key_embed
        self.query1 = nn.Linear(spec.state_dim, heads * query_hidden)
        self.query2 = AgentLinear(heads, query_hidden, key_embed)
        self.keys = Keys(spec, heads, key_embed, own)
        self.head_weight = None if head_hidden is None else mlp(spec.state_dim, head_hidden, heads)
        self.value = mlp(spec.state_dim, value_hidden, 1)

    def attention(self, state: Tensor) -> Tensor:
        """(..., S) -> lambda (..., heads, N), which adds up to 1 over the agents."""
        hidden = torch.relu(self.query1(state))
        query = self.query2(hidden.view(*hidden.shape[:-1], self.heads, -1))
        scores = torch.einsum("...hk,...nhk->...hn", query, self.keys(state)) / math.sqrt(self.key_embed)
        return scores.softmax(-1)

    @in_float32
    def forward(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Utilities (..., N) in states (..., S) -> joint value (..., 1)."""
        state = self.state(state)
        heads = (self.attention(state) @ chosen.unsqueeze(-1)).squeeze(-1)
        if self.head_weight is not None:
            heads = heads * self.head_weight(state).abs()
        joint: Tensor = heads.sum(-1, keepdim=True) + self.value(state)
        return joint
