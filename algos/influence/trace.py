"""The eligibility trace that a team shares: what was influenced stays worth influencing for a while.

FIM's equation could not be read; this is a reconstruction (docs/fim.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-8


class Traced(NamedTuple):
    """Of B episodes."""

    reward: Tensor
    """(B, T) r_int"""
    trace: Tensor
    """(B, T, C) e before each step; 0 at the first"""


def trace_scan(influence: Tensor, mask: Tensor, *, decay: float, mode: str, clip: float, norm: str) -> Traced:
    """r_int of the team's influence u (B, T, C), which is 0 on padding; ``mask`` (B, T).

    e[t] = decay e[t-1] + u[t] from e = 0 at the start of each episode, kept in [0, clip].
    ``product``: sum of (1 + e[t-1]) u[t] over features, with ``norm`` sum (1 + C e[t-1] / sum e[t-1]) u[t];
    ``accumulate``: sum of e[t]; ``none``: sum of u[t].
    """
    before, trace = [], torch.zeros_like(influence[:, 0])
    for now in influence.unbind(1):
        before.append(trace)
        trace = (decay * trace + now).clamp(0, clip)
    traces = torch.stack(before, 1)
    if mode == "accumulate":
        rewarded = torch.cat([traces[:, 1:], trace.unsqueeze(1)], 1)
    elif mode == "none":
        rewarded = influence
    else:
        focus = traces
        if norm == "sum":
            focus = traces.shape[-1] * traces / (traces.sum(-1, keepdim=True) + EPSILON)
        rewarded = (1 + focus) * influence
    return Traced(rewarded.sum(-1) * mask, traces)
