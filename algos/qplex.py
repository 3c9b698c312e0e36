"""QPLEX: duplex dueling, the joint advantage is a positive combination of the agents' (Wang et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from algos.factored import FactoredConfig, FactoredQ, agent_net
from marl.config import count
from marl.mixers import two_layers
from marl.nets import AgentLinear
from marl.parts import Parts
from marl.types import EnvSpec

SMALLEST = 1e-10
"""Added to weights that have to be positive."""


@dataclass
class Config(FactoredConfig):
    """The mixer's sizes."""

    name: str = "qplex"
    hyper_embed: int = count(64)  # hidden units of the networks that make w and b
    heads: int = count(4)  # K, of the attention that makes lambda
    advantage_embed: int = count(64)  # hidden units of each of the three networks of a head


class Attention(nn.Module):
    """lambda_i(s, u) = sum over heads k of key_k(s) phi_ik(s) psi_ik(s, u) > 0 (Wang et al. 2021, equation 11).

    The first layers of all heads are one layer, and so are the second ones: same function, same law of parameters.
    """

    def __init__(self, spec: EnvSpec, heads: int, embed: int) -> None:
        super().__init__()
        self.heads, self.n_actions = heads, spec.n_actions
        joint = spec.state_dim + spec.n_agents * spec.n_actions
        self.key1, self.key2 = nn.Linear(spec.state_dim, heads * embed), AgentLinear(heads, embed, 1)
        self.agent1, self.agent2 = nn.Linear(spec.state_dim, heads * embed), AgentLinear(heads, embed, spec.n_agents)
        self.action1, self.action2 = nn.Linear(joint, heads * embed), AgentLinear(heads, embed, spec.n_agents)

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        """(..., S), (..., N) long -> (..., N)."""
        joint = torch.cat([state, functional.one_hot(actions, self.n_actions).flatten(-2).to(state.dtype)], -1)
        key = self._answer(self.key1, self.key2, state).abs() + SMALLEST
        agent = torch.sigmoid(self._answer(self.agent1, self.agent2, state))
        action = torch.sigmoid(self._answer(self.action1, self.action2, joint))
        return (key * agent * action).sum(-2)

    def _answer(self, first: nn.Module, second: nn.Module, inputs: Tensor) -> Tensor:
        """(..., K, 1 or N)"""
        answer: Tensor = second(functional.relu(first(inputs)).unflatten(-1, (self.heads, -1)))
        return answer


class Duplex(nn.Module):
    """Q_tot = sum_i (w_i q_i + b_i) + sum_i (lambda_i - 1) w_i (q_i - v_i) (Wang et al. 2021, equations 8 to 10).

    The second sum is a correction for actions that are not greedy: no gradient reaches q, v and w through it.
    """

    def __init__(self, spec: EnvSpec, config: Config) -> None:
        super().__init__()
        self.weight = two_layers(spec.state_dim, config.hyper_embed, spec.n_agents)
        self.bias = two_layers(spec.state_dim, config.hyper_embed, spec.n_agents)
        self.importance = Attention(spec, config.heads, config.advantage_embed)

    def forward(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Utilities (..., N), their maxima (..., N), (..., S), (..., N) long -> joint value (..., 1)."""
        weight = self.weight(state).abs() + SMALLEST
        value = (weight * chosen + self.bias(state)).sum(-1, keepdim=True)
        advantage = (weight * (chosen - best).clamp(max=0)).detach()  # padding, where no action is available, has 0
        correction: Tensor = ((self.importance(state, actions) - 1) * advantage).sum(-1, keepdim=True)
        return value + correction


def build(spec: EnvSpec, config: Config) -> Parts:
    return Parts(FactoredQ(agent_net(spec, config), Duplex(spec, config), config), config.scaling())
