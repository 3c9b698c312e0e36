"""From settings to parts, workers, learner, schedule. With the commands, the only place that opens the registries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

import algos
import envs
from marl import dice
from marl.config import Settings, phase_ends
from marl.env import BatchedEnv, no_pictures
from marl.fields import Mistake
from marl.fleet import Fleet, make_fleet
from marl.learner import Learner
from marl.parts import Parts
from marl.replay import Replay
from marl.reporting.log import Log
from marl.schedule import Epsilon, Schedule, Stage
from marl.types import EnvSpec
from marl.worker import Worker


def device(settings: Settings) -> torch.device:
    """The learner's device; ``auto`` takes a GPU if there is one."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def environment(settings: Settings, copies: int) -> BatchedEnv:
    """The chosen world, ``copies`` side by side."""
    env: BatchedEnv = envs.module(settings.env.name).make(settings.env, copies)
    return env


def spec(settings: Settings) -> EnvSpec:
    """What the chosen world says of itself, without starting its engine."""
    env = environment(settings, 1)
    try:
        return env.spec
    finally:
        env.close()


def refuse_films(env_spec: EnvSpec, asked: str, none: str) -> None:
    """Refuse that a world is filmed which has no pictures; ``none`` is the value that asks for no films.

    Raises:
        Mistake: it has none.
    """
    if not env_spec.draws:
        raise Mistake(f"{asked}: {no_pictures(env_spec)}; allowed is {none}")


@dataclass(frozen=True)
class MakeWorker:
    """Rebuilds a worker from settings alone, wherever it is called."""

    settings: Settings
    copies: int
    attack: Any = None
    """Settings of one more attacker on the policy."""
    interventions: bool = True
    """Whether what interfered in training does so here."""

    def __call__(self) -> Worker:
        env = environment(self.settings, self.copies)
        parts = algos.assemble(env.spec, self.settings.algo)
        if not self.interventions:
            parts = replace(parts, interventions=())
        if self.attack is not None:
            parts = parts.with_intervention(algos.attack(self.attack))
        limits_end = self.settings.rollout.time_limits == "terminal"
        return Worker(parts, env, self.settings.seed, limits_end=limits_end)


def fleet(settings: Settings, log: Log) -> Fleet:
    """Workers as ``rollout.backend`` says."""
    rollout = settings.rollout
    return make_fleet(
        rollout.backend,
        MakeWorker(settings, rollout.envs_per_worker),
        workers=rollout.workers,
        ordered=rollout.ordered,
        timeout=rollout.timeout,
        address=settings.ray.address,
        dashboard=settings.ray.dashboard,
        cpus_per_worker=settings.ray.cpus_per_worker,
        warn=log.warn,
    )


def learner(settings: Settings, env_spec: EnvSpec, place: torch.device) -> Learner:
    """The learner with fresh parts and an empty replay; the run's seed fixes the parameters."""
    torch.manual_seed(dice.integer(settings.seed, "parameters", 0))
    parts = algos.assemble(env_spec, settings.algo)
    _refuse_too_small_a_replay(parts, settings)
    replay = Replay(
        env_spec,
        {**env_spec.fields(), **parts.columns()},
        settings.replay.capacity,
        place,
        settings.replay.float,
        settings.replay.alpha if settings.replay.prioritised else None,
    )
    return Learner(
        parts,
        replay,
        settings.learner,
        settings.seed,
        total_steps=settings.steps,
        precision=settings.precision,
        compiled=settings.compile,
    )


def _refuse_too_small_a_replay(parts: Parts, settings: Settings) -> None:
    least = max(part.cadence.batch for _, part in parts.named())
    if settings.replay.capacity < least:
        fits = f"{settings.algo.name} fits networks of its own to {least} episodes"
        raise Mistake(f"replay.capacity={settings.replay.capacity}: {fits}; allowed are {least} and more")


def schedule(settings: Settings) -> Schedule:
    """The order of plans, phase by phase."""
    ends = phase_ends(settings.phases, settings.steps)
    stages = tuple(Stage(**vars(phase), until=end) for phase, end in zip(settings.phases, ends, strict=True))
    rollout = settings.rollout
    return Schedule(
        stages=stages or (Stage("train", until=settings.steps),),
        epsilon=Epsilon(rollout.epsilon_start, rollout.epsilon_finish, rollout.epsilon_steps),
        copies=rollout.envs_per_worker,
        eval_every=settings.eval.every_steps,
        eval_episodes=settings.eval.episodes,
        eval_epsilon=settings.eval.epsilon,
        film_every=settings.log.video_every_steps,
    )
