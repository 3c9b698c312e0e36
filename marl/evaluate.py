"""`python -m marl.evaluate run=RUN`: a saved policy, clean or attacked, with intervals.

usage: python -m marl.evaluate run=RUN [key=value ...] [attack=NAME [attack.KEY=value ...]] [--help]

  run=RUN             folder of a run, or its name in logdir
  logdir=runs
  episodes=100        played
  epsilon=0           share of choices that are replaced by random ones
  seed=the run's      of the episodes
  workers=1           processes that play
  interventions=true  attackers that the policy was trained with play along; false: without them
  attack=null         an attacker to put on the policy, with its settings attack.KEY
  video=false         film the first episode
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

import algos
import envs
from marl import build, checkpoint
from marl.command import cli
from marl.command.request import setting
from marl.command.runs import make_folder, write
from marl.command.typed import put, tree
from marl.config import Settings
from marl.dice import EVALUATE
from marl.fields import Mistake, check_values, count, number, suggestion
from marl.fleet import make_fleet
from marl.reporting import video
from marl.reporting.statistics import Estimate, mean_interval, success_interval
from marl.reporting.tally import summary
from marl.run import FILM_SPEED
from marl.types import Array
from marl.worker import Plan, Rollout

FOLDER = "evaluations"
STREAM = f"{EVALUATE}/saved"
"""Starts that no training run has seen: evaluations during training draw from another stream."""


@dataclass(frozen=True)
class Request:
    """What is asked of a saved run."""

    run: str = ""
    logdir: str = "runs"
    episodes: int = count(100)
    epsilon: float = number(0.0, least=0, most=1)
    seed: int | None = count(None, least=0)
    workers: int = count(1)
    interventions: bool = True
    attack: Any = None
    video: bool = False


def read(argv: Sequence[str]) -> Request:
    """The request in ``key=value`` arguments.

    Raises:
        Mistake: a key or value that is not there, or no run.
    """
    root, given = tree(Request), dict(setting(argument) for argument in argv)
    attack = given.pop("attack", None)
    if attack is not None:
        root.attack = tree(algos.attack_config(_attack(attack)))
    for key, value in given.items():
        if attack is None and key.startswith("attack."):
            raise Mistake(f"{key}={value}: no attacker is chosen; say attack=NAME")
        if key == "attack.name":
            raise Mistake(f"{key}={value}: an attacker is chosen by attack=NAME")
        put(root, key, value)
    request: Request = OmegaConf.to_object(root)  # type: ignore[assignment]
    if not request.run:
        raise Mistake("run: no run is chosen; say run=FOLDER")
    check_values(request)
    return request


def _attack(name: Any) -> str:
    if name in algos.ATTACKS:
        return str(name)
    allowed = ", ".join(algos.ATTACKS)
    raise Mistake(f"attack={name}: no such attacker; allowed are {allowed}{suggestion(str(name), algos.ATTACKS)}")


def saved_weights(settings: Settings, folder: Path, warn: Callable[[str], None]) -> tuple[dict[str, Array], int]:
    """What the newest whole checkpoint of a run acts with, and its environment steps.

    Raises:
        NoCheckpoint: there is none, or it is of other settings.
    """
    saved = checkpoint.load_latest(folder / "checkpoints", warn, only=("learner",))
    parts, learner = algos.assemble(build.spec(settings), settings.algo), saved.tensors["learner"]()
    for name, part in parts.named():
        with checkpoint.fitting(folder):
            part.load_state_dict(checkpoint.below(learner, f"{name}.state."))
    return {name: tensor.detach().numpy() for name, tensor in parts.travelling().items()}, saved.step


def against(settings: Settings, request: Request) -> str:
    """What interferes: ``training`` for what did so in training, an attacker's name, both, or ``clean`` for nothing."""
    own = request.interventions and bool(algos.assemble(build.spec(settings), settings.algo).interventions)
    attack = [] if request.attack is None else [request.attack.name]
    return "+".join([*(["training"] if own else []), *attack]) or "clean"


