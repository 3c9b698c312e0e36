"""Takes episodes in, improves the parts, gives weights out. It knows no algorithm."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marl.checkpoint import below
from marl.config import Learning
from marl.descent import Descent, NonFinite
from marl.dice import Noise, generator
from marl.heap import keep_freed_memory
from marl.parts import Bonus, Intervention, Parts, Stats, declared, shaped
from marl.precision import use_tf32, warn_of_slow_bfloat16
from marl.replay import Replay
from marl.sections import section
from marl.types import Array, Clock, Episodes, Record


class Learner:
    """One value, its bonuses and interventions, and the episodes they learn from.

    Args:
        parts: on the CPU; they are moved to the replay's device and given their optimisers here.
        total_steps: environment steps of the whole run, over which learning rates may fall; None: they stay.
        precision: ``fp32``, ``tf32`` (matrix products of float32 on a GPU) or ``bf16`` (autocast of losses).
    """

    def __init__(
        self,
        parts: Parts,
        replay: Replay,
        learning: Learning,
        seed: int,
        *,
        total_steps: int | None = None,
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        self.parts, self.replay, self.learning, self.seed = parts, replay, learning, seed
        self.total_steps = total_steps
        self.device = replay.device
        self.clock = Clock()
        keep_freed_memory()
        self._precision = precision
        use_tf32(precision == "tf32")
        if precision == "bf16":
            warn_of_slow_bfloat16("precision=bf16", "precision=fp32", self.device)
        for _, part in parts.named():
            part.to(self.device)
            part.equip()
            if compiled:
                for network in part.compilable():
                    network.compile()
        self._travelling = parts.travelling()
        self._credit = 0.0
        self._refreshed = {name: 0 for name, _ in parts.named()}
        self._fitted = {name: 0 for name, _ in parts.named()}
        self.batch: Episodes | None = None
        """The episodes of the last update, for the report of one that failed."""

    # data in, weights out

    def forget(self) -> None:
        """Drop all that was played, and the updates that it had earned."""
        self.replay.clear()
        self._credit = 0.0

    def absorb(self, record: Record, *, earns: bool = True) -> None:
        """Store one finished training episode, annotated in order of arrival; ``earns``: updates are made for it."""
        length = len(record["reward"])
        columns: dict[str, Tensor] = {}
        if self.parts.bonuses:
            with section("annotate"):
                fresh = Episodes.of_records([record], {name: self.replay.layout[name] for name in record})
                for bonus in self.parts.bonuses:
                    columns |= {name: value[0] for name, value in declared(bonus, bonus.annotate(fresh)).items()}
        for name, column in self.replay.layout.items():
            if name not in record and name not in columns:  # an attacker's, in a phase without one
                columns[name] = torch.zeros((*column.rows(length), *column.shape))
        self.replay.add({**record, **columns})
        self.clock.episodes += 1
        self.clock.steps += length
        self._anneal()
        if earns and len(self.replay) >= max(self.learning.burn_in, self.learning.batch):
            self._credit += self.learning.updates_per_episode

    def _anneal(self) -> None:
        """Learning rates are a function of the steps that were taken in, so that a resumed run has the same ones."""
        left = 1.0 if self.total_steps is None else max(0.0, 1.0 - self.clock.steps / self.total_steps)
        for _, descent in self.descents():
            descent.anneal(left)

    def weights(self) -> dict[str, Array]:
        """What workers need to act.

        Raises:
            NonFinite: a weight is not a number.
        """
        weights = {name: tensor.detach().cpu().numpy().copy() for name, tensor in self._travelling.items()}
        for name, array in weights.items():
            if array.dtype.kind == "f" and not np.isfinite(array.sum()):
                raise NonFinite(f"weight {name}")
        return weights

    # learning

    def improve(self) -> list[Stats]:
        """Everything that is due: updates by the ratio, then parts that follow a cadence of their own."""
        done = []
        while self._credit >= 1.0 - 1e-9 and self.clock.episodes % self.learning.every_episodes == 0:
            self._credit -= 1.0
            done.append(self.update())
        own = self._fit_by_episodes()
        return [*done, own] if own else done

    def update(self) -> Stats:
        """One update of the value on one batch of episodes."""
        noise = Noise(self.seed, self.clock.updates, self.device)
        draw = generator(self.seed, "learner/sample", self.clock.updates)
        self.batch = None  # or two would be on the device while one is gathered
        with section("sample"):
            slots, batch = self.replay.sample(self.learning.batch, draw)
        self.batch = batch
        reward, stats = batch.reward.double(), Stats()
        with self._autocast(), torch.no_grad(), section("bonuses"):
            for bonus in self.parts.bonuses:
                addition, told = bonus.reward(batch, self.parts.q, noise)
                reward = reward + shaped(addition, batch.reward, f"{type(bonus).__name__}.reward")
                stats |= told
        with self._autocast():
            loss = self.parts.q.loss(batch.with_reward(reward.float()), noise)
        stats |= loss.stats | self.parts.q.descend(loss)
        if loss.priority is not None:
            priority = shaped(loss.priority, batch.reward[:, 0], f"{type(self.parts.q).__name__}.loss: priority")
            self.replay.reprioritise(slots, priority)
        for name, part in self._fitting():
            if part.cadence.every_episodes == 0:
                stats |= self._fit(name, part, batch, noise)
        self.clock.updates += 1
        self._refresh()
        return stats

    def _fitting(self) -> Iterator[tuple[str, Bonus | Intervention]]:
        for name, part in self.parts.named():
            if isinstance(part, Bonus | Intervention):
                yield name, part

    def _fit_by_episodes(self) -> Stats:
        stats: Stats = {}
        for name, part in self._fitting():
            every, size = part.cadence
            waited = self.clock.episodes - self._fitted[name]
            if every and waited >= every and len(self.replay) >= size:
                draw = generator(self.seed, f"learner/sample/{name}", self.clock.episodes)
                _, batch = self.replay.sample(size, draw, uniform=True)
                noise = Noise(self.seed, self.clock.episodes, self.device)
                stats |= self._fit(name, part, batch, noise)
        return stats

    def _fit(self, name: str, part: Bonus | Intervention, batch: Episodes, noise: Noise) -> Stats:
        self._fitted[name] = self.clock.episodes
        with self._autocast(), section("fit"):
            return part.fit(batch, self.parts.q, noise)

    @torch.no_grad()
    def _refresh(self) -> None:
        """Let delayed copies follow."""
        for name, part in self.parts.named():
            hard = self.clock.episodes - self._refreshed[name] >= part.delay.every_episodes
            tau = part.delay.tau or (1.0 if hard else 0.0)
            if tau == 0.0:
                continue
            self._refreshed[name] = self.clock.episodes
            for copied, source in part.targets():
                self._follow(copied, source, tau)

    @staticmethod
    def _follow(copied: nn.Module, source: nn.Module, tau: float) -> None:
        if tau == 1.0:
            copied.load_state_dict(source.state_dict())
            return
        for mine, theirs in zip(copied.parameters(), source.parameters(), strict=True):
            mine.lerp_(theirs, tau)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            yield

    # checkpoints

    def descents(self) -> Iterator[tuple[str, Descent]]:
        for name, part in self.parts.named():
            for index, descent in enumerate(part.descents()):
                yield f"{name}.descent{index}", descent

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter, buffer, optimiser state and statistic of the parts, by name."""
        saved: dict[str, Tensor] = {}
        for name, part in self.parts.named():
            saved |= {f"{name}.state.{key}": value for key, value in part.state_dict().items()}
            saved |= {f"{name}.records.{key}": value for key, value in part.records().items()}
        for name, descent in self.descents():
            for index, state in descent.optimizer.state_dict()["state"].items():
                saved |= {f"{name}.{index}.{key}": value for key, value in state.items()}
        return saved

    def state(self) -> dict[str, Any]:
        """Counters, JSON-able."""
        counters = {"credit": self._credit, "refreshed": self._refreshed, "fitted": self._fitted}
        return copy.deepcopy({"clock": vars(self.clock), **counters})

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take back what `tensors` and `state` gave."""
        for name, part in self.parts.named():
            part.load_state_dict(below(tensors, f"{name}.state."))
            part.restore(below(tensors, f"{name}.records."))
        for name, descent in self.descents():
            saved: dict[int, dict[str, Tensor]] = {}
            for key, value in below(tensors, f"{name}.").items():
                index, field = key.split(".", 1)
                saved.setdefault(int(index), {})[field] = value
            groups = descent.optimizer.state_dict()["param_groups"]
            descent.optimizer.load_state_dict({"state": saved, "param_groups": groups})
        self.clock = Clock(**state["clock"])
        self._anneal()
        self._credit = state["credit"]
        self._refreshed, self._fitted = dict(state["refreshed"]), dict(state["fitted"])
