"""Learning curves of runs: what was logged, grouped, brought to common steps, aggregated over seeds."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marl.fields import one_line
from marl.reporting.statistics import RESAMPLES, Band, iqm_band
from marl.types import Array

POINTS = 200
"""Most points of a curve."""
TASK = ("scenario", "id", "game")
"""Keys of ``env`` that say which task of a suite it is."""
PART_OF_THE_EXPERIMENT = ("algo.", "env.", "learner.", "replay.")


class Unplottable(Exception):
    """The runs cannot be drawn as asked; the message is one line for the user."""


class Series(NamedTuple):
    """One metric of one run."""

    steps: Array
    """(P,) rising"""
    values: Array
    """(P,)"""


@dataclass(frozen=True)
class Run:
    """A run's folder, its settings by dotted key, and all it logged by tag."""

    folder: Path
    settings: Mapping[str, object]
    logged: Mapping[str, Series]

    @property
    def task(self) -> str:
        """The environment, and which of its tasks."""
        names = (self.settings.get(f"env.{key}") for key in TASK)
        return " ".join(str(name) for name in (self.settings["env.name"], *names) if name is not None)


class Group(NamedTuple):
    """Runs that differ in their seed: one curve."""

    task: str
    label: str
    runs: list[Run]


class Curve(NamedTuple):
    """What is drawn of a group."""

    group: Group
    steps: Array
    """(P,)"""
    band: Band


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at or below the paths, each once. (`Path.rglob` fails when a live run deletes an old checkpoint.)

    Raises:
        Unplottable: a path has none, or a run has no settings.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
            runs = [str(other) for other in beside for logged in ("", "*/") if any(other.glob(f"{logged}scalars.csv"))]
            raise Unplottable(f"no run at {path}" + meant(str(path), runs))
        found = sorted(Path(folder) for folder, _, files in os.walk(path) if "scalars.csv" in files)
        if not found:
            raise Unplottable(f"no run at or below {path}: there is no scalars.csv")
        folders |= dict.fromkeys(found)
    return [read_run(folder) for folder in folders]


