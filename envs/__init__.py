"""The registry of environments: name to module. A module has `Config`, `make(config, size)` and `probe(config)`."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

ENVIRONMENTS: dict[str, str] = {
    "grf": "envs.grf",
    "gymnasium": "envs.gymnasium",
    "matrix": "envs.matrix",
    "meet": "envs.meet",
    "pettingzoo": "envs.pettingzoo",
}


def module(name: str) -> ModuleType:
    """The module of a registered environment.

    Raises:
        KeyError: no environment of that name.
    """
    return import_module(ENVIRONMENTS[name])


def refusal(key: str, value: object, allowed: str | Iterable[str]) -> ValueError:
    """The error for a setting that cannot be: key, value and what is allowed, in one line.

    ``allowed`` is a sentence, or the names among which the nearest is then suggested.
    """
    if isinstance(allowed, str):
        return ValueError(f"{key}={value}: {allowed}")
    names = sorted(allowed)
    nearest = get_close_matches(str(value), names, n=1)
    meant = f"; did you mean {nearest[0]}?" if nearest else ""
    return ValueError(f"{key}={value}: allowed are {', '.join(names)}{meant}")
