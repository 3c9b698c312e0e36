"""LAIES: pays agents that are diligent, each alone and all together, on any base (Liu et al., ICML 2023).

A lazy agent makes no difference to what is outside of the team. Individual diligence (IDI) is the squared effect of an
agent's own action on the predicted external state, collaborative diligence (CDI) that of the joint action.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from algos.influence.counterfactual import compare, compare_jointly, uniform_marginal
from algos.influence.fading import Fading
from algos.influence.features import alive, feature_mask, refuse_unseen, visible_features
from algos.influence.foresight import Foresight, ForesightConfig
from algos.influence.model import Target
from marl.dice import Noise
from marl.fields import count, number, one_of, only_with
from marl.ops import masked_mean
from marl.parts import JointQ, Parts, Stats
from marl.precision import full_precision
from marl.types import EnvSpec, Episodes

CDI_UNIT = 100.0
"""Both forms of CDI are divided by this (released code)."""
CDI_CUT = {"change": 0.15, "counterfactual": 0.1}
"""Largest CDI before that (released code)."""


@dataclass
class Config(ForesightConfig):
    """How diligence is measured and paid."""

    name: str = "laies"
    external: list[str] = field(default_factory=list)  # groups of features outside of the team; []: the whole state
    beta1: float = number(100.0, least=0)  # weight of IDI
    beta2: float = number(2.0, least=0)  # weight of CDI
    idi_clip: float = number(0.002, above=0)  # most IDI of an agent in a step
    cdi: str = one_of("change", "counterfactual")  # squared change of the external state (as released), or as meant
    cdi_samples: int = only_with(count(16), cdi="counterfactual")  # random joint actions
    cdi_clip: float = number(0.06, above=0)  # most CDI in a step
    clip: float | None = number(1.0, above=0)  # most that both add to the reward of a step; null: no bound
    anneal: bool = True  # let it fade to 0 from the first batch on whose mean reward is above 0
    anneal_steps: int = only_with(count(2_000_000), anneal=True)  # environment steps of that
    visibility_mask: bool = False  # IDI only of features that the agent sees, where the world has a column `visible`


class Diligence(Foresight):
    """min(beta1 IDI + beta2 CDI, clip), fading."""

    config: Config
    external: Tensor

    def __init__(self, spec: EnvSpec, config: Config) -> None:
        super().__init__(spec, config, residual=False)
        chosen = torch.ones(spec.state_dim, dtype=torch.bool)
        if config.external:
            chosen = feature_mask(spec, config.external, "algo.external")
        self.register_buffer("external", chosen.nonzero().squeeze(-1), persistent=False)
        self.fading = Fading(config.anneal_steps if config.anneal else None)

    def annotate(self, fresh: Episodes) -> dict[str, Tensor]:
        """Steps are counted for annealing; nothing is written."""
        self.fading.watch(fresh)
        return {}

    def target(self) -> Target:
        """The external state."""
        return Target(self.external, torch.ones(len(self.external), device=self.external.device))

    def reward(self, batch: Episodes, q: JointQ, noise: Noise) -> tuple[Tensor, Stats]:
        """Nothing before the delayed model is a copy of one that was fitted more than once."""
        config, share = self.config, self.fading.share(batch)
        if not self.foresees:
            return torch.zeros_like(batch.reward), {}
        with full_precision(batch.reward.device.type):  # influence is a small difference of predictions
            alone, together = self.individual(batch), self.collaborative(batch, noise)
        bound = torch.inf if config.clip is None else config.clip
        bonus = share * (config.beta1 * alone + config.beta2 * together).clamp(max=bound)
        return bonus, {
            "laies/idi": masked_mean(alone, batch.mask),
            "laies/cdi": masked_mean(together, batch.mask),
            "laies/share": share,
            "bonus/diligence": masked_mean(bonus, batch.mask),
            "bonus/diligence_return": bonus.sum(1).mean(),
        }

    def individual(self, batch: Episodes) -> Tensor:
        """IDI (B, T) = sum over living agents of |f(s, a) - mean of f over its other available actions|^2, each cut."""
        played, target = batch.mask.bool(), self.target()
        others = uniform_marginal(batch.avail[:, :-1].scatter(-1, batch.executed.unsqueeze(-1), False))
        seen = None
        if self.config.visibility_mask:
            seen = visible_features(batch, target.features)
        parts, at = [], 0
        for taken, expected in compare(self.slow_model, batch, others, target, torch.clone, self.config.cf_chunk):
            effect = (taken.unsqueeze(1) - expected).square()
            if seen is not None:
                effect = effect * seen[at : at + len(taken)]
            at += len(taken)
            parts.append(effect.sum(-1).clamp(max=self.config.idi_clip))
        told = torch.zeros(batch.actions.shape, device=played.device)
        told[played] = torch.cat(parts).float()
        return (told * alive(batch)).sum(-1)

    def collaborative(self, batch: Episodes, noise: Noise) -> Tensor:
        """CDI (B, T): squared change of the external state, or |f(s, a) - mean of f over random joint actions|^2."""
        config, target = self.config, self.target()
        cut = CDI_CUT[config.cdi]
        if config.cdi == "change":
            views = target.of(batch.state)
            effect = (views[:, 1:] - views[:, :-1]).square().sum(-1) * batch.mask
        else:
            generator = noise("laies.joint")
            now, mean = compare_jointly(self.slow_model, batch, target, config.cdi_samples, generator, config.cf_chunk)
            effect = torch.zeros_like(batch.reward)
            effect[batch.mask.bool()] = (now - mean).square().sum(-1).float()
        return (effect.clamp(max=cut) / CDI_UNIT).clamp(max=config.cdi_clip)

    def fit(self, batch: Episodes, q: JointQ, noise: Noise) -> Stats:
        """``model_updates`` steps on the episodes of the value's update."""
        return self.fit_to(batch, self.target())


def wrap(base: Parts, spec: EnvSpec, config: Config) -> Parts:
    """The base, paid for diligence."""
    if config.visibility_mask:
        refuse_unseen(spec, "algo.visibility_mask")
    return base.with_bonus(Diligence(spec, config))