def read_run(folder: Path) -> Run:
    """A run, finished or not: a last row that is still being written is left out.

    Raises:
        Unplottable: a file cannot be read, or the settings do not say ``algo.name``, ``env.name`` and ``seed``.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise Unplottable(f"{folder} has no config.yaml")
    settings = _settings(file)
    missing = [key for key in ("algo.name", "env.name", "seed") if key not in settings]
    if missing:
        raise Unplottable(f"{file} does not say {' and '.join(missing)}")
    return Run(folder, settings, _logged(folder / "scalars.csv"))


def _settings(file: Path) -> dict[str, object]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        return dict(_flat(OmegaConf.to_container(OmegaConf.load(file))))
    except (UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise Unplottable(f"{file} is no configuration: {one_line(error)}") from error


def _logged(file: Path) -> dict[str, Series]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Unplottable(f"{file} is no table: {error}") from error
    points: dict[str, dict[int, float]] = {}
    for row in csv.reader(text[: text.rfind("\n") + 1].splitlines()[1:]):
        try:
            step, tag, value = row
            points.setdefault(tag, {})[int(step)] = float(value)
        except ValueError as error:
            raise Unplottable(f"{file}: {','.join(row)!r} is not step,tag,value") from error
    return {tag: _series(values) for tag, values in points.items()}


def _series(points: Mapping[int, float]) -> Series:
    steps = sorted(points)
    return Series(np.array(steps), np.array([points[step] for step in steps]))


def _flat(node: object, prefix: str = "") -> list[tuple[str, object]]:
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [leaf for key, value in node.items() for leaf in _flat(value, f"{prefix}.{key}" if prefix else str(key))]


def grouped(runs: Sequence[Run], by: Sequence[str]) -> list[Group]:
    """One group per task and value of the keys, those that a run has; ``algo`` is short for ``algo.name``.

    Raises:
        Unplottable: no run has such a key, or a group has one seed twice.
    """
    keys = ["algo.name" if key == "algo" else key for key in by]
    for key in keys:
        if not any(key in run.settings for run in runs):
            known = {known for run in runs for known in run.settings}
            raise Unplottable(f"--by {key}: no run has that setting" + meant(key, known))
    groups: dict[tuple[str, str], Group] = {}
    for run in runs:
        has = {key: run.settings[key] for key in keys if key in run.settings}
        names = (str(value) if key == "algo.name" else f"{key}={value}" for key, value in has.items())
        group = Group(run.task, ", ".join(names) or f"without {', '.join(keys)}", [])
        groups.setdefault((group.task, group.label), group).runs.append(run)
    for group in groups.values():
        _check_seeds(group)
    return [groups[key] for key in sorted(groups)]


def _check_seeds(group: Group) -> None:
    """A seed that counts twice makes an interval too narrow."""
    seen: dict[object, Path] = {}
    for run in group.runs:
        seed = run.settings["seed"]
        if seed in seen:
            told = f"seed {seed} twice for {group.label} on {group.task}: {seen[seed]} and {run.folder}"
            raise Unplottable(f"{told}; leave one out, or tell them apart with --by KEY")
        seen[seed] = run.folder


def differing(group: Group) -> list[str]:
    """Settings that belong to the experiment and are not the same in all runs of a group."""
    keys = {key for run in group.runs for key in run.settings if key.startswith(PART_OF_THE_EXPERIMENT)}
    return sorted(key for key in keys if len({str(run.settings.get(key)) for run in group.runs}) > 1)


def metric_of(runs: Sequence[Run], metric: str) -> list[Series]:
    """One metric of every run.

    Raises:
        Unplottable: a run did not log it.
    """
    known = {tag for run in runs for tag in run.logged}
    if metric not in known:
        raise Unplottable(f"no run logged {metric}" + meant(metric, known))
    for run in runs:
        if metric not in run.logged:
            raise Unplottable(f"{run.folder} did not log {metric}, others did; leave it out or choose another metric")
        if np.isnan(run.logged[metric].values).any():
            raise Unplottable(f"{run.folder} logged {metric} as NaN")
    return [run.logged[metric] for run in runs]


def common_steps(series: Sequence[Series]) -> Array:
    """(P,) the steps at which any run logged, from the last first one to the first last one.

    Raises:
        Unplottable: the runs have no stretch in common.
    """
    begin, end = max(s.steps[0] for s in series), min(s.steps[-1] for s in series)
    if begin > end:
        raise Unplottable(f"one run ends at step {end:,}, before another begins at {begin:,}: nothing in common")
    steps = np.unique(np.concatenate([s.steps for s in series]))
    return np.asarray(steps[(begin <= steps) & (steps <= end)])


def thinned(steps: Array) -> Array:
    """At most `POINTS` of them, evenly spread, the first and the last included."""
    return np.asarray(steps[np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).round().astype(int))])


def held(series: Series, steps: Array) -> Array:
    """(P,) the last value that was logged at or before each step."""
    return np.asarray(series.values[np.searchsorted(series.steps, steps, side="right") - 1])


def curve(group: Group, metric: str, *, resamples: int = RESAMPLES) -> Curve:
    """Interquartile mean over a group's runs with its 95 % bootstrap interval, over the steps they have in common.

    Raises:
        Unplottable: a run did not log the metric, or the runs have no steps in common.
        ModuleNotFoundError: rliable is missing; the message says what to install.
    """
    series = metric_of(group.runs, metric)
    steps = thinned(common_steps(series))
    return Curve(group, steps, iqm_band(np.stack([held(s, steps) for s in series]), resamples=resamples))


def meant(word: str, known: Sequence[str] | set[str]) -> str:
    """The end of an error message: what is close to ``word``, else what there is."""
    close = get_close_matches(word, sorted(known), n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    few = 20
    listed = ", ".join(sorted(known)[:few]) + (", ..." if len(known) > few else "")
    return f"; there are: {listed}" if known else ""
