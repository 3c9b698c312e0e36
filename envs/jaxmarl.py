"""Tasks of JaxMARL's suite, many copies in one compiled step: env.id=MPE_simple_spread_v3, SMAX, overcooked.

Conventions (docs/worlds.md has the numbers):

- `env.id=SMAX`: the team against the suite's scripted enemy on the map `env.scenario`; for `overcooked`, the layout.
- Team reward (`env.reward=team`): the sum over agents in the particle worlds, the one reward that all receive alike in
  the others, as the suite's own value-decomposition baselines count it. `mean`: the mean over agents.
- State: SMAX's world state; elsewhere, or with `env.state=observations`, all observations in a row, without padding.
- Observations are flattened and padded with zeros to the longest; actions an agent lacks are unavailable.
- Time is cut, not terminal, at `env.horizon`. By default that is as long as the suite plays, whose limits of 25 (MPE)
  and 100 (SMAX) are noticed a step late. SMAX is terminal when a side is dead, and `won` if it is the enemy's alone.
- Nothing restarts by itself. An episode is its seed and its actions, whatever plays beside it.

JAX is started by the first `reset`: neither the registry nor the spec needs it.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

from envs.jax_suite.asked import Config
from envs.jax_suite.copies import Copies
from envs.jax_suite.tasks import task
from marl.env import BatchedEnv, EnvUnavailable

__all__ = ["Config", "make", "probe"]


def probe(config: Config) -> None:
    """Whether the task is known and can be played here; JAX is not started.

    Raises:
        EnvUnavailable: the suite, or what JAX needs for a GPU, is not installed.
        ValueError: a setting that cannot be, in one line.
    """
    task(config)
    if find_spec("jaxmarl") is None:
        if sys.version_info < (3, 11):
            raise EnvUnavailable("env=jaxmarl needs Python 3.11 or newer, and then: pip install -e '.[jaxmarl]'")
        raise EnvUnavailable("env=jaxmarl needs the package jaxmarl: pip install -e '.[jaxmarl]'")
    if config.device == "gpu" and not entry_points(group="jax_plugins"):
        raise EnvUnavailable("env.device=gpu needs JAX's part for it: pip install 'jax[cuda12]', or env.device=cpu")


def make(config: Config, size: int) -> BatchedEnv:
    probe(config)
    return Copies(task(config), size)
