"""What a trained team does with the food it leaves: `python -m scripts.left_food RUN [episodes]`.

For `env=lbf` with full sight. RUN is the folder of a run; the saved policy plays greedily, as in evaluation.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import algos
import envs
from marl.command import cli
from marl.evaluate import Request, play, saved_weights
from marl.types import Array, Record

EPISODES, LAST = 256, 10
"""Episodes; steps at an episode's end of which actions are counted."""
ACTIONS = ("none", "north", "south", "west", "east", "load")


def foods(view: Array, agents: int) -> Array:
    """(F, 2) places of the food that one agent's observation (O,) shows."""
    listed = view[: len(view) - 3 * agents].reshape(-1, 3)
    return listed[listed[:, 2] > 0, :2]


def taken_first(record: Record) -> str:
    """Whether the first food that was taken was the upper one, the lower one, or one between."""
    agents = record["obs"].shape[1]
    there = foods(record["obs"][0, 0], agents).tolist()
    for view in record["obs"][:, 0]:
        left = foods(view, agents).tolist()
        if len(left) < len(there):
            place = next(index for index, food in enumerate(there) if food not in left)
            return "upper" if place == 0 else "lower" if place == len(there) - 1 else "between"
    return "none"


def distances(record: Record) -> list[float]:
    """Of each agent to the nearest food that was left, in steps."""
    last = record["obs"][-1]
    left, own = foods(last[0], len(last)), last[:, -3 * len(last) :][:, :2]
    return np.abs(own[:, None] - left).sum(-1).min(1).tolist() if len(left) else []


def main(folder: str, episodes: int = EPISODES) -> None:
    settings, path = cli.load(folder, algos.ALGORITHMS, envs.ENVIRONMENTS)
    if settings.env.name != "lbf" or "2s-" in settings.env.id:
        sys.exit(f"{folder}: no run on env=lbf with full sight")
    weights, step = saved_weights(settings, path, print)
    rollouts = play(settings, Request(folder, episodes=episodes), weights, step, print)
    records = [record for rollout in rollouts for record in rollout.records]
    unfinished = [record for record in records if distances(record)]
    table = Table("what", "how often", box=None, title=f"{path} at step {step:,}, {episodes} greedy episodes")
    for food, count in sorted(Counter(map(taken_first, records)).items()):
        table.add_row(f"first food: {food}", f"{count / episodes:.2f}")
    table.add_row("food is left", f"{len(unfinished) / episodes:.2f}")
    if unfinished:
        away = [distance for record in unfinished for distance in distances(record)]
        table.add_row("  mean steps to it, at the end", f"{np.mean(away):.1f}")
        acts = np.concatenate([record["actions"][-LAST:].ravel() for record in unfinished])
        for name, share in zip(ACTIONS, np.bincount(acts, minlength=len(ACTIONS)) / len(acts), strict=True):
            table.add_row(f"  {name}, in the last {LAST} steps", f"{share:.2f}")
    Console().print(table)


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3 or not Path(sys.argv[1]).is_dir() or not all(map(str.isdecimal, sys.argv[2:])):
        sys.exit(str(__doc__))
    main(sys.argv[1], *map(int, sys.argv[2:]))
