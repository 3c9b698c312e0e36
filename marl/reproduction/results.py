"""Measured rows of tables: raw evaluations and configuration of every run, kept as text.

``results/TABLE/TASK/ALGORITHM/sSEED.csv`` has a line per evaluation, ``.yaml`` the resolved configuration (which
``from=`` takes), ``.json`` commit and machine of every session of the run. That last file is written last: a
run is recorded if it is there.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from marl.command.compose import Registries, settings_from
from marl.command.request import HARMLESS, one
from marl.command.runs import ENVIRONMENT, plain, read, write
from marl.config import Settings
from marl.fields import Mistake, leaves
from marl.reporting.curves import Series, read_run
from marl.reporting.statistics import Estimate
from marl.reproduction.tables import Header, Row

PREFIX = "eval/"
MACHINES = "machines"
APART = ("seed", "name", "logdir", "resume", "from", *(key for key in HARMLESS if key != "steps"))
"""Settings that do not make a run another experiment, or that tell the runs of one apart."""
SHARED = ("python", "platform", "hardware", "packages")
"""What many runs have in common of their surroundings."""


class Incomplete(ValueError):
    """A run's folder does not hold what a table needs; the message is one line."""


@dataclass(frozen=True)
class Recorded:
    """One run in results/."""

    seed: int
    config: Path
    evaluations: Mapping[str, Series]
    """Tag to its values."""
    about: Mapping[str, Any]


# configurations


def wanted(row: Row, registries: Registries) -> Settings:
    """The settings that the row asks for, at seed 0.

    Raises:
        Mistake: there is no such algorithm, world or setting here.
    """
    try:
        return one(row.arguments, registries)
    except ModuleNotFoundError as missing:
        raise Mistake(f"{' '.join(row.arguments)}: {missing}") from missing


def identity(settings: Settings) -> dict[str, object]:
    """What makes a run this experiment and no other, by dotted key."""
    return {
        key: value
        for key, value, _ in leaves(settings)
        if not any(key == apart or key.startswith(f"{apart}.") for apart in APART)
    }


def digest(settings: Settings) -> str:
    """Eight letters that differ where `identity` does."""
    return _sum(json.dumps(identity(settings), sort_keys=True, default=str))


def differing(found: Recorded, asked: Settings, registries: Registries) -> list[str]:
    """What was otherwise in a recorded run, as ``key=value``. A setting it does not know yet has today's default."""
    try:
        before = identity(settings_from([], registries, read(found.config)))
    except Mistake as mistake:
        return [str(mistake)]
    now = identity(asked)
    return [f"{key}={before.get(key)}" for key in sorted({*before, *now}) if before.get(key) != now.get(key)]


def but_for_seed(config: Path) -> str:
    """The text of a kept configuration without the line that seeds of one row differ in."""
    return "".join(line for line in config.read_text().splitlines(keepends=True) if not line.startswith("seed:"))


# files


def folder_of(root: Path, row: Row) -> Path:
    return root / row.table / row.task / row.algorithm


