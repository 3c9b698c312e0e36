"""Pure functions: the arithmetic that papers share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from marl.types import Array


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Mean () of ``value`` (B, T, ...) over the steps where ``mask`` (B, T) is 1."""
    while mask.dim() < value.dim():
        mask = mask.unsqueeze(-1)
    return (value * mask).sum() / mask.expand_as(value).sum().clamp(min=1)


def episode_means(value: Tensor, mask: Tensor) -> Tensor:
    """Means (B,) of ``value`` (B, T) over each episode's own steps, where ``mask`` (B, T) is 1."""
    return (value * mask).sum(1) / mask.sum(1)


def best_available(values: Tensor, avail: Tensor) -> Tensor:
    """Greedy actions (...,) of ``values`` (..., A) among those that ``avail`` (..., A) allows; ties to the lowest."""
    return values.masked_fill(~avail, -torch.inf).argmax(-1)


def best_value(values: Tensor, avail: Tensor) -> Tensor:
    """Largest (...,) of ``values`` (..., A) among those that ``avail`` (..., A) allows; -inf where it allows none."""
    return values.masked_fill(~avail, -torch.inf).amax(-1)


def chosen_value(values: Tensor, actions: Tensor) -> Tensor:
    """Values (...,) of ``actions`` (...,) long among ``values`` (..., A)."""
    return values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def random_available(avail: Tensor, uniform: Tensor) -> Tensor:
    """A uniformly drawn available action (...,) from one number in [0, 1) each: ``uniform`` (...,)."""
    rank = (uniform * avail.sum(-1)).floor()
    return (avail.cumsum(-1) > rank.unsqueeze(-1)).to(torch.uint8).argmax(-1)


def epsilon_greedy(values: Tensor, avail: Tensor, epsilon: float, uniform: Array) -> Tensor:
    """Each agent on its own: greedy, or with probability ``epsilon`` a random available action.

    ``values``, ``avail`` (E, N, A); ``uniform`` (E, N, 2): whether to explore, and which action; result (E, N) long.
    """
    greedy = best_available(values, avail)
    draws = torch.from_numpy(uniform)
    return torch.where(draws[..., 0] < epsilon, random_available(avail, draws[..., 1]), greedy)


def lambda_returns(
    reward: Tensor, terminal: Tensor, mask: Tensor, bootstrap: Tensor, gamma: float, trace: float
) -> Tensor:
    """TD(lambda) targets (B, T, M) of episodes padded to T steps (Sutton 1988; Peng's form, no off-policy correction).

    ``reward`` (B, T, M or 1), ``terminal`` and ``mask`` (B, T), ``bootstrap`` (B, T, M): the value of the view that
    follows each step. The recursion of an episode starts at its own last step:
    G[t] = r[t] + gamma (1 - terminal[t]) ((1 - lambda) v[t+1] + lambda G[t+1]), with G[L] = v[L].
    Written as one product with the triangle of (gamma lambda)^(k-t), since steps of an episode are contiguous.
    """
    steps = mask.shape[1]
    last = mask - functional.pad(mask[:, 1:], (0, 1))
    weight = gamma * (1 - terminal.to(mask.dtype)) * (1 - trace + trace * last)
    one_step = (reward + weight.unsqueeze(-1) * bootstrap) * mask.unsqueeze(-1)
    if trace == 0 or steps == 1:
        return one_step
    ahead = torch.arange(steps, device=mask.device, dtype=one_step.dtype)
    decay = (gamma * trace) ** (ahead[None, :] - ahead[:, None]).clamp(min=0)
    return functional.linear(one_step.mT, decay.triu()).mT


def n_step_returns(reward: Tensor, terminal: Tensor, mask: Tensor, bootstrap: Tensor, gamma: float, n: int) -> Tensor:
    """n-step targets (B, T, M): n rewards, then a value; fewer where the episode ends before. Shapes as above.

    G[t] = r[t] + .. + gamma^(m-1) r[t+m-1] + gamma^m (1 - terminal[t+m-1]) v[t+m], with m = min(n, L - t).
    """
    steps = mask.shape[1]
    now = torch.arange(steps, device=mask.device)
    power = now[None, :] - now[:, None]
    decay = torch.where((power >= 0) & (power < n), gamma ** power.clamp(min=0).to(mask.dtype), 0.0)
    rewards = torch.einsum("tk,bkm->btm", decay, reward * mask.unsqueeze(-1))
    last = torch.minimum(now + n, mask.sum(1, keepdim=True).long()).clamp(min=1) - 1
    value = bootstrap * (1 - terminal.to(mask.dtype)).unsqueeze(-1)
    reached = value.gather(1, last.unsqueeze(-1).expand(-1, -1, value.shape[-1]))
    discount = gamma ** (last + 1 - now).clamp(min=0).to(mask.dtype)
    return (rewards + discount.unsqueeze(-1) * reached) * mask.unsqueeze(-1)


def corrected_returns(
    reward: Tensor,
    terminal: Tensor,
    mask: Tensor,
    bootstrap: Tensor,
    gamma: float,
    trace: float,
    taken: Tensor,
    kept: Tensor,
) -> Tensor:
    """Q(lambda) targets (B, T, M) that do not take the behaviour's value for the greedy one's. Shapes as above.

    ``taken`` (B, T, M): the value of the choice that was made; ``kept`` (B, T) bool: the trace passes through it.
    G[t] = r[t] + gamma (1 - terminal[t]) (v[t+1] + lambda kept[t+1] (G[t+1] - taken[t+1])).
    All kept: Harutyunyan et al. 2016; only greedy choices kept: Watkins 1989.
    """
    steps, ongoing = mask.shape[1], mask.unsqueeze(-1)
    beyond = (reward + gamma * (1 - terminal.to(mask.dtype)).unsqueeze(-1) * bootstrap - taken) * ongoing
    passed = functional.pad(gamma * trace * kept[:, 1:].to(mask.dtype), (0, 1)).unsqueeze(-1)
    reach = 1
    while reach < steps:  # each round sums twice as many steps (Hillis and Steele 1986)
        beyond = beyond + passed * functional.pad(beyond[:, reach:], (0, 0, 0, reach))
        passed = passed * functional.pad(passed[:, reach:], (0, 0, 0, reach))
        reach *= 2
    return (taken + beyond) * ongoing
