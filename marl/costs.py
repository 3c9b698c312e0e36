"""`python -m marl.costs env=jaxmarl -- algo=qmix -- algo=s2q algo.floor=1`: an update beside that of the first named.

usage: python -m marl.costs [key=value ...] -- algo=NAME [key=value ...] -- algo=NAME [key=value ...] ... [--help]

What stands before the first -- holds for all; settings are those of python -m marl.train. Every algorithm learns from
the same episodes, played once with random actions, and they take turns, so that a noisy machine disturbs all alike.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import algos
import envs
from marl import build, rates
from marl.command import cli
from marl.config import Settings
from marl.descent import NonFinite
from marl.fields import Mistake
from marl.learner import Learner
from marl.types import Record

TURNS = 40
"""Updates of each that are counted."""


class Named(NamedTuple):
    """A run, and what the command line says of it alone."""

    name: str
    settings: Settings


def episodes(settings: Settings) -> list[Record]:
    """A batch of them, played with random actions."""
    copies, records = settings.rollout.envs_per_worker, list[Record]()
    worker = build.MakeWorker(settings, copies)()
    try:
        play = rates.rollouts(worker, records)
        while len(records) < settings.learner.batch:
            play(len(records) // copies)
    finally:
        worker.close()
    return records


@contextmanager
def naming(run: Named) -> Iterator[None]:
    """Says whose loss, gradient or weight is not a number, as a `Mistake`."""
    try:
        yield
    except NonFinite as fault:
        raise Mistake(f"{run.name}: {fault}") from fault


def in_turn(runs: Sequence[Named], learners: Sequence[Learner], records: list[Record], turns: int) -> list[list[float]]:
    """Milliseconds of each update of each learner, as `marl.rates.milliseconds` counts them.

    Raises:
        Mistake: a loss, gradient or weight is not a number.
    """
    supplies = [cycle(records) for _ in runs]
    for run, learner, supply in zip(runs, learners, supplies, strict=True):
        with naming(run):
            rates.settle(learner, supply)
    spent: list[list[float]] = [[] for _ in learners]
    for _ in range(turns):
        for run, learner, supply, own in zip(runs, learners, supplies, spent, strict=True):
            with naming(run):
                own.append(rates.milliseconds(learner, supply, 1))
    return spent


def costs(runs: Sequence[Named], turns: int) -> Table:
    """One row for each run, by what it is called.

    Raises:
        Mistake: the runs are not of one world, whose episodes they could share, or cannot learn of them.
    """
    first = runs[0].settings
    if any(run.settings.env != first.env for run in runs):
        raise Mistake("env: updates are compared on the same episodes; name one world only")
    torch.set_num_threads(first.learner.threads)
    largest = max(run.settings.learner.batch for run in runs)
    records = episodes(replace(first, learner=replace(first.learner, batch=largest)))
    spec = build.spec(first)
    learners = [build.learner(settings, spec, build.device(settings)) for _, settings in runs]
    table = Table("update", "least, ms", "median, ms", "least, ratio", "median, ratio", box=None)
    table.title = f"{first.env.name}, {first.learner.batch} episodes, {learners[0].device}"
    spent = in_turn(runs, learners, records, turns)
    least, median = min(spent[0]), statistics.median(spent[0])
    for run, own in zip(runs, spent, strict=True):
        times = (min(own), statistics.median(own))
        ratios = (times[0] / least, times[1] / median)
        table.add_row(run.name, *(f"{ms:.1f}" for ms in times), *(f"{ratio:.2f}" for ratio in ratios))
    return table


def asked(argv: Sequence[str]) -> list[Named]:
    """The runs to compare.

    Raises:
        Mistake: they cannot be, or there are none to compare.
    """
    ends = [index for index, argument in enumerate(argv) if argument == "--"]
    if not ends:
        raise Mistake(f"{' '.join(argv)}: nothing to compare; write -- before each algo=NAME")
    common, groups = argv[: ends[0]], zip(ends, [*ends[1:], len(argv)], strict=True)
    told = [argv[begin + 1 : end] for begin, end in groups]
    return [Named(" ".join(own), cli.parse([*common, *own], algos.ALGORITHMS, envs.ENVIRONMENTS)) for own in told]


def main(argv: Sequence[str], turns: int = TURNS) -> int:
    """Print the table; the exit status."""
    if set(cli.HELP).intersection(argv):
        print(__doc__, end="")
        return 0
    try:
        Console().print(costs(asked(argv), turns))
    except Mistake as mistake:
        return cli.refuse(mistake)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
