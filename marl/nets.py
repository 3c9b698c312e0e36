"""Networks used by more than one paper: what an agent sees, remembers and values."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl.precision import in_float32
from marl.recurrent import remembered
from marl.stacked import StackedGRU, StackedLinear, StackedNorm
from marl.types import EnvSpec


class Layers(NamedTuple):
    """How the network of agents is laid out."""

    hidden: int
    """H"""
    recurrent: bool = True
    """False: a second linear layer in place of the GRU, and no memory."""
    layer_norm: bool = False
    """Normalise what comes out of each hidden layer (Ba et al. 2016)."""
    shared: bool = True
    """False: every agent has parameters of its own."""
    dense: int = 1
    """Linear layers before the GRU, or before the layer in its place."""
    last_action: bool = True
    """Feed each agent its previous choice."""
    agent_id: bool = True
    """Feed each agent its index."""


class AgentInput(nn.Module):
    """What an agent's network is fed: its observation, optionally its last action and its index, one-hot."""

    def __init__(self, spec: EnvSpec, *, last_action: bool, agent_id: bool) -> None:
        super().__init__()
        seats, actions = torch.eye(spec.n_agents), functional.pad(torch.eye(spec.n_actions), (0, 0, 1, 0))
        parts = [actions.repeat_interleave(spec.n_agents, 0)] if last_action else []
        parts += [seats.repeat(spec.n_actions + 1, 1)] if agent_id else []
        self.labels: Tensor | None
        self.seats: Tensor
        # What follows the observation, by last action and agent: looking it up costs half of building it.
        self.register_buffer("labels", torch.cat(parts, 1) if parts else None, persistent=False)
        self.register_buffer("seats", torch.arange(spec.n_agents), persistent=False)
        self.size = spec.obs_dim + sum(part.shape[1] for part in parts)

    def forward(self, obs: Tensor, last_action: Tensor) -> Tensor:
        """(..., N, O), (..., N) long with -1 for none -> (..., N, I)."""
        if self.labels is None:
            return obs.contiguous()
        rows = (last_action + 1) * len(self.seats) + self.seats
        return torch.cat([obs, functional.embedding(rows, self.labels)], -1)


class AgentLinear(StackedLinear):
    """A linear layer with parameters of its own for each agent."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., N, I) -> (..., N, U)."""
        return torch.einsum("...ni,nui->...nu", inputs, self.weight) + self.bias


class AgentNorm(StackedNorm):
    """A layer normalisation with parameters of its own for each agent."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., N, U) -> (..., N, U)."""
        normed = functional.layer_norm(inputs, inputs.shape[-1:])
        return torch.addcmul(self.bias.flatten(1), normed, self.weight.flatten(1))


class TeamGRU(nn.GRU):
    """A GRU whose parameters all agents share."""

    def step(self, inputs: Tensor, memory: Tensor) -> Tensor:
        """(E, N, I), (E, N, H) -> (E, N, H)."""
        weights = self.all_weights[0]
        return torch.gru_cell(inputs.flatten(0, 1), memory.flatten(0, 1), *weights).view_as(memory)

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        """Whole episodes from a zero memory, steps first: (T, B, N, I) -> (T, B, N, H)."""
        return remembered(self, inputs.flatten(1, 2)).view(*inputs.shape[:3], self.hidden_size)


