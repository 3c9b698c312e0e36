"""QMIX on simple_spread beside QMIX in JAX, in turn: `python -m scripts.yardstick [rounds] [updates of a round]`.

The yardstick has the structure of JaxMARL's own QMIX and its settings for the particle worlds: its world and its
`CTRolloutManager`, 8 copies for 26 steps, then one update of 32 such stretches from a ring of 5,000, a scanned flax GRU
of 64 units, and all of that in one compiled loop. Compiling is not counted. Ours is `marl.bench`'s training run: the
whole program, log and replay included, with the same number of episodes for an update.
"""

from __future__ import annotations

import os
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before JAX counts cores: two threads on one cost it a sixth

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxmarl
import optax
from jaxmarl.wrappers.baselines import CTRolloutManager
from rich.console import Console
from rich.table import Table

import algos
import envs
from marl import rates
from marl.command import cli
from scripts.counts import counts

COPIES, STEPS, BATCH, RING, HIDDEN, EMBED, HYPER = 8, 26, 32, 5_000, 64, 32, 128
GAMMA, EPSILON, COPY_EVERY = 0.9, 0.05, 200
ADAM = {"learning_rate": 5e-3, "eps": 1e-3}
ROUNDS, UPDATES = 3, 400
OUR_STEPS = 500
"""Environment steps of ours for each of those updates; both make one per 208, but the first of ours do not count."""
OURS = [
    "env=jaxmarl", "algo=qmix", "learner.batch=32", "learner.burn_in=64", "learner.updates_per_episode=0.125",
    "rollout.envs_per_worker=128", "rollout.backend=inline", "rollout.workers=1",
]  # fmt: skip


def rollouts(copies: int) -> CTRolloutManager:
    """JaxMARL's world with one width of observations and a state, many copies of it."""
    return CTRolloutManager(jaxmarl.make("MPE_simple_spread_v3"), batch_size=copies)


dense = partial(nn.Dense, kernel_init=nn.initializers.orthogonal(2.0))
"""A layer of an agent."""


