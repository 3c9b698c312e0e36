"""Networks used by more than one paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl.types import EnvSpec


class AgentInput(nn.Module):
    """What an agent's network is fed: its observation, optionally its last action and its index, one-hot."""

    def __init__(self, spec: EnvSpec, *, last_action: bool, agent_id: bool) -> None:
        super().__init__()
        self.actions = spec.n_actions if last_action else 0
        self.size = spec.obs_dim + self.actions + (spec.n_agents if agent_id else 0)
        self.identity: Tensor | None
        self.register_buffer("identity", torch.eye(spec.n_agents) if agent_id else None, persistent=False)

    def forward(self, obs: Tensor, last_action: Tensor) -> Tensor:
        """(..., N, O), (..., N) long with -1 for none -> (..., N, I)."""
        blocks = [obs]
        if self.actions:
            blocks.append(functional.one_hot(last_action + 1, self.actions + 1)[..., 1:].to(obs.dtype))
        if self.identity is not None:
            blocks.append(self.identity.expand(*obs.shape[:-1], -1))
        return torch.cat(blocks, -1) if len(blocks) > 1 else obs


class Recurrence(nn.Module):
    """Linear, ReLU, GRU: one memory per agent, parameters shared."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc1 = nn.Linear(size, hidden)
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)

    def start(self, n: int, n_agents: int) -> Tensor:
        """(E, N, H) zeros."""
        return self.fc1.weight.new_zeros(n, n_agents, self.hidden)

    def step(self, inputs: Tensor, memory: Tensor) -> Tensor:
        """(E, N, I), (E, N, H) -> (E, N, H)."""
        rows = functional.relu(self.fc1(inputs)).flatten(0, 1)
        w_ih, w_hh, b_ih, b_hh = self.rnn.all_weights[0]
        return torch.gru_cell(rows, memory.flatten(0, 1), w_ih, w_hh, b_ih, b_hh).view_as(memory)

    def forward(self, inputs: Tensor) -> Tensor:
        """A whole episode from a zero memory: (B, T, N, I) -> (B, T, N, H)."""
        batch, steps, agents, _ = inputs.shape
        rows = functional.relu(self.fc1(inputs)).transpose(1, 2).reshape(batch * agents, steps, self.hidden)
        hidden: Tensor = self.rnn(rows)[0]
        return hidden.view(batch, agents, steps, self.hidden).transpose(1, 2)


class AgentNet(nn.Module):
    """The DRQN agent of QMIX: Linear, ReLU, GRU, Linear (Rashid et al. 2018, section 4)."""

    def __init__(self, spec: EnvSpec, hidden: int, *, last_action: bool, agent_id: bool) -> None:
        super().__init__()
        self.n_agents = spec.n_agents
        self.input = AgentInput(spec, last_action=last_action, agent_id=agent_id)
        self.body = Recurrence(self.input.size, hidden)
        self.head = nn.Linear(hidden, spec.n_actions)

    def start(self, n: int) -> Tensor:
        return self.body.start(n, self.n_agents)

    def step(self, obs: Tensor, last_action: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One view of E teams -> values (E, N, A), memory (E, N, H)."""
        memory = self.body.step(self.input(obs, last_action), memory)
        return self.head(memory), memory

    def forward(self, obs: Tensor, last_action: Tensor) -> tuple[Tensor, Tensor]:
        """Whole episodes (B, T, N, O), (B, T, N) -> values (B, T, N, A), histories (B, T, N, H)."""
        histories = self.body(self.input(obs, last_action))
        return self.head(histories), histories


class Monotonic(nn.Module):
    """QMIX's mixer: weights from the state, kept positive by an absolute value (Rashid et al. 2018, section 4.1)."""

    def __init__(self, spec: EnvSpec, embed: int, hyper_embed: int) -> None:
        super().__init__()
        self.n_agents, self.embed = spec.n_agents, embed
        size = spec.state_dim
        self.w1 = nn.Sequential(nn.Linear(size, hyper_embed), nn.ReLU(), nn.Linear(hyper_embed, embed * spec.n_agents))
        self.b1 = nn.Linear(size, embed)
        self.w2 = nn.Sequential(nn.Linear(size, hyper_embed), nn.ReLU(), nn.Linear(hyper_embed, embed))
        self.value = nn.Sequential(nn.Linear(size, embed), nn.ReLU(), nn.Linear(embed, 1))

    def forward(self, chosen: Tensor, best: Tensor, state: Tensor) -> Tensor:
        """Utilities (..., N) in states (..., S) -> joint value (..., 1). ``best`` is not needed."""
        w1 = self.w1(state).abs().unflatten(-1, (self.n_agents, self.embed))
        hidden = functional.elu((chosen.unsqueeze(-2) @ w1).squeeze(-2) + self.b1(state))
        joint: Tensor = (hidden * self.w2(state).abs()).sum(-1, keepdim=True) + self.value(state)
        return joint


class Sum(nn.Module):
    """VDN's mixer (Sunehag et al. 2018)."""

    def forward(self, chosen: Tensor, best: Tensor, state: Tensor) -> Tensor:
        """(..., N) -> (..., 1)."""
        return chosen.sum(-1, keepdim=True)


class Separate(nn.Module):
    """No mixing: every agent learns from the team's reward on its own (Tan 1993)."""

    def forward(self, chosen: Tensor, best: Tensor, state: Tensor) -> Tensor:
        """(..., N) -> (..., N)."""
        return chosen
