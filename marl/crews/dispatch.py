"""Publish weights, submit plans, receive rollouts; notice workers that are lost, and replace them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from marl.crews.crew import Crew, Event, Fault, Placed, Ready, Weights, pack, unpack
from marl.crews.ledger import Ledger, Seat
from marl.env import EnvUnavailable
from marl.types import Array
from marl.worker import Plan, Rollout

START_LIMIT = 300.0
"""Seconds until a worker must be made: importing torch takes half a minute on a loaded machine."""
ATTEMPTS = 3
"""Workers that one plan, or one seat's start, may cost in a row: what fails so often is no accident."""


class WorkerError(RuntimeError):
    """A worker fails in a way that another worker will not cure; the message ends with its traceback, if it has one."""


class Fleet:
    """Workers, and the plans on their way.

    Losing a worker (killed, crashed, hanging longer than ``timeout``) loses nothing else: another one takes its seat
    and its plans are given out again, with the same numbers and the same weights.
    """

    def __init__(self, crew: Crew, workers: int, *, ordered: bool, timeout: float, warn: Callable[[str], None]) -> None:
        self.restarts = 0
        """Workers that had to be replaced."""
        self._crew, self._timeout, self._warn = crew, timeout, warn
        self._ledger = Ledger(workers, ordered=ordered)
        self._packed: dict[int, bytes] = {}
        self._version = 0
        self._started = False

    def publish(self, weights: Mapping[str, Array]) -> int:
        """Keep a snapshot of ``weights`` (the names of `Parts.travelling`) and name it by a version.

        It is kept as long as it is the newest or a plan that was not received needs it.
        """
        self._version += 1
        self._packed[self._version] = pack(weights)
        self._forget()
        return self._version

    def submit(self, plan: Plan, version: int) -> None:
        """Ask for a plan, to be played with the weights of ``version``; returns at once.

        Raises:
            KeyError: no such version is kept.
        """
        if version not in self._packed:
            raise KeyError(f"weights of version {version} are not kept: kept are {sorted(self._packed)}")
        if not self._started:
            self._started = True
            for seat in self._ledger.seats:
                self._start(seat)
        self._ledger.submit(plan, version)
        self._attend(0.0)

    def receive(self) -> Rollout:
        """Wait for a rollout, of training or evaluation: the oldest plan's if ``ordered``, else the first to arrive.

        ``seconds["transfer"]`` tells what bringing it into this process took.

        Raises:
            EnvUnavailable: the environment cannot run where a worker is.
            WorkerError: a worker cannot be made, or one plan has cost three of them.
            RuntimeError: nothing is in flight.
        """
        if not self.in_flight:
            raise RuntimeError("nothing to receive: no plan is in flight")
        while (rollout := self._ledger.take()) is None:
            self._attend(self._patience())
        self._forget()
        return rollout

    @property
    def in_flight(self) -> int:
        """Plans submitted and not yet received."""
        return len(self._ledger)

    def outstanding(self) -> list[tuple[Plan, int]]:
        """Plans in flight, oldest first, with the versions of their weights: what a checkpoint has to ask for again."""
        return self._ledger.outstanding()

    def weights_of(self, version: int) -> dict[str, Array]:
        """A copy of what was published under ``version``."""
        return unpack(self._packed[version])

    def close(self) -> None:
        """End every worker; those without a plan in hand free their engines first. Closing twice is allowed."""
        for seat in self._ledger.seats:
            if seat.held or not seat.ready:
                self._crew.stop(seat.number)
        self._crew.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _attend(self, seconds: float | None) -> None:
        """Hear what there is to hear within ``seconds``, replace whoever is lost, hand out plans."""
        for event in self._crew.wait(seconds):
            self._heed(self._ledger.seats[event.seat], event)
        for seat in self._ledger.seats:
            if time.monotonic() > self._deadline(seat):
                self._replace(seat, Fault(self._overdue(seat)))
        for seat, order in self._ledger.deal(time.monotonic()):
            fresh = order.version != seat.version
            weights = Weights(order.version, self._packed[order.version]) if fresh else None
            seat.version = order.version
            self._crew.give(seat.number, order.plan, weights)

    def _heed(self, seat: Seat, event: Event) -> None:
        match event.news:
            case Placed():
                seat.placed, seat.since = True, time.monotonic()
            case Ready():
                seat.ready, seat.failed_starts = True, 0
            case Rollout() as rollout:
                seconds = {**rollout.seconds, "transfer": event.transfer}
                self._ledger.finish(seat, rollout._replace(seconds=seconds), time.monotonic())
            case Fault() as fault:
                self._replace(seat, fault)

    def _replace(self, seat: Seat, fault: Fault) -> None:
        if fault.unavailable:
            raise EnvUnavailable(fault.unavailable)
        doing = self._blame(seat, fault)
        self._crew.stop(seat.number)
        self._ledger.vacate(seat, time.monotonic())
        self._start(seat)
        self.restarts += 1
        self._warn(f"worker {seat.number} {fault.what} while {doing}: it was replaced, nothing is lost")

    def _blame(self, seat: Seat, fault: Fault) -> str:
        """What the worker was doing; the end of the fleet if that is hopeless."""
        doing, losses = "waiting", 0
        if not seat.ready:
            doing, losses = "starting", ATTEMPTS if fault.raised else seat.failed_starts + 1
            seat.failed_starts = losses
        elif seat.held:
            order = seat.held[0]
            order.faults += 1
            doing, losses = f"playing plan {order.plan.number}", order.faults
        if losses == ATTEMPTS:
            often = "" if fault.raised and not seat.ready else f", like {ATTEMPTS - 1} workers before it"
            details = f"\n\n{fault.details}" if fault.details else ""
            raise WorkerError(f"worker {seat.number} {fault.what} while {doing}{often}{details}")
        return doing

    def _start(self, seat: Seat) -> None:
        seat.placed, seat.since = not self._crew.queued, time.monotonic()
        self._crew.start(seat.number)

    def _deadline(self, seat: Seat) -> float:
        if not seat.placed:
            return math.inf
        if not seat.ready:
            return seat.since + START_LIMIT
        return seat.since + self._timeout if seat.held else math.inf

    def _patience(self) -> float | None:
        first = min(self._deadline(seat) for seat in self._ledger.seats)
        return None if first == math.inf else max(0.0, first - time.monotonic())

    def _overdue(self, seat: Seat) -> str:
        if seat.ready:
            return f"took longer than rollout.timeout={self._timeout:g} s"
        return f"took longer than {START_LIMIT:g} s"

    def _forget(self) -> None:
        for version in self._packed.keys() - self._ledger.versions() - {self._version}:
            del self._packed[version]
            self._crew.forget(version)
