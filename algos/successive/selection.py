"""Which sub-value plays: a softmax of the candidates' central values, told from what the team remembers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from marl.nets import mlp
from marl.ops import masked_mean

TINY = 1e-8
"""Keeps the logarithm of a probability finite."""


def softmax(candidates: Tensor, temperature: float) -> Tensor:
    """P (..., K1) of the candidates' values (..., K1)."""
    return (candidates / temperature).softmax(-1)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Indices (...) from ``probabilities`` (..., K1) and one number in [0, 1) each, (...)."""
    rank = (probabilities.cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1)
    return rank.clamp(max=probabilities.shape[-1] - 1)


class Guess(NamedTuple):
    """What the team's histories tell."""

    state: Tensor
    """(..., S)"""
    probabilities: Tensor
    """(..., K1)"""


class EncoderDecoder(nn.Module):
    """Latent z of all agents' histories, and from it the state and P. Trained beside the values, in their own step."""

    def __init__(self, inputs: int, state: int, sub_values: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.encoder = mlp(inputs, hidden, hidden, latent)
        self.trunk = nn.Sequential(mlp(latent, hidden, hidden), nn.ReLU())
        self.state = nn.Linear(hidden, state)
        self.probabilities = nn.Linear(hidden, sub_values)

    def forward(self, histories: Tensor) -> Guess:
        """(..., N, H) -> (..., S), (..., K1)."""
        features = self.trunk(self.latent(histories))
        return Guess(self.state(features), self.probabilities(features).softmax(-1))

    def latent(self, histories: Tensor) -> Tensor:
        """z (..., Z) of (..., N, H)."""
        latent: Tensor = self.encoder(histories.flatten(-2))
        return latent


def divergence(probabilities: Tensor, guess: Tensor, mask: Tensor) -> Tensor:
    """() KL of the guess from P, both (B, T, K1), by element: the mean over steps is divided by K1."""
    return masked_mean(torch.special.xlogy(probabilities, probabilities) - probabilities * (guess + TINY).log(), mask)
