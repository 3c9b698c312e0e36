"""What every kind of worker process has in common, and the worker that needs no process."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch

from marl.env import EnvUnavailable
from marl.types import Array
from marl.worker import Plan, Rollout, Worker

GRACE = 2.0
"""Seconds that a worker has to free its engines when it is told to end, or when the learner is gone."""
LIBRARIES = ("OMP_NUM", "MKL_NUM", "OPENBLAS_NUM", "NUMEXPR_NUM", "VECLIB_MAXIMUM")
THREADS = {f"{library}_THREADS": "1" for library in LIBRARIES}
"""One core per worker; libraries read these when they load, so they are set before a process starts."""


class Placed(NamedTuple):
    """There are cores for a worker, which is being made now."""


class Ready(NamedTuple):
    """A worker is made and waits for plans."""

    pid: int


class Fault(NamedTuple):
    """Why a worker is of no use any more."""

    what: str
    """Goes after "worker 3", in one line."""
    details: str = ""
    """Further lines, such as the worker's traceback."""
    raised: bool = False
    """The worker's own code did this: made again in the same way, it would do it again."""
    unavailable: str = ""
    """If the environment cannot run here at all: what it says of it."""


News = Placed | Ready | Rollout | Fault


class Event(NamedTuple):
    """What was heard of the worker at a seat."""

    seat: int
    news: News
    transfer: float = 0.0
    """Wall seconds spent on taking a rollout over into this process."""


class Weights(NamedTuple):
    """What workers act with; one version of it is laid where all of them can read it."""

    version: int
    packed: bytes


def pack(weights: Mapping[str, Array]) -> bytes:
    """A snapshot: later changes of the arrays do not reach it."""
    # safetensors writes an array's memory as it lies, so only C order is right.
    return safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in weights.items()})


def unpack(packed: bytes) -> dict[str, Array]:
    return safetensors.numpy.load(packed)


@contextmanager
def bounded_threads() -> Iterator[None]:
    """Processes started meanwhile find `THREADS` in their environment."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(THREADS)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


class Player:
    """A worker inside a process of its own. What it has to say it returns; nothing is raised."""

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled

    def here(self) -> Placed:
        """For those who wait until there is a process."""
        return Placed()

    def begin(self) -> Ready | Fault:
        """Make the worker. Ctrl-C goes to the whole terminal: what it means is the learner's to decide."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ.update(THREADS)
        torch.set_num_threads(1)
        try:
            self._worker: Worker = pickle.loads(self._pickled)()
        except Exception as error:
            return _fault(error)
        return Ready(os.getpid())

    def play(self, plan: Plan, packed: bytes | None) -> Rollout | Fault:
        """Play with these weights, or with the last ones."""
        try:
            if packed is not None:
                self._worker.load(unpack(packed))
            return self._worker.play(plan)
        except Exception as error:
            return _fault(error)

    def close(self) -> None:
        self._worker.close()


def _fault(error: Exception) -> Fault:
    name, line = type(error).__name__, str(error).partition("\n")[0]
    unavailable = str(error) if isinstance(error, EnvUnavailable) else ""
    return Fault(f"raised {name}: {line}", "".join(traceback.format_exception(error)), True, unavailable)


class Crew(ABC):
    """Workers of one kind, by seat."""

    queued = False
    """Workers wait for cores, for as long as it takes, and are `Placed` when they have some."""

    @abstractmethod
    def start(self, seat: int) -> None:
        """Begin to make a worker, and return: its first news, after `Placed`, is `Ready` or `Fault`."""

    @abstractmethod
    def give(self, seat: int, plan: Plan, weights: Weights | None) -> None:
        """A plan to play after those it holds; ``weights`` if they are others than it was told last."""

    @abstractmethod
    def stop(self, seat: int) -> None:
        """End a worker and its children at once, whatever they are doing; nothing more is heard of it."""

    @abstractmethod
    def wait(self, seconds: float | None) -> list[Event]:
        """What is to be heard, as soon as there is anything; nothing after ``seconds``, None waits for ever."""

    @abstractmethod
    def forget(self, version: int) -> None:
        """No plan will need this version again."""

    @abstractmethod
    def close(self) -> None:
        """End all; the workers, idle by now, free their engines first. Closing twice is allowed."""


class InlineCrew(Crew):
    """One worker in this process, for evaluation, tests and debuggers: it plays while others wait for it.

    What it raises is raised here; there is nothing to replace.
    """

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._make = make_worker
        self._worker: Worker | None = None
        self._events: deque[Event] = deque()
        self._plans: deque[tuple[Plan, Weights | None]] = deque()

    def start(self, seat: int) -> None:
        self._events.append(Event(seat, Ready(os.getpid())))

    def give(self, seat: int, plan: Plan, weights: Weights | None) -> None:
        self._plans.append((plan, weights))

    def stop(self, seat: int) -> None:
        self._plans.clear()

    def wait(self, seconds: float | None) -> list[Event]:
        if self._events:
            return [self._events.popleft()]
        if seconds == 0:
            return []
        rollout = self._play(*self._plans[0])
        self._plans.popleft()
        return [Event(0, rollout)]

    def _play(self, plan: Plan, weights: Weights | None) -> Rollout:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in every worker: how a sum is split decides its last bits
        try:
            if self._worker is None:
                self._worker = self._make()
            if weights is not None:
                self._worker.load(unpack(weights.packed))
            return self._worker.play(plan)
        finally:
            torch.set_num_threads(threads)

    def forget(self, version: int) -> None:
        """Nothing is laid anywhere."""

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
