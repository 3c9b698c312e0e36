"""Processes that wait for a core: so many at a time, asked to stop together, each with its run's folder to itself."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from marl.command.cli import REFUSED
from marl.fields import one_line

PATIENCE = 120.0
"""Seconds in which a process that was asked to stop may save."""
POLL = 0.05
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Stage = Callable[[], Sequence[str] | None]
"""What to start next, looked up when its turn comes; None: there is nothing to do."""


@dataclass(frozen=True)
class Job:
    """Commands that follow one another, and what is done after the last."""

    name: str
    group: str
    """Jobs that are refused together."""
    stages: tuple[Stage, ...]
    finish: Callable[[], str]
    """Called once all stages succeeded; what to tell of it."""
    log: Path
    """Where the processes write."""
    lock: Path


@dataclass(frozen=True)
class Ended:
    """How a job ended: ``done``, ``failed``, ``refused``, ``stopped``; ``elsewhere`` if another process has it."""

    job: Job
    how: str
    line: str
    seconds: float = 0.0


@dataclass
class Running:
    """A job with the process of its present stage."""

    job: Job
    lock: IO[str]
    log: IO[str]
    began: float
    left: list[Stage]
    process: subprocess.Popen[bytes] | None = None

    def advance(self) -> bool:
        """Start the next stage that has something to do; False after the last."""
        while self.left:
            command = self.left.pop(0)()
            if command is not None:
                # The lock goes with the process: it holds while that lives, also when this one is killed. A session of
                # its own keeps Ctrl-C from it, which would reach it twice.
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self.log,
                    stderr=subprocess.STDOUT,
                    env=surroundings(os.environ),
                    pass_fds=(self.lock.fileno(),),
                    start_new_session=True,
                )
                return True
        return False

    def close(self) -> None:
        self.log.close()
        self.lock.close()


def surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    """Of a process that keeps to one thread and finds this package."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths)}


@dataclass
class Pool:
    """Runs jobs, ``at_once`` at a time; the first Ctrl-C lets them save and end, the second one ends them at once."""

    at_once: int
    tell: Callable[[Ended], None]
    deadline: float = float("inf")
    """Seconds of `time.monotonic` at which all are asked to stop."""
    stops: int = 0
    """How often the user asked for the end."""
    stopping: bool = False
    _running: list[Running] = field(default_factory=list)

    def run(self, jobs: Sequence[Job]) -> list[Ended]:
        """How each of them ended. Those that never began are not among them."""
        waiting, ended, refused = list(jobs), list[Ended](), set[str]()
        with self._listening():
            try:
                while self._running or (waiting and not self.stopping):
                    while waiting and len(self._running) < self.at_once and not self.stopping:
                        job = waiting.pop(0)
                        if job.group not in refused:
                            ended += self._begin(job)
                    self._pass_on_stops()
                    for one in self._harvest():
                        ended.append(one)
                        if one.how == "refused":
                            refused.add(one.job.group)
                    time.sleep(POLL)
            finally:
                for running in self._running:
                    _end(running)
        return ended

    @contextmanager
    def _listening(self) -> Iterator[None]:
        def ask(number: int, frame: FrameType | None) -> None:
            self.stops += 1

        before = {number: signal.signal(number, ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _begin(self, job: Job) -> list[Ended]:
        job.lock.parent.mkdir(parents=True, exist_ok=True)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        lock = job.lock.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return [self._told(Ended(job, "elsewhere", "another process is at it"))]
        running = Running(job, lock, job.log.open("w"), time.monotonic(), list(job.stages))
        self._running.append(running)
        return self._proceed(running)

    def _proceed(self, running: Running) -> list[Ended]:
        """The next stage, or the end. What goes wrong with one job is told, and ends no other."""
        try:
            if running.advance():
                return []
            how, line = "done", running.job.finish()
        except Exception as error:
            how, line = "failed", one_line(error if isinstance(error, ValueError | OSError) else repr(error))
        self._running.remove(running)
        running.close()
        return [self._told(Ended(running.job, how, line, time.monotonic() - running.began))]

    def _pass_on_stops(self) -> None:
        late = time.monotonic() >= self.deadline
        if not self.stopping and (self.stops or late):
            self.stopping = True
            self.deadline = time.monotonic() + PATIENCE
            for running in self._running:
                assert running.process is not None
                running.process.terminate()
        elif self.stopping and (self.stops > 1 or late):
            for running in self._running:
                _end(running)

    def _harvest(self) -> list[Ended]:
        ended = []
        for running in list(self._running):
            assert running.process is not None
            status = running.process.poll()
            if status is None:
                continue
            if status == 0 and not (self.stopping and running.left):
                ended += self._proceed(running)
                continue
            self._running.remove(running)
            running.close()
            how = "stopped" if self.stopping else "refused" if status == REFUSED else "failed"
            line = last_line(running.job.log) or f"status {status}"
            ended.append(self._told(Ended(running.job, how, line, time.monotonic() - running.began)))
        return ended

    def _told(self, ended: Ended) -> Ended:
        self.tell(ended)
        return ended


def _end(running: Running) -> None:
    """At once, with all processes that it started."""
    assert running.process is not None
    if running.process.poll() is None:
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()


def last_line(file: Path) -> str:
    """What a process said in the end."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")
