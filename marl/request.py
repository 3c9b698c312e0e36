"""What a command line asks for: a fresh run, one started again, one gone on with, or a sweep of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from hydra.core.override_parser.types import Override

from marl.compose import Registries, expand, parse_argument, settings_from
from marl.config import Mistake, Settings, check, default_name
from marl.runs import find, read

HARMLESS = ("steps", "device", "log", "checkpoint", "ray", "rollout.backend", "rollout.workers", "rollout.timeout")
"""What may change when a run goes on; all else would make it another experiment."""
NAMED = re.compile(r"algo(\.base)*|env|seed|name")
"""Keys whose values are in a run's name anyway."""
UNFIT = re.compile(r"[^\w.+-]+", re.ASCII)
"""What a run's name cannot have."""


@dataclass(frozen=True)
class Arguments:
    """`key=value` texts, with those apart that say which saved run they are about."""

    texts: list[str]
    special: dict[str, str]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Arguments:
        parsed = [(text, parse_argument(text)) for text in texts]
        special = {o.key_or_group: _text(t, o) for t, o in parsed if o.key_or_group in ("from", "resume", "logdir")}
        rest = [text for text, override in parsed if override.key_or_group not in ("from", "resume")]
        return cls(rest, special)


def _text(argument: str, override: Override) -> str:
    value = override.value()
    if override.is_sweep_override() or not isinstance(value, str):
        raise Mistake(f"{argument}: allowed is one folder or name")
    return value


def one(texts: Sequence[str], registries: Registries) -> Settings:
    """The settings of one run, checked.

    Raises:
        Mistake: they cannot be.
    """
    arguments = Arguments.of(texts)
    special = arguments.special
    if "resume" in special and "from" in special:
        raise Mistake(f"resume={special['resume']}: not beside from={special['from']}; allowed is one of the two")
    if "resume" in special:
        return resumed(special["resume"], arguments, registries)
    settings = settings_from(arguments.texts, registries, _origin(special))
    settings = replace(settings, from_=special.get("from"))
    check(settings)
    return settings


def _origin(special: Mapping[str, str]) -> dict[str, object] | None:
    return read(_saved("from", special)) if "from" in special else None


def _saved(key: str, special: Mapping[str, str]) -> Path:
    try:
        return find(special[key], special.get("logdir", Settings.logdir))
    except Mistake as mistake:
        raise Mistake(f"{key}={mistake}") from mistake


def resumed(run: str, arguments: Arguments, registries: Registries) -> Settings:
    """The settings of a run that goes on, with what may change without making it another experiment.

    Raises:
        Mistake: no such run, or something else would change.
    """
    config = _saved("resume", arguments.special)
    texts = [text for text in arguments.texts if not text.startswith("logdir=")]
    for text in texts:
        key = parse_argument(text).key_or_group
        if not any(key == harmless or key.startswith(f"{harmless}.") for harmless in HARMLESS):
            allowed = f"allowed beside resume are {', '.join(HARMLESS)}; from={run} starts a new run with other settings"
            raise Mistake(f"{text}: would change the experiment; {allowed}")
    saved = read(config)
    before, settings = settings_from([], registries, saved), settings_from(texts, registries, saved)
    if settings.steps < before.steps:
        raise Mistake(f"steps={settings.steps}: allowed beside resume are {before.steps}, as it was, and more")
    folder = config.parent
    settings = replace(settings, name=folder.name, logdir=str(folder.parent), resume=str(folder))
    check(settings)
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

    Raises:
        Mistake: the algorithm or environment refuses them, or something is not installed.
    """
    from marl.env import EnvUnavailable  # brings torch, which --help and most mistakes do without

    algorithm = import_module(registries.algorithms[settings.algo.name])
    environment = import_module(registries.environments[settings.env.name])
    try:
        for module, config in ((algorithm, settings.algo), (environment, settings.env)):
            if "check" in vars(module):
                module.check(config)
        environment.probe(settings.env)
    except (ValueError, EnvUnavailable) as error:
        raise Mistake(str(error)) from error
    if settings.device.startswith("cuda"):
        _probe_device(settings.device)


def _probe_device(device: str) -> None:
    import torch

    there = torch.cuda.device_count()
    index = int(device.partition(":")[2] or 0)
    if index >= there:
        allowed = ["auto", "cpu", *(f"cuda:{number}" for number in range(there))]
        raise Mistake(f"device={device}: this machine has {there} CUDA devices; allowed are {', '.join(allowed)}")
