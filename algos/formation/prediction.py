"""FNet: a variational encoder of histories, and what can be told from its latents about the formation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from marl.nets import mlp


class Gaussian(NamedTuple):
    """Diagonal normal laws of latents."""

    mean: Tensor
    """(..., Z)"""
    log_variance: Tensor
    """(..., Z)"""

    def sample(self, noise: Tensor) -> Tensor:
        """(..., Z) from standard normal ``noise`` (..., Z)."""
        return torch.addcmul(self.mean, (0.5 * self.log_variance).exp(), noise)

    def divergence(self) -> Tensor:
        """(...) nats: KL from the standard normal law, summed over latents."""
        return -0.5 * (1 + self.log_variance - self.mean.square() - self.log_variance.exp()).sum(-1)


class Encoder(nn.Module):
    """E: what an agent's history h says of the formation, as a latent z."""

    def __init__(self, hidden: int, width: int, latent: int) -> None:
        super().__init__()
        self.body = nn.Sequential(mlp(hidden, width, width), nn.ReLU())
        self.mean = nn.Linear(width, latent)
        self.log_variance = nn.Linear(width, latent)

    def forward(self, histories: Tensor) -> Gaussian:
        """(..., H) -> (..., Z) twice."""
        features = self.body(histories)
        return Gaussian(self.mean(features), self.log_variance(features))

    def fixed(self, histories: Tensor) -> Gaussian:
        """The same, where the gradient goes through to ``histories`` but not to the parameters."""
        constants = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return functional_call(self, constants, (histories,))


class FormationDecoder(nn.Module):
    """G: the whole team's formation (4N numbers in [0, 1]) from the latents of an agent and its two partners."""

    def __init__(self, latent: int, width: int, outputs: int) -> None:
        super().__init__()
        self.latent = latent
        self.layers = mlp(3 * latent, width, width, outputs)

    def forward(self, own: Tensor, farthest: Tensor, nearest: Tensor) -> Tensor:
        """(..., Z) three times -> (..., 4N)."""
        return self.layers(torch.cat([own, farthest, nearest], -1)).sigmoid()


class HistoryDecoder(nn.Module):
    """T: the history itself from the agent's latent; linear, or squashed to (0, 1) as released (row B9)."""

    def __init__(self, latent: int, width: int, hidden: int, *, squashed: bool) -> None:
        super().__init__()
        self.squashed = squashed
        self.layers = mlp(latent, width, width, hidden)

    def forward(self, own: Tensor) -> Tensor:
        """(..., Z) -> (..., H)."""
        rebuilt = self.layers(own)
        return rebuilt.sigmoid() if self.squashed else rebuilt


class Trio(NamedTuple):
    """What is predicted, and from whose histories at that moment."""

    own: Tensor
    """(M, H) h_i"""
    farthest: Tensor
    """(M, H) h of j_max(i)"""
    nearest: Tensor
    """(M, H) h of j_min(i)"""
    formation: Tensor
    """(M, 4N) F, scaled"""

    @classmethod
    def draw(
        cls, histories: Tensor, farthest: Tensor, nearest: Tensor, formation: Tensor, n: int, generator: torch.Generator
    ) -> Trio:
        """``n`` random (moment, agent) of ``histories`` (M, N, H), partners (M, N) long and ``formation`` (M, 4N)."""
        moments, agents, _ = histories.shape
        drawn = torch.randint(moments * agents, (n,), generator=generator, device=histories.device)
        moment, agent = drawn // agents, drawn % agents
        far, near = farthest[moment, agent], nearest[moment, agent]
        return cls(histories[moment, agent], histories[moment, far], histories[moment, near], formation[moment])

    def split(self, sizes: Sequence[int]) -> list[Trio]:
        return [Trio(*parts) for parts in zip(*(tensor.split(list(sizes)) for tensor in self), strict=True)]


class Balance(NamedTuple):
    """What the networks follow: G ``formation`` dL_F, T ``history`` dL_tau, E ``formation`` dL_F + ``history`` ``turn``
    dL_tau.
    """

    formation: float
    history: float
    turn: float
    """Factor on the gradient that passes from T to E."""

    @classmethod
    def intended(cls, flip_weight: float) -> Balance:
        """E descends L_enc = L_F - flip_weight L_tau."""
        return cls(1.0, 1.0, -flip_weight)

    @classmethod
    def released(cls, flip_weight: float) -> Balance:
        """L_F, L_tau and L_enc are accumulated before one step, which undoes the flip (row B3)."""
        return cls(2.0, 1.0 - flip_weight, 1.0)


class Prediction(NamedTuple):
    """The terms of L_F = error + w (sum of the three divergences) and L_tau = history + w divergence."""

    error: Tensor
    """() mean squared error of F"""
    divergence: Tensor
    """() KL of the own latent"""
    partners: Tensor
    """() KL of the two partners' latents"""
    history: Tensor
    """() mean squared error of the rebuilt history"""

    def objective(self, balance: Balance, kl_weight: float) -> Tensor:
        """() whose gradient is the one that ``balance`` describes, if `predict` was given the same balance."""
        formation = self.error + kl_weight * (self.divergence + self.partners)
        history = self.history + balance.turn * kl_weight * self.divergence
        return balance.formation * formation + balance.history * history


def predict(
    encoder: Encoder, decoder: FormationDecoder, historian: HistoryDecoder, trio: Trio, noise: Tensor, balance: Balance
) -> Prediction:
    """Encode, draw with ``noise`` (3, M, Z) and decode."""
    laws = encoder(torch.stack(trio[:3]))
    latents = laws.sample(noise)
    own = latents[0]
    turned = own.detach() + balance.turn * (own - own.detach())
    divergence, farthest, nearest = laws.divergence().mean(-1)
    return Prediction(
        functional.mse_loss(decoder(*latents), trio.formation),
        divergence,
        farthest + nearest,
        functional.mse_loss(historian(turned), trio.own),
    )
