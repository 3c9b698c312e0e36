"""What a team scores that plays at random: the figure below which nothing learned may end."""

from __future__ import annotations

from marl import build
from marl.config import Settings
from marl.dice import EVALUATE
from marl.evaluate import measure
from marl.reporting.statistics import Estimate
from marl.reporting.tally import summary
from marl.worker import Plan

STREAM = f"{EVALUATE}/chance"


def chance(settings: Settings, episodes: int) -> dict[str, Estimate]:
    """Return, length and, where the world says who won, success of uniform choice among available actions.

    Played by the chosen algorithm's own workers at epsilon 1, so that it meets the world that training meets.

    Raises:
        EnvUnavailable: the world cannot run here.
    """
    copies, rows = settings.rollout.envs_per_worker, list[dict[str, float]]()
    worker = build.MakeWorker(settings, copies)()
    try:
        for number, first in enumerate(range(0, episodes, copies)):
            size = min(copies, episodes - first)
            plan = Plan(number, STREAM, first, size, epsilon=1.0, interventions=False)
            rows += [summary(record) for record in worker.play(plan).records]
    finally:
        worker.close()
    return measure(rows)
