"""What is computed on the way to the loss, and what is told of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from algos.factored import td_stats
from algos.successive.sub_values import earlier
from marl.ops import masked_mean
from marl.parts import Stats


class Live(NamedTuple):
    """What the networks say, with gradient."""

    state: Tensor
    """(B, T+1, S) as mixers read it"""
    values: Tensor
    """(K1, B, T+1, N, A)"""
    greedy: Tensor
    """(K1, B, T+1, N) long: what each sub-value would do, without gradient"""
    histories: Tensor
    """(B, T+1, N, H) of sub-value 0"""
    joint: Tensor
    """(K1, B, T) Q_k of the actions taken"""
    central: Tensor
    """(B, T) Q* of them"""


class Aims(NamedTuple):
    """What they are drawn to, without gradient."""

    target: Tensor
    """(B, T) y"""
    aims: Tensor
    """(K1, B, T) y^(k)"""
    weight: Tensor
    """(K1, B, T) w_k"""
    scores: Tensor
    """(K1, B, T) v^k: delayed Q* of the candidate u_k*"""
    probabilities: Tensor
    """(B, T, K1) P"""
    chosen: Tensor
    """(K1, B, T) bool: the action taken is the candidate of Q_k"""


class Losses(NamedTuple):
    """Their parameters are disjoint, but for those of the encoder where agents are told z."""

    central: Tensor
    """() L_c"""
    sub_values: Tensor
    """(K1,) L_0 .. L_K"""
    selection: Tensor
    """() L_z"""

    def total(self) -> Tensor:
        return self.central + self.sub_values.sum() + self.selection


def masked_means(values: Tensor, mask: Tensor) -> Tensor:
    """(K1,) means of ``values`` (K1, B, T) over the steps where ``mask`` (B, T) is 1."""
    return (values * mask).sum((1, 2)) / mask.sum().clamp(min=1)


@torch.no_grad()
def report(losses: Losses, live: Live, aims: Aims, drawn: Tensor, mask: Tensor) -> Stats:
    """The metrics of docs/s2q.md; ``drawn`` (K1,) is how often each sub-value plays."""
    first, *others = losses.sub_values.detach()
    entropy = torch.special.entr(aims.probabilities).sum(-1)
    stats = td_stats(first, live.joint[0], aims.target, mask) | {
        "loss/central": losses.central.detach(),
        "loss/selection": losses.selection.detach(),
        "q/central": masked_mean(live.central, mask),
        "choice/entropy": masked_mean(entropy, mask),
    }
    stats |= {f"loss/sub{k}": loss for k, loss in enumerate(others, 1)}
    measures = {
        "candidate/value": masked_means(aims.scores, mask),
        "candidate/suppressed": masked_means(earlier(aims.chosen).float(), mask),
        "candidate/full_weight": masked_means((aims.weight == 1).float(), mask),
        "choice/share": drawn,
    }
    return stats | {f"{name}{k}": value for name, each in measures.items() for k, value in enumerate(each)}
