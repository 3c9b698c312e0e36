"""The data that flows, and the one legend of shape letters.

B episodes · T steps · E environments side by side · N agents · A actions · O/S features of observation/state ·
H hidden units · K as the paper says. What is known before a choice has T+1 entries, what follows it has T.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
Record = dict[str, Array]
"""One finished episode, trimmed to its length: field or column name to an array of (T+1, ...), (T, ...) or (...)."""

Tensors = Callable[[], Mapping[str, Tensor]]
"""What gathers named tensors when they are wanted, so that not all have to be in memory at once."""

Span = Literal["views", "steps", "episode"]


@dataclass(frozen=True)
class Column:
    """What a part or an environment adds to the record of an episode.

    ``span`` says how often: ``views`` T+1 times (known before a choice), ``steps`` T times, ``episode`` once.
    ``shape`` is the shape of one entry, ``dtype`` a NumPy type name.
    """

    shape: tuple[int, ...]
    dtype: str
    span: Span

    def rows(self, length: int) -> tuple[int, ...]:
        """Leading shape of an episode of ``length`` steps."""
        if self.span == "episode":
            return ()
        return (length + 1,) if self.span == "views" else (length,)


@dataclass(frozen=True)
class EnvSpec:
    """What an environment says of itself before it is started."""

    name: str
    n_agents: int
    n_actions: int
    obs_dim: int
    state_dim: int
    horizon: int
    """The most steps an episode can take."""
    agents: tuple[str, ...] = ()
    state_groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Native state features by meaning, for papers that select or draw them."""
    by_agent: tuple[str, ...] = ()
    """Those of `state_groups` that describe the agents one after the other, in equal parts."""
    teammate_blocks: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    """[i][k]: the features of agent i's observation that describe its k-th team-mate; None where nothing is known."""
    noop: int | None = None
    reward_range: tuple[float, float] = (-np.inf, np.inf)
    draws: bool = False
    """Whether it has pictures: `render`."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """What the environment records beside the rest: ``alive`` (N,) views, ``won`` episode, ..."""

    def groups_by_agent(self) -> dict[str, tuple[int, ...]]:
        """State groups that are told agent by agent."""
        return {name: self.state_groups[name] for name in self.by_agent}

    def fields(self) -> dict[str, Column]:
        """Layout of a record: the fixed fields, then the environment's columns."""
        seats = "uint8" if self.n_actions <= 256 else "int16"
        return {
            "obs": Column((self.n_agents, self.obs_dim), "float32", "views"),
            "state": Column((self.state_dim,), "float32", "views"),
            "avail": Column((self.n_agents, self.n_actions), "bool", "views"),
            "actions": Column((self.n_agents,), seats, "steps"),
            "executed": Column((self.n_agents,), seats, "steps"),
            "reward": Column((), "float32", "steps"),
            "terminal": Column((), "bool", "steps"),
            **self.columns,
        }


class View(NamedTuple):
    """One step as the agents meet it, before the choice."""

    obs: Tensor
    """(E, N, O)"""
    state: Tensor
    """(E, S)"""
    avail: Tensor
    """(E, N, A) bool"""
    last_action: Tensor
    """(E, N) long; -1 at the first step"""


@dataclass(frozen=True)
class Episodes:
    """B episodes padded with zeros to the longest of them."""

    obs: Tensor
    """(B, T+1, N, O) what agents saw; an intervention that hides writes the clean one as a column"""
    state: Tensor
    """(B, T+1, S)"""
    avail: Tensor
    """(B, T+1, N, A) bool; at padded views nothing is: a softmax over that is NaN, and NaN times the mask stays NaN"""
    actions: Tensor
    """(B, T, N) long: what the seats chose"""
    executed: Tensor
    """(B, T, N) long: what the world received"""
    reward: Tensor
    """(B, T)"""
    terminal: Tensor
    """(B, T) bool: False at a time limit"""
    mask: Tensor
    """(B, T) float: 1 on steps that were played"""
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """(B,) long: steps played."""
        return self.mask.sum(1).long()

    @property
    def seen(self) -> Tensor:
        """(B, T+1) float: 1 on views that belong to the episode, the last one included."""
        return torch.cat([torch.ones_like(self.mask[:, :1]), self.mask], 1)

    @property
    def last_action(self) -> Tensor:
        """(B, T+1, N) long: the choice before each view; -1 at the first."""
        return torch.cat([torch.full_like(self.actions[:, :1], -1), self.actions], 1)

    def with_reward(self, reward: Tensor) -> Episodes:
        """The same episodes with another reward (B, T)."""
        return replace(self, reward=reward)

    @classmethod
    def of(cls, fields: Mapping[str, Tensor], lengths: Tensor) -> Episodes:
        """From stored tensors (B, T+1 | T | -, ...) by name, in compact types, and steps played (B,)."""
        steps = torch.arange(fields["reward"].shape[1], device=lengths.device)
        fixed = {"obs", "state", "avail", "actions", "executed", "reward", "terminal"}
        return cls(
            obs=fields["obs"].float(),
            state=fields["state"].float(),
            avail=fields["avail"],
            actions=fields["actions"].long(),
            executed=fields["executed"].long(),
            reward=fields["reward"].float(),
            terminal=fields["terminal"],
            mask=(steps < lengths[:, None]).float(),
            columns={name: value for name, value in fields.items() if name not in fixed},
        )

    @classmethod
    def of_records(cls, records: Sequence[Record], layout: Mapping[str, Column]) -> Episodes:
        """From trimmed records; ``layout`` names the fields to take and their spans."""
        lengths = [len(record["reward"]) for record in records]
        longest = max(lengths)
        fields = {}
        for name, column in layout.items():
            stacked = np.zeros((len(records), *column.rows(longest), *column.shape), column.dtype)
            for row, (record, length) in enumerate(zip(records, lengths, strict=True)):
                cut: list[Any] = [row, *map(slice, column.rows(length))]
                stacked[tuple(cut)] = record[name]
            fields[name] = torch.from_numpy(stacked)
        return cls.of(fields, torch.tensor(lengths))


@dataclass
class Clock:
    """What the learner has taken in. Everything that is scheduled is scheduled by these numbers."""

    steps: int = 0
    """Environment steps of training episodes."""
    episodes: int = 0
    updates: int = 0
