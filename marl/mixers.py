"""From the agents' utilities to the joint value: mixers used by more than one paper.

A mixer takes the utilities ``chosen`` (..., N) of joint ``actions`` (..., N) long, the maxima ``best`` (..., N) of the
same agents' utilities and the ``state`` (..., S), and gives joint values (..., 1), or (..., N) for separate learners.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl.nets import mlp
from marl.precision import in_float32
from marl.types import EnvSpec


class StateInput(nn.Module):
    """The state as a mixer reads it.

    Args:
        normalised: its features brought to mean 0 and deviation 1, state by state (Ba et al. 2016). Weights that are
            made of a state grow with it: one that tells places in tens makes joint values in tens of random utilities.
            Of one or two features only their order would be left, so these stay as they are.
    """

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.normalised = normalised

    def forward(self, state: Tensor) -> Tensor:
        """(..., S), contiguous, since several layers read it."""
        state = state.contiguous()
        width = state.shape[-1]
        return functional.layer_norm(state, (width,)) if self.normalised and width > 2 else state


class Monotonic(nn.Module):
    """QMIX's mixer: weights from the state, kept positive by an absolute value (Rashid et al. 2018, section 4.1)."""

    def __init__(self, spec: EnvSpec, embed: int, hyper_embed: int, *, state_norm: bool = False) -> None:
        super().__init__()
        self.n_agents, self.embed = spec.n_agents, embed
        self.state = StateInput(state_norm)
        size = spec.state_dim
        self.w1 = mlp(size, hyper_embed, embed * spec.n_agents)
        self.b1 = nn.Linear(size, embed)
        self.w2 = mlp(size, hyper_embed, embed)
        self.value = mlp(size, embed, 1)

    @in_float32
    def forward(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Utilities (..., N) in states (..., S) -> joint value (..., 1)."""
        utilities, state = chosen.reshape(-1, self.n_agents), self.state(state.reshape(-1, state.shape[-1]))
        w1 = self.w1(state).abs().unflatten(-1, (self.n_agents, self.embed))
        # N is small: a batch of vectors times matrices is slower than what it is made of.
        hidden = functional.elu((utilities.unsqueeze(-1) * w1).sum(-2) + self.b1(state))
        joint: Tensor = (hidden * self.w2(state).abs()).sum(-1, keepdim=True) + self.value(state)
        return joint.view(*chosen.shape[:-1], 1)


class Sum(nn.Module):
    """VDN's mixer (Sunehag et al. 2018)."""

    def forward(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """(..., N) -> (..., 1)."""
        return chosen.sum(-1, keepdim=True)


class Separate(nn.Module):
    """No mixing: every agent learns from the team's reward on its own (Tan 1993)."""

    def forward(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """(..., N) -> (..., N)."""
        return chosen


class Unrestricted(nn.Module):
    """WQMIX's central mixer, without monotonicity: net([s, c]) + V(s) (Rashid et al. 2020, section 4; released code).

    Args:
        embed: hidden units of each layer.
        outputs: V, values that each agent gives, as `AgentNet`'s.
    """

    def __init__(self, spec: EnvSpec, embed: int = 256, outputs: int = 1, *, state_norm: bool = False) -> None:
        super().__init__()
        self.state = StateInput(state_norm)
        self.outputs = outputs
        self.net = mlp(spec.state_dim + spec.n_agents * outputs, embed, embed, embed, 1)
        self.value = mlp(spec.state_dim, embed, 1)

    @in_float32
    def forward(self, chosen: Tensor, state: Tensor) -> Tensor:
        """Central utilities (..., N), or (..., N, V) if V > 1, in states (..., S) -> joint value (..., 1).

        ``state`` may lack leading dimensions of ``chosen``: what depends on it alone is computed once.
        """
        inputs = chosen if self.outputs == 1 else chosen.flatten(-2)
        first: nn.Linear = self.net[0]  # type: ignore[assignment]
        by_state, by_inputs = first.weight[:, : state.shape[-1]], first.weight[:, state.shape[-1] :]
        state = self.state(state)
        told, value = functional.linear(state, by_state, first.bias), self.value(state)

        def joint(one: Tensor) -> Tensor:
            hidden = functional.linear(one, by_inputs) + told
            mixed: Tensor = self.net[1:](hidden) + value
            return mixed

        lacking = inputs.dim() - state.dim()
        if not lacking:
            return joint(inputs)
        # One after the other they stay in the cache.
        rows = torch.stack([joint(one) for one in inputs.flatten(0, lacking - 1)])
        return rows.view(*inputs.shape[:-1], 1)
