"""Layers of G networks of one shape, side by side: one product for all of them instead of a loop over networks.

Shapes beside those of `marl.types`: G networks, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from marl.recurrent import unroll


class StackedLinear(nn.Module):
    """G linear layers, each drawn as `nn.Linear` draws it."""

    def __init__(self, networks: int, size: int, out: int) -> None:
        super().__init__()
        layers = [nn.Linear(size, out) for _ in range(networks)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, inputs: Tensor) -> Tensor:
        """(G, T, R, I) -> (G, T, R, U)."""
        return _project(inputs, self.weight, self.bias)


class StackedGRU(nn.Module):
    """G GRUs, each drawn as `nn.GRU` draws it."""

    def __init__(self, networks: int, size: int, hidden: int) -> None:
        super().__init__()
        layers = [nn.GRU(size, hidden) for _ in range(networks)]

        def stacked(name: str) -> nn.Parameter:
            return nn.Parameter(torch.stack([layer.get_parameter(name).detach() for layer in layers]))

        self.weight_ih, self.weight_hh = stacked("weight_ih_l0"), stacked("weight_hh_l0")
        self.bias_ih, self.bias_hh = stacked("bias_ih_l0"), stacked("bias_hh_l0")

    def step(self, inputs: Tensor, memory: Tensor) -> Tensor:
        """(G, 1, R, I), (G, 1, R, H) -> (G, 1, R, H)."""
        reset, update, candidate = _project(inputs, self.weight_ih, self.bias_ih).chunk(3, -1)
        from_reset, from_update, from_candidate = _project(memory, self.weight_hh, self.bias_hh).chunk(3, -1)
        kept = torch.sigmoid(update + from_update)
        fresh = torch.tanh(candidate + torch.sigmoid(reset + from_reset) * from_candidate)
        return fresh + kept * (memory - fresh)  # not `lerp`, which refuses the two types of autocast

    def forward(self, inputs: Tensor) -> Tensor:
        """Whole episodes from zero memories: (G, T, R, I) -> (G, T, R, H)."""
        histories: Tensor = unroll(inputs, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return histories


class StackedNorm(nn.Module):
    """G layer normalisations (Ba et al. 2016)."""

    def __init__(self, networks: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(networks, 1, 1, size))
        self.bias = nn.Parameter(torch.zeros(networks, 1, 1, size))

    def forward(self, inputs: Tensor) -> Tensor:
        """(G, T, R, U) -> (G, T, R, U)."""
        # One by one: the gradients of weight and bias come with that of the norm, in one pass.
        each = zip(inputs.unbind(0), self.weight.flatten(1), self.bias.flatten(1), strict=True)
        return torch.stack([functional.layer_norm(x, x.shape[-1:], weight, bias) for x, weight, bias in each])


def _project(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rows = inputs.flatten(1, 2)
    if weight.shape[1] < weight.shape[2]:  # MKL is slow at the gradient of few outputs, unless they are rows
        out = torch.baddbmm(bias.unsqueeze(2), weight, rows.mT).mT
    else:
        out = torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return out.view(*inputs.shape[:3], -1)
