"""The three seams of an algorithm: what is learned, what is rewarded, what interferes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from marl.descent import Descent
from marl.dice import Dice, Noise
from marl.types import Column, Episodes, View

Memory = Any
"""Recurrent state of E teams: a tensor or a tuple of tensors with E first. It goes in and comes out."""
State = Any
"""What an intervention remembers of the E episodes being played. It goes in and comes out."""
Stats = dict[str, Tensor | float]
"""Metric name to a scalar; tensors stay on their device until they are logged."""


class Bars(NamedTuple):
    """A bar chart for the log."""

    values: Sequence[float]
    labels: Sequence[str]
    """One per bar; what stands before the last dot is the bar's group."""
    marked: Sequence[bool]
    """Bars that stand out."""
    line: float | None = None
    """A level to compare with."""


class Loss(NamedTuple):
    """What a `JointQ` asks to be minimised."""

    value: Tensor
    """()"""
    stats: Stats
    priority: Tensor | None = None
    """(B,) for prioritised replay, or None"""


class Cadence(NamedTuple):
    """When a part's own networks are fitted, and on what."""

    every_episodes: int = 0
    """0: after every update, on the same batch; n: when n episodes have come since the last time."""
    batch: int = 0
    """With ``every_episodes``: size of a fresh uniform batch."""


class Delay(NamedTuple):
    """How delayed copies follow."""

    every_episodes: int = 200
    """Hard copy when this many episodes have come since the last one."""
    tau: float = 0.0
    """If positive: soft copy, delayed += tau (source - delayed) after every update instead."""


