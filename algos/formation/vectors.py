"""Formations: a short summary of how each agent stands to its farthest and its nearest team-mate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from marl.types import Array

BLOCK = 2**20
"""Differences (float64 numbers) held at once."""


class Formations(NamedTuple):
    """Formations of M moments; two moments are equivalent if and only if their rows of ``codes`` are equal."""

    vectors: Array
    """(M, 4N) float64: farthest distance, nearest distance, farthest key, nearest key, agent by agent."""
    farthest: Array
    """(M, N) int64: j_max"""
    nearest: Array
    """(M, N) int64: j_min"""
    codes: Array
    """(M, 4N) int64: ``vectors`` with distances counted in units of the rounding."""


def draw_projection(bits: int, size: int, law: str) -> Tensor:
    """W (K, D) float64 of the direction hash: ``gaussian`` (SimHash) or ``uniform01`` (released code, row B10)."""
    shape = (bits, size)
    return torch.randn(shape, dtype=torch.float64) if law == "gaussian" else torch.rand(shape, dtype=torch.float64)


def formations(places: Array, projection: Array, decimals: int) -> Formations:
    """Formations of ``places`` (M, N, D), each agent's observation, in float64 as the released code computes them.

    d[i,j] = round(|o_i - o_j|, ``decimals``), half to even; j_max includes i itself, j_min does not; ties go to the
    lowest index. A key's most significant bit is the sign of the first row of ``projection`` (K, D).
    """
    moments, agents, size = places.shape
    step = max(1, BLOCK // (agents * agents * size))
    blocks = [_formations(places[at : at + step], projection, decimals) for at in range(0, moments, step)]
    return Formations(*(np.concatenate(arrays) for arrays in zip(*blocks, strict=True)))


def _formations(places: Array, projection: Array, decimals: int) -> Formations:
    places = places.astype(np.float64)
    moments, agents, _ = places.shape
    difference = places[:, :, None] - places[:, None]
    units = np.rint(np.linalg.norm(difference, axis=-1) * 10.0**decimals).astype(np.int64)
    farthest = units.argmax(-1)
    others = np.where(np.eye(agents, dtype=np.bool_), np.iinfo(np.int64).max, units)
    nearest = others.argmin(-1)
    codes = np.empty((moments, agents, 4), np.int64)
    value = 1 << np.arange(len(projection))[::-1]
    for column, partner in enumerate((farthest, nearest)):
        codes[..., column] = np.take_along_axis(units, partner[..., None], -1)[..., 0]
        towards = np.take_along_axis(difference, partner[..., None, None], 2)[:, :, 0]
        codes[..., 2 + column] = (towards @ projection.T > 0) @ value
    vectors = codes / np.array([10.0**decimals, 10.0**decimals, 1.0, 1.0])
    return Formations(vectors.reshape(moments, -1), farthest, nearest, codes.reshape(moments, -1))
