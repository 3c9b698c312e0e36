"""What the log says of features: by group, and one by one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from algos.influence.features import groups, labels
from algos.influence.model import Target
from algos.influence.statistic import Statistic
from marl.parts import Bars, Stats
from marl.types import EnvSpec


class Teller:
    """Sums and means over a world's groups of state features."""

    def __init__(self, spec: EnvSpec) -> None:
        self._groups: Mapping[str, tuple[int, ...]] = groups(spec)
        self._labels = labels(spec)
        self._trace: Tensor | None = None

    def selection(self, statistic: Statistic) -> Stats:
        """How many features of each group are selected, and their mean entropy."""
        stats: Stats = {"fim/selected": statistic.selected.sum().float(), "fim/threshold": statistic.threshold.clone()}
        for name, features in self._groups.items():
            index = list(features)
            stats[f"fim/selected/{name}"] = statistic.selected[index].sum().float()
            stats[f"fim/entropy/{name}"] = statistic.entropy[index].mean()
        return stats

    def influence(self, statistic: Statistic, target: Target, mask: Tensor, influence: Tensor, traces: Tensor) -> Stats:
        """Means over steps of each group's sums over its selected features."""
        seen = mask.unsqueeze(-1)
        paid, traced = (torch.zeros_like(statistic.sigma) for _ in range(2))
        paid[target.features] = (influence * seen).sum((0, 1)) / mask.sum()
        traced[target.features] = (traces * seen).sum((0, 1)) / mask.sum()
        self._trace = traced
        stats: Stats = {}
        for name, features in self._groups.items():
            index = list(features)
            if statistic.selected[index].any():
                stats |= {f"fim/influence/{name}": paid[index].sum(), f"fim/trace/{name}": traced[index].sum()}
        return stats

    def figures(self, statistic: Statistic) -> dict[str, Bars]:
        """Entropies of all features with the selected ones marked, and mean traces of the last batch."""
        if not statistic.closed:
            return {}
        marked = tuple(statistic.selected.tolist())
        entropies = tuple(statistic.entropy.tolist())
        figures = {"fim/entropies": Bars(entropies, self._labels, marked, float(statistic.threshold))}
        if self._trace is not None:
            figures["fim/traces"] = Bars(tuple(self._trace.tolist()), self._labels, marked)
        return figures
