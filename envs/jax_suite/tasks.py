"""What JaxMARL's tasks look like, known without JAX: a process that only learns never starts it.

The numbers are those of jaxmarl 0.2.0; `program.suite` compares them with the suite before anything is played.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from envs import refusal
from envs.jax_suite.asked import Config, Task
from envs.jax_suite.battle import BATTLE, battle
from envs.jax_suite.kitchen import KITCHEN, kitchen
from envs.jax_suite.particles import reference, speaker_listener, spread
from marl.fields import check_values

FAMILIES: Mapping[str, Callable[[Config], Task]] = {
    "MPE_simple_spread_v3": spread,
    "MPE_simple_speaker_listener_v4": speaker_listener,
    "MPE_simple_reference_v3": reference,
    BATTLE: battle,
    KITCHEN: kitchen,
}


def task(config: Config) -> Task:
    """The task that is asked for.

    Raises:
        ValueError: a setting that cannot be, in one line.
    """
    if config.id not in FAMILIES:
        raise refusal("env.id", config.id, FAMILIES)
    check_values(config, "env.")
    if config.shaping > 0 and config.id != KITCHEN:
        raise refusal("env.shaping", config.shaping, f"allowed are 0 and, with env.id={KITCHEN}, more")
    return FAMILIES[config.id](config)
