"""Tells formations of episodes that arrive, counts them, and rewards rare ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from algos.formation.counts import CountTable, fingerprints
from algos.formation.vectors import draw_projection, formations
from marl.dice import Noise
from marl.fields import Mistake, suggestion
from marl.ops import masked_mean
from marl.parts import Bonus, JointQ, Stats
from marl.types import Array, Column, EnvSpec, Episodes


def position_features(spec: EnvSpec, source: str) -> tuple[int, ...] | None:
    """Features of the state that are the agents' positions, agent by agent; None if formations are of observations.

    Raises:
        Mistake: the environment has no such group of features, or one that is not told agent by agent.
    """
    if source == "obs":
        return None
    known = spec.groups_by_agent()
    if source not in known:
        allowed = f"{', '.join(['obs', *known])}{suggestion(source, known)}"
        raise Mistake(
            f"algo.formation_source={source}: not told agent by agent in env={spec.name}; allowed are {allowed}"
        )
    return known[source]


def count_bonus(visits: Tensor, mask: Tensor, beta: float, shift: str, *, repaired: bool = True) -> Tensor:
    """r_V (B, T) of the visits (B, T) to the formation that each step reached; no visits are worth nothing.

    ``nonneg``: beta / sqrt(visits), in [0, beta]; ``nonpos``: that less its maximum, in [-beta, 0].
    Released (row B6): the maximum is over padding too, which is given a bonus as well.
    """
    worth = torch.where(visits > 0, visits.clamp(min=1).rsqrt(), 0.0)
    if shift == "nonpos":
        worth = worth - (worth[mask > 0] if repaired else worth).max()
    return beta * (worth * mask if repaired else worth)


class FormationNovelty(Bonus):
    """The count bonus, and the columns that the awareness bonus reads.

    Args:
        decimals: R, of a distance.
        bits, law: of the direction hash, see `draw_projection`.
        capacity: formations that can be counted.
        source: ``obs``, or the group of the state that holds positions.
        requery: counts as they are at each update instead of as they were on arrival.
        repaired: False, released (row B5): the last view of an episode is neither described nor counted.
    """

    projection: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        *,
        beta: float,
        shift: str,
        decimals: int,
        bits: int,
        law: str,
        capacity: int,
        source: str,
        requery: bool,
        repaired: bool,
    ) -> None:
        super().__init__()
        self.n_agents = spec.n_agents
        self._beta, self._shift, self._decimals, self._repaired = beta, shift, decimals, repaired
        self._positions = position_features(spec, source)
        size = spec.obs_dim if self._positions is None else len(self._positions) // spec.n_agents
        self.register_buffer("projection", draw_projection(bits, size, law))
        self.table = CountTable(capacity)
        self._counted = "formation_key" if requery else "visits"

    def columns(self) -> dict[str, Column]:
        counted = Column((), "int64" if self._counted == "formation_key" else "int32", "views")
        return {
            "formation": Column((4 * self.n_agents,), "float32", "views"),
            "farthest": Column((self.n_agents,), "uint8", "views"),
            "nearest": Column((self.n_agents,), "uint8", "views"),
            self._counted: counted,
        }

    def annotate(self, fresh: Episodes) -> dict[str, Tensor]:
        """Formations of all views of training episodes, in one pass, counted episode by episode and step by step."""
        seen = fresh.seen.bool()
        if not self._repaired:
            seen = seen & torch.cat([fresh.mask.bool(), torch.zeros_like(seen[:, :1])], 1)
        told = formations(self._places(fresh)[seen].numpy(), self.projection.cpu().numpy(), self._decimals)
        keys = fingerprints(told.codes)
        visits = self.table.visit(keys)
        values: dict[str, Array] = {
            "formation": told.vectors,
            "farthest": told.farthest,
            "nearest": told.nearest,
            "visits": visits,
            "formation_key": keys.view(np.int64),
        }
        written = {}
        for name, column in self.columns().items():
            full = np.zeros((*seen.shape, *column.shape), column.dtype)
            full[seen.numpy()] = values[name]
            written[name] = torch.from_numpy(full)
        return written

    def _places(self, fresh: Episodes) -> Tensor:
        """(B, T+1, N, D) what distances are between."""
        if self._positions is None:
            return fresh.obs.cpu()
        return fresh.state.cpu()[..., list(self._positions)].unflatten(-1, (self.n_agents, -1))

    def reward(self, batch: Episodes, q: JointQ, noise: Noise) -> tuple[Tensor, Stats]:
        visits = self._visits(batch)[:, 1:].to(batch.reward.dtype)
        bonus = count_bonus(visits, batch.mask, self._beta, self._shift, repaired=self._repaired)
        return bonus, {
            "bonus/count": masked_mean(bonus, batch.mask),
            "formation/mean_count": masked_mean(visits, batch.mask),
            "formation/table": float(self.table.size),
            "formation/unique_ratio": self.table.size / max(self.table.total, 1),
        }

    def _visits(self, batch: Episodes) -> Tensor:
        """(B, T+1)"""
        counted = batch.columns[self._counted]
        if self._counted == "visits":
            return counted
        keys = counted.cpu().numpy().view(np.uint64)
        return torch.from_numpy(self.table.look_up(keys.ravel()).reshape(keys.shape)).to(counted.device)

    def records(self) -> dict[str, Tensor]:
        return self.table.records()

    def restore(self, records: Mapping[str, Tensor]) -> None:
        self.table.restore(records)
