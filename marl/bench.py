"""`python -m marl.bench env=grf algo=fox`: what is achieved beside what is possible on these cores.

The raw simulator, rollouts with the policy in the loop and updates are measured alone, each in CPU seconds; then a
training run of a minute or less stands beside the bound that they give. docs/performance.md has measured ones.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import algos
import envs
from marl import build
from marl.command import cli
from marl.config import Settings
from marl.rates import playing, trained, updates

PLAY_SECONDS = 8.0
"""CPU seconds of the simulator alone, and as many with the policy in the loop."""
TRAIN_SECONDS = 25
"""Wall seconds of training, were it as fast as the bound."""
UPDATES = 6


def settled(settings: Settings) -> float:
    """Episodes after which a run has made updates for some lines of its log."""
    learner, rollout = settings.learner, settings.rollout
    pace = max(1 / learner.updates_per_episode, learner.every_episodes, rollout.workers * rollout.envs_per_worker)
    return max(learner.batch, learner.burn_in) + 4 * pace


def bench(settings: Settings) -> int:
    """Measure one setting and print the table."""
    cores = len(os.sched_getaffinity(0))
    raw, played, records = playing(settings, PLAY_SECONDS)
    torch.set_num_threads(settings.learner.threads)
    learner = build.learner(settings, build.spec(settings), build.device(settings))
    update = updates(learner, records, UPDATES)
    steps = float(np.mean([len(record["reward"]) for record in records]))
    learning = settings.learner.updates_per_episode * update.total / 1e3 / steps
    together = 1 / (1 / played.per_second + learning)
    bound = min(cores * together, 1 / learning)
    run = trained(settings, int(settled(settings) * steps + TRAIN_SECONDS * bound))
    episode_bytes = np.mean([sum(array.nbytes for array in record.values()) for record in records])
    table = Table(title=f"{settings.algo.name} on {settings.env.name}, {cores} cores, {learner.device}", box=None)
    table.add_column("measured")
    table.add_column("value", justify="right")
    table.add_column("of what is possible", justify="right")
    rows = [
        ("raw simulator, steps per CPU second", f"{raw.per_second:,.0f}", ""),
        ("rollouts, steps per CPU second", f"{played.per_second:,.0f}", f"{played.per_second / raw.per_second:.2f}"),
        ("learner, ms per update", f"{update.total:.1f}", ""),
        *((f"  {name}", f"{value:.1f}", f"{value / update.total:.2f}") for name, value in update.parts.items()),
        (f"learner, updates per {update.clock} second", f"{1e3 / update.total:.1f}", ""),
        ("  cores of rollouts that keep it busy", f"{1 / (learning * played.per_second):.1f}", ""),
        (f"rollouts and learner in turn, steps per {update.clock} second", f"{together:,.0f}", ""),
        ("  share of rollouts", "", f"{together / played.per_second:.2f}"),
        ("  share of the learner", "", f"{together * learning:.2f}"),
        ("training, steps per CPU second of its process", f"{run.per_cpu_second:,.0f}", ""),
        ("training, updates per CPU second of its process", f"{run.updates_per_cpu_second:,.1f}", ""),
        ("training, steps per wall second", f"{run.per_wall_second:,.0f}", f"{run.per_wall_second / bound:.2f}"),
        ("  the bound of rollouts and learner", f"{bound:,.0f}", ""),
        ("mean episode, steps", f"{steps:.1f}", ""),
        ("moved per episode, bytes", f"{episode_bytes:,.0f}", ""),
        ("moved per version of the weights, bytes", f"{sum(a.nbytes for a in learner.weights().values()):,}", ""),
        ("replay, MiB", f"{learner.replay.bytes / 2**20:,.0f}", ""),
        ("peak memory of the learner's process, MiB", f"{run.megabytes:,.0f}", ""),
    ]
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(bench, sys.argv[1:], algos.ALGORITHMS, envs.ENVIRONMENTS, "python -m marl.bench", str(__doc__)))
