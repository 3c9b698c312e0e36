"""`python -m marl.reproduce TABLE`: run what a table says, keep the raw results, compare them with what was published.

usage: python -m marl.reproduce TABLE [rows=..] [seeds=..] [jobs=..] [budget=..] [--list]
       python -m marl.reproduce TABLE --random
       python -m marl.reproduce --readme

  TABLE           a file of configs/tables, or the path of one
  rows=all        TASK/ALGORITHM with commas between; * stands for anything: rows='climbing/*,*/qmix'
  seeds=all       whole numbers with commas between, instead of those of the table
  jobs=cores      runs at a time, of one thread each
  budget=none     90s, 30m or 2h; when it is spent runs save and stop, and the same command goes on
  results=results     where raw results are kept
  logdir=runs/reproduce  where runs have their folders
  readme=README.md    what --readme brings up to date
  episodes=1000   played by --random
  --list          what is done, what came out, and the command of each row; nothing is run
  --random        measure on every task what a team scores that plays at random
  --readme        make the tables in README anew from results/
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

import algos
import envs
from marl.command.cli import HELP, INTERRUPTED, refuse
from marl.command.compose import Registries
from marl.command.request import probe
from marl.command.runs import make_folder, write
from marl.command.typed import put, tree
from marl.config import Settings
from marl.fields import Mistake, check_values, count, like, suggestion
from marl.reproduction import compare, report, results, tables
from marl.reproduction.jobs import Ended, Job, Pool
from marl.reproduction.tables import Row, Table

REGISTRIES = Registries(algos.ALGORITHMS, envs.ENVIRONMENTS)
SECONDS = {"s": 1, "m": 60, "h": 3600}
LIST, RANDOM, README = ("--list",), ("--random",), ("--readme",)


@dataclass(frozen=True)
class Options:
    """What is asked for beside the table."""

    rows: str | None = None  # TASK/ALGORITHM, with commas and *; null: all
    seeds: str | None = None  # with commas; null: the row's
    jobs: int = count(os.cpu_count() or 1)  # runs at a time
    budget: str | None = like(None, r"[1-9]\d*[smh]", "seconds, minutes or hours: 90s, 30m, 2h")
    episodes: int = count(1000)  # of random play
    results: str = "results"
    logdir: str = "runs/reproduce"
    readme: str = "README.md"


def read(argv: Sequence[str]) -> tuple[str, Options, set[str]]:
    """Table, options and switches.

    Raises:
        Mistake: a key, value or switch that is not there.
    """
    switches = {argument for argument in argv if argument.startswith("-")}
    known = [*LIST, *RANDOM, *README, *HELP]
    for switch in sorted(switches.difference(known)):
        raise Mistake(f"{switch}: no such option; allowed are {', '.join(known)}{suggestion(switch, known)}")
    rest = [argument for argument in argv if argument not in switches]
    several = sorted(switches.intersection([*LIST, *RANDOM, *README]))
    if len(several) > 1:
        raise Mistake(f"{several[0]}: not beside {several[1]}; allowed is one of the two")
    root, called = tree(Options), [argument for argument in rest if "=" not in argument]
    for argument in rest:
        key, given, value = argument.partition("=")
        if given:
            put(root, key, value)
    options: Options = OmegaConf.to_object(root)  # type: ignore[assignment]
    check_values(options)
    if len(called) > 1:
        raise Mistake(f"{called[1]}: allowed is one table; {called[0]} stands already")
    return (called[0] if called else ""), options, switches


@dataclass(frozen=True)
class Work:
    """A table, and where its runs and results lie."""

    table: Table
    options: Options

    @property
    def results(self) -> Path:
        return Path(self.options.results)

    @property
    def runs(self) -> Path:
        return Path(self.options.logdir) / self.table.name

    def chosen(self) -> list[tuple[Row, tuple[int, ...]]]:
        return tables.chosen(self.table, self.options.rows, self.options.seeds)

    def job(self, row: Row, seed: int, asked: Settings) -> Job:
        """One run: trained or gone on with, evaluated if the table wants that, recorded."""
        name = f"{row.task}-{row.algorithm}-s{seed}-{results.digest(asked)}"
        run = self.runs / name
        fresh = self.table.header.fresh
        return Job(
            name=f"{row.name} seed {seed}",
            group=row.name,
            stages=(partial(train, row, seed, run), partial(evaluate, run, fresh, asked.steps)),
            finish=partial(self.record, row, run),
            log=self.runs / ".log" / f"{name}.txt",
            lock=self.runs / ".lock" / name,
        )

    def record(self, row: Row, run: Path) -> str:
        """Copy a finished run into results/; what to tell of it."""
        header = self.table.header
        found = results.record(self.results, row, run, header.fresh, REGISTRIES)
        value = report.shown(compare.standing([found], header).value, header.decimals)
        return f"{header.metric} {value}"


def train(row: Row, seed: int, run: Path) -> list[str]:
    """The command that starts a run, or goes on with it."""
    command = [sys.executable, "-m", "marl.train", "log.terminal=false"]
    if (run / "config.yaml").is_file():
        return [*command, f"resume={run}"]
    if run.exists():  # killed in the moment in which it was made: there is nothing in it
        shutil.rmtree(run)
    return [*command, *row.arguments, f"seed={seed}", f"logdir={run.parent}", f"name={run.name}"]


def evaluate(run: Path, episodes: int, steps: int) -> list[str] | None:
    """The command that plays the policy after all ``steps`` on fresh episodes, if that is wanted and was not done."""
    if not episodes or results.final_policy(run, episodes, steps) is not None:
        return None
    return [sys.executable, "-m", "marl.evaluate", f"run={run}", f"episodes={episodes}", "interventions=false"]


def reproduce(work: Work) -> int:
    """Run what is missing, tell how it went; the exit status, 0 if all that was asked for is there."""
    began, missing, faults = time.monotonic(), list[Job](), 0
    for row, seeds in work.chosen():
        try:
            asked = results.wanted(row, REGISTRIES)
        except Mistake as mistake:
            print(f"{row.name}: not available: {mistake}", file=sys.stderr)
            faults += 1
            continue
        found = results.recorded(work.results, row)
        done = {run.seed for run in found if not results.differing(run, asked, REGISTRIES)}
        missing += [work.job(row, seed, asked) for seed in seeds if seed not in done]
    ended = 0

    def tell(one: Ended) -> None:
        nonlocal ended
        ended += 1
        line = f"[{ended}/{len(missing)}] {one.job.name}: {one.how}, {one.line} ({one.seconds:.0f} s)"
        print(line, file=sys.stdout if one.how == "done" else sys.stderr, flush=True)

    budget = work.options.budget
    deadline = began + SECONDS[budget[-1]] * int(budget[:-1]) if budget else float("inf")
    pool = Pool(work.options.jobs, tell, deadline)
    outcome = pool.run(missing)
    print_rows(work)
    left = len(missing) - sum(one.how == "done" for one in outcome)
    if left:
        print(f"{left} of {len(missing)} runs are not done; the same command goes on with them", file=sys.stderr)
    return INTERRUPTED if pool.stops else int(bool(faults or left))


def print_rows(work: Work, commands: bool = False) -> None:
    """A line of each row: what is done, what came out; with ``commands`` what it runs."""
    for row, _ in work.chosen():
        words = [report.line(report.measured(work.results, row, work.table.header, REGISTRIES), work.table.header)]
        if commands:
            words += _availability(row)
            words.append(shlex.join(["python", "-m", "marl.train", *row.arguments]))
        print("; ".join(words))


def _availability(row: Row) -> list[str]:
    try:
        results.wanted(row, REGISTRIES)
    except Mistake as mistake:
        return [f"not available: {mistake}"]
    return []


def play_at_random(work: Work) -> int:
    """Measure chance on every task, by the first of its rows that can run here; the exit status."""
    from marl.reproduction.chance import chance  # brings torch

    left = dict.fromkeys(row.task for row, _ in work.chosen())
    for row, _ in work.chosen():
        if row.task in left:
            try:
                settings = results.wanted(row, REGISTRIES)
                probe(settings, REGISTRIES)
            except Mistake as mistake:
                print(f"{row.name}: not available: {mistake}", file=sys.stderr)
                continue
            del left[row.task]
            estimates = chance(settings, work.options.episodes)
            results.record_random(work.results, row, estimates)
            told = (f"{name} {report.spread(estimate, 3)}" for name, estimate in estimates.items())
            print(f"{row.task}: {', '.join(told)}", flush=True)
    return 1 if left else 0


def refresh(options: Options) -> int:
    """Bring README up to date; the exit status."""
    readme = Path(options.readme)
    if not readme.is_file():
        raise Mistake(f"readme={readme}: no such file; allowed is a Markdown file with markers")
    if not Path(options.results).is_dir():
        raise Mistake(f"results={options.results}: no such folder; README's tables are made of what it holds")
    before = readme.read_text(encoding="utf-8")
    after = report.refreshed(before, Path(options.results), REGISTRIES)
    if after != before:
        write(readme, after)
    print(f"{readme}: {'up to date' if after == before else 'tables made anew'}")
    return 0


def main(argv: Sequence[str]) -> int:
    """The command; its exit status."""
    try:
        table, options, switches = read(argv)
        if switches.intersection(HELP):
            print(f"{__doc__.strip()}\n\ntables: {', '.join(tables.names())}")
            return 0
        if switches.intersection(README):
            return refresh(options)
        if not table:
            raise Mistake(f"TABLE: no table is chosen; allowed are {', '.join(tables.names())}, or the path of a .yaml")
        work = Work(tables.load(table), options)
        if switches.intersection(LIST):
            print_rows(work, commands=True)
            return 0
        make_folder(work.results, f"results={options.results}")
        make_folder(work.runs, f"logdir={options.logdir}")
        return play_at_random(work) if switches.intersection(RANDOM) else reproduce(work)
    except Mistake as mistake:
        return refuse(mistake)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
