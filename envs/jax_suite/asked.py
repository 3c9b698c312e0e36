"""What is asked of JaxMARL's suite, checked, and what a task of it is. All of it is known without JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from envs import refusal
from marl.fields import check_value, count, number, one_of
from marl.types import EnvSpec


@dataclass
class Config:
    name: str = "jaxmarl"
    id: str = "MPE_simple_spread_v3"  # MPE_simple_speaker_listener_v4 | MPE_simple_reference_v3 | SMAX | overcooked
    scenario: str | None = None  # SMAX: 3m, 2s3z, smacv2_5_units, ..; overcooked: the layout; null: the first of them
    kwargs: dict[str, Any] = field(default_factory=dict)  # options of the suite's environment, docs/worlds.md
    horizon: int | None = count(None)  # steps of an episode; null: as many as the suite plays, 26, 101 or 400
    reward: str = one_of("team", "mean")  # the suite's own team reward, docs/worlds.md, or the mean over the agents
    state: str = one_of("auto", "observations")  # the suite's own, SMAX's world state; or all observations in a row
    shaping: float = number(0.0, least=0)  # overcooked: weight of the suite's shaped reward; 0: soups alone
    device: str = one_of("cpu", "gpu")  # where JAX steps the copies


class Task(NamedTuple):
    """A task of the suite."""

    config: Config
    scenario: str | None
    spec: EnvSpec
    widths: tuple[int, ...]
    """Length of each agent's flat observation."""
    choices: tuple[int, ...]
    """Actions of each agent."""
    options: Mapping[str, Any]
    """Of the suite's environment."""


def chosen(config: Config, known: Mapping[str, tuple[int, int]]) -> str:
    """The scenario that is asked for, or the first one.

    Raises:
        ValueError: it is not known.
    """
    if config.scenario is None:
        return next(iter(known))
    if config.scenario not in known:
        raise refusal("env.scenario", config.scenario, known)
    return config.scenario


class Option(NamedTuple):
    """What an option of the suite takes."""

    kind: type
    rule: Any = field()
    """A field of `marl.fields`."""


FLAG, COUNT = Option(bool), Option(int, count(None))
WORDS = {bool: "true and false", int: "whole numbers", float: "numbers", str: "words"}


def checked_options(config: Config, **options: Option) -> dict[str, Any]:
    """What is set of these options, as the suite takes it: JAX tells 1 from 1.0.

    Raises:
        ValueError: another one is set, or one to something that it does not take.
    """
    checked = {}
    for name, value in config.kwargs.items():
        key = f"env.kwargs.{name}"
        if name == "max_steps":
            raise refusal(key, value, "env.horizon says how long an episode is")
        if name not in options:
            raise refusal("env.kwargs", name, options or f"{config.id} has no options")
        kind, rule = options[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise refusal(key, value, f"allowed are {WORDS[kind]}")
        check_value(key, value, rule)
        checked[name] = kind(value)
    return checked
