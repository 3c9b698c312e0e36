"""What a command line asks for: a fresh run, one started again, one gone on with, or a sweep of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from marl.command.compose import Pair, Registries, settings_from
from marl.command.runs import find, read
from marl.config import Settings, check, default_name
from marl.fields import Mistake, first_line, of_base, shown

HARMLESS = ("steps", "device", "log", "checkpoint", "ray", "rollout.backend", "rollout.workers", "rollout.timeout")
"""What may change when a run goes on; all else would make it another experiment."""
NAMED = re.compile(r"algo(\.base)*|env|seed|name")
"""Keys whose values are in a run's name anyway."""
UNFIT = re.compile(r"[^\w.+-]+", re.ASCII)
"""What a run's name cannot have."""


class Request(NamedTuple):
    """Settings of one run as typed, and apart from them which saved run it is about and where that lies."""

    pairs: list[Pair]
    about: dict[str, str]

    @property
    def keys(self) -> set[str]:
        """What was typed."""
        return {key for key, _ in self.pairs}


def request(arguments: Sequence[str]) -> Request:
    """Read `key=value` arguments.

    Raises:
        Mistake: one is not of that form, or has several values.
    """
    pairs, about = [], {}
    for argument in arguments:
        key, value = setting(argument, several="several values need -m, which makes one run of each")
        if key in ("from", "resume", "logdir") and value is not None:
            about[key] = value if isinstance(value, str) else argument.partition("=")[2]
        if key not in ("from", "resume"):
            pairs.append((key, value))
    return Request(pairs, about)


def one(arguments: Sequence[str], registries: Registries) -> Settings:
    """The settings of one run, checked.

    Raises:
        Mistake: they cannot be.
    """
    asked = request(arguments)
    about = asked.about
    if "resume" in about and "from" in about:
        raise Mistake(f"resume={about['resume']}: not beside from={about['from']}; allowed is one of the two")
    if "resume" in about:
        return resumed(asked, registries)
    saved = read(_saved("from", about)) if "from" in about else None
    settings = replace(settings_from(asked.pairs, registries, saved), from_=about.get("from"))
    check(settings, asked.keys)
    return settings


def _saved(key: str, about: Mapping[str, str]) -> Path:
    return find(key, about[key], about.get("logdir", Settings.logdir))


def resumed(asked: Request, registries: Registries) -> Settings:
    """The settings of a run that goes on, with what may change without making it another experiment.

    Raises:
        Mistake: no such run, or something else would change.
    """
    config = _saved("resume", asked.about)
    pairs = [(key, value) for key, value in asked.pairs if key != "logdir"]
    for key, value in pairs:
        if not any(key == harmless or key.startswith(f"{harmless}.") for harmless in HARMLESS):
            new = f"from={asked.about['resume']} starts a new run with other settings"
            allowed = f"allowed beside resume are {', '.join(HARMLESS)}; {new}"
            raise Mistake(f"{key}={shown(value)}: would change the experiment; {allowed}")
    saved = read(config)
    before, settings = settings_from([], registries, saved), settings_from(pairs, registries, saved)
    if settings.steps < before.steps:
        raise Mistake(f"steps={settings.steps}: allowed beside resume are {before.steps}, as it was, and more")
    folder = config.parent
    settings = replace(settings, name=folder.name, logdir=str(folder.parent), resume=str(folder))
    check(settings, asked.keys)
    return settings


def several(texts: Sequence[str], registries: Registries) -> list[Settings]:
    """One run for each combination of swept values; their names tell them apart.

    Raises:
        Mistake: one of them cannot be.
    """
    runs = []
    for arguments, swept in expand(texts):
        settings = one(arguments, registries)
        if settings.resume and swept:
            raise Mistake(f"resume={settings.resume}: a sweep starts runs of its own; allowed is resume without -m")
        runs.append(replace(settings, name=f"{settings.name}{suffix(settings, swept)}"))
    names = [settings.name for settings in runs]
    for name in names:
        if names.count(name) > 1:
            raise Mistake(f"name={name}: {names.count(name)} runs of the sweep would have it; allowed is one")
    return runs


