"""What happened since the last line of the log: episodes, updates, seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from marl.parts import Stats
from marl.reporting.statistics import standard_error
from marl.types import Record
from marl.worker import Rollout


def summary(record: Record) -> dict[str, float]:
    """What is told of one episode: return, length, success where it says whether it was won, and its other numbers."""
    told = {"return": float(record["reward"].sum(dtype="float64")), "length": float(len(record["reward"]))}
    for name, value in record.items():
        if value.ndim == 0:
            told["success" if name == "won" else name] = float(value)
    return told


def means(rows: Sequence[Mapping[str, float]], *, errors: tuple[str, ...] = ()) -> dict[str, float]:
    """Mean of every key over the rows that have it; for ``errors`` also its standard error as ``<key>_se``."""
    gathered: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            gathered.setdefault(key, []).append(value)
    told = {key: fmean(values) for key, values in gathered.items()}
    told |= {f"{key}_se": standard_error(gathered[key]) for key in errors if len(gathered.get(key, ())) > 1}
    return told


class Tally:
    """Gathers until it is told; what was gathered is saved with a run, so that its log has no seam."""

    def __init__(self) -> None:
        self._episodes: list[dict[str, float]] = []
        self._updates: list[Stats] = []
        self._evaluations: dict[str, list[dict[str, float]]] = {}
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    @property
    def empty(self) -> bool:
        """Whether no training episode came in since the last time."""
        return not self._episodes

    def played(self, rollout: Rollout) -> None:
        """Training episodes came in."""
        self._episodes += [summary(record) for record in rollout.records]

    def improved(self, stats: Sequence[Stats]) -> None:
        self._updates += stats

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Wall seconds by what they were spent on."""
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value

    def evaluated(self, rollout: Rollout, episodes: int) -> dict[str, float] | None:
        """Evaluation episodes came in; once all ``episodes`` of one evaluation have, what is told of them."""
        rows = self._evaluations.setdefault(str(rollout.plan.asked_at), [])
        rows += [summary(record) for record in rollout.records]
        if len(rows) < episodes:
            return None
        del self._evaluations[str(rollout.plan.asked_at)]
        told = means(rows, errors=("return", "success"))
        return {f"eval/{key}": value for key, value in told.items()} | {"eval/episodes": float(len(rows))}

    def tell(self, workers: int) -> dict[str, float]:
        """Everything gathered, which is then forgotten."""
        elapsed = max(self._elapsed(), 1e-9)
        steps = sum(row["length"] for row in self._episodes)
        told = {f"train/{key}": value for key, value in means(self._episodes).items()}
        told["train/episodes"] = float(len(self._episodes))
        told |= means([{name: float(value) for name, value in stats.items()} for stats in self._updates])
        for name, value in self._seconds.items():
            told[f"time/{name}"] = value / elapsed / (workers if name in ("simulator", "policy") else 1)
        told["throughput/steps_per_second"] = steps / elapsed
        told["throughput/updates_per_second"] = len(self._updates) / elapsed
        self._episodes, self._updates, self._seconds = [], [], {}
        self._since = time.perf_counter()
        return told

    def _elapsed(self) -> float:
        """Wall seconds since the last time, without those in which a resumed run lay still."""
        return time.perf_counter() - self._since

    def state(self) -> dict[str, Any]:
        """JSON-able; floats survive exactly."""
        updates = [{name: float(value) for name, value in stats.items()} for stats in self._updates]
        return {
            "episodes": self._episodes,
            "updates": updates,
            "evaluations": self._evaluations,
            "seconds": self._seconds,
            "elapsed": self._elapsed(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._episodes, self._updates = list(state["episodes"]), list(state["updates"])
        self._evaluations = {asked: list(rows) for asked, rows in state["evaluations"].items()}
        self._seconds = dict(state["seconds"])
        self._since = time.perf_counter() - state["elapsed"]
