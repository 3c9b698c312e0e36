"""Rewards brought to unit size, whatever the world pays."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.dice import Noise
from marl.ops import masked_mean
from marl.parts import Bonus, JointQ, Stats
from marl.types import Episodes


class RewardScaling(Bonus):
    """Adds what makes of a reward r: r / deviation, or (r - mean) / deviation if ``centred``.

    Mean and deviation are those of every reward that has arrived, each counted once (Welford 1962). Centring pays for
    each step of an episode, so that it may change which policy is best where episodes end early; a division cannot.
    """

    seen: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, *, centred: bool) -> None:
        super().__init__()
        self.centred = centred
        for name in ("seen", "mean", "squares"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def annotate(self, fresh: Episodes) -> dict[str, Tensor]:
        rewards = fresh.reward[fresh.mask.bool()].double().to(self.mean.device)
        mean, total = rewards.mean(), self.seen + len(rewards)
        gap = mean - self.mean
        self.squares += (rewards - mean).square().sum() + gap.square() * self.seen * len(rewards) / total
        self.mean += gap * len(rewards) / total
        self.seen.copy_(total)
        return {}

    @property
    def deviation(self) -> Tensor:
        """() standard deviation; 1 while all rewards are equal."""
        variance = self.squares / self.seen.clamp(min=1)
        return torch.where(variance > 1e-12, variance.sqrt(), 1.0)

    def reward(self, batch: Episodes, q: JointQ, noise: Noise) -> tuple[Tensor, Stats]:
        centre = self.mean if self.centred else torch.zeros_like(self.mean)
        scaled = (batch.reward.double() - centre) / self.deviation
        stats: Stats = {
            "reward/mean": self.mean.float(),
            "reward/deviation": self.deviation.float(),
            "reward/scaled": masked_mean(scaled.float(), batch.mask),
        }
        return (scaled - batch.reward) * batch.mask, stats  # in float64: r is added to it again