def suffix(settings: Settings, swept: Mapping[str, str]) -> str:
    """What the name of a run of a sweep needs beside what it has."""
    given = settings.name != default_name(settings)
    telling = {key: value for key, value in swept.items() if (key != "name" if given else not NAMED.fullmatch(key))}
    short = {key: key.rpartition(".")[2] for key in telling}
    if len(set(short.values())) < len(short):
        short = {key: key for key in telling}
    return "".join(f"_{short[key]}-{UNFIT.sub('-', value).strip('-')}" for key, value in telling.items())


def probe(settings: Settings, registries: Registries) -> None:
    """Whether these settings can run on this machine; nothing is started.

    Asks `probe(config)` of the environment's module and, where there is one, `check(config)` of the algorithm's.

    Raises:
        Mistake: the algorithm or environment refuses them, or something is not installed.
    """
    environment = import_module(registries.environments[settings.env.name])
    try:
        _check(settings.algo, registries)
        environment.probe(settings.env)
    except ValueError as error:
        raise Mistake(str(error)) from error
    if settings.device.startswith("cuda"):
        _probe_device(settings.device)


def _check(algorithm: Any, registries: Registries) -> None:
    module = import_module(registries.algorithms[algorithm.name])
    if "check" in vars(module):
        module.check(algorithm)
    if vars(algorithm).get("base") is not None:
        with of_base():
            _check(algorithm.base, registries)


def _probe_device(device: str) -> None:
    import torch

    there = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if int(device.partition(":")[2] or 0) >= len(there):
        raise Mistake(f"device={device}: no such GPU here; allowed are {', '.join(['auto', 'cpu', *there])}")


# arguments


def parse_argument(argument: str) -> Override:
    """One `key=value` by Hydra's grammar; its value may be a sweep.

    Raises:
        Mistake: it is not of that form.
    """
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        if "=" not in argument:
            raise Mistake(f"{argument}: allowed is key=value; see --help") from error
        quoted = "special characters need quotes, as in key='\"some text\"'"
        raise Mistake(f"{argument}: {first_line(error)}; allowed is key=value; {quoted}") from error
    if override.type == OverrideType.DEL or override.package is not None:
        raise Mistake(f"{argument}: allowed is key=value")
    return override


def setting(argument: str, several: str = "allowed is one value") -> Pair:
    """Key and value of one `key=value`; ``several`` is what its refusal says of a sweep.

    Raises:
        Mistake: it is not of that form, or has several values.
    """
    override = parse_argument(argument)
    if override.is_sweep_override():
        raise Mistake(f"{argument}: {several}")
    return override.key_or_group, override.value()


class Sweep(NamedTuple):
    """One run of several."""

    arguments: list[str]
    swept: dict[str, str]
    """Key to its value in this run."""


def expand(arguments: Sequence[str]) -> list[Sweep]:
    """Every combination of the values that are swept, in the order they are written."""
    swept: list[list[tuple[str, str]]] = []
    fixed = []
    for argument in arguments:
        override = parse_argument(argument)
        if override.is_sweep_override():
            swept.append([(override.key_or_group, value) for value in _values(argument, override)])
        else:
            fixed.append(argument)
    return [
        Sweep([*fixed, *(f"{key}={value}" for key, value in chosen)], dict(chosen))
        for chosen in itertools.product(*swept)
    ]


def _values(argument: str, override: Override) -> list[str]:
    allowed = "allowed are a,b,c and range(start,stop)"
    try:
        values = list(override.sweep_string_iterator())
    except (HydraException, ValueError) as error:
        raise Mistake(f"{argument}: {first_line(error)}; {allowed}") from error
    if not values:
        raise Mistake(f"{argument}: has no value; {allowed}")
    return values
