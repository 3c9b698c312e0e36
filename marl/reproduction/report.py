"""Tables of results as text: a line of each row, Markdown for README, and README brought up to date."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from marl.command.compose import Registries
from marl.command.runs import read
from marl.fields import Mistake, suggestion
from marl.reporting.statistics import Estimate
from marl.reproduction.compare import below_random, fresh, standing, versus
from marl.reproduction.results import Recorded, but_for_seed, differing, random_of, recorded, wanted
from marl.reproduction.tables import Figure, Header, Row, Table, load, names

MARKER = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)
READ = {"figure": "read off a figure", "data": "from raw curves", "unchecked": "quoted at second hand"}
OTHER = "†"


class Measured(NamedTuple):
    """A row with its runs."""

    row: Row
    runs: list[Recorded]
    """Those that count: of the row's present settings, or, if there are none, those that agree with one another."""
    other: str
    """Empty, or what is otherwise in these runs than in the row."""
    random: float | None
    """What a random team scores."""
    steps: int
    """Of these runs."""


def measured(root: Path, row: Row, header: Header, registries: Registries) -> Measured:
    """What is recorded of a row. Runs of different settings are never put together."""
    runs, random = recorded(root, row), random_of(root, row, header)
    if not runs:
        return Measured(row, [], "", random, row.steps)
    try:
        asked = wanted(row, registries)
    except Mistake as mistake:
        return Measured(row, runs, str(mistake), random, row.steps)
    texts = [but_for_seed(run.config) for run in runs]
    told = {text: ", ".join(differing(run, asked, registries)) for text, run in dict(zip(texts, runs)).items()}
    differences = [told[text] for text in texts]
    first = min(differences, key=len)
    kept = [run for run, found in zip(runs, differences) if found == first]
    return Measured(row, kept, first, random, int(read(kept[0].config)["steps"]))


# words


def shown(value: float, decimals: int) -> str:
    """With a minus sign that is one."""
    return f"{value:.{decimals}f}".replace("-", "−")


def spread(estimate: Estimate, decimals: int) -> str:
    """Value and interval."""
    value = shown(estimate.value, decimals)
    if math.isnan(estimate.low):
        return f"{value} (no interval)"
    return f"{value} ({shown(estimate.low, decimals)} to {shown(estimate.high, decimals)})"


