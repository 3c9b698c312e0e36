"""WQMIX: a monotonic value that is fitted hardest where actions may be good (Rashid et al. 2020), CW- and OW-QMIX."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from algos.factored import CORRECTED, FactoredConfig, FactoredQ, agent_net, td_stats
from marl.dice import Noise
from marl.fields import Mistake, count, number, one_of
from marl.mixers import Monotonic, Unrestricted
from marl.ops import best_available, best_value, chosen_value, episode_means, masked_mean
from marl.parts import Loss, Parts, delayed
from marl.sections import section
from marl.types import EnvSpec, Episodes


@dataclass
class Config(FactoredConfig):
    """Weights and sizes."""

    name: str = "wqmix"
    mixing_embed: int = count(32)
    hyper_embed: int = count(64)  # hidden units of the networks that make the mixer's weights
    central_embed: int = count(256)  # hidden units of the unrestricted mixer
    weighting: str = one_of("central", "optimistic")  # CW-QMIX or OW-QMIX
    alpha: float = number(0.1, above=0, most=1)  # weight of actions that are not held to be good; 1: all count alike
    td_weight: float = number(1.0, above=0)  # factor before the weighted squared error of the monotonic value
    central_weight: float = number(0.5, above=0)  # factor before the squared error of the unrestricted one


def check(config: Config) -> None:
    """Refuse what the method leaves no room for.

    Raises:
        Mistake: targets are to be of actions that the delayed utilities choose.
    """
    if not config.double_q:
        raise Mistake("algo.double_q=false: wqmix values the actions that its live utilities choose; allowed is true")


def central_weights(greedy: Tensor, target: Tensor, best: Tensor, alpha: float) -> Tensor:
    """CW (B, T, 1): 1 where the action is ``greedy`` (B, T) bool or its ``target`` is above the central value ``best``
    (B, T, 1) of the greedy one, else alpha (Rashid et al. 2020, equation 9)."""
    return torch.where(greedy.unsqueeze(-1) | (target > best), 1.0, alpha)


def optimistic_weights(joint: Tensor, target: Tensor, alpha: float) -> Tensor:
    """OW (B, T, 1): 1 where the ``joint`` value (B, T, 1) is below its ``target``, else alpha (equation 8)."""
    return torch.where(joint < target, 1.0, alpha)


class WeightedQ(FactoredQ):
    """Q_tot, which chooses, and Q*, which knows no monotonicity; both are drawn to returns that delayed Q* gives."""

    config: Config

    def __init__(self, spec: EnvSpec, config: Config) -> None:
        mixer = Monotonic(spec, config.mixing_embed, config.hyper_embed, state_norm=config.state_norm)
        super().__init__(agent_net(spec, config), mixer, config, lagging=False)
        self.central_agent = agent_net(spec, config)
        self.central_mixer = Unrestricted(spec, config.central_embed, state_norm=config.state_norm)
        self.slow_central_agent, self.slow_central_mixer = delayed(self.central_agent), delayed(self.central_mixer)

    def targets(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        return [(self.slow_central_agent, self.central_agent), (self.slow_central_mixer, self.central_mixer)]

    def stays(self) -> list[torch.nn.Module]:
        return [self.central_agent, self.central_mixer]

    def learned(self) -> list[torch.nn.Parameter]:
        return [*super().learned(), *self.central_agent.parameters(), *self.central_mixer.parameters()]

    def compilable(self) -> list[torch.nn.Module]:
        return [*super().compilable(), self.central_agent, self.central_mixer]

    def loss(self, batch: Episodes, noise: Noise) -> Loss:
        """td_weight mean(w (Q_tot - y)^2) + central_weight mean((Q* - y)^2), over steps that were played."""
        with section("unroll"):
            values = self.unroll(self.agent, batch, noise, "live").values
            taken, now = values[:, :-1], batch.state[:, :-1]
            best = best_value(taken, batch.avail[:, :-1])
            joint = self.mixer(chosen_value(taken, batch.actions), best, now, batch.actions)
            central_values = self.central_agent(batch.obs[:, :-1], batch.last_action[:, :-1])[0]
            central = self.central_mixer(chosen_value(central_values, batch.actions), now)
        with section("targets"), torch.no_grad():
            target, weights = self.targets_and_weights(values.detach(), joint, batch)
        central_error = (central - target).square()
        td = self.config.td_weight * masked_mean(weights * (joint - target).square(), batch.mask)
        central_td = self.config.central_weight * masked_mean(central_error, batch.mask)
        stats = td_stats(td, joint, target, batch.mask) | {
            "loss/central": central_td.detach(),
            "q/central": masked_mean(central.detach(), batch.mask),
            "wqmix/weight": masked_mean(weights, batch.mask),
        }
        return Loss(td + central_td, stats, episode_means(central_error.detach().mean(-1), batch.mask))

    def targets_and_weights(self, live: Tensor, joint: Tensor, batch: Episodes) -> tuple[Tensor, Tensor]:
        """Returns and weights, (B, T, 1) both; ``live`` (B, T+1, N, A) chooses, ``joint`` (B, T, 1) is Q_tot."""
        best = best_available(live, batch.avail)
        slow = self.slow_central_agent(batch.obs, batch.last_action)[0]

        def value(actions: Tensor, views: slice) -> Tensor:
            worth: Tensor = self.slow_central_mixer(chosen_value(slow[:, views], actions), batch.state[:, views])
            return worth

        optimistic = self.config.weighting == "optimistic"
        later, acted = slice(1, None), slice(None, -1)
        values = value(best[:, later], later) if optimistic else value(best, slice(None))
        following = values if optimistic else values[:, later]
        taken = value(batch.actions, acted) if self.config.returns in CORRECTED else None
        greedy = (batch.actions == best[:, acted]).all(-1)
        target = self.config.td_target(batch, following, taken, greedy)
        if optimistic:
            return target, optimistic_weights(joint, target, self.config.alpha)
        return target, central_weights(greedy, target, values[:, acted], self.config.alpha)


def build(spec: EnvSpec, config: Config) -> Parts:
    return Parts(WeightedQ(spec, config), config.scaling())
