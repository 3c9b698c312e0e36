"""Plays a plan with a copy of the parts and records the episodes. No Ray, no learning."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from marl.dice import Dice
from marl.env import BatchedEnv, Moments
from marl.heap import keep_freed_memory
from marl.parts import Intervention, Parts, State
from marl.types import Array, Column, EnvSpec, Record, View


@dataclass(frozen=True)
class Plan:
    """What a worker is asked to play: with the weights it is given, the same plan gives the same episodes anywhere."""

    number: int
    """Place in the order of asking."""
    purpose: str
    """``train`` or ``evaluate``: names the stream of randomness."""
    first_episode: int
    episodes: int
    """How many, side by side, numbered from ``first_episode``."""
    epsilon: float = 0.0
    interventions: bool = True
    """False: nothing interferes in these episodes."""
    seats: tuple[str, ...] = ()
    """Who plays each seat, for interventions that bring partners; empty: as they decide."""
    film: bool = False
    """Picture every step of the first episode."""
    asked_at: int = 0
    """Environment steps consumed when this was asked for."""

    @property
    def numbers(self) -> range:
        return range(self.first_episode, self.first_episode + self.episodes)


class Rollout(NamedTuple):
    """What came of a plan."""

    plan: Plan
    records: list[Record]
    """One per episode, in order of their numbers, trimmed to their length."""
    seconds: dict[str, float]
    """Wall seconds by what they were spent on: ``simulator``, ``policy``."""
    frames: Array | None = None
    """(T+1, height, width, 3) uint8 of the first episode, if it was filmed."""


class Tape:
    """Room for E episodes side by side; used again for every plan."""

    def __init__(self, spec: EnvSpec, columns: Mapping[str, Column], size: int) -> None:
        self.layout = {**spec.fields(), **columns}
        self._arrays = {
            name: np.zeros((size, *column.rows(spec.horizon), *column.shape), column.dtype)
            for name, column in self.layout.items()
        }

    def write(self, name: str, step: int | None, value: Array | Tensor, rows: Array | None = None) -> None:
        """One entry of a field for all copies, (E, ...), or for the copies that ``rows`` (E,) bool marks."""
        array = self._arrays[name]
        values = value.numpy() if isinstance(value, Tensor) else value
        at = array[: len(values)] if step is None else array[: len(values), step]
        if rows is None:
            at[...] = values
        else:
            at[rows] = values[rows]

    def episode(self, names: Iterable[str], copy: int, length: int) -> Record:
        """A trimmed copy of one episode's fields ``names``."""
        record = {}
        for name in names:
            array, rows = self._arrays[name], self.layout[name].rows(length)
            record[name] = array[copy, : rows[0]].copy() if rows else np.array(array[copy])
        return record


def columns_of(interventions: Iterable[Intervention]) -> dict[str, Column]:
    """What they add to an episode; those that sit a plan out add nothing to its episodes."""
    return {name: column for part in interventions for name, column in part.columns().items()}


class Worker:
    """A copy of the parts and of the environment.

    Args:
        limits_end: a time limit is recorded as terminal, as if it were a rule of the task.
    """

    def __init__(self, parts: Parts, env: BatchedEnv, seed: int, *, limits_end: bool = False) -> None:
        self.parts, self.env, self.seed, self.limits_end = parts, env, seed, limits_end
        keep_freed_memory()
        for _, part in parts.named():
            part.eval().requires_grad_(False)
        self._tape = Tape(env.spec, columns_of(parts.interventions), env.size)
        self._weights = parts.travelling()

    @torch.no_grad()
    def load(self, weights: Mapping[str, Array]) -> None:
        """Take the learner's parameters, by the names of `Parts.travelling`."""
        for name, tensor in self._weights.items():
            tensor.copy_(torch.from_numpy(weights[name]))

    @torch.inference_mode()
    def play(self, plan: Plan) -> Rollout:
        """Play all episodes of ``plan`` to their end."""
        return _Game(self, plan).play()

    def close(self) -> None:
        self.env.close()


