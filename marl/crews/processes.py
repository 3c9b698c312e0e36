"""Workers in processes of this machine."""

from __future__ import annotations

import atexit
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Thread
from typing import IO

from marl.crews.crew import GRACE, Crew, Event, Fault, News, Player, Ready, Weights, bounded_threads
from marl.worker import Plan, Worker

GONE = (BrokenPipeError, ConnectionResetError)
"""What a write says when the other side has ended; whoever reads learns the same, and acts."""


@dataclass
class _Child:
    process: BaseProcess
    connection: Connection
    exit_code: int | None = None
    """Once it was waited for; its number may be a stranger's from then on."""


class LocalCrew(Crew):
    """A process per worker on this machine.

    Pipes carry words and file handles; weights and episodes lie in nameless files that both sides hold, so that
    neither ever waits for the other to read, and nothing is left of them however the processes end.
    """

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._pickled = pickle.dumps(make_worker)
        self._children: dict[int, _Child] = {}
        self._laid: dict[int, IO[bytes]] = {}
        atexit.register(self.close)  # before multiprocessing waits for processes that wait for us

    def start(self, seat: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        process = spawn.Process(target=_serve, args=(theirs, self._pickled), name=f"worker-{seat}")
        resource_tracker.ensure_running()  # starting it lets SIGINT through again
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child ignores it
        try:
            with bounded_threads():
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        theirs.close()
        self._children[seat] = _Child(process, ours)

    def give(self, seat: int, plan: Plan, weights: Weights | None) -> None:
        connection = self._children[seat].connection
        with suppress(*GONE):
            connection.send((plan, weights is not None))
            if weights is not None:
                _send(connection, self._lay(weights))

    def _lay(self, weights: Weights) -> IO[bytes]:
        if weights.version not in self._laid:
            file = self._laid[weights.version] = _nameless()
            file.write(weights.packed)
            file.flush()
        return self._laid[weights.version]

    def wait(self, seconds: float | None) -> list[Event]:
        seats = {child.connection: seat for seat, child in self._children.items()}
        heard = wait(list(seats), seconds)
        return [self._hear(seat) for connection, seat in seats.items() if connection in heard]

    def _hear(self, seat: int) -> Event:
        child, began = self._children[seat], time.perf_counter()
        try:
            handle = reduction.recv_handle(child.connection)
        except (EOFError, ConnectionResetError):
            return Event(seat, Fault(_ending(_kill(child))))
        with open(handle, "rb") as file:
            file.seek(0)
            news: News = pickle.load(file)
        return Event(seat, news, time.perf_counter() - began)

    def stop(self, seat: int) -> None:
        if seat in self._children:
            child = self._children.pop(seat)
            _kill(child)
            child.connection.close()

    def forget(self, version: int) -> None:
        if version in self._laid:
            self._laid.pop(version).close()

    def close(self) -> None:
        atexit.unregister(self.close)
        deadline = time.monotonic() + GRACE
        for child in self._children.values():
            child.connection.close()
        for child in self._children.values():
            wait([child.process.sentinel], max(0.0, deadline - time.monotonic()))
            _kill(child)
        self._children.clear()
        for version in list(self._laid):
            self.forget(version)


def _kill(child: _Child) -> int:
    """End a process and all it started, once; its exit code."""
    if child.exit_code is not None:
        return child.exit_code
    pid = child.process.pid
    assert pid is not None, "a worker that was started has a number"
    with suppress(ProcessLookupError):  # it dies so young that it leads no group
        os.killpg(pid, signal.SIGKILL)
    child.process.kill()
    child.process.join()
    child.exit_code = child.process.exitcode
    assert child.exit_code is not None, "a process that was waited for has an exit code"
    return child.exit_code


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _serve(connection: Connection, pickled: bytes) -> None:
    """The life of a worker process: it leads a group of its own, which ends with it."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    inbox: SimpleQueue[tuple[Plan, int | None] | None] = SimpleQueue()
    Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    player = Player(pickled)
    with suppress(*GONE):
        begun = player.begin()
        _post(connection, begun)
        while isinstance(begun, Ready) and (order := inbox.get()) is not None:
            plan, handle = order
            _post(connection, player.play(plan, None if handle is None else _read(handle)))
        if isinstance(begun, Ready):
            player.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os.killpg(0, signal.SIGKILL)


def _listen(connection: Connection, inbox: SimpleQueue[tuple[Plan, int | None] | None]) -> None:
    """Reads at once what is sent. When the learner closes its end, or is gone, this process must end too."""
    try:
        with suppress(EOFError, ConnectionResetError):
            while True:
                plan, weights_follow = connection.recv()
                inbox.put((plan, reduction.recv_handle(connection) if weights_follow else None))
    finally:
        inbox.put(None)
        time.sleep(GRACE)
        os.killpg(0, signal.SIGKILL)


def _post(connection: Connection, news: News) -> None:
    with _nameless() as file:
        pickle.dump(news, file, protocol=5)
        file.flush()
        _send(connection, file)


def _send(connection: Connection, file: IO[bytes]) -> None:
    reduction.send_handle(connection, file.fileno(), os.getpid())


def _read(handle: int) -> bytes:
    """All of a file that others read too: they share one position, so it is not used."""
    with open(handle, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return view[:]


def _nameless() -> IO[bytes]:
    """A file that is gone with its last holder; in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("marl"), "w+b")
    return tempfile.TemporaryFile()
