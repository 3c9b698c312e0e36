"""The forward model f_psi(s, a, h): what a joint action makes of the state (Liu et al. 2023; FIM takes it over)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl.descent import Descent
from marl.ops import masked_mean
from marl.parts import Stats
from marl.recurrent import remembered
from marl.types import EnvSpec, Episodes


class Target(NamedTuple):
    """What is predicted: some features of the state, each in its unit."""

    features: Tensor
    """(C,) long"""
    units: Tensor
    """(C,)"""

    def of(self, state: Tensor) -> Tensor:
        """(..., S) -> (..., C)."""
        return state[..., self.features] / self.units


class ForwardModel(nn.Module):
    """Linear, ReLU, GRU, Linear, on the state and all agents' actions one-hot.

    It has an output for every feature of the state; a `Target` names those that count, the others get no gradient.

    Args:
        residual: an output is the change of its feature; False: its next value.
    """

    centre: Tensor
    """(S,) what is taken from the state first"""
    unit: Tensor
    """(S,) what that is divided by"""
    rounds: Tensor
    """() how often it was fitted to what it predicts now; its delayed copy has that of the moment it was made."""

    def __init__(self, spec: EnvSpec, hidden: int, *, residual: bool) -> None:
        super().__init__()
        self.state_dim, self.n_agents, self.n_actions = spec.state_dim, spec.n_agents, spec.n_actions
        self.first = nn.Linear(spec.state_dim + spec.n_agents * spec.n_actions, hidden)
        self.gru = nn.GRU(hidden, hidden)
        self.last = nn.Linear(hidden, spec.state_dim)
        for layer in (self.first, self.last):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.residual = residual
        self.register_buffer("centre", torch.zeros(spec.state_dim))
        self.register_buffer("unit", torch.ones(spec.state_dim))
        self.register_buffer("rounds", torch.zeros((), dtype=torch.long))

    def action_columns(self) -> Tensor:
        """(N, A, H) the first layer's columns of every agent's every action."""
        return self.first.weight[:, self.state_dim :].T.unflatten(0, (self.n_agents, self.n_actions))

    def read_in(self, centre: Tensor, unit: Tensor) -> None:
        """Read states (..., S) as (s - ``centre``) / ``unit``; features whose unit is 0 as s - ``centre``."""
        self.centre.copy_(centre)
        self.unit.copy_(torch.where(unit > 0, unit, 1.0))

    def enter(self, state: Tensor, actions: Tensor) -> Tensor:
        """First layer before its ReLU (..., H) of states (..., S) and joint actions (..., N) long."""
        chosen = functional.one_hot(actions, self.n_actions).flatten(-2).to(state.dtype)
        entered: Tensor = self.first(torch.cat([(state - self.centre) / self.unit, chosen], -1))
        return entered

    def remember(self, entered: Tensor) -> Tensor:
        """GRU over whole episodes from a zero memory: (B, T, H) -> (B, T, H), the memory after each step."""
        return remembered(self.gru, entered.relu().transpose(0, 1)).transpose(0, 1)

    def displacement(self, memory: Tensor, origin: Tensor, target: Target) -> Tensor:
        """Predicted next value less ``origin`` (..., C), the target's features now, in their units; (..., C)."""
        weight, bias = self.last.weight[target.features], self.last.bias[target.features]
        told = functional.linear(memory, weight, bias)
        return told if self.residual else told - origin

    def forward(self, state: Tensor, actions: Tensor, target: Target) -> Tensor:
        """Displacements (B, T, C) after each step of states (B, T, S) and joint actions (B, T, N)."""
        return self.displacement(self.remember(self.enter(state, actions)), target.of(state), target)


def fit(model: ForwardModel, descent: Descent, batch: Episodes, target: Target, updates: int) -> Stats:
    """``updates`` steps on the same episodes, by the squared error of the next state summed over features.

    The actions are those that the world received.
    """
    state, views = batch.state[:, :-1], target.of(batch.state)
    truth = views[:, 1:] - views[:, :-1]
    stats: Stats = {}
    for update in range(updates):
        error = (model(state, batch.executed, target) - truth).square().sum(-1)
        loss = masked_mean(error, batch.mask)
        if update == 0:
            still = masked_mean(truth.square().sum(-1), batch.mask)
            told = torch.where(still > 0, 1 - loss.detach() / still, 0.0)
            stats = {"loss": loss.detach(), "r2": told}
        stats["gradient_norm"] = descent(loss)
    model.rounds += 1
    return stats
