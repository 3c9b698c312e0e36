"""One training run: parts, fleet, the loop that moves data between them, and what is saved of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch

from marl import build, checkpoint
from marl.checkpoint import NoCheckpoint
from marl.command.runs import flat
from marl.config import Settings
from marl.dice import TRAIN
from marl.learner import Learner
from marl.reporting.log import Log
from marl.reporting.tally import Tally
from marl.schedule import Schedule, Stage
from marl.worker import Plan, Rollout

FILM_SPEED = 10
"""Frames per second of evaluation videos."""


class Stopped(Exception):
    """The run was asked to stop; everything is saved."""


class Run:
    """One training run in its folder."""

    def __init__(self, settings: Settings, learner: Learner, folder: Path) -> None:
        self.settings, self.learner, self.folder = settings, learner, folder
        self.schedule: Schedule = build.schedule(settings)
        self.tally = Tally()
        self.log = Log(folder, total_steps=settings.steps, terminal=settings.log.terminal)
        self.fleet = build.fleet(settings, self.log)
        self.version = self.stage = 0
        self.next_log, self.next_save = 0, settings.checkpoint.every_steps
        self.stop = False

    # the loop

    def play(self) -> None:
        """Train until ``steps`` environment steps are consumed, then evaluate once more.

        Raises:
            Stopped: a signal asked for the end; a checkpoint was written.
            NonFinite: a loss, gradient or weight is not a number; the batch was saved.
        """
        clock = self.learner.clock
        self.version = self.fleet.publish(self.learner.weights())
        while clock.steps < self.settings.steps:
            while self.fleet.in_flight < self.settings.rollout.inflight:
                self.fleet.submit(self.schedule.next(clock), self.version)
            self._consume(self._receive())
            if self.stop:
                self.log.note("stopping: a checkpoint is written; Ctrl-C once more ends at once")
                self.save()
                raise Stopped
        self.save()
        self._finish()

    def _receive(self) -> Rollout:
        began = time.perf_counter()
        rollout = self.fleet.receive()
        self.tally.spent({"waiting": time.perf_counter() - began, **rollout.seconds})
        return rollout

    def _consume(self, rollout: Rollout) -> None:
        if rollout.plan.purpose != TRAIN:
            self._tell_evaluation(rollout)
            return
        began = time.perf_counter()
        learns = self._enter(self.schedule.stage(rollout.plan.asked_at)).updates
        self.tally.played(rollout)
        for record in rollout.records:
            self.learner.absorb(record, earns=learns)
            if learns:
                self.tally.improved(self.learner.improve())
        self.version = self.fleet.publish(self.learner.weights())
        self.tally.spent({"learner": time.perf_counter() - began})
        steps = self.learner.clock.steps
        if steps >= self.next_log:
            self.next_log = _after(steps, self.settings.log.every_steps)
            self._tell()
        if steps >= self.next_save:
            self.next_save = _after(steps, self.settings.checkpoint.every_steps)
            self.save()

    def _enter(self, index: int) -> Stage:
        """The phase that an episode was asked for in; what was under way when a phase ended still belongs to it."""
        entered = self.schedule.stages[self.stage + 1 : index + 1]
        if any(stage.fresh_replay for stage in entered):
            self.learner.forget()
        self.stage = max(self.stage, index)
        return self.schedule.stages[index]

    def _finish(self) -> None:
        """The last evaluation; training episodes that are still under way are not used."""
        for plan in self.schedule.last(self.learner.clock):
            self.fleet.submit(plan, self.version)
        while self.fleet.in_flight:
            rollout = self.fleet.receive()
            if self.stop:  # all but this evaluation is saved
                raise Stopped
            if rollout.plan.purpose != TRAIN:
                self._tell_evaluation(rollout)
        if not self.tally.empty:
            self._tell()
        self._warn_of_nothing_learned()

    def _warn_of_nothing_learned(self) -> None:
        clock, learning = self.learner.clock, self.settings.learner
        if clock.updates == 0 and any(stage.updates for stage in self.schedule.stages):
            waits = ("burn_in", "batch", "every_episodes", "updates_per_episode")
            told = ", ".join(f"learner.{name}={getattr(learning, name)}" for name in waits)
            self.log.warn(f"no update was made: {clock.episodes} episodes came, too few for {told}")

    def _tell_evaluation(self, rollout: Rollout) -> None:
        told = self.tally.evaluated(rollout, self.settings.eval.episodes)
        if rollout.frames is not None:
            self.log.video("eval/episode", rollout.frames, rollout.plan.asked_at, FILM_SPEED)
        if told:
            self.log.scalars(told, rollout.plan.asked_at)

    def _tell(self) -> None:
        """What training has gathered since the last time."""
        told = self.tally.tell(self.settings.rollout.workers)
        self.log.scalars(told | self._standing(), self.learner.clock.steps)

    def _standing(self) -> dict[str, float]:
        """Where the run is."""
        clock, replay = self.learner.clock, self.learner.replay
        return {
            "schedule/epsilon": self.schedule.epsilon_at(clock.steps),
            "schedule/phase": float(self.schedule.stage(clock.steps)),
            "schedule/learning_rate": self.learner.parts.q.descents()[0].rate,
            "replay/episodes": float(len(replay)),
            "replay/fill": len(replay) / replay.capacity,
            "updates/total": float(clock.updates),
            "updates/per_episode": clock.updates / max(clock.episodes, 1),
            "workers/restarts": float(self.fleet.restarts),
        }

    # saving

    def save(self) -> None:
        """A checkpoint of everything, the plans under way and the weights they were given included."""
        self._draw()
        asked = self.fleet.outstanding()
        weights = {
            f"{version}.{name}": torch.from_numpy(array)
            for version in {version for _, version in asked}
            for name, array in self.fleet.weights_of(version).items()
        }
        tensors = {
            "learner": self.learner.tensors,
            "outstanding": lambda: weights,
            **self.learner.replay.state(),
        }
        state = {
            "learner": self.learner.state(),
            "schedule": self.schedule.state(),
            "tally": self.tally.state(),
            "log": self.log.state(),
            "outstanding": [[asdict(plan), version] for plan, version in asked],
            "stage": self.stage,
            "next_log": self.next_log,
            "next_save": self.next_save,
        }
        saved = checkpoint.Checkpoint(self.learner.clock.steps, tensors, state)
        checkpoint.save(self.folder / "checkpoints", saved, self.settings.checkpoint.keep)

    def _draw(self) -> None:
        for _, part in self.learner.parts.named():
            for tag, bars in part.figures().items():
                self.log.bars(tag, bars, self.learner.clock.steps)

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole; a run that ended before its first one starts again.

        Raises:
            NoCheckpoint: all of them are damaged or gone, or of other settings.
        """
        checkpoints = self.folder / "checkpoints"
        if not checkpoint.saved(checkpoints):
            # A first one that was cut short leaves its trace.
            if checkpoints.exists() and not any(checkpoints.iterdir()):
                raise NoCheckpoint(f"{checkpoints} is empty; from={self.folder} starts a new run with these settings")
            self.log.rewind({})
            self.log.warn(f"{self.folder} has no checkpoint yet: it starts from the beginning")
            self.begin()
            return
        saved = checkpoint.load_latest(checkpoints, self.log.warn)
        with checkpoint.fitting(self.folder):
            self.learner.restore(saved.tensors["learner"](), saved.state["learner"])
            self.learner.replay.restore(saved.tensors)
        self.schedule.restore(saved.state["schedule"])
        self.tally.restore(saved.state["tally"])
        self.log.rewind(saved.state["log"])
        self.stage = saved.state["stage"]
        self.next_log, self.next_save = saved.state["next_log"], saved.state["next_save"]
        outstanding, given = saved.tensors["outstanding"](), dict[int, int]()
        for plan, version in saved.state["outstanding"]:
            if version not in given:
                kept = checkpoint.below(outstanding, f"{version}.")
                weights = {name: tensor.numpy() for name, tensor in kept.items()}
                given[version] = self.fleet.publish(weights)
            self.fleet.submit(Plan(**{**plan, "seats": tuple(plan["seats"])}), given[version])

    def begin(self) -> None:
        """What is told once, at the start."""
        self.log.hyperparameters(flat(self.settings))
        replay = self.learner.replay
        room = f"{replay.bytes / 2**20:,.0f} MiB for {replay.capacity} episodes on {self.learner.device}"
        self.log.note(f"{self.folder}: replay of {room}")

    def close(self) -> None:
        self.fleet.close()
        self.log.close()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the run after the rollout at hand; the second one ends it at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _after(steps: int, every: int) -> int:
    """The next multiple of ``every`` beyond ``steps``."""
    return (steps // every + 1) * every
