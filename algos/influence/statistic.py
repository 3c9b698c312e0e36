"""What is known of the state's features from watching a team that does not train."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algos.influence.model import Target
from algos.influence.selection import Rule, constant_onehots, entropy_per_dim, mean_change, scale, select
from marl.types import Episodes


class Window:
    """States of the last ``steps`` environment steps, episode by episode."""

    def __init__(self, steps: int) -> None:
        self.capacity = steps
        self.steps = 0
        self._episodes: deque[Tensor] = deque()

    def add(self, fresh: Episodes) -> None:
        """Take whole episodes in; the oldest leave as soon as the others are enough."""
        for states, length in zip(fresh.state, fresh.lengths.tolist(), strict=True):
            self._append(states[: length + 1].detach().cpu().float().clone())

    def _append(self, states: Tensor) -> None:
        self._episodes.append(states)
        self.steps += len(states) - 1
        while self.steps - (len(self._episodes[0]) - 1) >= self.capacity:
            self.steps -= len(self._episodes.popleft()) - 1

    @property
    def full(self) -> bool:
        return self.steps >= self.capacity

    def clear(self) -> None:
        self._episodes.clear()
        self.steps = 0

    def states(self) -> list[Tensor]:
        """(L+1, S) of each episode."""
        return list(self._episodes)

    def records(self) -> dict[str, Tensor]:
        """Everything, for checkpoints."""
        if not self._episodes:
            return {}
        lengths = torch.tensor([len(states) for states in self._episodes])
        return {"states": torch.cat(self.states()), "lengths": lengths}

    def restore(self, records: Mapping[str, Tensor]) -> None:
        """Take back what `records` gave."""
        self.clear()
        if records:
            for states in records["states"].cpu().split(records["lengths"].tolist()):
                self._append(states.clone())


@dataclass(frozen=True)
class Watching:
    """How a statistic is made."""

    steps: int
    """N_beta"""
    again_every: int
    """Environment steps until the next estimate; 0: there is one."""
    norm: str
    bins: int
    skip_onehots: bool
    rule: Rule


class Statistic(nn.Module):
    """Unit sigma, mean, entropy H and selection of each feature, from the first ``steps`` environment steps.

    Args:
        native: (S,) bool, features that may be selected.
    """

    native: Tensor
    onehots: Tensor
    selected: Tensor
    sigma: Tensor
    centre: Tensor
    entropy: Tensor
    threshold: Tensor
    steps: Tensor
    estimated_at: Tensor

    def __init__(self, native: Tensor, watching: Watching) -> None:
        super().__init__()
        self.watching = watching
        self.register_buffer("native", native, persistent=False)
        for name in ("onehots", "selected"):
            self.register_buffer(name, torch.zeros_like(native))
        for name in ("sigma", "centre", "entropy"):
            self.register_buffer(name, torch.zeros(len(native)))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("estimated_at", torch.full((), -1, dtype=torch.long))
        self.window = Window(watching.steps)

    @property
    def candidates(self) -> Tensor:
        """(S,) bool: features that could be selected."""
        return self.native & ~self.onehots

    @property
    def closed(self) -> bool:
        """Whether there is an estimate."""
        return int(self.estimated_at) >= 0

    def watch(self, fresh: Episodes) -> bool:
        """Look at training episodes as they arrive; whether they bring a new estimate."""
        self.steps += int(fresh.mask.sum())
        again = self.watching.again_every
        if self.closed and not again:
            return False
        self.window.add(fresh)
        due = self.window.full and (not self.closed or int(self.steps - self.estimated_at) >= again)
        if due:
            self.estimate()
        return due

    def close(self) -> None:
        """Make do with what has come in."""
        if not self.closed:
            asked, had = self.watching.steps, self.window.steps
            advice = "a phase without updates before training gives more (docs/fim.md)"
            warnings.warn(f"algo.statistic_steps={asked}: {had} came before the first update; {advice}", stacklevel=2)
            self.estimate()

    def estimate(self) -> None:
        """Take everything from the window."""
        watching, states = self.watching, self.window.states()
        units = scale(states, watching.norm)
        entropy = entropy_per_dim(states, units, watching.bins)
        if watching.skip_onehots:
            self.onehots.copy_(constant_onehots(states))
        candidates = self.candidates.cpu()
        chosen, fallback = select(entropy, mean_change(states), candidates, watching.rule)
        if fallback:
            taken = f"{int(chosen.sum())} of the smallest are taken" if chosen.any() else "nothing ever changes"
            warnings.warn(f"no state feature has an entropy below the bound: {taken}", stacklevel=2)
        self.sigma.copy_(units.unit)
        total = torch.stack([episode.sum(0, dtype=torch.float64) for episode in states]).sum(0)
        self.centre.copy_(total / sum(map(len, states)))
        self.entropy.copy_(entropy)
        self.selected.copy_(chosen)
        self.threshold.fill_(watching.rule.threshold(entropy, candidates))
        self.estimated_at.copy_(self.steps)
        if not watching.again_every:
            self.window.clear()

    def target(self) -> Target:
        """What is to be influenced."""
        features = self.selected.nonzero().squeeze(-1)
        return Target(features, self.sigma[features])
