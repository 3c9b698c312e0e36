"""The registry of algorithms and of attackers, and how one is assembled from its settings."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from marl.fields import of_base

if TYPE_CHECKING:  # torch takes a second to import, and the names of algorithms are asked for without it
    from marl.parts import Intervention, Parts
    from marl.types import EnvSpec

ALGORITHMS: dict[str, str] = {
    "fim": "algos.fim",
    "fox": "algos.fox",
    "iql": "algos.iql",
    "laies": "algos.laies",
    "pqn_vdn": "algos.pqn_vdn",
    "qatten": "algos.qatten",
    "qmix": "algos.qmix",
    "qplex": "algos.qplex",
    "qtran": "algos.qtran",
    "random_attack": "algos.random_attack",
    "s2q": "algos.s2q",
    "vdn": "algos.vdn",
    "wqmix": "algos.wqmix",
}
ATTACKS: dict[str, str] = {
    "random_actions": "algos.attacks.random_actions",
}


def module(name: str) -> ModuleType:
    """The module of a registered algorithm.

    Raises:
        KeyError: no algorithm of that name.
    """
    return import_module(ALGORITHMS[name])


def assemble(spec: EnvSpec, config: Any) -> Parts:
    """The parts of the algorithm that ``config.name`` says; a wrapped paper stands in ``config.base``."""
    paper = module(config.name)
    if "wrap" in vars(paper):
        with of_base():
            base = assemble(spec, config.base)
        parts = paper.wrap(base, spec, config)
    else:
        parts = paper.build(spec, config)
    if parts is None:
        raise TypeError(f"{paper.__name__} returned no Parts")
    return parts


def attack_config(name: str) -> type:
    """The `Config` of a registered attacker."""
    config: type = import_module(ATTACKS[name]).Config
    return config


def attack(config: Any) -> Intervention:
    """The attacker that ``config.name`` says, for evaluation."""
    return import_module(ATTACKS[config.name]).make(config)
