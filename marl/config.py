"""The settings of a run: what there is to set, its defaults, and what goes together."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from marl.fields import Mistake, check_values, count, idle_with, like, number, one_of, only_with, refuse_idle

ADDRESS = r"auto|(\w+://)?[^\s/]+:\d{1,5}"


@dataclass(frozen=True)
class Learning:
    """How much is learned of how much is played."""

    batch: int = count(32)  # episodes per update
    updates_per_episode: float = number(1.0, above=0)  # updates for each training episode that comes in
    burn_in: int = count(32)  # episodes stored before the first update
    every_episodes: int = count(1)  # updates wait until this many episodes have come, then all that are due are made
    threads: int = number(1, least=1, most=1024)  # CPU threads of the learner


@dataclass(frozen=True)
class Rollout:
    """Who plays, and how much at random."""

    backend: str = one_of("local", "inline", "ray")  # processes here, this process, or Ray's actors
    workers: int = count(2)  # processes that play
    envs_per_worker: int = count(4)  # environments side by side in each of them
    inflight: int = count(4)  # plans asked for ahead of the learner, at least workers; fixes results in ordered mode
    ordered: bool = True  # learn in the order asked for, the same for any number of workers; false: as they come
    timeout: float = only_with(number(300.0, above=0), backend=("local", "ray"))  # seconds a worker may be silent
    time_limits: str = one_of(
        "cut", "terminal"
    )  # a limit only cuts an episode, or it ends the task (docs/time-limits.md)
    epsilon_start: float = number(1.0, least=0, most=1)  # share of random actions at the first step
    epsilon_finish: float = number(0.05, least=0, most=1)  # share of random actions in the end
    epsilon_steps: int = count(50_000, least=0)  # environment steps from the one to the other


@dataclass(frozen=True)
class Replay:
    """Which episodes are kept."""

    capacity: int = count(5000)  # episodes
    prioritised: bool = False  # draw episodes by their last TD error instead of uniformly
    alpha: builtins.float = only_with(number(0.3, least=0), prioritised=True)  # exponent of priorities
    float: str = one_of("float32", "float16", "bfloat16")  # storage of observations and states


@dataclass(frozen=True)
class Evaluation:
    """How the policy is measured."""

    every_steps: int = count(10_000, least=0)  # environment steps; 0: never
    episodes: int = idle_with(count(32), every_steps=0)  # at each evaluation
    epsilon: float = idle_with(number(0.0, least=0, most=1), every_steps=0)  # share of random choices; 0: greedy


@dataclass(frozen=True)
class Logging:
    """What is told."""

    every_steps: int = count(1000)  # environment steps between two lines of training scalars
    video_every_steps: int = count(0, least=0)  # environment steps between two films of an evaluation; 0: never
    terminal: bool = True  # show progress


@dataclass(frozen=True)
class Saving:
    """How much of a run a crash can cost."""

    every_steps: int = count(50_000)  # environment steps
    keep: int = count(3)  # newest checkpoints kept


@dataclass(frozen=True)
class Cluster:
    """Ray, for rollout.backend=ray."""

    address: str | None = like(None, ADDRESS, "auto, host:port, null")  # of a running cluster; null: start one here
    dashboard: bool = False  # Ray's web page, on localhost
    cpus_per_worker: float = number(1.0, above=0)  # cores that Ray reserves for each worker


@dataclass(frozen=True)
class Phase:
    """A stretch of training with rules of its own."""

    name: str
    steps: int | None = count(None)  # environment steps; null: what the other phases leave, in one of them at most
    interventions: bool = True  # attackers and partners play
    updates: bool = True  # false: episodes are collected, nothing is learned
    epsilon: float | None = number(None, least=0, most=1)  # share of random actions throughout; null: it anneals
    epsilon_restart: bool = False  # epsilon anneals anew
    fresh_replay: bool = False  # episodes of earlier phases are dropped


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on."""

    algo: Any  # algorithm, by name; its settings are algo.KEY, those of one it wraps algo.base=NAME, algo.base.KEY
    env: Any  # environment, by name; its settings are env.KEY
    seed: int = count(0, least=0)  # fixes parameters, episodes and choices
    steps: int = count(2_000_000)  # environment steps of training
    name: str | None = like(None, r"\w[\w.+-]*", "letters, digits, . _ + -")  # run's folder; null: ALGO_ENV_sSEED
    logdir: str = "runs"  # where runs have their folders
    device: str = like("auto", r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda, cuda:N")  # of the learner; auto: GPU if any
    precision: str = one_of("fp32", "tf32", "bf16")  # of the learner's matrix products
    compile: bool = False  # the learner's networks, by torch.compile
    resume: str | None = None  # run to go on with: its folder, or its name in logdir
    from_: str | None = None  # run, or its config.yaml, to start again; other settings given here change it
    learner: Learning = field(default_factory=Learning)
    rollout: Rollout = field(default_factory=Rollout)
    replay: Replay = field(default_factory=Replay)
    eval: Evaluation = field(default_factory=Evaluation)
    log: Logging = field(default_factory=Logging)
    checkpoint: Saving = field(default_factory=Saving)
    ray: Cluster = field(default_factory=Cluster)
    phases: list[Phase] = field(default_factory=list)  # [{name: .., steps: ..}, ..]; they add up to steps; []: one


def check(settings: Settings, typed: Collection[str] = ()) -> None:
    """Refuse what cannot be, and ``typed`` keys that have no effect.

    Raises:
        Mistake: a value that is not allowed, alone or beside others.
    """
    check_values(settings)
    learner, rollout, replay = settings.learner, settings.rollout, settings.replay
    if rollout.backend == "inline" and rollout.workers != 1:
        raise Mistake(f"rollout.workers={rollout.workers}: allowed is 1 with rollout.backend=inline")
    if rollout.inflight < rollout.workers:
        least = f"rollout.workers ({rollout.workers})"
        raise Mistake(f"rollout.inflight={rollout.inflight}: allowed are {least} and more, plans for all of them")
    for key, episodes in (
        ("batch", learner.batch),
        ("burn_in", learner.burn_in),
        ("every_episodes", learner.every_episodes),
    ):
        if episodes > replay.capacity:
            raise Mistake(f"learner.{key}={episodes}: allowed are up to replay.capacity ({replay.capacity})")
    phase_ends(settings.phases, settings.steps)
    refuse_idle(settings, typed)
    ray = next((key for key in typed if key.startswith("ray.")), None)
    if ray is not None and rollout.backend != "ray":
        raise Mistake(f"{ray}: rollout.backend={rollout.backend} has no use for it; say rollout.backend=ray too")
    if settings.log.video_every_steps and not settings.eval.every_steps:
        films = f"log.video_every_steps={settings.log.video_every_steps}"
        raise Mistake(f"{films}: evaluations are filmed, and eval.every_steps=0 has none; allowed is 0")


def phase_ends(phases: Sequence[Phase], steps: int) -> list[int]:
    """Environment steps at which each phase ends, in a run of ``steps``.

    Raises:
        Mistake: they do not add up.
    """
    if not phases:
        return []
    known = sum(phase.steps or 0 for phase in phases)
    unknown = sum(phase.steps is None for phase in phases)
    if unknown > 1:
        raise Mistake(f"phases: {unknown} of them have no steps; allowed is one, which takes what the others leave")
    if unknown and known >= steps:
        raise Mistake(f"steps={steps}: allowed is more than {known}, which other phases take from one without steps")
    if not unknown and known != steps:
        raise Mistake(f"steps={steps}: allowed is {known}, the sum of the steps of phases")
    return list(accumulate(steps - known if phase.steps is None else phase.steps for phase in phases))


def default_name(settings: Settings) -> str:
    """``ALGO_ENV_sSEED``; an algorithm that wraps others is called by all of them."""
    names, algo = [], settings.algo
    while algo is not None:
        names.append(algo.name)
        algo = vars(algo).get("base")
    return f"{'_'.join(names)}_{settings.env.name}_s{settings.seed}"
