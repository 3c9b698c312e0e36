"""QPLEX's mixer: duplex dueling, every function whose joint maximum is made of the agents' own (Wang et al. 2021)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl.mixers import StateInput
from marl.nets import AgentLinear, mlp
from marl.precision import in_float32
from marl.types import EnvSpec

SMALLEST = 1e-10
"""Added to weights that have to be positive."""


class HeadLinear(AgentLinear):
    """The same with heads in the place of agents, and first: so the product of all of them runs fastest."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(K, R, I) -> (K, R, U)."""
        return torch.baddbmm(self.bias.unsqueeze(1), inputs, self.weight.mT)


class Heads(nn.Module):
    """K networks of the same inputs side by side: Linear, then ReLU and Linear for each layer beyond the first.

    Each layer of all heads is one product.
    """

    def __init__(self, heads: int, size: int, embed: int, out: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        sizes = [size, *[embed] * (layers - 1), out]
        self.layers = nn.ModuleList(HeadLinear(heads, *pair) for pair in pairwise(sizes))

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) -> (..., K, U)."""
        first, *others = self.layers
        answer: Tensor = first(inputs.reshape(-1, inputs.shape[-1]).expand(self.heads, -1, -1))
        for layer in others:
            answer = layer(functional.relu(answer, inplace=True))
        return answer.transpose(0, 1).reshape(*inputs.shape[:-1], self.heads, -1)


class Importance(nn.Module):
    """lambda_i(s, u) = sum over heads k of key_k(s) phi_ik(s) psi_ik(s, u) > 0 (Wang et al. 2021, equation 11)."""

    def __init__(self, spec: EnvSpec, heads: int, embed: int, layers: int) -> None:
        super().__init__()
        self.n_actions = spec.n_actions
        joint = spec.state_dim + spec.n_agents * spec.n_actions
        self.key = Heads(heads, spec.state_dim, embed, 1, layers)
        self.agent = Heads(heads, spec.state_dim, embed, spec.n_agents, layers)
        self.action = Heads(heads, joint, embed, spec.n_agents, layers)

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        """(..., S), (..., N) long -> (..., N)."""
        joint = torch.cat([state, functional.one_hot(actions, self.n_actions).flatten(-2).to(state.dtype)], -1)
        key = self.key(state).abs() + SMALLEST
        importance: Tensor = (key * torch.sigmoid(self.agent(state)) * torch.sigmoid(self.action(joint))).sum(-2)
        return importance


class Duplex(nn.Module):
    """Q_tot = sum_i (w_i q_i + b_i) + sum_i (lambda_i - 1) w_i (q_i - v_i) (Wang et al. 2021, equations 8 to 10).

    The second sum is a correction for actions that are not greedy: no gradient reaches q, v and w through it.

    Args:
        hyper_embed: hidden units of the networks that make w and b.
        heads: K, of the attention that makes lambda.
        advantage_embed: hidden units of each layer of the three networks of a head.
        advantage_layers: their layers, 1 or more.
    """

    def __init__(
        self,
        spec: EnvSpec,
        hyper_embed: int = 64,
        heads: int = 4,
        advantage_embed: int = 64,
        advantage_layers: int = 2,
        *,
        state_norm: bool = False,
    ) -> None:
        super().__init__()
        self.state = StateInput(state_norm)
        self.weight = mlp(spec.state_dim, hyper_embed, spec.n_agents)
        self.bias = mlp(spec.state_dim, hyper_embed, spec.n_agents)
        self.importance = Importance(spec, heads, advantage_embed, advantage_layers)

    @in_float32
    def forward(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Utilities (..., N), their maxima (..., N), (..., S), (..., N) long -> joint value (..., 1)."""
        state = self.state(state)
        weight = self.weight(state).abs() + SMALLEST
        value: Tensor = (weight * chosen + self.bias(state)).sum(-1, keepdim=True)
        advantage = (weight * (chosen - best).clamp(max=0)).detach()  # padding, where no action is available, has 0
        correction: Tensor = ((self.importance(state, actions) - 1) * advantage).sum(-1, keepdim=True)
        return value + correction
