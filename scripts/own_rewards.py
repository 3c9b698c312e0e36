"""IQL on simple_spread, of own rewards and the team's: `python -m scripts.own_rewards [seeds] [steps] [lambda]`.

JaxMARL pays each agent for its own collisions, and its IQL learns of that; here every algorithm learns of the sum over
the team. Structure and settings are those of JaxMARL's first IQL, of the time of its published figure
(`baselines/QLearning/iql_ps.py` of November 2023): those of `scripts/yardstick.py`, one-step targets, and exploration
that fades over 100,000 steps of each copy. With lambda, a whole number of percent, targets are TD(lambda)'s.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from scripts.counts import counts
from scripts.yardstick import COPIES, EPSILON, GAMMA, STEPS, Standing, Stretch, Yardstick, rollouts

SEEDS, TRAINED = 3, 2_050_000
EVALUATIONS, LAST = 20, 5
"""Greedy evaluations on the way, and those that are told."""
EPISODES, FADES = 128, 100_000 / STEPS
"""Of an evaluation; updates until exploration has faded."""


class Independent(Yardstick):
    """IQL: no mixer, a target for each agent."""

    def __init__(self, seed: int, own: bool, steps: int, td_lambda: float) -> None:
        self.own, self.td_lambda, self.judge = own, td_lambda, rollouts(EPISODES)
        self.updates = steps // (COPIES * STEPS)
        super().__init__(seed)
        self._judge = jax.jit(self._judged)

    def _paid(self, rewards: Any) -> jax.Array:
        """(C, N)"""
        return jnp.stack([rewards[name if self.own else "__all__"] for name in self.names], -1)

    def _epsilon(self, update: jax.Array) -> jax.Array:
        return jnp.clip(1 - (1 - EPSILON) * update / FADES, EPSILON, 1)

    def _loss(self, params: Any, slow: Any, batch: Stretch) -> jax.Array:
        values = self._values(params, batch)
        chosen = jnp.take_along_axis(values, batch.actions[..., None], -1)[..., 0]
        later = jnp.take_along_axis(self._values(slow, batch), values.argmax(-1)[..., None], -1)[..., 0]
        target = self._targets(batch.reward[:-1], GAMMA * (1 - batch.done[:-1, :, None]), later[1:])
        return jnp.square(chosen[:-1] - jax.lax.stop_gradient(target)).mean()

    def _targets(self, reward: jax.Array, discount: jax.Array, following: jax.Array) -> jax.Array:
        """(T, B, N); where a stretch is cut, the trace ends in the last value."""
        one_step = reward + discount * following
        if not self.td_lambda:
            return one_step

        def back(after: jax.Array, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            target, reward, discount = now
            traced = (1 - self.td_lambda) * target + self.td_lambda * (reward + discount * after)
            return traced, traced

        return jax.lax.scan(back, following[-1], (one_step, reward, discount), reverse=True)[1]

    def _judged(self, params: Any, key: jax.Array) -> jax.Array:
        """The team's return of greedy episodes, mean."""
        standing: Standing = self._start(self.judge, key)
        _, met = self._play(self.judge, params, standing, key, 0.0)
        of_team = met.reward.sum(-1) if self.own else met.reward[..., 0]
        return of_team.sum(0).mean()

    def learn(self) -> list[float]:
        """Greedy returns on the way."""
        returns = []
        for number in range(EVALUATIONS):
            self.carry, _ = self.run(self.carry, self.updates // EVALUATIONS)
            returns.append(float(self._judge(self.carry.params, jax.random.PRNGKey(number))))
        return returns


def main(seeds: int = SEEDS, steps: int = TRAINED, percent: int = 0) -> None:
    table = Table("seed", "own rewards", "the team's reward", box=None)
    targets = f"TD({percent / 100:g})" if percent else "one step"
    table.title = f"IQL on simple_spread, {targets}, {steps:,} steps: the last {LAST} greedy evaluations"
    for seed in range(seeds):
        told = [Independent(seed, own, steps, percent / 100).learn()[-LAST:] for own in (True, False)]
        table.add_row(str(seed), *(f"{sum(returns) / LAST:.1f}" for returns in told))
    Console().print(table)


if __name__ == "__main__":
    main(*counts(__doc__, 3))