def record(root: Path, row: Row, run: Path, fresh: int, registries: Registries) -> Recorded:
    """Copy what counts of a finished run into results/.

    Raises:
        Incomplete: it never came to its last step, or lacks the evaluation of its final policy.
    """
    settings = settings_from([], registries, read(run / "config.yaml"))
    logged = read_run(run).logged
    reached = max((int(series.steps[-1]) for series in logged.values()), default=0)
    evaluations = {tag: series for tag, series in logged.items() if tag.startswith(PREFIX)}
    if reached < settings.steps or not evaluations:
        raise Incomplete(f"{run}: at step {reached:,} of {settings.steps:,}, with {len(evaluations)} evaluated metrics")
    final = final_policy(run, fresh, settings.steps) if fresh else None
    if fresh and final is None:
        raise Incomplete(f"{run}: its final policy was not evaluated on {fresh} episodes")
    target = folder_of(root, row) / f"s{settings.seed}"
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = replace(settings, name=None, logdir=Settings.logdir, resume=None, from_=None)
    about = {"step": reached, "sessions": list(_sessions(root, run)), "fresh": final}
    write(target.with_suffix(".csv"), _to_csv(evaluations))
    write(target.with_suffix(".yaml"), OmegaConf.to_yaml(OmegaConf.create(plain(kept))))
    write(target.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    return load(target.with_suffix(".json"))


def final_policy(run: Path, episodes: int, steps: int) -> dict[str, Any] | None:
    """What `marl.evaluate` said of a run's policy after all its ``steps``, without attackers, on so many episodes."""
    for file in sorted((run / "evaluations").glob("*_clean*.json")):
        told = json.loads(file.read_text(encoding="utf-8"))
        asked = told["request"]
        plain = asked["attack"] is None and not asked.get("epsilon") and asked.get("seed") is None
        if plain and asked["episodes"] == episodes and told["step"] >= steps:
            return {key: told[key] for key in ("step", "return", "success") if key in told} | {"episodes": episodes}
    return None


def _sessions(root: Path, run: Path) -> Iterator[dict[str, Any]]:
    """Each with the name of a file that holds what it shares with many others."""
    files = sorted(run.glob(f"{ENVIRONMENT}*.json"), key=lambda file: (len(file.name), file.name))
    for file in files:
        told = json.loads(file.read_text(encoding="utf-8"))
        text = json.dumps({key: told[key] for key in SHARED}, indent=1) + "\n"
        machine = root / MACHINES / f"{_sum(text)}.json"
        if not machine.exists():
            machine.parent.mkdir(parents=True, exist_ok=True)
            write(machine, text)
        yield {"started": told["started"], "git": told["git"], "machine": machine.stem}


def recorded(root: Path, row: Row) -> list[Recorded]:
    """The runs of a row that are there, by seed."""
    return sorted((load(file) for file in folder_of(root, row).glob("s*.json")), key=lambda found: found.seed)


def load(file: Path) -> Recorded:
    """One run by its .json.

    Raises:
        Mistake: a file beside it is missing or no table.
    """
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        evaluations = _from_csv(file.with_suffix(".csv").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Mistake(f"{file}: not a recorded run: {error}; allowed is to delete it and measure again") from error
    return Recorded(int(file.stem[1:]), file.with_suffix(".yaml"), evaluations, about)


def _to_csv(evaluations: Mapping[str, Series]) -> str:
    tags = sorted(evaluations)
    points = {tag: dict(zip(evaluations[tag].steps.tolist(), evaluations[tag].values.tolist())) for tag in tags}
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["step", *(tag.removeprefix(PREFIX) for tag in tags)])
    for step in sorted({step for values in points.values() for step in values}):
        rows.writerow([step, *(repr(points[tag][step]) if step in points[tag] else "" for tag in tags)])
    return out.getvalue()


def _from_csv(text: str) -> dict[str, Series]:
    head, *rows = csv.reader(text.splitlines())
    columns: dict[str, list[tuple[int, float]]] = {PREFIX + tag: [] for tag in head[1:]}
    for step, *values in rows:
        for tag, value in zip(columns, values, strict=True):
            if value:
                columns[tag].append((int(step), float(value)))
    return {
        tag: Series(np.array([step for step, _ in points]), np.array([value for _, value in points]))
        for tag, points in columns.items()
    }


def _sum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


# chance


def record_random(root: Path, row: Row, estimates: Mapping[str, Estimate]) -> None:
    """Keep what a random team scored on a row's task."""
    file = _random_file(root, row)
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, json.dumps({name: estimate.plain() for name, estimate in estimates.items()}, indent=1) + "\n")


def random_of(root: Path, row: Row, header: Header) -> float | None:
    """What a random team scores: what the table says, else what was measured, else unknown."""
    file = _random_file(root, row)
    if row.random is not None or not file.exists():
        return row.random
    return float(json.loads(file.read_text(encoding="utf-8"))[header.metric.removeprefix(PREFIX)]["value"])


def _random_file(root: Path, row: Row) -> Path:
    return root / row.table / row.task / "random.json"
