"""One task as two pure functions of a single copy, mapped over E of them and compiled.

An episode's randomness is its own: its seed makes a key, one half of which starts it; step t draws from the other half
with t folded in. Copies are computed side by side, and nothing of one enters another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.jax_suite.asked import Task
from envs.jax_suite.battle import BATTLE
from envs.jax_suite.kitchen import DELIVERY, KITCHEN
from envs.jax_suite.machine import imported
from marl.env import EnvUnavailable, Moments


class Copy(NamedTuple):
    """What one copy is, between two steps."""

    key: jax.Array
    world: Any
    soups: jax.Array
    """Delivered so far; stays 0 where nobody cooks."""


class Program(NamedTuple):
    """``start(keys (E, 2) uint32)`` and ``advance(copies, moments, actions (E, N) int32, live (E,) bool)``.

    Both return the copies and what they tell, `Moments` of arrays on JAX's device.
    """

    suite: Any
    """JaxMARL's environment."""
    placed: Callable[[Any], jax.Array]
    """Moves an array to JAX's device; what is computed of it stays there."""
    start: Callable[..., tuple[Copy, Moments]]
    advance: Callable[..., tuple[Copy, Moments]]


def suite(task: Task) -> Any:
    """JaxMARL's environment of a task.

    Raises:
        EnvUnavailable: the installed suite is not the one that `tasks` describes.
    """
    config, package = task.config, imported("jaxmarl")
    options = dict(task.options)
    made = config.id
    if config.id == BATTLE:
        scenarios = imported("jaxmarl.environments.smax.smax_env")
        options["scenario"] = scenarios.map_name_to_scenario(task.scenario)
        made = "HeuristicEnemySMAX"
    elif config.id == KITCHEN:
        options["layout"] = imported("jaxmarl.environments.overcooked").overcooked_layouts[task.scenario]
    with warnings.catch_warnings():
        # It recommends another environment of the suite.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Its own limits, some of which come a step late, are not before the horizon, which is ours.
        env = package.make(made, max_steps=task.spec.horizon, **options)
    widths = tuple(prod(env.observation_spaces[agent].shape) for agent in env.agents)
    choices = tuple(int(env.action_spaces[agent].n) for agent in env.agents)
    if (tuple(env.agents), widths, choices) != (task.spec.agents, task.widths, task.choices):
        raise EnvUnavailable(f"{task.spec.name}: the installed jaxmarl plays another task; pip install jaxmarl==0.2.0")
    return env


def fight(env: Any, world: Any, agents: Sequence[str]) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """What a battle tells beside what is seen: available actions (N, A), whether it is over, columns."""
    avail = jnp.stack([env.get_avail_actions(world)[agent] for agent in agents])
    alive = world.state.unit_alive
    ally, enemy = alive[: len(agents)], alive[len(agents) :]
    over = ~(ally.any() & enemy.any())
    return avail, over, {"alive": ally, "enemy_alive": enemy, "won": ally.any() & ~enemy.any()}


def pay(task: Task, rewards: Mapping[str, jax.Array], info: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """The team's reward for a step, and the soups that it delivered."""
    agents, config = task.spec.agents, task.config
    battle, kitchen = config.id == BATTLE, config.id == KITCHEN
    paid = jnp.stack([rewards[agent] for agent in agents])
    shaped, soups = jnp.zeros_like(paid), jnp.zeros((), jnp.int32)
    if kitchen:
        soups = (paid[0] / DELIVERY).astype(jnp.int32)
        shaped = config.shaping * jnp.stack([info["shaped_reward"][agent] for agent in agents])
    if config.reward == "mean":
        return (paid + shaped).mean(), soups
    # What all receive alike is the team's once; else it is their sum, as in the suite's own training.
    return (paid[0] if battle or kitchen else paid.sum()) + shaped.sum(), soups


def compiled(task: Task, device: Any) -> Program:
    """The functions of a task, compiled when they are first called with E copies."""
    env = suite(task)
    spec, agents = task.spec, task.spec.agents
    known = jnp.arange(spec.n_actions) < jnp.asarray(task.choices)[:, None]
    battle, kitchen = task.config.id == BATTLE, task.config.id == KITCHEN
    native = battle and task.config.state == "auto"

    def clock(world: Any) -> jax.Array:
        return (world.state if battle else world).step

    def told(world: Any, seen: Mapping[str, Any], reward: Any, soups: Any) -> Moments:
        rows = [jnp.ravel(seen[agent]).astype(jnp.float32) for agent in agents]
        obs = jnp.stack([jnp.pad(row, (0, spec.obs_dim - row.size)) for row in rows])
        state = seen["world_state"] if native else jnp.concatenate(rows)
        avail, over, columns = fight(env, world, agents) if battle else (known, jnp.asarray(False), {})
        if kitchen:
            columns = {"soups": soups.astype(jnp.int16)}
        paid, late = jnp.asarray(reward, jnp.float32), clock(world) >= spec.horizon
        return Moments(obs, state.astype(jnp.float32), avail.astype(jnp.bool_), paid, over, late & ~over, columns)

    def start(key: jax.Array) -> tuple[Copy, Moments]:
        first, play = jax.random.split(key)
        seen, world = env.reset(first)
        soups = jnp.zeros((), jnp.int32)
        # Python numbers in it are of no settled type, for which the next step would be compiled once more.
        world = jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), world)
        return Copy(play, world, soups), told(world, seen, 0.0, soups)

    def advance(copy: Copy, before: Moments, actions: jax.Array, live: jax.Array) -> tuple[Copy, Moments]:
        key = jax.random.fold_in(copy.key, clock(copy.world))
        chosen = {agent: actions[row] for row, agent in enumerate(agents)}
        seen, world, rewards, _, info = env.step_env(key, copy.world, chosen)
        reward, delivered = pay(task, rewards, info)
        soups = copy.soups + delivered
        after = Copy(copy.key, world, soups), told(world, seen, reward, soups)
        return jax.tree.map(lambda new, old: jnp.where(live, new, old).astype(old.dtype), after, (copy, before))

    return Program(env, partial(jax.device_put, device=device), jax.jit(jax.vmap(start)), jax.jit(jax.vmap(advance)))
