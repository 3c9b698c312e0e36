"""The one way parameters change: an optimiser with its clip, which refuses what is not finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marl.sections import section


class NonFinite(ArithmeticError):
    """A loss or gradient is not finite; ``name`` says whose."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not finite")
        self.name = name


class Descent:
    """An optimiser with its clip.

    Args:
        falling: the learning rate falls linearly to 0 as the run goes on.
    """

    def __init__(self, name: str, optimizer: torch.optim.Optimizer, clip: float, *, falling: bool = False) -> None:
        self.name, self.optimizer, self.clip, self.falling = name, optimizer, clip, falling
        self._rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def anneal(self, left: float) -> None:
        """Take the learning rate for a run of which the share ``left`` is still to come."""
        if self.falling:
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * left

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def __call__(self, loss: Tensor) -> Tensor:
        """Minimise ``loss`` () by one step; the gradient norm () before clipping.

        Raises:
            NonFinite: the loss or its gradient is not finite; no parameter was changed.
        """
        self.optimizer.zero_grad()
        with section("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        return self.step(loss.detach())

    def step(self, loss: Tensor) -> Tensor:
        """Clip and apply the gradients that are there already."""
        with section("optimiser"):
            norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
            if not torch.isfinite(norm + loss):
                raise NonFinite(self.name)
            self.optimizer.step()
            torch.clear_autocast_cache()  # it holds parameters in lower precision, as they were
        return norm