class Agent(nn.Module):
    """Dense, ReLU, GRU, dense; memories are emptied where an episode begins."""

    actions: int

    @nn.compact
    def __call__(self, memory: jax.Array, obs: jax.Array, begins: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(R, H), (T, R, O), (T, R) -> (R, H), (T, R, A)."""
        features = nn.relu(dense(HIDDEN)(obs))

        def step(cell: nn.GRUCell, carry: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            new, out = cell(jnp.where(now[1][:, None], 0.0, carry), now[0])
            return new, out

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        memory, features = scan(nn.GRUCell(HIDDEN), memory, (features, begins))
        return memory, dense(self.actions)(features)


class Mixer(nn.Module):
    """QMIX's, with hypernetworks of two layers."""

    @nn.compact
    def __call__(self, chosen: jax.Array, state: jax.Array) -> jax.Array:
        """(T, B, N), (T, B, S) -> (T, B)."""

        def hyper(out: int) -> jax.Array:
            return nn.Dense(out)(nn.relu(nn.Dense(HYPER)(state)))

        first = jnp.abs(hyper(chosen.shape[-1] * EMBED)).reshape(*chosen.shape, EMBED)
        hidden = nn.elu(jnp.einsum("tbn,tbne->tbe", chosen, first) + nn.Dense(EMBED)(state))
        value = nn.Dense(1)(nn.relu(nn.Dense(EMBED)(state)))[..., 0]
        return (hidden * jnp.abs(hyper(EMBED))).sum(-1) + value


class Stretch(NamedTuple):
    """What one copy met in 26 steps; (T, C, ..) while it is played, (RING, T, ..) as it is kept."""

    obs: jax.Array
    state: jax.Array
    begins: jax.Array
    actions: jax.Array
    reward: jax.Array
    done: jax.Array


class Standing(NamedTuple):
    """Where copies are between two stretches."""

    obs: Any
    world: Any
    begins: jax.Array
    memory: jax.Array


class Carry(NamedTuple):
    params: Any
    slow: Any
    optimiser: Any
    ring: Stretch
    standing: Standing
    update: jax.Array
    key: jax.Array


class Yardstick:
    """The compiled loop and where it stands."""

    def __init__(self, seed: int = 0) -> None:
        self.env = rollouts(COPIES)
        self.names = self.env.agents
        self.agent, self.mixer = Agent(self.env.max_action_space), Mixer()
        self.adam = optax.chain(optax.clip_by_global_norm(25.0), optax.adam(**ADAM))
        self.run = jax.jit(self._run, static_argnums=1, donate_argnums=0)
        key = jax.random.PRNGKey(seed)
        standing = self._start(self.env, key)
        rows, state = self._rows(standing.obs), standing.obs["__all__"]
        params = {
            "agent": self.agent.init(key, standing.memory, rows[None], jnp.zeros((1, len(rows)), bool)),
            "mixer": self.mixer.init(key, jnp.zeros((1, 1, len(self.names))), state[None, :1]),
        }
        sizes = jax.eval_shape(lambda: self._play(self.env, params, standing, key, EPSILON)[-1])
        ring = jax.tree.map(lambda x: jnp.zeros((RING, x.shape[0], *x.shape[2:]), x.dtype), sizes)
        slow = jax.tree.map(jnp.copy, params)
        self.carry = Carry(params, slow, self.adam.init(params), ring, standing, jnp.zeros((), int), key)

    def _start(self, env: CTRolloutManager, key: jax.Array) -> Standing:
        obs, world = env.batch_reset(key)
        return Standing(obs, world, jnp.ones(env.batch_size, bool), jnp.zeros((len(self._rows(obs)), HIDDEN)))

    def _paid(self, rewards: Any) -> jax.Array:
        """What is learned of, (C,)."""
        return rewards["__all__"]

    def _epsilon(self, update: jax.Array) -> jax.Array | float:
        return EPSILON

    def _rows(self, obs: Any) -> jax.Array:
        """(C N, O), agent by agent."""
        return jnp.concatenate([obs[name] for name in self.names])

    def _of_all(self, copies: jax.Array) -> jax.Array:
        """What is known of copies (.., C), for each of their agents (.., N C)."""
        return jnp.concatenate([copies] * len(self.names), -1)

    def _play(
        self, env: CTRolloutManager, params: Any, standing: Standing, key: jax.Array, epsilon: jax.Array | float
    ) -> tuple[Standing, Stretch]:
        def step(standing: Standing, key: jax.Array) -> tuple[Standing, Stretch]:
            obs, world, begins, memory = standing
            rows, (chance, choice, move) = self._rows(obs), jax.random.split(key, 3)
            memory, values = self.agent.apply(params["agent"], memory, rows[None], self._of_all(begins)[None])
            anything = jax.random.randint(choice, (len(rows),), 0, values.shape[-1])
            explores = jax.random.uniform(chance, (len(rows),)) < epsilon
            actions = jnp.where(explores, anything, values[0].argmax(-1)).reshape(len(self.names), -1)
            told = env.batch_step(move, world, dict(zip(self.names, actions, strict=True)))
            now, world, rewards, dones, _ = told
            seen = jnp.stack([obs[name] for name in self.names], 1)
            done = dones["__all__"].astype(bool)  # the world's is of JAX's weak type, and would compile all of it anew
            met = Stretch(seen, obs["__all__"], begins, actions.T, self._paid(rewards), done)
            return Standing(now, world, done, memory), met

        return jax.lax.scan(step, standing, jax.random.split(key, STEPS))

    def _values(self, params: Any, batch: Stretch) -> jax.Array:
        """(T, B, N, A) of stretches, steps first."""
        steps, size, agents, width = batch.obs.shape
        rows = batch.obs.reshape(steps, size * agents, width)
        begins = jnp.repeat(batch.begins, agents, -1)
        _, values = self.agent.apply(params["agent"], jnp.zeros((size * agents, HIDDEN)), rows, begins)
        return values.reshape(steps, size, agents, -1)

    def _loss(self, params: Any, slow: Any, batch: Stretch) -> jax.Array:
        values = self._values(params, batch)
        chosen = jnp.take_along_axis(values, batch.actions[..., None], -1)[..., 0]
        later = jnp.take_along_axis(self._values(slow, batch), values.argmax(-1)[..., None], -1)[..., 0]
        joint = self.mixer.apply(params["mixer"], chosen, batch.state)
        following = self.mixer.apply(slow["mixer"], later, batch.state)[1:]
        target = batch.reward[:-1] + GAMMA * (1 - batch.done[:-1]) * following
        return jnp.square(joint[:-1] - jax.lax.stop_gradient(target)).mean()

    def _round(self, carry: Carry, _: None) -> tuple[Carry, jax.Array]:
        """One stretch of all copies, one update."""
        key, play, draw = jax.random.split(carry.key, 3)
        standing, met = self._play(self.env, carry.params, carry.standing, play, self._epsilon(carry.update))
        place = carry.update * COPIES % RING
        ring = jax.tree.map(
            lambda kept, new: jax.lax.dynamic_update_slice_in_dim(kept, new.swapaxes(0, 1), place, 0), carry.ring, met
        )
        filled = jnp.minimum((carry.update + 1) * COPIES, RING)
        index = jax.random.randint(draw, (BATCH,), 0, filled)
        batch = jax.tree.map(lambda kept: kept[index].swapaxes(0, 1), ring)
        loss, slopes = jax.value_and_grad(self._loss)(carry.params, carry.slow, batch)
        changes, optimiser = self.adam.update(slopes, carry.optimiser)
        params = optax.apply_updates(carry.params, changes)
        copies = carry.update % COPY_EVERY == 0
        slow = jax.tree.map(lambda new, old: jnp.where(copies, new, old), params, carry.slow)
        return Carry(params, slow, optimiser, ring, standing, carry.update + 1, key), loss

    def _run(self, carry: Carry, rounds: int) -> tuple[Carry, jax.Array]:
        return jax.lax.scan(self._round, carry, None, rounds)

    def rates(self, rounds: int) -> tuple[float, float]:
        """Environment steps and updates per CPU second."""
        began = time.process_time()
        self.carry, losses = self.run(self.carry, rounds)
        losses.block_until_ready()
        spent = time.process_time() - began
        return rounds * COPIES * STEPS / spent, rounds / spent


def ours(updates: int) -> tuple[float, float]:
    """The same of this program's training run, in a process of its own."""
    settings = cli.parse(OURS, algos.ALGORITHMS, envs.ENVIRONMENTS)
    run = rates.trained(settings, OUR_STEPS * updates)
    return run.per_cpu_second, run.updates_per_cpu_second


def main(rounds: int = ROUNDS, updates: int = UPDATES) -> None:
    yardstick = Yardstick()
    theirs, own = partial(yardstick.rates, updates), partial(ours, updates)
    theirs()  # compiles
    table = Table("round", "JAX: steps", "updates", "ours: steps", "updates", "steps, ratio", box=None)
    table.title = "QMIX on simple_spread, per CPU second of one core"
    seen = []
    for number in range(1, rounds + 1):
        (steps, learned), (own_steps, own_learned) = theirs(), own()
        seen.append((steps, learned, own_steps, own_learned, own_steps / steps))
        table.add_row(str(number), *cells(*seen[-1]))
    table.add_row("median", *cells(*(statistics.median(column) for column in zip(*seen, strict=True))))
    Console().print(table)


def cells(steps: float, learned: float, own_steps: float, own_learned: float, ratio: float) -> tuple[str, ...]:
    """A row as it is printed."""
    return f"{steps:,.0f}", f"{learned:.1f}", f"{own_steps:,.0f}", f"{own_learned:.1f}", f"{ratio:.2f}"


if __name__ == "__main__":
    main(*counts(__doc__, 2))
