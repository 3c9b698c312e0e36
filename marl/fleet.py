"""Publish weights, submit plans, receive rollouts: one bookkeeping over workers here, in processes, or on Ray.

RLlib's `FaultTolerantActorManager` does not serve. Its bookkeeping ends at the request: it drops those of a lost actor
and leaves it to Ray and to the caller to make another one and to ask again, never notices one that hangs, and knows
Ray's actors only, so local processes would need a second bookkeeping for the same promises. Importing it takes the
learner 3 s and 150 MB (Ray 2.60, measured after torch and Ray), which is more than `marl.ledger` and this file cost.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from marl.crew import GRACE, Crew, Event, Fault, InlineCrew, Player, Ready, Weights, bounded_threads, pack, unpack
from marl.env import EnvUnavailable
from marl.ledger import Ledger, Order, Seat
from marl.processes import LocalCrew
from marl.types import Array
from marl.worker import Plan, Rollout, Worker

START_LIMIT = 300.0
"""Seconds until a worker must be made: importing torch takes half a minute on a loaded machine."""
ATTEMPTS = 3
"""Workers that one plan, or one seat's start, may cost in a row: what fails so often is no accident."""
LOOPBACK = "127.0.0.1"


class WorkerError(RuntimeError):
    """A worker fails in a way that another worker will not cure; the message ends with its traceback, if it has one."""


class Fleet:
    """Workers, and the plans on their way.

    Losing a worker (killed, crashed, hanging longer than ``timeout``) loses nothing else: another one takes its seat
    and its plans are given out again, with the same numbers and the same weights.
    """

    def __init__(
        self, crew: Crew, workers: int, *, ordered: bool, timeout: float, warn: Callable[[str], None]
    ) -> None:
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
        """Wait for a rollout: the oldest plan's if ``ordered``, else the first to arrive. Evaluation and training alike.

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
        """What the worker was doing; the end, if too many have failed at it."""
        if not seat.ready:
            doing, seat.failed_starts = "starting", seat.failed_starts + 1
            last = seat.failed_starts == ATTEMPTS or bool(fault.traceback)
        elif seat.held:
            order: Order = seat.held[0]
            doing, order.faults = f"playing plan {order.plan.number}", order.faults + 1
            last = order.faults == ATTEMPTS
        else:
            doing, last = "idle", False
        if last:
            after = "" if fault.traceback and not seat.ready else f", the {ATTEMPTS}rd worker in a row"
            told = f"\n\n{fault.traceback}" if fault.traceback else ""
            raise WorkerError(f"worker {seat.number} {fault.what} while {doing}{after}{told}")
        return doing

    def _start(self, seat: Seat) -> None:
        seat.since = time.monotonic()
        self._crew.start(seat.number)

    def _deadline(self, seat: Seat) -> float:
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


class RayCrew(Crew):
    """An actor per worker, wherever Ray finds ``cpus_per_worker`` cores; GPUs are left to the learner.

    With ``address`` it joins that cluster. Without, and if this process has not started Ray already, it starts Ray on
    this machine, reachable from this machine alone, and ends it with `close`. Ray is imported and reached with the
    first `start`.
    """

    def __init__(
        self,
        make_worker: Callable[[], Worker],
        workers: int,
        *,
        address: str | None,
        dashboard: bool,
        cpus_per_worker: float,
        warn: Callable[[str], None],
    ) -> None:
        self._pickled = pickle.dumps(make_worker)
        self._workers, self._cpus, self._warn = workers, cpus_per_worker, warn
        self._address, self._dashboard = address, dashboard
        self._ray: Any = None
        self._ours = False
        self._actors: dict[int, Any] = {}
        self._promised: dict[int, deque[Any]] = {}
        self._stored: dict[int, Any] = {}

    def start(self, seat: int) -> None:
        if self._ray is None:
            self._reach()
        actor = self._ray.remote(Player).options(
            num_cpus=self._cpus, num_gpus=0, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        self._actors[seat] = actor.remote(self._pickled)
        self._promised[seat] = deque([self._actors[seat].begin.remote()])

    def give(self, seat: int, plan: Plan, weights: Weights | None) -> None:
        if weights is not None and weights.version not in self._stored:
            self._stored[weights.version] = self._ray.put(weights.packed)
        stored = None if weights is None else self._stored[weights.version]
        self._promised[seat].append(self._actors[seat].play.remote(plan, stored))

    def stop(self, seat: int) -> None:
        if seat in self._actors:
            self._ray.kill(self._actors.pop(seat))
            del self._promised[seat]

    def wait(self, seconds: float | None) -> list[Event]:
        first = {promised[0]: seat for seat, promised in self._promised.items() if promised}
        if not first:
            return []
        self._ray.wait(list(first), num_returns=1, timeout=seconds)
        kept, _ = self._ray.wait(list(first), num_returns=len(first), timeout=0)
        return [self._hear(first[promise]) for promise in kept]

    def _hear(self, seat: int) -> Event:
        began = time.perf_counter()
        try:
            news = self._ray.get(self._promised[seat].popleft())
        except self._ray.exceptions.RayError as error:
            return Event(seat, Fault(f"is lost ({_first_line(error)})"))
        if isinstance(news, Rollout):
            news = news._replace(records=[{k: np.array(v) for k, v in record.items()} for record in news.records])
        return Event(seat, news, time.perf_counter() - began)

    def forget(self, version: int) -> None:
        self._stored.pop(version, None)

    def close(self) -> None:
        if self._ray is None:
            return
        closing = [actor.close.remote() for actor in self._actors.values()]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=GRACE)
        for seat in list(self._actors):
            self.stop(seat)
        self._stored.clear()
        if self._ours:
            self._ray.shutdown()
        self._ray = None

    def _reach(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        ...
