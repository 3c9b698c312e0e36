"""The registry of environments: name to module. A module has `Config`, `make(config, size)` and `probe(config)`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType

from marl.fields import Mistake, first_line, suggestion

ENVIRONMENTS: dict[str, str] = {
    "grf": "envs.grf",
    "gymnasium": "envs.gymnasium",
    "jaxmarl": "envs.jaxmarl",
    "lbf": "envs.lbf",
    "matrix": "envs.matrix",
    "meet": "envs.meet",
    "pettingzoo": "envs.pettingzoo",
    "rware": "envs.rware",
    "stag_hunt": "envs.stag_hunt",
    "push_box": "envs.push_box",
}


def module(name: str) -> ModuleType:
    """The module of a registered environment.

    Raises:
        KeyError: no environment of that name.
    """
    return import_module(ENVIRONMENTS[name])


def without_screen() -> None:
    """Let pygame run where there is neither screen nor sound: many worlds start it whether they draw or not."""
    for variable, value in (
        ("SDL_VIDEODRIVER", "dummy"),
        ("SDL_AUDIODRIVER", "dummy"),
        ("PYGAME_HIDE_SUPPORT_PROMPT", "1"),
        ("SDL_NO_SIGNAL_HANDLERS", "1"),  # it would swallow SIGTERM
    ):
        os.environ.setdefault(variable, value)


REFUSALS = (TypeError, ValueError, AssertionError, AttributeError, LookupError)
"""How packages say that they cannot be asked for this."""


def refused(kwargs: Mapping[str, object], name: str, error: Exception) -> Mistake:
    """The error for a world ``name`` that a package refuses, with arguments or as it is."""
    told = first_line(error) or type(error).__name__
    if not kwargs:
        return refusal("env.id", name, f"the package refuses it: {told}")
    return refusal("env.kwargs", dict(kwargs), f"{name} refuses them: {told}")


def refusal(key: str, value: object, allowed: str | Iterable[str]) -> Mistake:
    """The error for a setting that cannot be: key, value and what is allowed, in one line.

    ``allowed`` is a sentence, or the names among which the nearest is then suggested.
    """
    if isinstance(allowed, str):
        return Mistake(f"{key}={value}: {allowed}")
    names = sorted(allowed)
    some = names if len(names) <= 20 else [*names[:20], f"... ({len(names)} in all)"]
    return Mistake(f"{key}={value}: allowed are {', '.join(some)}{suggestion(str(value), names)}")
