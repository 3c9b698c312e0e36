"""PettingZoo parallel environments by module path: found and built, or refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from envs import REFUSALS, refusal, refused, without_screen
from marl.env import EnvUnavailable

EXAMPLE = "mpe2.simple_spread_v3"
VERSIONS = {"mpe2": "mpe2==1.0.0"}
"""From 1.1 it brings pygame-ce, which overwrites the pygame of other worlds."""


def load(path: str) -> Callable[..., Any]:
    """`parallel_env` of a module.

    Raises:
        EnvUnavailable: a package is missing.
        ValueError: no such environment.
    """
    package, _, rest = path.partition(".")
    if not package or not rest:
        raise refusal("env.id", path, f"allowed are module paths such as {EXAMPLE}")
    without_screen()
    for needed in ("pettingzoo", package):
        if find_spec(needed) is None:
            what = VERSIONS.get(needed, needed)
            raise EnvUnavailable(f"env.id={path} needs the package {needed}: pip install {what}")
    try:
        found = import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and path.startswith(error.name):
            raise refusal("env.id", path, {EXAMPLE, *environments_near(path)}) from error
        raise EnvUnavailable(f"env.id={path} needs the module {error.name}: pip install {error.name}") from error
    except ImportError as error:
        raise EnvUnavailable(f"env.id={path}: {str(error).splitlines()[0]}") from error
    if "parallel_env" not in vars(found):
        raise refusal("env.id", path, "allowed are modules with a parallel_env, which this one lacks")
    return found.parallel_env  # type: ignore[no-any-return]


def environments_near(path: str) -> list[str]:
    """The versioned modules of the nearest existing package above a module path."""
    above = path.rpartition(".")[0]
    while "." in above and not _exists(above):
        above = above.rpartition(".")[0]
    inside = vars(import_module(above)).get("__path__", ())
    return [f"{above}.{entry.name}" for entry in iter_modules(inside) if re.search(r"_v\d+$", entry.name)]


def _exists(path: str) -> bool:
    try:
        return find_spec(path) is not None
    except ModuleNotFoundError:  # nor does what should hold it
        return False


def build(path: str, kwargs: Mapping[str, Any]) -> Any:
    """One PettingZoo environment.

    Raises:
        EnvUnavailable: a package is missing.
        ValueError: no such environment, or arguments it refuses.
    """
    parallel_env = load(path)
    try:
        return without_checks(parallel_env(**kwargs))
    except REFUSALS as error:
        raise refused(kwargs, path, error) from error


def without_checks(world: Any) -> Any:
    """The same world; its checks of order and bounds cost a fifth of a step, and the adapter obeys both."""
    from pettingzoo.utils.conversions import aec_to_parallel_wrapper  # type: ignore[import-untyped]
    from pettingzoo.utils.wrappers import (  # type: ignore[import-untyped]
        AssertOutOfBoundsWrapper,
        OrderEnforcingWrapper,
    )

    if isinstance(world, aec_to_parallel_wrapper):
        while isinstance(world.aec_env, (OrderEnforcingWrapper, AssertOutOfBoundsWrapper)):
            world.aec_env = world.aec_env.env
    return world
