"""The awareness bonus: how much more likely the formation is with the three histories than with one of them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from algos.formation.prediction import FormationDecoder, Gaussian

CACHED = 4096
"""Latents that go through the decoder at once on a CPU: their activations stay in its cache."""
AT_ONCE = 2**18
"""The same on a GPU."""
SPAN = 1e-6
"""A smaller difference between the largest and the smallest value is rounding."""


class Awareness(NamedTuple):
    """Of M moments, N agents, S draws of the latents."""

    gain: Tensor
    """(M, N, S) ir = log q - (log p_1 + log p_2 + log p_3) / 3"""
    likelihood: Tensor
    """(M, N, S) log q = -|G(z_i, z_max, z_min) - F|**2"""


class Partners(NamedTuple):
    """Laws of the latents of each agent and its partners, (M, N, Z) each."""

    own: Gaussian
    farthest: Gaussian
    nearest: Gaussian


def partners(laws: Gaussian, farthest: Tensor, nearest: Tensor) -> Partners:
    """Of ``laws`` (M, N, Z) and partners (M, N) long, at the same moment."""

    def at(index: Tensor) -> Gaussian:
        rows = index.unsqueeze(-1).expand_as(laws.mean)
        return Gaussian(laws.mean.gather(1, rows), laws.log_variance.gather(1, rows))

    return Partners(laws, at(farthest), at(nearest))


def partners_as_released(laws: Gaussian, farthest: Tensor, nearest: Tensor) -> Partners:
    """Row B1: of ``laws`` (B, T, N, Z) the partner's index (B, T, N) is taken for a step, the agent stays its own.

    Raises:
        IndexError: the episodes have fewer steps than the team has agents.
    """
    episodes = torch.arange(len(farthest), device=farthest.device)[:, None, None]
    agents = torch.arange(farthest.shape[-1], device=farthest.device)

    def at(index: Tensor) -> Gaussian:
        return Gaussian(*(tensor[episodes, index, agents].flatten(0, 1) for tensor in laws))

    return Partners(Gaussian(*(tensor.flatten(0, 1) for tensor in laws)), at(farthest), at(nearest))


def awareness(
    decoder: FormationDecoder,
    laws: Partners,
    formation: Tensor,
    samples: int,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> Awareness:
    """For ``formation`` (M, 4N), scaled; ``dtype`` is that of the decoder's products, sums of squares are float32.

    The decoder's first layer is linear in each of its three latents, so each is multiplied once and the four inputs
    are sums; what the marginals put in place of a latent (xi_1, xi_2) is one vector per agent. A draw's noise serves
    all agents: the law of each agent's gain is that of separate draws, and there are N times fewer.
    """
    moments, agents, latent = laws.own.mean.shape
    device = formation.device
    mean = torch.stack([law.mean for law in laws]).unsqueeze(-2)
    deviation = torch.stack([(0.5 * law.log_variance).exp() for law in laws]).unsqueeze(-2)
    marginal = torch.randn((2, agents, latent), generator=generator, device=device)
    step = max(1, (CACHED if device.type == "cpu" else AT_ONCE) // (agents * samples))
    logits = _Logits(decoder, marginal, dtype, rows=min(step, moments) * agents * samples)
    errors = torch.empty((4, moments, agents, samples), device=device)
    for start in range(0, moments, step):
        rows = slice(start, min(start + step, moments))
        noise = torch.randn((3, rows.stop - start, 1, samples, latent), generator=generator, device=device)
        guess = logits(torch.addcmul(mean[:, rows], deviation[:, rows], noise).to(dtype)).sigmoid_()
        errors[:, rows] = guess.sub_(formation[rows, None, None]).square_().sum(-1)
    return Awareness(errors[1:].mean(0) - errors[0], -errors[0])


class _Logits:
    """The decoder up to its sigmoid, of the three latents jointly, and of each with constants beside it.

    relu(x + b) = max(x, -b) + b, and the b that is added goes into the constants of the layer that follows, so large
    arrays are passed over once a layer. They are allocated once, for at most ``rows`` triples of latents.
    """

    def __init__(self, decoder: FormationDecoder, marginal: Tensor, dtype: torch.dtype, rows: int) -> None:
        first, second, third = (layer for layer in decoder.layers if isinstance(layer, nn.Linear))
        own, far, near = first.weight.unflatten(1, (3, decoder.latent)).unbind(1)
        one, other = marginal
        beside = [torch.zeros_like(one @ own.T), one @ far.T + other @ near.T, one @ own.T + other @ near.T]
        constants = (torch.stack([*beside, one @ own.T + other @ far.T]) + first.bias).to(dtype)
        self._blocks = torch.stack([own, far, near]).to(dtype).mT
        self._second, self._third = second.weight.to(dtype).T, third.weight.to(dtype).T
        self._first_floor = -constants[:, None, :, None]
        constants = (constants.float() @ self._second.float() + second.bias).to(dtype)
        self._second_floor = -constants[:, None, :, None]
        self._added = (constants.float() @ self._third.float() + third.bias)[:, None, :, None]
        room = partial(torch.empty, dtype=dtype, device=marginal.device)
        self._products = room(3 * rows, first.out_features)
        self._features = room(4 * rows, first.out_features)
        self._inner = room(4 * rows, second.out_features)

    def __call__(self, latents: Tensor) -> Tensor:
        """(3, m, N, S, Z) -> (4, m, N, S, 4N) float32: those of log q, log p_1, log p_2, log p_3."""
        shape = latents.shape[1:-1]
        rows = shape.numel()
        products = self._products[: 3 * rows].view(3, rows, -1)
        for latent, block, product in zip(latents.flatten(1, -2), self._blocks, products, strict=True):
            torch.mm(latent, block, out=product)
        own, far, near = products.unflatten(1, shape)
        features, inner = self._features[: 4 * rows], self._inner[: 4 * rows]
        joint, *alone = features.unflatten(0, (4, *shape))
        torch.add(own, far, out=joint).add_(near)
        for row, (product, out) in enumerate(zip((joint, own, far, near), (joint, *alone), strict=True)):
            torch.maximum(product, self._first_floor[row], out=out)
        torch.mm(features, self._second, out=inner)
        bounded = inner.unflatten(0, (4, *shape))
        torch.maximum(bounded, self._second_floor, out=bounded)
        return (inner @ self._third).float().unflatten(0, (4, *shape)).add_(self._added)


def normalised(gain: Tensor, scale: Tensor, shift: str, *, repaired: bool = True) -> Tensor:
    """``gain`` (M, N, S) stretched, agent by agent, to [0, rho] (``nonneg``) or [-rho, 0] (``nonpos``); rho (N,).

    A span below `SPAN` gives 0. Released (rows B6, B7): padding takes part, and ``nonneg`` divides by the bare span.
    """
    low, high = gain.amin((0, 2), keepdim=True), gain.amax((0, 2), keepdim=True)
    span = high - low
    guard = 0.0 if shift == "nonneg" and not repaired else SPAN
    stretched = (gain - (low if shift == "nonneg" else high)) / (span + guard) * scale[:, None]
    return torch.where(span < SPAN, 0.0, stretched) if repaired else stretched


def surprise(likelihood: Tensor) -> Tensor:
    """M (N,) = |mean log q| of each agent, over moments and draws of ``likelihood`` (M, N, S)."""
    return likelihood.mean((0, 2)).abs()


def surprise_as_released(likelihood: Tensor, episodes: int) -> Tensor:
    """Row B8: the sum is divided by the number of episodes and the number of NaN is subtracted."""
    missing = likelihood.isnan()
    return (likelihood.nan_to_num().sum((0, 2)) / episodes - missing.sum((0, 2))).abs()


def relative_surprise(surprises: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """rho (N,) = M / M_max with the maximum running over agents in turn and over calls, and the new M_max ()."""
    running = torch.cat([largest.reshape(1), surprises]).cummax(0).values[1:]
    return torch.where(running > 0, surprises / running, 0.0), running[-1]
