"""Workers that get into trouble on demand, wherever they play."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import algos
from algos import iql, qmix, vdn
from marl.env import EnvUnavailable, SideBySide
from marl.fleet import Fleet, make_fleet
from marl.worker import EVALUATE, TRAIN, Plan, Rollout, Worker
from tests.toys import Clockwork

CONFIGS = {"iql": iql.Config, "qmix": qmix.Config, "vdn": vdn.Config}
COPIES = 3
ENGINE = 98_765
"""What a worker's own child process, a `sleep`, is known by."""


class Mishap(Exception):
    """What a troubled world raises."""


def _raise() -> None:
    raise Mishap("the wheel came off")


def _unavailable() -> None:
    raise EnvUnavailable("clockwork cannot run here: wind it up")


def _hang() -> None:
    ctypes.PyDLL(None).sleep(10_000)  # keeps Python's lock: no thread of this process runs any more


def _hang_with_engine() -> None:
    subprocess.Popen(["sleep", str(ENGINE)])
    _hang()


def _busy() -> None:
    subprocess.Popen(["sleep", str(ENGINE)])
    while True:
        pass


TROUBLES: dict[str, Callable[[], object]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(3),
    "raise": _raise,
    "hang": _hang,
    "hang_with_engine": _hang_with_engine,
    "busy_with_engine": _busy,
    "unavailable": _unavailable,
}


@dataclass(frozen=True)
class Trouble:
    """Strikes at the second step of an episode, as often as there are lines in ``left``; each line strikes once."""

    kind: str
    left: Path

    def arm(self, times: int = 1) -> Trouble:
        self.left.mkdir()
        for number in range(times):
            (self.left / str(number)).touch()
        return self

    def strike(self) -> None:
        for charge in sorted(self.left.iterdir()):
            try:
                charge.unlink()
            except FileNotFoundError:
                continue  # another worker was struck by it
            TROUBLES[self.kind]()


@dataclass(frozen=True)
class MakeWorker:
    """Makes a worker of a clockwork world, in trouble or not."""

    algorithm: str = "qmix"
    trouble: Trouble | None = None
    at_start: bool = False
    """Trouble strikes when the worker is made."""

    def __call__(self) -> Worker:
        if self.at_start and self.trouble is not None:
            self.trouble.strike()
        trouble = None if self.at_start else self.trouble

        class Troubled(Clockwork):
            def step(self, actions):
                if trouble is not None and self.now == 1:
                    trouble.strike()
                return super().step(actions)

        parts = algos.assemble(Clockwork.spec, CONFIGS[self.algorithm](hidden=8))
        return Worker(parts, SideBySide(Troubled, COPIES), seed=3)


def weights(algorithm: str = "qmix", seed: int = 0) -> dict[str, np.ndarray]:
    """What a learner would publish."""
    torch.manual_seed(seed)
    parts = algos.assemble(Clockwork.spec, CONFIGS[algorithm](hidden=8))
    return {name: tensor.detach().numpy().copy() for name, tensor in parts.travelling().items()}


def plan(number: int) -> Plan:
    """Training, and every third time evaluation, of one to three episodes."""
    purpose = EVALUATE if number % 3 == 2 else TRAIN
    return Plan(number, purpose, number * COPIES, 1 + number % COPIES, 0.0 if purpose == EVALUATE else 0.5)


def fleet(backend: str, make: MakeWorker | None = None, **kw) -> Fleet:
    """Watched so loosely that only a worker in trouble is ever replaced."""
    options = {"workers": 1, "ordered": True, "timeout": 120.0, "warn": lambda line: None} | kw
    return make_fleet(backend, make or MakeWorker(), **options)


def play(crew: Fleet, algorithm: str = "qmix", plans: int = 9) -> list[Rollout]:
    """Plans with three versions of weights in turn, four in flight."""
    received: list[Rollout] = []
    for number in range(plans):
        if crew.in_flight == 4:
            received.append(crew.receive())
        if number % 3 == 0:
            version = crew.publish(weights(algorithm, seed=number))
        crew.submit(plan(number), version)
    return received + [crew.receive() for _ in range(crew.in_flight)]


def same(one: list[Rollout], other: list[Rollout]) -> None:
    assert [rollout.plan for rollout in one] == [rollout.plan for rollout in other]
    for left, right in zip(one, other, strict=True):
        assert len(left.records) == left.plan.episodes
        for mine, theirs in zip(left.records, right.records, strict=True):
            assert mine.keys() == theirs.keys()
            for name in mine:
                np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
                assert mine[name].dtype == theirs[name].dtype and mine[name].flags.writeable


def linger(backend: str, left: str) -> None:
    """A learner whose two workers play for ever, until Ctrl-C closes the fleet; it says how far it is."""
    trouble = Trouble("busy_with_engine", Path(left)).arm(2)
    crew = fleet(backend, MakeWorker(trouble=trouble), workers=2, warn=print)
    version = crew.publish(weights())
    for number in range(4):
        crew.submit(plan(number), version)
    Thread(target=_tell_when_played, args=(trouble,), daemon=True).start()
    try:
        crew.receive()
    except KeyboardInterrupt:
        crew.close()
        print("closed")


def _tell_when_played(trouble: Trouble) -> None:
    while len(engines()) < 2:
        time.sleep(0.1)
    print("playing", flush=True)
