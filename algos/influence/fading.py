"""A bonus that fades once the task itself begins to pay (LAIES, released code)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marl.ops import masked_mean
from marl.types import Episodes


class Fading(nn.Module):
    """A share that falls from 1 to 0 within ``steps`` environment steps; None: it stays 1.

    It begins to fall with the first batch whose mean reward is above 0.
    """

    seen: Tensor
    began: Tensor

    def __init__(self, steps: int | None) -> None:
        super().__init__()
        self.steps = steps
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("began", torch.full((), -1, dtype=torch.long))

    def watch(self, fresh: Episodes) -> None:
        """Count the steps of training episodes as they arrive."""
        self.seen += int(fresh.mask.sum())

    def share(self, batch: Episodes) -> Tensor:
        """() what is left."""
        if self.steps is None:
            return torch.ones((), device=batch.reward.device)
        if int(self.began) < 0 and masked_mean(batch.reward, batch.mask) > 0:
            self.began.copy_(self.seen)
        gone = torch.where(self.began >= 0, self.seen - self.began, 0)
        return (1 - gone / self.steps).clamp(min=0)
