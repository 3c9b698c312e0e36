"""Tables of results as data: which runs make up a row, what was published of it, how the two are compared."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from marl.command.compose import CONFIGS
from marl.command.typed import fill, tree
from marl.fields import Mistake, check_values, count, first_line, one_of, suggestion

FOLDER = "tables"
NAME = re.compile(r"\w[\w.+-]*", re.ASCII)
"""What tasks and algorithms may be called: folders bear these names."""


@dataclass(frozen=True)
class Figure:
    """One published number, in the metric and scale of the table."""

    value: float = 0.0
    source: str = ""  # one of the table's sources
    margin: float | None = None  # half of its 95 % interval; null: none was published
    steps: int | None = None  # environment steps it was reached at; null: as many as here
    read: str = one_of(
        "text", "data", "figure", "unchecked"
    )  # in numbers; from raw curves; off a figure; at second hand


@dataclass(frozen=True)
class Task:
    """One world, and what is known of it."""

    settings: str = ""  # of marl.train, on top of the table's
    steps: int | None = count(None)  # environment steps; null: the table's
    seeds: int | None = count(None)  # as many, from 0 on; null: the table's
    random: float | None = None  # what a team scores that plays at random
    algorithms: list[str] | None = None  # which of the table's; null: all
    extra: dict[str, str] = field(default_factory=dict)  # algorithm to settings of its own on this task
    published: dict[str, Any] = field(default_factory=dict)  # algorithm to figures


@dataclass(frozen=True)
class Header:
    """What all rows of a table have in common."""

    title: str = ""
    scale: str = ""  # what one unit of the metric is, so that figures can be compared at all
    about: str = ""  # what stands below the title
    metric: str = one_of("eval/return", "eval/success")
    summary: str = one_of("last", "max")  # mean of the last evaluations, or best evaluation of the mean over seeds
    window: int = count(10)  # how many evaluations are the last ones
    centre: str = one_of("mean", "iqm")  # over seeds: mean with Student's interval, or IQM with bootstrap interval
    fresh: int = count(0, least=0)  # episodes on which the final policy is evaluated once more; 0: it is not
    layout: str = one_of("rows", "grid")  # in Markdown: a line per row, or a line per algorithm and a column per task
    decimals: int = count(1, least=0)  # shown
    steps: int = count(1_000_000)  # environment steps
    seeds: int = count(5)  # as many, from 0 on
    settings: str = ""  # of marl.train, for all rows
    algorithms: dict[str, str] = field(default_factory=dict)  # name in this table to settings of marl.train
    sources: dict[str, str] = field(default_factory=dict)  # short name of a publication to what to look up


REQUIRED: dict[type, tuple[str, ...]] = {Header: ("title", "scale"), Task: (), Figure: ("value", "source")}


@dataclass(frozen=True)
class Row:
    """One algorithm on one task."""

    table: str
    task: str
    algorithm: str
    arguments: tuple[str, ...]
    """Of marl.train, but for the seed."""
    steps: int
    seeds: tuple[int, ...]
    random: float | None
    published: tuple[Figure, ...]

    @property
    def name(self) -> str:
        return f"{self.task}/{self.algorithm}"


@dataclass(frozen=True)
class Table:
    """A table, checked."""

    name: str
    header: Header
    rows: tuple[Row, ...]


def names() -> list[str]:
    """The tables that there are."""
    files = resources.files(CONFIGS).joinpath(FOLDER).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load(table: str) -> Table:
    """A table by its name, or by the path of its file.

    Raises:
        Mistake: there is none, or something in it cannot be.
    """
    if table.endswith(".yaml") and Path(table).is_file():
        text, name = Path(table).read_text(encoding="utf-8"), Path(table).stem
    elif table in names():
        text, name = resources.files(CONFIGS).joinpath(FOLDER, f"{table}.yaml").read_text(encoding="utf-8"), table
    else:
        allowed = f"allowed are {', '.join(names())}, or the path of a .yaml"
        raise Mistake(f"{table}: no such table; {allowed}{suggestion(table, names())}")
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (YAMLError, OmegaConfBaseException) as error:
        raise Mistake(f"{name}.yaml: no table: {first_line(error)}") from error
    return read(name, plain)


def read(name: str, plain: Any) -> Table:
    """A table from what its file holds.

    Raises:
        Mistake: something in it cannot be.
    """
    if not isinstance(plain, Mapping) or not isinstance(plain.get("tasks"), Mapping) or not plain["tasks"]:
        raise Mistake(f"{name}.yaml: tasks: allowed is a mapping of names to tasks, at least one")
    where = f"{name}.yaml: "
    header: Header = _filled(Header, {key: value for key, value in plain.items() if key != "tasks"}, where)
    if not header.algorithms:
        raise Mistake(f"{where}algorithms: allowed is a mapping of names to settings, at least one")
    rows: list[Row] = []
    for task, section in plain["tasks"].items():
        rows += _rows(name, str(task), section, header)
    for word in {word for row in rows for word in (row.task, row.algorithm)}:
        if not NAME.fullmatch(word):
            raise Mistake(f"{where}{word}: no name of a task or an algorithm; allowed are letters, digits, . _ + -")
    return Table(name, header, tuple(rows))


def _rows(name: str, task: str, section: Any, header: Header) -> list[Row]:
    where = f"{name}.yaml: tasks.{task}."
    if not isinstance(section, Mapping):
        raise Mistake(f"{where[:-1]}={section}: allowed is a mapping of settings")
    known: Task = _filled(Task, section, where)
    for key, called in (("algorithms", known.algorithms or ()), ("extra", known.extra), ("published", known.published)):
        _refuse_strangers(f"{where}{key}", called, header.algorithms)
    chosen = header.algorithms if known.algorithms is None else known.algorithms
    steps, seeds = known.steps or header.steps, known.seeds or header.seeds
    figures = {key: _figures(found, f"{where}published.{key}", header) for key, found in known.published.items()}
    rows = []
    for algorithm in chosen:
        layers = (header.settings, known.settings, header.algorithms[algorithm], known.extra.get(algorithm, ""))
        arguments = [argument for text in layers for argument in _words(text, where)]
        rows.append(
            Row(
                table=name,
                task=task,
                algorithm=algorithm,
                arguments=(*arguments, f"steps={steps}"),
                steps=steps,
                seeds=tuple(range(seeds)),
                random=known.random,
                published=figures.get(algorithm, ()),
            )
        )
    return rows


def _words(text: str, where: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise Mistake(f"{where[:-1]}: {text}: {error}; allowed are settings as a shell would take them") from error


def _figures(found: Any, where: str, header: Header) -> tuple[Figure, ...]:
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise Mistake(f"{where}={found}: allowed is a list of mappings with value and source")
    figures: tuple[Figure, ...] = tuple(_filled(Figure, entry, f"{where}.") for entry in found)
    for figure in figures:
        _refuse_strangers(f"{where}.source", [figure.source], header.sources)
    return figures


def _refuse_strangers(where: str, called: Iterable[str], known: Iterable[str]) -> None:
    names = list(known)
    for word in called:
        if word not in names:
            allowed = f"allowed are {', '.join(names)}" if names else "there are none"
            raise Mistake(f"{where}={word}: not in this table; {allowed}{suggestion(word, names)}")


def _filled(kind: type, values: Mapping[Any, Any], where: str) -> Any:
    root = tree(kind)
    try:
        fill(root, values)
        for key in REQUIRED[kind]:
            if key not in values:
                raise Mistake(f"{key}: is missing; allowed is a value for it in the file")
        filled = OmegaConf.to_object(root)
        check_values(filled)
    except Mistake as mistake:
        raise Mistake(f"{where}{mistake}") from mistake
    return filled


def chosen(table: Table, rows: str | None, seeds: str | None) -> list[tuple[Row, tuple[int, ...]]]:
    """The rows that patterns name, with those of their seeds that are asked for.

    Args:
        rows: TASK/ALGORITHM with commas between; * stands for anything. None: all
        seeds: whole numbers with commas between. None: those of the row

    Raises:
        Mistake: no row is called so, or no number.
    """
    taken = table.rows if rows is None else _matching(table, rows.split(","))
    if seeds is None:
        return [(row, row.seeds) for row in taken]
    if not re.fullmatch(r"\d+(,\d+)*", seeds, re.ASCII):
        raise Mistake(f"seeds={seeds}: allowed are whole numbers with commas between")
    asked = tuple(dict.fromkeys(map(int, seeds.split(","))))
    return [(row, asked) for row in taken]


def _matching(table: Table, patterns: list[str]) -> tuple[Row, ...]:
    names = [row.name for row in table.rows]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            allowed = f"allowed are {', '.join(names)}; * stands for anything"
            raise Mistake(f"rows={pattern}: no such row in {table.name}; {allowed}{suggestion(pattern, names)}")
    return tuple(row for row in table.rows if any(fnmatchcase(row.name, pattern) for pattern in patterns))
