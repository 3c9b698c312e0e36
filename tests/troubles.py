"""Workers that get into trouble on demand, wherever they play."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch

import algos
from algos import iql, qmix, vdn
from marl.dice import EVALUATE, TRAIN
from marl.env import EnvUnavailable, SideBySide
from marl.fleet import Fleet, make_fleet
from marl.worker import Plan, Rollout, Worker
from tests.toys import Clockwork

CONFIGS = {"iql": iql.Config, "qmix": qmix.Config, "vdn": vdn.Config}
COPIES = 3


class Mishap(Exception):
    """What a troubled world raises."""


@dataclass(frozen=True)
class Trouble:
    """Strikes at the second step of an episode, as often as it was armed for."""

    kind: str
    folder: Path
    engine: str = field(default_factory=lambda: f"98765.{os.getpid()}")
    """How long the worker's own child process, a `sleep`, would live: it is known by that."""

    def arm(self, times: int = 1) -> Trouble:
        for number in range(times):
            (self.folder / f"{number}.charge").touch()
        os.mkfifo(self.folder / "struck")
        return self

    def strike(self) -> None:
        for charge in self.folder.glob("*.charge"):
            try:
                charge.unlink()
            except FileNotFoundError:
                continue  # another worker was struck by it
            vars(Trouble)[self.kind](self)

    def engines(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", self.engine]]

    def wait(self, times: int = 1) -> None:
        """Until so many workers are ``busy``."""
        pipe = os.open(self.folder / "struck", os.O_RDWR)
        for _ in range(times):
            os.read(pipe, 1)
        os.close(pipe)

    def _start_engine(self) -> None:
        """A child process; it has its new name a moment after `Popen` returns."""
        engine = psutil.Process(subprocess.Popen(["sleep", self.engine]).pid)
        while engine.cmdline() != ["sleep", self.engine]:
            pass

    # kinds

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def segfault(self) -> None:
        ctypes.string_at(0)

    def exit(self) -> None:
        os._exit(3)

    def error(self) -> None:
        raise Mishap("the wheel came off")

    def unavailable(self) -> None:
        raise EnvUnavailable("clockwork cannot run here: wind it up")

    def hang(self) -> None:
        """With an engine running, and with Python's lock: no thread of this process runs any more."""
        self._start_engine()
        ctypes.PyDLL(None).sleep(10_000)

    def busy(self) -> None:
        """With an engine running; whoever reads the pipe ``struck`` is told."""
        self._start_engine()
        with open(self.folder / "struck", "w") as pipe:
            pipe.write("!")
        while True:
            pass


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


def linger(backend: str, folder: str) -> None:
    """A learner whose two workers play for ever, until Ctrl-C closes the fleet."""
    make = MakeWorker(trouble=Trouble("busy", Path(folder)))
    with fleet(backend, make, workers=2, warn=print) as crew:
        version = crew.publish(weights())
        for number in range(4):
            crew.submit(plan(number), version)
        try:
            crew.receive()
        except KeyboardInterrupt:
            crew.close()
            print("closed")
