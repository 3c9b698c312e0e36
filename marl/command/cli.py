"""The command line: arguments in, checked settings out, one line for every mistake."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from marl.command.compose import Registries, settings_from
from marl.command.guide import guide
from marl.command.request import one, parse_argument, probe, request, several
from marl.command.runs import find, read, refuse_taken, to_yaml
from marl.config import Settings, check
from marl.fields import Mistake, one_line, suggestion

HELP, MANY, SHOW = ("-h", "--help"), ("-m", "--multirun"), ("-c", "--cfg", "--config")
INTERRUPTED = 130
"""Exit status of a run that the user stopped."""
FAILED = 1
"""Exit status of a run that broke."""
REFUSED = 2
"""Exit status of a command that the user got wrong."""


class Asked(NamedTuple):
    """Options apart from `key=value`."""

    options: set[str]
    arguments: list[str]

    def wants(self, spellings: tuple[str, ...]) -> bool:
        return not self.options.isdisjoint(spellings)


def run(
    main: Callable[[Settings], int],
    argv: Sequence[str],
    algorithms: Mapping[str, str],
    environments: Mapping[str, str],
    command: str = "python -m marl.train",
    purpose: str = "Cooperative multi-agent reinforcement learning by value decomposition.",
) -> int:
    """Call ``main`` with the settings that ``argv`` asks for, once for each run of a sweep; the exit status.

    A sweep goes on after a run that broke or was refused, and ends with one that the user stopped. A mistake, which
    ``main`` may raise too, is told in one line on standard error, with status 2.
    """
    registries = Registries(algorithms, environments)
    try:
        asked = _split(argv)
        if asked.wants(HELP):
            print(guide(command, purpose, registries, _chosen(asked.arguments, registries)))
            return 0
        runs = _settings(asked, registries)
        if asked.wants(SHOW):
            print("---\n".join(map(to_yaml, runs)), end="")
            return 0
        for settings in runs:
            probe(settings, registries)
            refuse_taken(settings)
        return _run_all(main, runs)
    except Mistake as mistake:
        return refuse(mistake)


def refuse(mistake: Exception, where: str = "") -> int:
    """Tell a mistake in one line; the exit status."""
    print(f"error: {where}{one_line(mistake)}", file=sys.stderr)
    return REFUSED


def _run_all(main: Callable[[Settings], int], runs: list[Settings]) -> int:
    worst = 0
    for settings in runs:
        try:
            status = main(settings)
        except Mistake as mistake:
            status = refuse(mistake, f"{settings.name}: " if len(runs) > 1 else "")
        except Exception:
            if len(runs) == 1:
                raise
            traceback.print_exc()
            status = FAILED
        if status == INTERRUPTED:
            return status
        worst = max(worst, status)
    return worst


def parse(argv: Sequence[str], algorithms: Mapping[str, str], environments: Mapping[str, str]) -> Settings:
    """The settings of the one run that ``argv`` asks for. Nothing is started or written.

    Raises:
        Mistake: they cannot be, or cannot be here.
    """
    registries = Registries(algorithms, environments)
    asked = _split(argv)
    if asked.options:
        raise Mistake(f"{' '.join(sorted(asked.options))}: not with this command; allowed is key=value")
    settings = one(asked.arguments, registries)
    probe(settings, registries)
    return settings


def load(
    saved: str,
    algorithms: Mapping[str, str],
    environments: Mapping[str, str],
    arguments: Sequence[str] = (),
    logdir: str = Settings.logdir,
) -> tuple[Settings, Path]:
    """The settings of a saved run, changed by ``arguments``, and its folder.

    Args:
        saved: the run's folder, its name in ``logdir``, or its config.yaml.

    Raises:
        Mistake: no such run, or settings that cannot be, or cannot be here.
    """
    registries = Registries(algorithms, environments)
    config = find("run", saved, logdir)
    asked = request(arguments)
    settings = settings_from(asked.pairs, registries, read(config))
    settings = replace(settings, name=config.parent.name, logdir=str(config.parent.parent))
    check(settings, asked.keys)
    probe(settings, registries)
    return settings, config.parent


def _split(argv: Sequence[str]) -> Asked:
    options = {argument for argument in argv if argument.startswith("-")}
    known = [*HELP, *MANY, *SHOW]
    for option in sorted(options.difference(known)):
        raise Mistake(f"{option}: no such option; allowed are {', '.join(known)}{suggestion(option, known)}")
    return Asked(options, [argument for argument in argv if argument not in options])


def _settings(asked: Asked, registries: Registries) -> list[Settings]:
    return several(asked.arguments, registries) if asked.wants(MANY) else [one(asked.arguments, registries)]


def _chosen(arguments: Sequence[str], registries: Registries) -> dict[str, type]:
    """`Config` of every algorithm and environment that is chosen by name, by its key."""
    chosen = {}
    for override in map(parse_argument, arguments):
        key = override.key_or_group
        if re.fullmatch(r"algo(\.base)*|env", key) and not override.is_sweep_override():
            chosen[key] = registries.config(key.partition(".")[0], registries.choose(key, override.value()))
    return chosen