class Part(nn.Module):
    """Anything with parameters or statistics of its own."""

    delay: Delay = Delay()
    cadence: Cadence = Cadence()

    def targets(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        """(delayed copy, source) pairs."""
        return ()

    def stays(self) -> Sequence[nn.Module]:
        """Networks beside delayed copies that only learning needs: workers are not sent them."""
        return ()

    def columns(self) -> Mapping[str, Column]:
        """Layout of the columns that this part writes."""
        return {}

    def equip(self) -> None:
        """Make optimisers. The learner calls this once, when parameters are where they stay; workers never do."""

    def descents(self) -> Sequence[Descent]:
        """The optimisers `equip` made, for checkpoints."""
        return ()

    def records(self) -> dict[str, Tensor]:
        """Statistics of any size beyond ``state_dict``, for checkpoints."""
        return {}

    def restore(self, records: Mapping[str, Tensor]) -> None:
        """Take back what `records` gave."""

    def figures(self) -> Mapping[str, Bars]:
        """Charts by tag, as things stand; they are drawn whenever a checkpoint is written."""
        return {}

    def compilable(self) -> Sequence[nn.Module]:
        """Networks worth compiling."""
        return ()


def delayed(source: nn.Module) -> nn.Module:
    """A copy that no gradient reaches."""
    return copy.deepcopy(source).requires_grad_(False)


class JointQ(Part):
    """What is learned: the value of joint actions, and the choice that follows from it."""

    def memory(self, n: int) -> Memory:
        """Recurrent state of ``n`` teams at the start of an episode."""
        raise NotImplementedError

    def act(self, view: View, memory: Memory, epsilon: float, dice: Dice) -> tuple[Tensor, Memory]:
        """Choose (E, N) long and advance the memory. ``dice.purpose`` tells training from evaluation."""
        raise NotImplementedError

    def utilities(self, view: View, memory: Memory) -> Tensor:
        """(E, N, A) values of each agent's actions at this view, for white-box attackers."""
        raise NotImplementedError

    def mix(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Joint value (...) of ``actions`` (..., N) whose utilities are ``chosen`` (..., N), in ``state`` (..., S).

        ``best`` (..., N) are the maxima of the agents' utilities.
        """
        raise NotImplementedError

    def histories(self, batch: Episodes) -> Tensor:
        """(B, T+1, N, H) what each agent remembers at each view, with gradient."""
        raise NotImplementedError

    def loss(self, batch: Episodes, noise: Noise) -> Loss:
        """What to minimise on these episodes, whose reward may have been replaced."""
        raise NotImplementedError

    def descend(self, loss: Loss) -> Stats:
        """Change the parameters so that the loss falls."""
        raise NotImplementedError


class Bonus(Part):
    """What is rewarded beside the task."""

    def annotate(self, fresh: Episodes) -> dict[str, Tensor]:
        """Columns for episodes that just arrived: called once per episode, in order of arrival, at the learner."""
        return {}

    def reward(self, batch: Episodes, q: JointQ, noise: Noise) -> tuple[Tensor, Stats]:
        """(B, T) to be added to the reward, without gradient."""
        raise NotImplementedError

    def fit(self, batch: Episodes, q: JointQ, noise: Noise) -> Stats:
        """Train the bonus's own networks, at its `cadence`."""
        return {}


class Intervention(Part):
    """What interferes between the team and the world."""

    chooses: bool = False
    """True: the seats' own choice, values are learned of it. False: forced by an attacker."""

    def begin(self, n: int, seats: tuple[str, ...], dice: Dice) -> State:
        """State of ``n`` episodes that start; ``seats`` names who plays each seat, empty if the plan does not say."""
        return None

    def perceive(self, view: View, q: JointQ, state: State, dice: Dice) -> tuple[View, dict[str, Tensor]]:
        """What the team sees instead, and columns of span ``views`` (E, ...)."""
        return view, {}

    def act(
        self, view: View, actions: Tensor, q: JointQ, memory: Memory, state: State, dice: Dice
    ) -> tuple[Tensor, dict[str, Tensor], State]:
        """What the world receives instead of ``actions`` (E, N), columns of span ``steps`` (E, ...), and the state.

        ``memory`` is the team's memory before this view.
        """
        return actions, {}, state

    def fit(self, batch: Episodes, q: JointQ, noise: Noise) -> Stats:
        """Train the intervention's own networks, at its `cadence`."""
        return {}


@dataclass(frozen=True)
class Parts:
    """An algorithm, assembled."""

    q: JointQ
    bonuses: tuple[Bonus, ...] = ()
    interventions: tuple[Intervention, ...] = ()

    def named(self) -> Iterator[tuple[str, Part]]:
        """Every part under the name it has in checkpoints and logs."""
        yield "q", self.q
        for kind, parts in (("bonus", self.bonuses), ("intervention", self.interventions)):
            for index, part in enumerate(parts):
                yield f"{kind}{index}", part

    def columns(self) -> dict[str, Column]:
        """Layout of everything that parts write."""
        return {name: column for _, part in self.named() for name, column in part.columns().items()}

    def with_bonus(self, bonus: Bonus) -> Parts:
        return replace(self, bonuses=(*self.bonuses, bonus))

    def with_intervention(self, intervention: Intervention) -> Parts:
        return replace(self, interventions=(*self.interventions, intervention))

    def travelling(self) -> dict[str, Tensor]:
        """What a worker needs to act: parameters and buffers of q and the interventions but what only learns."""
        tensors = {}
        for name, part in self.named():
            if isinstance(part, Bonus):
                continue
            learning = [*(copied for copied, _ in part.targets()), *part.stays()]
            staying = {id(tensor) for network in learning for tensor in network.state_dict(keep_vars=True).values()}
            own = part.state_dict(keep_vars=True)
            tensors.update({f"{name}.{key}": value for key, value in own.items() if id(value) not in staying})
        return tensors


def declared(bonus: Bonus, written: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What a bonus wrote of an episode. Columns that nobody writes are zero, which would hide a slip in a name.

    Raises:
        ValueError: it wrote other columns than it declares.
    """
    if written.keys() != bonus.columns().keys():
        told = f"annotate wrote {sorted(written)}, columns() declares {sorted(bonus.columns())}"
        raise ValueError(f"{type(bonus).__name__}: {told}")
    return written


def shaped(value: Tensor, like: Tensor, name: str) -> Tensor:
    """A part's answer, which would otherwise be broadcast to something else than was meant.

    Raises:
        ValueError: it has another shape than ``like``.
    """
    if value.shape != like.shape:
        raise ValueError(f"{name} is {tuple(value.shape)}; {tuple(like.shape)} is needed")
    return value
