"""Which state features hardly ever change when nobody means to change them: the entropy criterion.

FIM's equations 3 to 5 could not be read; these are a reconstruction (docs/fim.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2**24
"""Changes (float32 numbers) held at once."""
ROUNDING = 1e-4
"""Share of a bin by which a change may miss it: differences of float32 states are not exact."""
LIMIT = 10.0
"""Largest normalised change where the mean change is 1."""


class Scale(NamedTuple):
    """What a change of each feature is measured in."""

    unit: Tensor
    """(S,) sigma: 0 for features that never change"""
    limit: float
    """The largest normalised change."""


def changes(states: Sequence[Tensor], features: slice = slice(None)) -> Tensor:
    """(M, F) c = |s[t+1] - s[t]| of all steps of ``states``, (L+1, S) each; the step to the last view included."""
    return torch.cat([episode[1:, features] - episode[:-1, features] for episode in states]).abs_()


def scale(states: Sequence[Tensor], norm: str) -> Scale:
    """sigma of each feature: the largest change, the ``mean`` change, or the ``range`` of its values."""
    if norm == "range":
        low, high = (torch.stack([bound(episode, 0) for episode in states]) for bound in (torch.amin, torch.amax))
        return Scale(high.amax(0) - low.amin(0), 1.0)
    if norm == "max":
        return Scale(torch.stack([changes([episode]).amax(0) for episode in states]).amax(0), 1.0)
    total = torch.stack([changes([episode]).double().sum(0) for episode in states]).sum(0)
    return Scale((total / sum(len(episode) - 1 for episode in states)).float(), LIMIT)


def mean_change(states: Sequence[Tensor]) -> Tensor:
    """(S,) mean c of each feature, in its own unit."""
    return scale(states, "mean").unit


def entropy_per_dim(states: Sequence[Tensor], units: Scale, bins: int) -> Tensor:
    """H (S,) nats of the normalised change c / sigma of each feature: a bin for exactly 0, ``bins`` on (0, limit]."""
    size = states[0].shape[1]
    moments = sum(len(episode) - 1 for episode in states)
    step = max(1, BLOCK // moments)
    blocks = [_entropies(changes(states, slice(at, at + step)), units, bins, at) for at in range(0, size, step)]
    return torch.cat(blocks)


def _entropies(change: Tensor, units: Scale, bins: int, first: int) -> Tensor:
    unit = units.unit[first : first + change.shape[1]]
    normalised = torch.where(unit > 0, change / unit.clamp(min=torch.finfo(unit.dtype).tiny), 0.0)
    normalised = normalised.clamp(max=units.limit) * (bins / units.limit)
    bin_of = torch.where(change > 0, (normalised - ROUNDING).ceil().clamp(1, bins), 0.0).long()
    offsets = torch.arange(change.shape[1]) * (bins + 1)
    counts = torch.bincount((bin_of + offsets).flatten(), minlength=change.shape[1] * (bins + 1))
    shares = counts.view(-1, bins + 1).double() / len(change)
    return torch.special.xlogy(shares, shares).sum(1).neg().clamp(min=0).float()


def constant_onehots(states: Sequence[Tensor]) -> Tensor:
    """(S,) bool: features that are 0 or 1 and never rise within an episode, as the type of a unit until it dies."""
    binary = torch.stack([((episode == 0) | (episode == 1)).all(0) for episode in states]).all(0)
    rises = torch.stack([(episode[1:] > episode[:-1]).any(0) for episode in states]).any(0)
    return binary & ~rises


class Rule(NamedTuple):
    """What is selected of the candidates."""

    kind: str
    """``entropy``; ``all`` that ever change; ``least_change``: as many as by entropy, of the least mean change"""
    relative: bool
    """``delta`` is a share of the candidates' mean entropy."""
    delta: float
    max_dims: int | None

    def threshold(self, entropy: Tensor, candidates: Tensor) -> float:
        """delta in nats; candidates whose entropy is 0 do not count towards the mean."""
        if not self.relative:
            return self.delta
        positive = entropy[candidates & (entropy > 0)]
        return self.delta * float(positive.mean()) if len(positive) else 0.0


class Selection(NamedTuple):
    """The outcome."""

    chosen: Tensor
    """(S,) bool"""
    fallback: bool
    """No candidate met the criterion: the smallest entropies were taken."""


def select(entropy: Tensor, change: Tensor, candidates: Tensor, rule: Rule) -> Selection:
    """CoG: candidates (S,) bool with 0 < ``entropy`` (S,) < delta, or as ``rule`` says; ``change`` (S,) is its mean.

    Where none has, the tenth of the candidates with the smallest positive entropy, at least one if there is any.
    """
    moving = candidates & (change > 0)
    if rule.kind == "all":
        return Selection(_least(change, moving, rule.max_dims), False)
    positive = candidates & (entropy > 0)
    chosen = positive & (entropy < rule.threshold(entropy, candidates))
    fallback = not bool(chosen.any())
    if fallback:
        chosen = _least(entropy, positive, max(1, math.ceil(0.1 * int(candidates.sum()))))
    chosen = _least(entropy, chosen, rule.max_dims)
    if rule.kind == "least_change":
        chosen = _least(change, moving, int(chosen.sum()))
    return Selection(chosen, fallback)


def _least(value: Tensor, allowed: Tensor, most: int | None) -> Tensor:
    """(S,) bool: the ``most`` allowed features of the smallest ``value``; ties to the lowest index."""
    if most is None or int(allowed.sum()) <= most:
        return allowed
    order = torch.where(allowed, value, torch.inf).sort(stable=True).indices[:most]
    return torch.zeros_like(allowed).index_fill(0, order, True)