class _Game:
    """The episodes of one plan while they are played."""

    def __init__(self, worker: Worker, plan: Plan) -> None:
        self.plan, self.env, self.tape, self.limits_end = plan, worker.env, worker._tape, worker.limits_end
        self.q = worker.parts.q
        self.interventions = worker.parts.interventions if plan.interventions else ()
        self.dice = Dice(worker.seed, plan.purpose, plan.numbers)
        self.memory = self.q.memory(plan.episodes)
        self.states: list[State] = [part.begin(plan.episodes, plan.seats, self.dice) for part in self.interventions]
        self.last_action = torch.full((plan.episodes, self.env.spec.n_agents), -1)
        self.live = np.ones(plan.episodes, np.bool_)
        self.lengths = np.zeros(plan.episodes, np.int64)
        self.frames: list[Array] = []
        self.seconds = {"simulator": 0.0, "policy": 0.0}
        self._mark = 0.0

    def play(self) -> Rollout:
        self._mark = time.perf_counter()
        self.env.advance(self.plan.asked_at)
        moments = self.env.reset(self.dice.seeds())
        self._film()
        self._spent("simulator")
        for step in count():
            view = self._perceive(moments, step)
            if not self.live.any():
                break
            if step == self.env.spec.horizon:
                raise RuntimeError(f"{self.env.spec.name} played past its horizon of {step} steps")
            executed = self._choose(view, step)
            self._spent("policy")
            moments = self.env.step(executed.numpy(), self.live)
            self._film()
            self._spent("simulator")
            self._record_outcome(moments, step)
        played = [*self.env.spec.fields(), *columns_of(self.interventions)]
        records = [self.tape.episode(played, copy, int(length)) for copy, length in enumerate(self.lengths)]
        self._spent("policy")
        return Rollout(self.plan, records, self.seconds, np.stack(self.frames) if self.frames else None)

    def _perceive(self, moments: Moments, step: int) -> View:
        """What the team sees of ``moments``, recorded."""
        arrays = (torch.from_numpy(moments.obs), torch.from_numpy(moments.state), torch.from_numpy(moments.avail))
        view = View(*arrays, self.last_action)
        for part, state in zip(self.interventions, self.states, strict=True):
            view, columns = part.perceive(view, self.q, state, self.dice)
            self._write(columns, step)
        self.tape.write("obs", step, view.obs)
        self.tape.write("state", step, view.state)
        self.tape.write("avail", step, view.avail)
        self._write_env(moments, step, "views")
        return view

    def _choose(self, view: View, step: int) -> Tensor:
        """What the world is to receive (E, N); choices and interference are recorded."""
        actions, memory = self.q.act(view, self.memory, self.plan.epsilon, self.dice)
        executed = actions
        for index, part in enumerate(self.interventions):
            executed, columns, self.states[index] = part.act(
                view, executed, self.q, self.memory, self.states[index], self.dice
            )
            self._write(columns, step)
            actions = executed if part.chooses else actions
        self.memory, self.last_action = memory, actions
        self.tape.write("actions", step, actions)
        self.tape.write("executed", step, executed)
        return executed

    def _record_outcome(self, moments: Moments, step: int) -> None:
        if not np.isfinite(moments.reward[self.live]).all():
            raise RuntimeError(f"{self.env.spec.name} paid {moments.reward[self.live]} at step {step}")
        self.tape.write("reward", step, moments.reward)
        over = moments.terminal | moments.truncated
        self.tape.write("terminal", step, over if self.limits_end else moments.terminal)
        self._write_env(moments, step, "steps")
        self.lengths += self.live
        ended = self.live & over
        self._write_env(moments, None, "episode", ended)
        self.live &= ~ended

    def _write(self, columns: Mapping[str, Tensor], step: int) -> None:
        for name, value in columns.items():
            self.tape.write(name, step, value)

    def _write_env(self, moments: Moments, step: int | None, span: str, rows: Array | None = None) -> None:
        for name, column in self.env.spec.columns.items():
            if column.span == span:
                self.tape.write(name, step, moments.columns[name], rows)

    def _film(self) -> None:
        if self.plan.film and self.live[0]:
            self.frames.append(self.env.render(0))

    def _spent(self, on: str) -> None:
        now = time.perf_counter()
        self.seconds[on] += now - self._mark
        self._mark = now
