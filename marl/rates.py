"""Rates of a simulator, of rollouts, of updates and of training: what the commands that measure have in common."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from marl import build
from marl.config import Settings
from marl.dice import EXPLORATION, TRAIN, Dice
from marl.env import BatchedEnv
from marl.fields import Mistake
from marl.learner import Learner
from marl.ops import random_available
from marl.run import Run
from marl.sections import awaiting, catch_up
from marl.types import Record
from marl.worker import Plan, Worker

SECTIONS = ("annotate", "sample", "bonuses", "unroll", "targets", "backward", "optimiser", "fit")
"""Named in the code by `marl.sections.section`."""


class Rate(NamedTuple):
    steps: int
    seconds: float
    """CPU seconds of this process."""

    @property
    def per_second(self) -> float:
        return self.steps / self.seconds


def raw_simulator(settings: Settings, env: BatchedEnv) -> Callable[[int], int]:
    """Plays a numbered round with random available actions: no policy, nothing recorded. Returns its steps."""

    def play(number: int) -> int:
        dice = Dice(settings.seed, TRAIN, range(number * env.size, (number + 1) * env.size))
        moments, live, steps = env.reset(dice.seeds()), np.ones(env.size, np.bool_), 0
        while live.any():
            uniform = torch.from_numpy(dice.uniform(EXPLORATION, (env.spec.n_agents, 2)))
            actions = random_available(torch.from_numpy(moments.avail), uniform[..., 1]).numpy()
            moments = env.step(actions, live)
            steps += int(live.sum())
            live &= ~(moments.terminal | moments.truncated)
        return steps

    return play


def rollouts(worker: Worker, records: list[Record]) -> Callable[[int], int]:
    """Plays the same round with the policy in the loop; exploration overrules it, so that behaviour is the same."""

    def play(number: int) -> int:
        size = worker.env.size
        rollout = worker.play(Plan(number, TRAIN, number * size, size, epsilon=1.0))
        records.extend(rollout.records)
        return sum(len(record["reward"]) for record in rollout.records)

    return play


def interleaved(works: Sequence[Callable[[int], int]], seconds: float) -> list[Rate]:
    """Rates of works that do the same numbered rounds in turn, so that a noisy machine disturbs all alike.

    The first round is not counted.
    """
    for work in works:
        work(0)
    steps, spent, rounds = [0] * len(works), [0.0] * len(works), 0
    while sum(spent) < seconds * len(works):
        rounds += 1
        for index, work in enumerate(works):
            began = time.process_time()
            steps[index] += work(rounds)
            spent[index] += time.process_time() - began
    return [Rate(*pair) for pair in zip(steps, spent, strict=True)]


def playing(settings: Settings, seconds: float) -> tuple[Rate, Rate, list[Record]]:
    """Raw simulator and rollouts, and the episodes that were played."""
    copies, records = settings.rollout.envs_per_worker, list[Record]()
    torch.set_num_threads(1)  # as workers play
    worker, env = build.MakeWorker(settings, copies)(), build.environment(settings, copies)
    try:
        raw, played = interleaved([raw_simulator(settings, env), rollouts(worker, records)], seconds)
    finally:
        worker.close()
        env.close()
    return raw, played, records


class Update(NamedTuple):
    """Milliseconds of one update and its parts."""

    total: float
    parts: dict[str, float]
    clock: str
    """Whose: of the ``CPU``; on a GPU, or with several threads, of the clock on the ``wall``."""


def settle(learner: Learner, supply: Iterator[Record]) -> None:
    """Bring a new learner to where nothing waits: some bonuses pay by delayed copies of what was fitted twice."""
    needed = max(learner.learning.batch, learner.learning.burn_in)
    _take_in(learner, supply, needed)
    learner.update()
    learner.update()
    _take_in(learner, supply, max(part.delay.every_episodes for _, part in learner.parts.named()))
    learner.update()
    learner.improve()


def _take_in(learner: Learner, supply: Iterator[Record], count: int) -> None:
    for record in islice(supply, count):
        learner.absorb(record, earns=False)


def updates(learner: Learner, records: Sequence[Record], count: int) -> Update:
    """Mean over ``count`` updates or more, parts by the profiler's labels in a second pass.

    So many that each part with a cadence of its own has its share, on a replay that these episodes fill in turn.
    """
    supply = cycle(records)
    settle(learner, supply)
    slowest = max(part.cadence.every_episodes for _, part in learner.parts.named())
    count = max(count, round(slowest * learner.learning.updates_per_episode))
    total = milliseconds(learner, supply, count)
    with awaiting(learner.device), profile(activities=[ProfilerActivity.CPU]) as recorded:
        began = time.perf_counter()  # the profiler's own clock
        milliseconds(learner, supply, count)
        profiled = (time.perf_counter() - began) * 1e6
    sections = [event for event in recorded.events() or [] if event.name in SECTIONS and not _within(event)]
    spent = {name: sum(event.cpu_time_total for event in sections if event.name == name) for name in SECTIONS}
    return Update(total, {name: total * part / profiled for name, part in spent.items() if part}, _clock(learner))


def _within(event: FunctionEvent) -> bool:
    """Whether a section lies in another: a bonus that fits its model goes backward there."""
    parent = event.cpu_parent
    return parent is not None and (parent.name in SECTIONS or _within(parent))


def _clock(learner: Learner) -> str:
    return "CPU" if learner.device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def milliseconds(learner: Learner, supply: Iterator[Record], count: int) -> float:
    """Of an update and all that comes with it: episodes are taken in as often as the ratio of updates says."""
    clock = time.process_time if _clock(learner) == "CPU" else time.perf_counter
    catch_up(learner.device)
    began, first = clock(), learner.clock.updates
    while learner.clock.updates < first + count:
        learner.absorb(next(supply))
        learner.improve()
    catch_up(learner.device)
    return (clock() - began) * 1e3 / (learner.clock.updates - first)


class Mark(NamedTuple):
    """How far a training run has come at one line of its log."""

    steps: int
    updates: int
    wall: float
    cpu: float
    """Seconds of the training process."""


class Watched(Run):
    """A training run that notes where it is whenever it tells something."""

    marks: list[Mark]

    def _tell(self) -> None:
        super()._tell()
        clock = self.learner.clock
        self.marks.append(Mark(clock.steps, clock.updates, time.perf_counter(), time.process_time()))


class Trained(NamedTuple):
    """What training achieved from its first updates to its end."""

    per_wall_second: float
    per_cpu_second: float
    """Steps by CPU seconds of the training process, which is all there is with ``rollout.backend=inline``."""
    updates_per_cpu_second: float
    megabytes: float
    """Of the training process at its peak."""


def end_to_end(settings: Settings) -> Trained:
    """Train in this process; to be called in a fresh one, whose memory holds nothing else.

    Raises:
        Mistake: fewer than two lines of its log come after its first update.
    """
    torch.set_num_threads(settings.learner.threads)
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        learner = build.learner(settings, build.spec(settings), build.device(settings))
        run = Watched(settings, learner, Path(folder))
        run.marks = []
        try:
            run.play()
        finally:
            run.close()
    marks = [mark for mark in run.marks if mark.updates]
    if len(marks) < 2:
        raise Mistake(f"steps={settings.steps}: a run that ends before it makes updates cannot be measured")
    first, last = marks[0], marks[-1]
    steps, cpu = last.steps - first.steps, last.cpu - first.cpu
    return Trained(
        steps / (last.wall - first.wall), steps / cpu, (last.updates - first.updates) / cpu, _peak_megabytes()
    )


def _peak_megabytes() -> float:
    """Resident memory at its peak. Linux counts the parent's in a child's ``ru_maxrss``, so its own line is read."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trained(settings: Settings, length: int) -> Trained:
    """What a run of ``length`` steps at random achieves that neither evaluates nor saves nor waits in any phase."""
    run = replace(
        settings,
        steps=length,
        phases=[],
        rollout=replace(settings.rollout, epsilon_start=1.0, epsilon_finish=1.0),
        eval=replace(settings.eval, every_steps=0),
        log=replace(settings.log, every_steps=max(200, length // 25), terminal=False, video_every_steps=0),
        checkpoint=replace(settings.checkpoint, every_steps=10**12),
    )
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(end_to_end, run).result()
