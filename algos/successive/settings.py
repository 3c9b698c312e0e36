"""What S2Q lets its user choose, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from algos.factored import FactoredConfig
from marl.attention import Attention
from marl.duplex import Duplex
from marl.fields import Mistake, count, idle_with, number, one_of, only_with
from marl.mixers import Monotonic, Sum
from marl.types import EnvSpec

WEIGHED = ("monotonic", "duplex", "attention")
"""Mixers that weigh utilities."""


@dataclass
class Config(FactoredConfig):
    """K successors of Q_tot (docs/s2q.md)."""

    name: str = "s2q"
    agent_id: bool = False  # feed agents their index; False: agents are told apart by their observations alone
    td_weight: float = number(1.0, above=0)  # factor before each squared error
    successors: int = count(2, least=0)  # K: sub-values beside Q_tot, each for the next best joint action
    mixer: str = one_of("monotonic", "sum", "duplex", "attention")  # of sub-values: QMIX's, VDN's, QPLEX's, Qatten's
    mixing_embed: int = only_with(count(32), mixer=("monotonic", "attention"))  # attention: units that make c(s)
    hyper_embed: int = only_with(count(64), mixer=WEIGHED)  # hidden units of the networks that make its weights
    heads: int = only_with(count(4), mixer=("duplex", "attention"))
    key_embed: int = only_with(count(32), mixer="attention")  # size of queries and keys
    advantage_embed: int = only_with(count(64), mixer="duplex")  # hidden units of each layer that makes lambda
    advantage_layers: int = only_with(count(2), mixer="duplex")  # layers of each network that makes it
    central_embed: int = count(256)  # hidden units of the central mixer
    central_outputs: int = count(1)  # values that a central agent gives for an action
    alpha: float = idle_with(number(1.0, least=0), successors=0)  # how much of its central value suppression takes
    floor: float | None = number(None, least=0)  # C: it takes alpha C at least; null: none, for rewards from 0 on
    suppress_by: str = idle_with(one_of("live", "delayed"), alpha=0, successors=0)  # the central value that it takes
    least_weight: float = number(0.9, above=0, most=1)  # w_c: of errors that count for less; 1: all count alike
    temperature: float = number(0.1, above=0)  # T: gaps of value far above it are not explored
    mixed: float = number(0.5, least=0, most=1)  # share of training episodes that sub-values are drawn in; 0: never
    draw_from: str = idle_with(one_of("learned", "central", "uniform"), mixed=0)  # P as told, P as it is, or 1/K1
    own_draws: bool = idle_with(field(default=False), mixed=0)  # each agent draws a sub-value of its own
    latent_dim: int = count(32)  # numbers in z
    latent_hidden: int = count(64)  # units of the layers of encoder and decoder
    comm: bool = False  # S2Q-Comm: agents are told z of the view before, in evaluation too


def sub_mixer(spec: EnvSpec, config: Config) -> nn.Module:
    """What joins the utilities of one sub-value, in states as `S2Q.state` gives them."""
    hyper, heads = config.hyper_embed, config.heads
    if config.mixer == "duplex":
        return Duplex(spec, hyper, heads, config.advantage_embed, config.advantage_layers)
    if config.mixer == "attention":
        return Attention(spec, heads, config.key_embed, hyper, hyper, config.mixing_embed)
    if config.mixer == "monotonic":
        return Monotonic(spec, config.mixing_embed, hyper)
    return Sum()


def check(config: Config) -> None:
    """Refuse settings that cannot be, in any world.

    Raises:
        Mistake: such a setting.
    """
    if unbounded(config) and config.rewards == "standardised":
        raise Mistake("algo.rewards=standardised: some are negative then; say algo.floor=C too, or take raw or scaled")
    if not config.double_q:
        raise Mistake("algo.double_q=false: candidates are the live networks' and there are no others; allowed is true")
    if config.comm and not config.recurrent:
        raise Mistake("algo.comm=true: messages are made of what a GRU remembers; allowed is false without recurrent")


def refuse_world(spec: EnvSpec, config: Config) -> None:
    """Refuse a world in which a suppressed action would gain.

    Raises:
        Mistake: it pays less than nothing, and no floor is set.
    """
    lowest = spec.reward_range[0]
    if unbounded(config) and lowest < 0 and not unknown(spec):
        raise Mistake(
            f"algo.floor=null: {spec.name} pays {lowest:g} at worst, and what is suppressed must fall below all else; "
            "say algo.floor=C, so that alpha C spans all returns, or 0 to suppress nothing but gains"
        )


def doubt(spec: EnvSpec, config: Config) -> str | None:
    """What to tell of a world in which it might, for it does not say what it pays."""
    if not (unbounded(config) and unknown(spec)):
        return None
    return f"algo.floor=null: {spec.name} does not say what it pays; where that is less than nothing, say algo.floor=C"


def unknown(spec: EnvSpec) -> bool:
    """Whether a world does not say what it pays."""
    return spec.reward_range == (-math.inf, math.inf)


def unbounded(config: Config) -> bool:
    """Whether what is suppressed loses its central value alone, whatever that is."""
    return config.floor is None and config.successors > 0 and config.alpha > 0