def brief(steps: int) -> str:
    """2_000_000 is 2M."""
    for unit, letter in ((1_000_000, "M"), (1000, "k")):
        if steps >= unit and steps % (unit // 100) == 0:
            return f"{steps / unit:g}{letter}"
    return f"{steps:,}"


def quoted(figure: Figure, row: Row, decimals: int) -> str:
    """A published figure, with what may make it another thing than ours."""
    margin = f" ± {shown(figure.margin, decimals)}" if figure.margin is not None else ""
    notes = [brief(figure.steps)] if figure.steps is not None and figure.steps != row.steps else []
    notes += [READ[figure.read]] if figure.read in READ else []
    return f"{shown(figure.value, decimals)}{margin} ({', '.join([figure.source, *notes])})"


def verdict(ours: Estimate, found: Measured) -> str:
    """How a row stands to all figures, and to chance."""
    figures = found.row.published
    words = ["no interval"] if figures and math.isnan(ours.low) else [versus(ours, figure) for figure in figures]
    return ", ".join([*words, *(["**below random**"] if below_random(ours, found.random) else [])])


def line(found: Measured, header: Header) -> str:
    """A row in a terminal: what is done, what came out."""
    row, decimals = found.row, header.decimals
    words = [f"{row.name}: {len(found.runs)} of {len(row.seeds)} seeds"]
    if found.runs:
        ours = standing(found.runs, header)
        words.append(spread(ours, decimals))
        words += [f"{versus(ours, figure)}: {quoted(figure, row, decimals)}" for figure in row.published]
        words += [f"BELOW RANDOM ({found.random})"] if below_random(ours, found.random) else []
        words += [f"measured with other settings: {found.other}"] if found.other else []
    return "; ".join(words)


# tables


def markdown(table: Table, root: Path, registries: Registries) -> str:
    """The rows of a table that are measured."""
    header = table.header
    rows = [measured(root, row, header, registries) for row in table.rows]
    told = [found for found in rows if found.runs]
    lines = [f"**{header.title}.** {header.scale}", ""]
    lines += [header.about.strip(), ""] if header.about else []
    if told:
        cells = _grid(told, header) if header.layout == "grid" else _lines(told, header)
        drawn = ["| " + " | ".join(line) + " |" for line in cells]
        lines += [drawn[0], "|---" * len(cells[0]) + "|", *drawn[1:], ""]
    lines += [" ".join(_notes(table, told, len(rows)))]
    return "\n".join(lines)


def _lines(told: Sequence[Measured], header: Header) -> list[list[str]]:
    """A line per row; columns that say nothing of any are left out."""
    columns = ["task", "algorithm", "steps", "seeds", _summary(header)]
    columns += [f"final policy, {header.fresh} fresh episodes"] if header.fresh else []
    columns += ["random", "published", "verdict"]
    cells = [columns, *(_cells(found, header) for found in told)]
    kept = [index for index in range(len(columns)) if any(line[index] for line in cells[1:])]
    return [[line[index] for index in kept] for line in cells]


def _grid(told: Sequence[Measured], header: Header) -> list[list[str]]:
    """A line per algorithm, a column per task, random play in the last line."""
    tasks = list(dict.fromkeys(found.row.task for found in told))
    at = {(found.row.algorithm, found.row.task): found for found in told}
    chances = {found.row.task: found.random for found in told}
    lines = [[_summary(header), *tasks]]
    for algorithm in dict.fromkeys(found.row.algorithm for found in told):
        here = [at.get((algorithm, task)) for task in tasks]
        lines.append([algorithm, *("" if found is None else _square(found, header) for found in here)])
    if any(chance is not None for chance in chances.values()):
        random = ("" if chance is None else shown(chance, header.decimals) for chance in chances.values())
        lines.append(["random play", *random])
    return lines


def _square(found: Measured, header: Header) -> str:
    """What a row says in one cell of a grid."""
    ours, seeds = standing(found.runs, header), _seeds(found)
    words = [spread(ours, header.decimals) + (OTHER if found.other else "")]
    words += [f"{seeds} seeds"] if " of " in seeds else []
    for figure in found.row.published:
        words.append(f"{versus(ours, figure)}: {quoted(figure, found.row, header.decimals)}")
    return "<br>".join([*words, *(["**below random**"] if below_random(ours, found.random) else [])])


def _summary(header: Header) -> str:
    what = header.metric.rpartition("/")[2]
    centre = "IQM over seeds" if header.centre == "iqm" else "mean over seeds"
    when = f"last {header.window} evaluations" if header.summary == "last" else "best evaluation"
    return f"{what}, {when}, {centre} (95 % interval)"


def _cells(found: Measured, header: Header) -> list[str]:
    row, decimals = found.row, header.decimals
    ours = standing(found.runs, header)
    cells = [row.task, row.algorithm + (OTHER if found.other else ""), brief(found.steps), _seeds(found)]
    cells.append(spread(ours, decimals))
    if header.fresh:
        final = fresh(found.runs, header)
        cells.append(spread(final, decimals) if final else "")
    cells.append("" if found.random is None else shown(found.random, decimals))
    cells.append("; ".join(quoted(figure, row, decimals) for figure in row.published))
    return [*cells, verdict(ours, found)]


def _seeds(found: Measured) -> str:
    here, all_of_them = len(found.runs), len(found.row.seeds)
    return str(here) if here >= all_of_them else f"{here} of {all_of_them}"


def _notes(table: Table, told: Sequence[Measured], rows: int) -> list[str]:
    notes = [f"`python -m marl.reproduce {table.name}`; {len(told)} of {rows} rows measured."]
    if told and table.header.layout == "grid":
        steps, seeds = [found.steps for found in told], [len(found.row.seeds) for found in told]
        notes.append(f"{_span(steps, brief)} steps, {_span(seeds, str)} seeds.")
    lost = [found.row.name for found in told if below_random(standing(found.runs, table.header), found.random)]
    if lost:
        notes.append(f"Below a random policy: {', '.join(lost)}.")
    if any(found.other for found in told):
        notes.append(f"{OTHER} Measured with other settings than the row has now.")
    cited = {figure.source for found in told for figure in found.row.published}
    notes += [f"{source}: {text.strip()}." for source, text in table.header.sources.items() if source in cited]
    return notes


def _span(numbers: Sequence[int], words: Callable[[int], str]) -> str:
    least, most = min(numbers), max(numbers)
    return words(least) if least == most else f"{words(least)} to {words(most)}"


def refreshed(text: str, root: Path, registries: Registries) -> str:
    """A text with every table between ``<!-- table: NAME -->`` and ``<!-- /table -->`` made anew from results/.

    Raises:
        Mistake: a marker names no table, or has no end.
    """
    found = list(MARKER.finditer(text))
    if len(found) != text.count("<!-- table:"):
        raise Mistake(
            "readme: a <!-- table: NAME --> without its <!-- /table -->; allowed are both, on lines of their own"
        )
    for match in found:
        name = match["name"]
        if name not in names():
            hint = suggestion(name, names())
            raise Mistake(f"readme: table: {name}: no such table; allowed are {', '.join(names())}{hint}")

    def anew(match: re.Match[str]) -> str:
        return f"{match[1]}{markdown(load(match['name']), root, registries)}\n{match[3]}"

    return MARKER.sub(anew, text)
