"""The agents of K+1 sub-values, and what each of them is drawn to.

Shapes beside those of `marl.types`: K1 = K+1 sub-values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl.nets import AgentInput, Layers
from marl.precision import in_float32
from marl.stacked import StackedGRU, StackedLinear, StackedNorm
from marl.types import EnvSpec


class SubAgents(nn.Module):
    """K1 agent networks, each laid out as `marl.nets.AgentNet`: Linear, ReLU, GRU (or Linear, ReLU), Linear.

    Args:
        message: numbers that a message to all agents adds to their inputs.
    """

    def __init__(self, spec: EnvSpec, layers: Layers, sub_values: int, message: int = 0) -> None:
        super().__init__()
        self.sub_values, self.n_agents, self.shared = sub_values, spec.n_agents, layers.shared
        self.recurrent, self.hidden = layers.recurrent, layers.hidden
        self.input = AgentInput(spec, last_action=layers.last_action, agent_id=layers.agent_id)
        networks = sub_values if layers.shared else sub_values * spec.n_agents
        second = StackedGRU if layers.recurrent else StackedLinear
        self.dense = dense(self.input.size + message, networks, layers)
        self.second: StackedGRU | StackedLinear = second(networks, layers.hidden, layers.hidden)
        self.norm = norm(networks, layers)
        self.head = StackedLinear(networks, layers.hidden, spec.n_actions)

    def start(self, n: int) -> Tensor:
        """(E, K1, N, H) zeros; without a GRU there is nothing to remember and H is 0."""
        return self.head.bias.new_zeros(n, self.sub_values, self.n_agents, self.hidden if self.recurrent else 0)

    def step(
        self, obs: Tensor, last_action: Tensor, memory: Tensor, message: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One view of E teams, with a message (E, Z) -> values (K1, E, N, A), features (K1, E, N, H), memory."""
        told = None if message is None else message.unsqueeze(1)
        first = self._first(obs.unsqueeze(1), last_action.unsqueeze(1), told)
        if isinstance(self.second, StackedGRU):
            after = self.second.step(first, self._by_network(memory.transpose(0, 1).unsqueeze(2)))
            memory = self._by_team(after, len(obs)).squeeze(2).transpose(0, 1)
            features = self.norm(after)
        else:
            features = functional.relu(self.norm(self.second(first)))
        values, histories = (self._by_team(x, len(obs)).squeeze(2) for x in (self._values(features), features))
        return values, histories, memory

    def forward(self, obs: Tensor, last_action: Tensor) -> tuple[Tensor, Tensor]:
        """Whole episodes (B, T, N, O), (B, T, N) -> values (K1, B, T, N, A), features (K1, B, T, N, H)."""
        features = self.norm(self.second(self._first(obs, last_action, None)))
        if not self.recurrent:
            features = functional.relu(features)
        return self._by_team(self._values(features), len(obs)), self._by_team(features, len(obs))

    @in_float32
    def _values(self, features: Tensor) -> Tensor:
        """(G, T, R, H) -> (G, T, R, A)."""
        values: Tensor = self.head(features)
        return values

    def remembered(self, memory: Tensor) -> Tensor:
        """(E, N, H) the features of sub-value 0 at the view before."""
        features = self.norm(self._by_network(memory.transpose(0, 1).unsqueeze(2)))
        return self._by_team(features, len(memory))[0, :, 0]

    def _first(self, obs: Tensor, last_action: Tensor, message: Tensor | None) -> Tensor:
        """(G, T, R, H) of the dense layers."""
        # Steps first from the start, so that nothing is transposed on the way to the recurrence.
        inputs = self.input(obs.transpose(0, 1), last_action.transpose(0, 1))
        if message is not None:
            told = message.transpose(0, 1).unsqueeze(2).expand(-1, -1, self.n_agents, -1)
            inputs = torch.cat([inputs, told], -1)
        rows = self._by_network(inputs.transpose(0, 1).unsqueeze(0))
        rows = rows.unsqueeze(0).expand(self.sub_values, -1, -1, -1, -1).flatten(0, 1)
        first: Tensor = self.dense(rows)
        return first

    def _by_network(self, values: Tensor) -> Tensor:
        """(K1, B, T, N, U) -> (G, T, R, U): networks of one agent, or of all of them, see rows of their own."""
        if self.shared:
            return values.transpose(1, 2).flatten(2, 3)
        return values.permute(0, 3, 2, 1, 4).flatten(0, 1)

    def _by_team(self, rows: Tensor, batch: int) -> Tensor:
        """(G, T, R, U) -> (K1, B, T, N, U)."""
        if self.shared:
            return rows.unflatten(2, (batch, self.n_agents)).transpose(1, 2)
        return rows.unflatten(0, (self.sub_values, self.n_agents)).permute(0, 3, 2, 1, 4)


def dense(size: int, networks: int, layers: Layers) -> nn.Sequential:
    """`marl.nets.dense` of ``networks`` side by side: (G, T, R, size) -> (G, T, R, H)."""
    blocks: list[nn.Module] = []
    for inputs in [size, *[layers.hidden] * (layers.dense - 1)]:
        blocks += [StackedLinear(networks, inputs, layers.hidden), norm(networks, layers), nn.ReLU(inplace=True)]
    return nn.Sequential(*blocks)


def norm(networks: int, layers: Layers) -> nn.Module:
    """What follows a hidden layer of each network."""
    return StackedNorm(networks, layers.hidden) if layers.layer_norm else nn.Identity()


def suppressed(target: Tensor, amount: Tensor, chosen: Tensor) -> Tensor:
    """Targets (K1, B, T): ``target`` (B, T) less ``amount`` (B, T), once, where an earlier candidate was taken.

    ``chosen`` (K1, B, T) bool: the joint action that was taken is the greedy one of this sub-value.
    """
    return target - amount * earlier(chosen)


def earlier(chosen: Tensor) -> Tensor:
    """(K1, B, T) bool: what was taken is the candidate of any sub-value before this one."""
    return (chosen.cumsum(0) - chosen.long()) > 0


def weights(error: Tensor, taken: Tensor, candidates: Tensor, least: float) -> Tensor:
    """(K1, B, T): 1 or ``least``.

    The first sub-value learns in full of what the central value ``taken`` (B, T) puts at or above that of every
    candidate (K1, B, T); the others learn in full of what their ``error`` (K1, B, T) says they under-estimate.
    """
    best = (taken >= candidates).all(0, keepdim=True)
    return torch.where(torch.cat([best, error[1:] < 0]), 1.0, least)