def play(
    settings: Settings, request: Request, weights: dict[str, Array], step: int, warn: Callable[[str], None]
) -> Iterator[Rollout]:
    """All episodes in the world as it is after ``step`` steps; the same whatever the number of workers."""
    copies = settings.rollout.envs_per_worker
    make = build.MakeWorker(settings, copies, request.attack, request.interventions)
    backend, timeout = "inline" if request.workers == 1 else "local", settings.rollout.timeout
    fleet = make_fleet(backend, make, workers=request.workers, ordered=True, timeout=timeout, warn=warn)
    try:
        version = fleet.publish(weights)
        for number, first in enumerate(range(0, request.episodes, copies)):
            fleet.submit(
                Plan(
                    number=number,
                    purpose=STREAM,
                    first_episode=first,
                    episodes=min(copies, request.episodes - first),
                    epsilon=request.epsilon,
                    film=request.video and number == 0,
                    asked_at=step,
                ),
                version,
            )
        while fleet.in_flight:
            yield fleet.receive()
    finally:
        fleet.close()


def measure(rows: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Return, length and, where the environment says who won, success of summaries, with 95 % intervals."""
    told = {name: mean_interval([row[name] for row in rows]) for name in ("return", "length")}
    if all("success" in row for row in rows):
        told["success"] = success_interval(int(sum(row["success"] for row in rows)), len(rows))
    return told


def save(folder: Path, name: str, told: dict[str, Any]) -> Path:
    """JSON in the run's folder, whole or not at all; a number is added to a name that is taken."""
    file, number = folder / FOLDER / f"{name}.json", 1
    while file.exists():
        number += 1
        file = folder / FOLDER / f"{name}-{number}.json"
    write(file, json.dumps(told, indent=1))
    return file


def evaluate(argv: Sequence[str]) -> int:
    """Play, print, save; the exit status."""
    if set(cli.HELP).intersection(argv):
        print(__doc__, end="")
        return 0
    console = Console()

    def warn(line: str) -> None:
        print(f"warning: {line}", file=sys.stderr)

    try:
        request = read(argv)
        settings, folder = cli.load(request.run, algos.ALGORITHMS, envs.ENVIRONMENTS, logdir=request.logdir)
        settings = settings if request.seed is None else replace(settings, seed=request.seed)
        if request.video:
            build.refuse_films(build.spec(settings), "video=true", none="video=false")
        weights, step = saved_weights(settings, folder, warn)
        make_folder(folder / FOLDER, f"run={request.run}")
        rows, frames = list[dict[str, float]](), None
        for rollout in play(settings, request, weights, step, warn):
            rows += [summary(record) for record in rollout.records]
            frames = rollout.frames if frames is None else frames
    except (Mistake, checkpoint.NoCheckpoint) as mistake:
        return cli.refuse(mistake)
    estimates = measure(rows)
    label = against(settings, request)
    table = Table(title=f"{folder} at step {step:,}, {label}, {request.episodes} episodes", box=None)
    for heading in ("", "mean", "95 % interval"):
        table.add_column(heading, justify="right")
    for name, estimate in estimates.items():
        spread = f"{estimate.low:.4g} to {estimate.high:.4g}" if math.isfinite(estimate.low) else "none of one episode"
        table.add_row(name, f"{estimate.value:.4g}", spread)
    console.print(table)
    told = {"run": folder.name, "step": step, "request": asdict(request)}
    told |= {name: estimate.plain() for name, estimate in estimates.items()}
    if frames is not None:
        film = video.save(frames, FILM_SPEED, folder / "videos" / f"evaluation_{step:010d}_{label}")
        console.print(f"film: {film}", soft_wrap=True)
    console.print(f"saved: {save(folder, f'{step:010d}_{label}', told)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(evaluate(sys.argv[1:]))
