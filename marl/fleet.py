"""Makes fleets, of whatever kind. The only file that knows Ray.

RLlib's `FaultTolerantActorManager` does not serve. Its bookkeeping ends at the request: it drops those of a lost actor,
leaves it to Ray to make another one and to the caller to ask again, never notices one that hangs, and knows Ray's
actors only, so processes of this machine would need a second bookkeeping for the same promises. Importing it takes the
learner 3 s and 150 MB (Ray 2.60, measured after torch and Ray).
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from marl.crews.crew import GRACE, Crew, Event, Fault, InlineCrew, Player, Weights, bounded_threads
from marl.crews.dispatch import Fleet, WorkerError
from marl.crews.processes import LocalCrew
from marl.fields import Mistake
from marl.worker import Plan, Rollout, Worker

__all__ = ["BACKENDS", "Fleet", "WorkerError", "make_fleet"]

BACKENDS = ("inline", "local", "ray")
LOOPBACK = "127.0.0.1"
ANSWER_LIMIT = 10.0
"""Seconds for a cluster to take a connection."""


def make_fleet(
    backend: str,
    make_worker: Callable[[], Worker],
    *,
    workers: int,
    ordered: bool,
    timeout: float,
    warn: Callable[[str], None],
    address: str | None = None,
    dashboard: bool = False,
    cpus_per_worker: float = 1.0,
) -> Fleet:
    """Workers in this process (``inline``: always one), in processes of this machine (``local``) or on Ray (``ray``).

    Returns at once; the first plan starts the workers.

    Args:
        make_worker: makes a worker where it plays, so it must pickle: an instance of a class of an importable module.
        ordered: rollouts are received in the order of submitting, not of arrival.
        timeout: seconds for one plan, after which a worker counts as hanging. Inline workers are not watched.
        warn: told one line for each worker that is replaced.
        address: a Ray cluster to join (``auto``, or ``host:port``); None: start Ray here, on loopback only.
        dashboard: serve Ray's dashboard on localhost, if Ray is started here.
        cpus_per_worker: cores that Ray reserves for each worker.

    Raises:
        ValueError: an argument is not what it can be.
    """
    if workers < 1:
        raise ValueError(f"rollout.workers={workers}: at least 1")
    if not timeout > 0:
        raise ValueError(f"rollout.timeout={timeout}: more than 0 seconds")
    crew: Crew
    if backend == "inline":
        crew, workers, timeout = InlineCrew(make_worker), 1, math.inf
    elif backend == "local":
        crew = LocalCrew(make_worker)
    elif backend == "ray":
        cluster = RayCluster(address, dashboard, math.ceil(workers * cpus_per_worker), warn)
        crew = RayCrew(make_worker, cluster, cpus_per_worker)
    else:
        raise ValueError(f"rollout.backend={backend}: allowed are {', '.join(BACKENDS)}")
    return Fleet(crew, workers, ordered=ordered, timeout=timeout, warn=warn)


class RayCluster:
    """A way to Ray: the one that ``address`` names, else the one this process has, else one of our own.

    One of our own has room for ``cores``, whatever the machine has, and can be reached from this machine alone.
    """

    def __init__(self, address: str | None, dashboard: bool, cores: int, warn: Callable[[str], None]) -> None:
        if address not in (None, "auto") and _endpoint(address) is None:
            raise Mistake(f"ray.address={address}: allowed are auto, host:port of a running cluster, or null")
        self._address, self._dashboard, self._cores, self._warn = address, dashboard, cores, warn
        self._connected = False

    def reach(self) -> Any:
        """The module `ray`, connected.

        Raises:
            Mistake: no cluster answers at the address.
            RuntimeError: Ray would listen beyond this machine.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its new rule, which warns of the old one
        if self._address is None:
            os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: slower than processes on a shared machine
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on Linux, too: servers bind to loopback
        import ray

        if not ray.is_initialized():
            if self._address is None:
                self._begin(ray)
            else:
                self._join(ray, self._address)
        return ray

    def leave(self, ray: Any) -> None:
        if self._connected:
            ray.shutdown()

    def _begin(self, ray: Any) -> None:
        with bounded_threads():
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, self._cores),
                include_dashboard=self._dashboard,
                dashboard_host=LOOPBACK,
                _node_ip_address=LOOPBACK,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        self._connected = True
        if ray.util.get_node_ip_address() != LOOPBACK:
            ray.shutdown()
            raise RuntimeError("Ray would listen beyond this machine: something imported it before the fleet did")

    def _join(self, ray: Any, address: str) -> None:
        try:
            endpoint = _endpoint(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
            if endpoint is not None:
                socket.create_connection(endpoint, ANSWER_LIMIT).close()  # Ray itself would try for ten minutes
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, TimeoutError, socket.gaierror) as error:
            advice = "start one with `ray start --head`"
            raise Mistake(f"ray.address={address}: no Ray cluster answers there; {advice}") from error
        self._connected = True
        cores = ray.cluster_resources().get("CPU", 0)
        if self._cores > cores:
            self._warn(f"workers reserve {self._cores} cores, the cluster has {cores:g}: some wait until it grows")


def _endpoint(address: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:  # no number, or no port's
        return None


class RayCrew(Crew):
    """An actor per worker, wherever Ray finds the cores; GPUs are left to the learner.

    Actors are not restarted by Ray: the fleet does that, as for processes.
    """

    queued = True

    def __init__(self, make_worker: Callable[[], Worker], cluster: RayCluster, cpus_per_worker: float) -> None:
        self._make = make_worker
        self._cluster = cluster
        self._resources = {"num_cpus": cpus_per_worker, "num_gpus": 0}
        self._ray: Any = None
        self._actors: dict[int, Any] = {}
        self._promised: dict[int, deque[Any]] = {}
        self._stored: dict[int, Any] = {}

    def start(self, seat: int) -> None:
        if self._ray is None:
            self._ray = self._cluster.reach()
        recipe = self._ray.remote(Player).options(
            **self._resources, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        self._actors[seat] = recipe.remote(self._ray.cloudpickle.dumps(self._make))
        self._promised[seat] = deque([self._actors[seat].here.remote(), self._actors[seat].begin.remote()])

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
            return Event(seat, Fault(f"was lost ({str(error).strip().partition(chr(10))[0]})", str(error)))
        if isinstance(news, Rollout):
            # Arrays in the object store cannot be written and hold their memory there.
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
        self._cluster.leave(self._ray)
        self._ray = None