class AgentGRU(StackedGRU):
    """A GRU with parameters of its own for each agent."""

    def step(self, inputs: Tensor, memory: Tensor) -> Tensor:
        """(E, N, I), (E, N, H) -> (E, N, H)."""
        after = super().step(inputs.transpose(0, 1).unsqueeze(1), memory.transpose(0, 1).unsqueeze(1))
        return after.squeeze(1).transpose(0, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Whole episodes from a zero memory, steps first: (T, B, N, I) -> (T, B, N, H)."""
        return super().forward(inputs.permute(2, 0, 1, 3)).permute(1, 2, 0, 3)


class Recurrence(nn.Module):
    """Linear, ReLU (as often as ``layers.dense`` says), GRU: one memory per agent."""

    def __init__(self, size: int, n_agents: int, layers: Layers) -> None:
        super().__init__()
        hidden = layers.hidden
        self.shape = (n_agents, hidden)
        self.dense = dense(size, n_agents, layers)
        self.norm = norm(n_agents, layers)
        self.rnn = TeamGRU(hidden, hidden) if layers.shared else AgentGRU(n_agents, hidden, hidden)

    def start(self, n: int) -> Tensor:
        """(E, N, H) zeros."""
        return next(self.parameters()).new_zeros(n, *self.shape)

    def step(self, inputs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(E, N, I), (E, N, H) -> features (E, N, H), memory (E, N, H)."""
        memory = self.rnn.step(self.dense(inputs), memory)
        return self.norm(memory), memory

    def forward(self, inputs: Tensor) -> Tensor:
        """Whole episodes from a zero memory, steps first: (T, B, N, I) -> features (T, B, N, H)."""
        features: Tensor = self.norm(self.rnn(self.dense(inputs)))
        return features


class FeedForward(nn.Module):
    """Linear, ReLU (as often as ``layers.dense`` says), Linear, ReLU: what is seen now is all there is."""

    def __init__(self, size: int, n_agents: int, layers: Layers) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.dense = dense(size, n_agents, layers)
        self.last = linear(layers.hidden, layers.hidden, n_agents, layers)
        self.norm = norm(n_agents, layers)

    def start(self, n: int) -> Tensor:
        """(E, N, 0)."""
        return next(self.parameters()).new_zeros(n, self.n_agents, 0)

    def step(self, inputs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(E, N, I), (E, N, 0) -> features (E, N, H), memory (E, N, 0)."""
        return self(inputs), memory

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., N, I) -> features (..., N, H)."""
        return functional.relu(self.norm(self.last(self.dense(inputs))))


def mlp(*sizes: int) -> nn.Sequential:
    """Linear, ReLU, .., Linear: (..., sizes[0]) -> (..., sizes[-1])."""
    layers: list[nn.Module] = []
    for size, out in pairwise(sizes):
        layers += [nn.Linear(size, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def linear(size: int, out: int, n_agents: int, layers: Layers) -> nn.Module:
    """A linear layer of (..., N, size), for all agents or for each."""
    return nn.Linear(size, out) if layers.shared else AgentLinear(n_agents, size, out)


def dense(size: int, n_agents: int, layers: Layers) -> nn.Sequential:
    """Linear, norm, ReLU, as often as ``layers.dense`` says: (..., N, size) -> (..., N, H)."""
    blocks: list[nn.Module] = []
    for inputs in [size, *[layers.hidden] * (layers.dense - 1)]:
        blocks += [linear(inputs, layers.hidden, n_agents, layers), norm(n_agents, layers), nn.ReLU()]
    return nn.Sequential(*blocks)


def norm(n_agents: int, layers: Layers) -> nn.Module:
    """What follows a hidden layer of (..., N, H), for all agents or for each."""
    if not layers.layer_norm:
        return nn.Identity()
    return nn.LayerNorm(layers.hidden) if layers.shared else AgentNorm(n_agents, layers.hidden)


class AgentBody(nn.Module):
    """What an agent makes of all that it has seen."""

    def __init__(self, spec: EnvSpec, layers: Layers) -> None:
        super().__init__()
        self.input = AgentInput(spec, last_action=layers.last_action, agent_id=layers.agent_id)
        kind = Recurrence if layers.recurrent else FeedForward
        self.trunk: Recurrence | FeedForward = kind(self.input.size, spec.n_agents, layers)

    def start(self, n: int) -> Tensor:
        """Memory of ``n`` teams before their first view."""
        return self.trunk.start(n)

    def step(self, obs: Tensor, last_action: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One view of E teams -> features (E, N, H), memory."""
        return self.trunk.step(self.input(obs, last_action), memory)

    def forward(self, obs: Tensor, last_action: Tensor) -> Tensor:
        """Whole episodes (B, T, N, O), (B, T, N) -> features (B, T, N, H)."""
        # Steps first, for what a recurrence needs at once should lie together.
        features: Tensor = self.trunk(self.input(obs.transpose(0, 1), last_action.transpose(0, 1)))
        return features.transpose(0, 1)


class AgentNet(nn.Module):
    """The DRQN agent of QMIX: Linear, ReLU, GRU, Linear (Rashid et al. 2018, section 4).

    Args:
        outputs: values per action; more than one for papers whose mixer takes several (WQMIX's central agents).
    """

    def __init__(self, spec: EnvSpec, layers: Layers, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs
        self.body = AgentBody(spec, layers)
        self.head = linear(layers.hidden, spec.n_actions * outputs, spec.n_agents, layers)

    def start(self, n: int) -> Tensor:
        return self.body.start(n)

    def step(self, obs: Tensor, last_action: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One view of E teams -> values (E, N, A), memory (E, N, H)."""
        features, memory = self.body.step(obs, last_action, memory)
        return self.values(features), memory

    def forward(self, obs: Tensor, last_action: Tensor) -> tuple[Tensor, Tensor]:
        """Whole episodes (B, T, N, O), (B, T, N) -> values (B, T, N, A), features (B, T, N, H)."""
        features = self.body(obs, last_action)
        return self.values(features.transpose(0, 1)).transpose(0, 1), features

    @in_float32
    def values(self, features: Tensor) -> Tensor:
        """(..., N, H) -> (..., N, A), or (..., N, A, outputs) if there are several."""
        values: Tensor = self.head(features)
        return values if self.outputs == 1 else values.view(*values.shape[:-1], -1, self.outputs)
