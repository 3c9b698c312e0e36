"""FIM: pays a team for influence on what hardly ever changes, on any base (Park, Lee, Han, arXiv 2506.19417).

The paper's method section could not be read: every equation here is a reconstruction (docs/fim.md says from what).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from algos.factored import FactoredQ
from algos.influence.counterfactual import Measure, compare, sampled, uniform_marginal
from algos.influence.fading import Fading
from algos.influence.features import alive, feature_mask, groups, native_mask, refuse_unseen, visible_features
from algos.influence.foresight import Foresight, ForesightConfig
from algos.influence.model import Target
from algos.influence.selection import LIMIT, Rule
from algos.influence.statistic import Statistic, Watching
from algos.influence.telling import Teller
from algos.influence.trace import trace_scan
from marl.dice import Noise
from marl.fields import Mistake, count, number, one_of, only_with
from marl.ops import best_available, masked_mean
from marl.parts import Bars, JointQ, Parts, Stats
from marl.precision import full_precision
from marl.types import EnvSpec, Episodes

NOT_NATIVE = ("last_action", "time")
"""What groups of state features are called that say nothing of the world itself; most worlds have none."""
COMPARED = ("marginal", "signed", "ate_sq")
"""Kinds of influence that compare what was done with what could have been."""
TRACES = ("product", "accumulate")
"""Modes that have a trace."""


def bound(entry: Any, mode: str) -> Any:
    """A field for the entropy below which features are selected."""
    return only_with(entry, delta_mode=mode, selection=("entropy", "least_change"))


@dataclass
class Config(ForesightConfig):
    """How influence is found and paid."""

    name: str = "fim"
    alpha: float = number(0.05, least=0)  # weight of the influence in the reward
    c_max: float | None = number(1.0, above=0)  # most that it may add to the reward of a step; null: no bound
    anneal: bool = False  # let it fade to 0 from the first batch on whose mean reward is above 0
    anneal_steps: int = only_with(count(2_000_000), anneal=True)  # environment steps of that
    statistic_steps: int = count(100_000)  # environment steps of the random policy that are looked at (N_beta)
    recompute_every: int = count(0, least=0)  # environment steps until the last N_beta ones are looked at; 0: never
    selection: str = one_of("entropy", "all", "least_change")  # of the candidates; least_change: as many as by entropy
    candidates: list[str] = field(default_factory=list)  # groups of state features; []: the whole native state
    not_native: list[str] = field(default_factory=lambda: list(NOT_NATIVE))  # groups that are no native state
    exclude_constant_onehots: bool = True  # no features of 0 and 1 that never rise, such as the type of a unit
    norm: str = one_of("max", "mean", "range")  # what changes are measured in: sigma
    bins: int = count(10)  # of a normalised change above 0
    delta_mode: str = one_of("relative", "absolute")  # the bound is rho times the mean entropy, or delta nats
    delta: float = bound(number(0.3, above=0), "absolute")  # entropy below which a feature is selected
    rho: float = bound(number(0.5, above=0), "relative")  # the same, in means of the entropies
    max_dims: int | None = count(None)  # most features that are selected; null: no bound
    influence: str = one_of(*COMPARED, "change")  # change: without counterfactuals (w/o SFI)
    marginal: str = only_with(one_of("uniform", "policy"), influence=COMPARED)  # what an agent could have done instead
    marginal_epsilon: float = only_with(number(0.05, least=0, most=1), marginal="policy")  # its share of random actions
    cf_samples: int = only_with(count(0, least=0), influence=COMPARED)  # alternatives drawn per agent and step; 0: all
    visibility_mask: bool = only_with(field(default=False), influence=COMPARED)  # what it sees, by column `visible`
    trace_mode: str = one_of(*TRACES, "none")  # none: without the trace (w/o AFI)
    eta: float = only_with(number(0.9, least=0, most=1), trace_mode=TRACES)  # decay of the trace
    trace_clip: float = only_with(number(10.0, above=0), trace_mode=TRACES)  # its largest value
    trace_norm: str = only_with(one_of("none", "sum"), trace_mode="product")  # sum: its share of the trace's sum
    model_predicts: str = one_of("next", "change")  # outputs: the next value of a feature, or its change
    model_inputs: str = one_of("raw", "units")  # states as they are; units: less their mean, over sigma

    def watching(self) -> Watching:
        """How features are selected."""
        relative = self.delta_mode == "relative"
        rule = Rule(self.selection, relative, self.rho if relative else self.delta, self.max_dims)
        skip = self.exclude_constant_onehots
        return Watching(self.statistic_steps, self.recompute_every, self.norm, self.bins, skip, rule)


class FocusingInfluence(Foresight):
    """min(alpha r_int, c_max): influence of each agent on the selected features (SFI), under a shared trace (AFI).

    The statistic closes when ``statistic_steps`` have come in, at the latest with the first update of the value.
    """

    config: Config

    def __init__(self, spec: EnvSpec, config: Config) -> None:
        super().__init__(spec, config, residual=config.model_predicts == "change")
        native = native_mask(spec, config.not_native, "algo.not_native", NOT_NATIVE)
        if config.candidates:
            native &= feature_mask(spec, config.candidates, "algo.candidates")
            if not native.any():
                left = ", ".join(name for name in groups(spec) if name not in config.not_native)
                asked = ", ".join(config.candidates)
                raise Mistake(f"algo.candidates=[{asked}]: all of it is in algo.not_native; allowed are {left}")
        self.statistic = Statistic(native, config.watching())
        self.fading = Fading(config.anneal_steps if config.anneal else None)
        self._teller = Teller(spec)

    def records(self) -> dict[str, Tensor]:
        return self.statistic.window.records()

    def restore(self, records: Mapping[str, Tensor]) -> None:
        self.statistic.window.restore(records)

    def annotate(self, fresh: Episodes) -> dict[str, Tensor]:
        """Training episodes are watched as they arrive; nothing is written."""
        if self.statistic.watch(fresh):
            self.distrust()
        self.fading.watch(fresh)
        return {}

    def figures(self) -> dict[str, Bars]:
        return self._teller.figures(self.statistic)

    # what it pays

    def reward(self, batch: Episodes, q: JointQ, noise: Noise) -> tuple[Tensor, Stats]:
        """Nothing before the delayed model is a copy of one that was fitted more than once."""
        self.statistic.close()
        config, target, share = self.config, self.statistic.target(), self.fading.share(batch)
        stats = self._teller.selection(self.statistic)
        ready = config.influence == "change" or self.foresees
        if not ready or len(target.features) == 0:
            return torch.zeros_like(batch.reward), stats
        with full_precision(batch.reward.device.type):  # influence is a small difference of predictions
            influence = self.influence(batch, q, noise, target)
        trace = {"decay": config.eta, "clip": config.trace_clip, "norm": config.trace_norm}
        reward, traces = trace_scan(influence, batch.mask, mode=config.trace_mode, **trace)
        bound = torch.inf if config.c_max is None else config.c_max
        bonus = share * (config.alpha * reward).clamp(max=bound)
        return bonus, {
            **stats,
            **self._teller.influence(self.statistic, target, batch.mask, influence, traces),
            "fim/reward": masked_mean(reward, batch.mask),
            "fim/share": share,
            "bonus/influence": masked_mean(bonus, batch.mask),
            "bonus/influence_return": bonus.sum(1).mean(),
        }

    def influence(self, batch: Episodes, q: JointQ, noise: Noise, target: Target) -> Tensor:
        """u (B, T, C) = sum over agents of r on each feature of ``target``; 0 on padding."""
        if self.config.influence == "change":
            views = target.of(batch.state)
            return self._size(views[:, 1:] - views[:, :-1]) * batch.mask.unsqueeze(-1)
        played, config = batch.mask.bool(), self.config
        acting = alive(batch)[played].unsqueeze(-1)
        seen = visible_features(batch, target.features) if config.visibility_mask else None
        weights, team, at = self.marginal(batch, q, noise), [], 0
        for taken, expected in compare(self.slow_model, batch, weights, target, self._measure(), config.cf_chunk):
            rows = slice(at, at + len(taken))
            at = rows.stop
            worth = self._worth(taken.unsqueeze(1) - expected) * acting[rows]
            team.append((worth if seen is None else worth * seen[rows]).sum(1))
        told = torch.zeros((*played.shape, len(target.features)), device=played.device)
        told[played] = torch.cat(team).float()
        return told

    def _measure(self) -> Measure:
        """What is compared between the action that was taken and its alternatives."""
        return torch.clone if self.config.influence == "ate_sq" else self._size

    def _size(self, displacement: Tensor) -> Tensor:
        size = displacement.abs()
        return size.clamp(max=LIMIT) if self.config.norm == "mean" else size

    def _worth(self, gain: Tensor) -> Tensor:
        """r (m, N, C) of every agent on every feature, from g: measured less expected."""
        if self.config.influence == "ate_sq":
            return gain.square()
        return gain if self.config.influence == "signed" else gain.clamp(min=0)

    def marginal(self, batch: Episodes, q: JointQ, noise: Noise) -> Tensor:
        """(B, T, N, A) weights of what each agent could have done instead."""
        avail = batch.avail[:, :-1]
        weights = uniform_marginal(avail)
        if self.config.marginal == "policy":
            assert isinstance(q, FactoredQ)
            values = q.unroll(q.agent, batch, noise, "fim.policy").values[:, :-1]
            greedy = torch.zeros_like(weights).scatter_(-1, best_available(values, avail).unsqueeze(-1), 1.0)
            weights = torch.lerp(greedy, weights, self.config.marginal_epsilon)
        if self.config.cf_samples:
            return sampled(weights, self.config.cf_samples, noise("fim.counterfactual"))
        return weights

    # the model

    def fit(self, batch: Episodes, q: JointQ, noise: Noise) -> Stats:
        """``model_updates`` steps on the episodes of the value's update."""
        target = self.statistic.target()
        if self.config.influence == "change" or len(target.features) == 0:
            return {}
        if self.config.model_inputs == "units":
            self.model.read_in(self.statistic.centre, self.statistic.sigma)
        return self.fit_to(batch, target)


def wrap(base: Parts, spec: EnvSpec, config: Config) -> Parts:
    """The base, paid for influence.

    Raises:
        Mistake: a setting that cannot be with this base or in this world.
    """
    if config.marginal == "policy" and not isinstance(base.q, FactoredQ):
        raise Mistake("algo.marginal=policy: the base has no utilities for whole episodes; allowed is uniform")
    if config.visibility_mask:
        refuse_unseen(spec, "algo.visibility_mask")
    return base.with_bonus(FocusingInfluence(spec, config))
