"""What FIM and LAIES share: a bonus that foresees what the team does to the state, by a model that it fits itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from algos.influence.model import ForwardModel, Target, fit
from marl.descent import Descent
from marl.fields import count, number
from marl.parts import Bonus, Delay, Stats, delayed
from marl.types import EnvSpec, Episodes


@dataclass
class ForesightConfig:
    """A base algorithm, and the model that foresees."""

    name: str = "foresight"
    base: Any = None  # algo.base=NAME, with the settings of that algorithm below it
    cf_chunk: int | None = count(None)  # alternatives computed together; null: 4,096 on a CPU, 65,536 on a GPU
    model_hidden: int = count(128)  # units of the forward model
    model_lr: float = number(3e-4, above=0)  # Adam
    model_clip: float = number(1.0, above=0)  # gradient norm
    model_updates: int = count(25)  # steps of the model after each update of the value, on the same episodes
    model_every_episodes: int = count(200)  # between two copies of the model, by which bonuses are computed


class Foresight(Bonus):
    """A forward model with its own Adam, and its delayed copy, by which influence is computed."""

    def __init__(self, spec: EnvSpec, config: ForesightConfig, *, residual: bool) -> None:
        super().__init__()
        self.config = config
        self.delay = Delay(config.model_every_episodes)
        self.model = ForwardModel(spec, config.model_hidden, residual=residual)
        self.slow_model = delayed(self.model)

    def equip(self) -> None:
        adam = torch.optim.Adam(self.model.parameters(), lr=self.config.model_lr)
        self._descent = Descent("model_loss", adam, self.config.model_clip)

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
        told = fit(self.model, self._descent, batch, target, self.config.model_updates)
        name = self.config.name
        return {f"{name}/model_{key}": value for key, value in told.items()}
