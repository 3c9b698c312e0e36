"""What an idle worker does next: evaluation when it is due, else training. A paper's phases are a sequence here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from marl.config import Phase
from marl.dice import EVALUATE, TRAIN
from marl.types import Clock
from marl.worker import Plan


@dataclass(frozen=True)
class Stage(Phase):
    """A phase that knows where it ends."""

    until: int = 0
    """Consumed steps at which the next phase begins."""


@dataclass(frozen=True)
class Epsilon:
    """Linear annealing by consumed steps."""

    start: float
    finish: float
    steps: int

    def at(self, step: int) -> float:
        if self.steps == 0:
            return self.finish
        return self.start + (self.finish - self.start) * min(1.0, step / self.steps)


@dataclass
class Asked:
    """How far the order of plans has come; saved with a run."""

    plans: int = 0
    train_episodes: int = 0
    eval_episodes: int = 0
    next_eval: int = 0
    """Consumed steps at which the next evaluation is due."""
    eval_at: int = 0
    """Consumed steps at which the evaluation under way began."""
    eval_left: int = 0
    """Episodes of the evaluation under way that are still to be asked for."""
    next_film: int = 0


@dataclass
class Schedule:
    """The order of plans: a function of what was consumed, never of who is idle."""

    stages: tuple[Stage, ...]
    epsilon: Epsilon
    copies: int
    """Episodes per plan."""
    eval_every: int
    eval_episodes: int
    eval_epsilon: float = 0.0
    film_every: int = 0
    asked: Asked = field(default_factory=Asked)

    def stage(self, steps: int) -> int:
        """Index of the phase at ``steps`` consumed steps."""
        ended = sum(steps >= stage.until for stage in self.stages)
        return min(ended, len(self.stages) - 1)

    def epsilon_at(self, steps: int) -> float:
        index = self.stage(steps)
        fixed = self.stages[index].epsilon
        if fixed is not None:
            return fixed
        begins = [0, *(stage.until for stage in self.stages)]
        restarts = [begins[i] for i in range(index + 1) if self.stages[i].epsilon_restart]
        return self.epsilon.at(steps - (restarts[-1] if restarts else 0))

    def next(self, clock: Clock) -> Plan:
        """The plan that follows all those asked for so far."""
        asked = self.asked
        if self.eval_every and asked.eval_left == 0 and clock.steps >= asked.next_eval:
            self._begin_evaluation(clock.steps)
        if asked.eval_left > 0:
            return self._evaluation()
        plan = Plan(
            number=asked.plans,
            purpose=TRAIN,
            first_episode=asked.train_episodes,
            episodes=self.copies,
            epsilon=self.epsilon_at(clock.steps),
            interventions=self.stages[self.stage(clock.steps)].interventions,
            asked_at=clock.steps,
        )
        asked.plans += 1
        asked.train_episodes += self.copies
        return plan

    def last(self, clock: Clock) -> list[Plan]:
        """The evaluation that ends a run."""
        if not self.eval_every:
            return []
        plans = []
        while self.asked.eval_left > 0:
            plans.append(self._evaluation())
        self._begin_evaluation(clock.steps)
        while self.asked.eval_left > 0:
            plans.append(self._evaluation())
        return plans

    def _begin_evaluation(self, steps: int) -> None:
        self.asked.eval_at, self.asked.eval_left = steps, self.eval_episodes
        self.asked.next_eval = (steps // self.eval_every + 1) * self.eval_every

    def _evaluation(self) -> Plan:
        asked = self.asked
        episodes = min(self.copies, asked.eval_left)
        film = bool(self.film_every) and asked.eval_left == self.eval_episodes and asked.eval_at >= asked.next_film
        if film:
            asked.next_film = (asked.eval_at // self.film_every + 1) * self.film_every
        plan = Plan(
            number=asked.plans,
            purpose=EVALUATE,
            first_episode=asked.eval_episodes,
            episodes=episodes,
            epsilon=self.eval_epsilon,
            interventions=self.stages[self.stage(asked.eval_at)].interventions,
            film=film,
            asked_at=asked.eval_at,
        )
        asked.plans += 1
        asked.eval_episodes += episodes
        asked.eval_left -= episodes
        return plan

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        return vars(self.asked).copy()

    def restore(self, state: dict[str, Any]) -> None:
        self.asked = replace(Asked(), **state)
