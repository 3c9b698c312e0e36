"""What FIM and LAIES share: a bonus that foresees what the team does to the state, by a model that it fits itself."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from algos.influence.model import ForwardModel, Target, fit
from marl.descent import Descent
from marl.parts import Bonus, Delay, Stats, delayed
from marl.types import EnvSpec, Episodes


class Foreseeing(Protocol):
    """The settings of the model."""

    model_hidden: int
    model_lr: float
    model_clip: float
    model_updates: int
    model_every_episodes: int


class Foresight(Bonus):
    """A forward model with its own Adam, and its delayed copy, by which influence is computed."""

    def __init__(self, spec: EnvSpec, config: Foreseeing, *, residual: bool) -> None:
        super().__init__()
        self.foreseeing = config
        self.delay = Delay(config.model_every_episodes)
        self.model = ForwardModel(spec, config.model_hidden, residual=residual)
        self.slow_model = delayed(self.model)

    def equip(self) -> None:
        adam = torch.optim.Adam(self.model.parameters(), lr=self.foreseeing.model_lr)
        self._descent = Descent("model_loss", adam, self.foreseeing.model_clip)

    def descents(self) -> list[Descent]:
        return [self._descent]

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.slow_model, self.model)]

    @property
    def foresees(self) -> bool:
        """Whether the delayed model is a copy of one that was fitted more than once."""
        return int(self.slow_model.rounds) > 1

    def distrust(self) -> None:
        """What is predicted is another from now on: neither model was fitted to it."""
        self.model.rounds.zero_()
        self.slow_model.rounds.zero_()

    def fit_to(self, batch: Episodes, target: Target) -> Stats:
        """``model_updates`` steps of the model on the episodes of the value's update."""
        return fit(self.model, self._descent, batch, target, self.foreseeing.model_updates)
