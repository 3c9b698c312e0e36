"""What would have come of other actions: one step of the forward model for every alternative of every agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from algos.influence.model import ForwardModel, Target
from marl.ops import random_available
from marl.types import Episodes

AT_ONCE = {"cpu": 4096, "cuda": 65536}
"""Alternatives that go through the model together, unless it is said; on a CPU their activations stay in the cache."""
Measure = Callable[[Tensor], Tensor]
"""Of displacements (..., C): what is compared."""


def uniform_marginal(avail: Tensor) -> Tensor:
    """(..., A) probabilities: each available action alike."""
    return avail / avail.sum(-1, keepdim=True).clamp(min=1)


def sampled(probabilities: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """(..., A) shares of ``samples`` draws, whose expectation is ``probabilities`` (..., A); none where all are 0."""
    flat = probabilities.flatten(0, -2)
    nothing = flat.sum(-1, keepdim=True) == 0
    drawn = torch.multinomial(flat + nothing, samples, replacement=True, generator=generator)
    shares = torch.zeros_like(flat).scatter_add_(1, drawn, torch.full(drawn.shape, 1 / samples, device=flat.device))
    return shares.masked_fill(nothing, 0.0).view_as(probabilities)


class Steps(NamedTuple):
    """M steps that were played, as the model meets them."""

    entered: Tensor
    """(M, H) first layer under the joint action, before its ReLU"""
    recurrent: Tensor
    """(M, 3H) what the memory before the step adds to the GRU's gates"""
    memory: Tensor
    """(M, H) before the step"""
    origin: Tensor
    """(M, C) the target's features"""
    taken: Tensor
    """(M, C) displacement under the joint action"""
    actions: Tensor
    """(M, N)"""

    @classmethod
    def of(cls, model: ForwardModel, batch: Episodes, target: Target) -> Steps:
        """Those of ``batch`` in order of episode and step."""
        played, state = batch.mask.bool(), batch.state[:, :-1]
        entered = model.enter(state, batch.executed)
        after = model.remember(entered)
        memory = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], 1)[played]
        recurrent = torch.addmm(model.gru.bias_hh_l0, memory, model.gru.weight_hh_l0.T)
        origin = target.of(state[played])
        taken = model.displacement(after[played], origin, target)
        return cls(entered[played], recurrent, memory, origin, taken, batch.executed[played])

    def split(self, size: int) -> Iterator[Steps]:
        for parts in zip(*(tensor.split(size) for tensor in self), strict=True):
            yield Steps(*parts)

    def after(self, model: ForwardModel, entered: Tensor, row: Tensor, target: Target) -> Tensor:
        """Displacements (K, C) after one step from ``row`` (K,) with a first layer of ``entered`` (K, H)."""
        gates = torch.addmm(model.gru.bias_ih_l0, entered.relu_(), model.gru.weight_ih_l0.T)
        reset, update, fresh = gates.chunk(3, -1)
        old_reset, old_update, old_fresh = self.recurrent[row].chunk(3, -1)
        reset.add_(old_reset).sigmoid_()
        update.add_(old_update).sigmoid_()
        fresh.addcmul_(reset, old_fresh).tanh_()
        return model.displacement(fresh.lerp_(self.memory[row], update), self.origin[row], target)


class Comparison(NamedTuple):
    """Of m steps in the order of the batch."""

    taken: Tensor
    """(m, C) measured under the joint action"""
    expected: Tensor
    """(m, N, C) measured on average over what each agent could have done instead"""


@torch.no_grad()
def compare(
    model: ForwardModel, batch: Episodes, marginal: Tensor, target: Target, measure: Measure, chunk: int | None
) -> Iterator[Comparison]:
    """One agent's action is replaced at a time, the others' stay; ``marginal`` (B, T, N, A) weighs the replacements.

    The first layer is linear in the actions' one-hot blocks, so a replacement swaps two of its columns and no input is
    ever made; what the memory adds to the gates is computed once a step. Weights that are 0 cost nothing, neither
    does the action that was taken. An agent without any weight keeps its action.
    """
    steps, weights = Steps.of(model, batch, target), marginal[batch.mask.bool()]
    taken = steps.actions.unsqueeze(-1)
    stays = weights.gather(-1, taken) + (weights.sum(-1, keepdim=True) == 0)
    others = weights.scatter(-1, taken, 0.0)
    rows = chunk_rows(others, chunk)
    for part, other, stay in zip(steps.split(rows), others.split(rows), stays.split(rows), strict=True):
        now = measure(part.taken)
        yield Comparison(now, _expected(model, part, other, stay * now.unsqueeze(1), target, measure))


def chunk_rows(weights: Tensor, chunk: int | None) -> int:
    """Steps whose alternatives, those of ``weights`` (M, N, A) above 0, make up a chunk on average."""
    most = chunk or AT_ONCE["cpu" if weights.device.type == "cpu" else "cuda"]
    per_row = float((weights > 0).sum()) / max(len(weights), 1)
    return max(1, int(most / max(per_row, 1.0)))


def _expected(
    model: ForwardModel, steps: Steps, weights: Tensor, start: Tensor, target: Target, measure: Measure
) -> Tensor:
    """``start`` (m, N, C) and the weighted sum over alternatives."""
    columns = model.action_columns()
    agents = torch.arange(columns.shape[0], device=weights.device)
    without = steps.entered.unsqueeze(1) - columns[agents, steps.actions]
    row, agent, action = weights.nonzero(as_tuple=True)
    entered = without[row, agent].add_(columns[agent, action])
    measured = measure(steps.after(model, entered, row, target))
    measured = measured * weights[row, agent, action].unsqueeze(-1)
    return start.flatten(0, 1).index_add(0, row * len(agents) + agent, measured).view_as(start)


@torch.no_grad()
def compare_jointly(
    model: ForwardModel, batch: Episodes, target: Target, samples: int, generator: torch.Generator, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """Displacements (M, C) under the joint action, and on average over ``samples`` random available ones."""
    steps, avail = Steps.of(model, batch, target), batch.avail[:, :-1][batch.mask.bool()]
    columns = model.action_columns()
    agents = torch.arange(columns.shape[0], device=avail.device)
    most = chunk or AT_ONCE["cpu" if avail.device.type == "cpu" else "cuda"]
    means = []
    for part, allowed in zip(steps.split(max(1, most // samples)), avail.split(max(1, most // samples)), strict=True):
        size = (len(allowed), samples, len(agents))
        uniform = torch.rand(size, generator=generator, device=avail.device)
        drawn = random_available(allowed.unsqueeze(1).expand(-1, samples, -1, -1), uniform)
        swap = columns[agents, drawn].sum(2) - columns[agents, part.actions].sum(1).unsqueeze(1)
        entered = (part.entered.unsqueeze(1) + swap).flatten(0, 1)
        row = torch.arange(len(allowed), device=avail.device).repeat_interleave(samples)
        means.append(part.after(model, entered, row, target).unflatten(0, (-1, samples)).mean(1))
    return steps.taken, torch.cat(means)
