"""What hand-written rules score in the particle worlds: `python -m scripts.particle_rules [episodes]`.

For those that read published figures. The rules know every goal and go straight to it; on `simple_reference` another
goes to the middle of the landmarks, the best place for who is told nothing. Each plays the worlds as they are and as
they were until 2023, when a move showed in the position a step earlier (PettingZoo's issue 962).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
from mpe2 import simple_reference_v3, simple_speaker_listener_v4, simple_spread_v3
from rich.console import Console
from rich.table import Table

from marl.reporting.statistics import mean_interval
from scripts.counts import counts
from scripts.until_2023 import older

EPISODES, STEPS = 500, 25
DT, DRAG, PUSH = 0.1, 0.75, 0.5
"""A step's time, the part of a speed that is left after it, the speed that a move adds."""
MOVES = PUSH * np.asarray([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)], float)
AHEAD = 3
"""Steps that a move is judged by."""
Rule = Callable[[Any, bool], dict[str, int]]
"""The moves of all agents of a world; whether moves show early in it."""


def towards(agent: Any, goal: np.ndarray, early: bool) -> int:
    """The move after which, drifting on, the agent is nearest to ``goal`` over the next steps."""
    place, speed = np.broadcast_to(agent.state.p_pos, MOVES.shape), np.broadcast_to(agent.state.p_vel, MOVES.shape)
    distance = np.zeros(len(MOVES))
    for step in range(AHEAD):
        pushed = speed * DRAG + (MOVES if step == 0 else 0)
        place, speed = place + DT * (pushed if early else speed), pushed
        distance += np.square(place - goal).sum(-1)
    return int(distance.argmin())


def listen(world: Any, early: bool) -> dict[str, int]:
    speaker, listener = world.agents
    return {speaker.name: 0, listener.name: towards(listener, speaker.goal_b.state.p_pos, early)}


def tell(world: Any, early: bool) -> dict[str, int]:
    first, second = world.agents
    pairs = ((first, second), (second, first))
    return {one.name: towards(one, other.goal_b.state.p_pos, early) for one, other in pairs}


def wait_in_the_middle(world: Any, early: bool) -> dict[str, int]:
    middle = np.mean([landmark.state.p_pos for landmark in world.landmarks], axis=0)
    return {agent.name: towards(agent, middle, early) for agent in world.agents}


def spread(world: Any, early: bool) -> dict[str, int]:
    """Each to a landmark of its own, those that are nearest in all."""
    here = np.asarray([agent.state.p_pos for agent in world.agents])
    there = np.asarray([landmark.state.p_pos for landmark in world.landmarks])
    ways = (list(order) for order in permutations(range(len(there))))
    best = min(ways, key=lambda order: float(np.linalg.norm(here - there[order], axis=-1).sum()))
    return {agent.name: towards(agent, there[goal], early) for agent, goal in zip(world.agents, best, strict=True)}


def returns(module: Any, rule: Rule, early: bool, episodes: int) -> list[float]:
    """Sums over the team and an episode."""
    env, found = (older(module) if early else module.parallel_env)(max_cycles=STEPS), []
    for seed in range(episodes):
        env.reset(seed=seed)
        found.append(0.0)
        while env.agents:
            _, rewards, *_ = env.step(rule(env.unwrapped.world, early))
            found[-1] += sum(rewards.values())
    return found


RULES: dict[str, tuple[Any, Rule]] = {
    "simple_spread: each to its landmark": (simple_spread_v3, spread),
    "simple_speaker_listener: straight to the goal": (simple_speaker_listener_v4, listen),
    "simple_reference: straight to the goals": (simple_reference_v3, tell),
    "simple_reference: to the middle, silent": (simple_reference_v3, wait_in_the_middle),
}


def main(episodes: int = EPISODES) -> None:
    table = Table("rule", "as it is", "until 2023", box=None)
    table.title = f"Return of {STEPS} steps, sum over the team, {episodes} episodes"
    for name, (module, rule) in RULES.items():
        told = [mean_interval(returns(module, rule, early, episodes)) for early in (False, True)]
        table.add_row(name, *(f"{one.value:.1f} ({one.low:.1f} to {one.high:.1f})" for one in told))
    Console().print(table)


if __name__ == "__main__":
    main(*counts(__doc__, 1))
