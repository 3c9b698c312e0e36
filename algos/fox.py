"""FoX: exploration by formations of the team (Jo, Lee, Yeom, Han 2024), on a QMIX with local heads (CDS)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from algos.factored import FactoredConfig, Optimizer, decay_of_returns
from algos.formation.agent import FormationAgent, FormationQ
from algos.formation.awareness import (
    Awareness,
    awareness,
    normalised,
    partners,
    partners_as_released,
    relative_surprise,
    surprise,
    surprise_as_released,
)
from algos.formation.novelty import FormationNovelty
from algos.formation.prediction import (
    Balance,
    Encoder,
    FormationDecoder,
    HistoryDecoder,
    Prediction,
    Trio,
    predict,
)
from marl.descent import Descent
from marl.dice import Noise
from marl.fields import count, idle_with, number, one_of
from marl.mixers import Monotonic
from marl.ops import masked_mean
from marl.parts import Bonus, Cadence, JointQ, Parts, Stats
from marl.precision import warn_of_slow_bfloat16
from marl.types import EnvSpec, Episodes


class Profile(NamedTuple):
    """What ``algo.profile`` settles; all but the first can be set one by one."""

    repaired: bool
    """False: rows B1 to B9 and B11 of docs/fox.md as in the released code."""
    round: int
    hash_init: str
    kl_weight: float
    fnet_minibatch: int
    eval_latent: str


PROFILES = {
    "fixed": Profile(True, 1, "gaussian", 1e-5, 64, "mean"),
    "reference": Profile(False, 3, "uniform01", 1.0, 1, "sample"),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Config(FactoredConfig):
    """What is null is as the profile says."""

    name: str = "fox"
    agent_id: bool = False  # feed the agent its index; False: local heads tell agents apart
    td_lambda: float = decay_of_returns(0.0)  # 0: one-step targets
    td_weight: float = number(1.0, above=0)  # factor before the squared error
    optimizer: Optimizer = field(default_factory=lambda: Optimizer("rmsprop", lr=5e-4, alpha=0.99, eps=1e-5))
    mixing_embed: int = count(32)
    hyper_embed: int = count(64)  # hidden units of the networks that make the mixer's weights
    profile: str = one_of("fixed", "reference")  # as meant, or every slip of the released code
    beta1: float = number(0.01, least=0)  # weight of the count bonus
    beta2: float = number(0.01, least=0)  # weight of the awareness bonus
    reward_shift: str = one_of("nonneg", "nonpos")  # bonuses above 0, or below where staying alive must not pay
    local_l1: float = number(0.1, least=0)  # weight of the mean absolute output of local heads, for goals of 100
    formation_head: bool = True  # values see the latent; False, with both betas 0: the CDS base, without FNet
    round: int | None = number(None, least=0, most=9)  # decimals of a distance (R)
    hash_bits: int = number(9, least=1, most=24)  # signs that make up a direction (K)
    hash_init: str | None = one_of(None, "gaussian", "uniform01")  # law of projections
    formation_source: str = "obs"  # or the group of the state that holds the agents' positions, agent by agent
    table_capacity: int = count(3_000_000, least=8)  # formations that are counted; a full table takes 48 MiB
    count_refresh: str = idle_with(one_of("snapshot", "requery"), beta1=0)  # counts of the arrival, or of each update
    latent_dim: int = count(64)  # numbers in a latent z
    fnet_hidden: int = count(128)  # units of each layer of FNet
    n_latent_samples: int = idle_with(count(20), beta2=0)  # draws of the latents for the awareness bonus (S)
    fnet_lr: float = number(1e-3, above=0)  # Adam, of encoder and decoders
    fnet_clip: float = number(1.0, above=0)  # joint gradient norm of encoder and decoders
    kl_weight: float | None = number(None, least=0)  # of the latents' divergence from N(0, 1)
    flip_weight: float = number(0.1, least=0, most=1)  # how hard the encoder forgets what tells nothing of formations
    formation_scale: float = number(1000.0, above=0)  # a formation is divided by this before it is predicted
    fnet_every_episodes: int = count(16, least=0)  # between two phases of FNet; 0: after every update, on its batch
    fnet_batch: int = idle_with(count(8), fnet_every_episodes=0)  # episodes of a phase, drawn uniformly
    fnet_updates: int = count(25)  # steps in a phase
    fnet_minibatch: int | None = count(None)  # histories in a step
    eval_latent: str | None = one_of(None, "mean", "sample")  # outside training
    target_encoder: str = one_of("live", "lagged")  # what the delayed agent sees with
    bonus_dtype: str = idle_with(one_of(*DTYPES), beta2=0)  # of products in that bonus

    def settled(self) -> Profile:
        """The profile with what was set one by one."""
        own = {name: vars(self)[name] for name in Profile._fields[1:]}
        return PROFILES[self.profile]._replace(**{name: value for name, value in own.items() if value is not None})


CHECKED = 512
"""Histories on which the prediction is judged before it is trained."""


class FormationAwareness(Bonus):
    """Rewards histories that tell of the formation, and trains FNet, which tells it: encoder E, decoders G and T."""

    largest_surprise: Tensor

    def __init__(self, spec: EnvSpec, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config, self.profile = config, config.settled()
        self._lent = (encoder,)  # in a tuple, since FormationQ is where its parameters are saved and moved
        self.decoder = FormationDecoder(config.latent_dim, config.fnet_hidden, 4 * spec.n_agents)
        squashed = not self.profile.repaired
        self.historian = HistoryDecoder(config.latent_dim, config.fnet_hidden, config.hidden, squashed=squashed)
        self.register_buffer("largest_surprise", torch.zeros(()))
        self.cadence = Cadence(config.fnet_every_episodes, config.fnet_batch)
        balance = Balance.intended if self.profile.repaired else Balance.released
        self._balance = balance(config.flip_weight)

    @property
    def encoder(self) -> Encoder:
        return self._lent[0]

    def equip(self) -> None:
        """One Adam: with equal settings and a joint clip it takes the very steps of one each for E, G and T."""
        parameters = [p for network in (self.encoder, self.decoder, self.historian) for p in network.parameters()]
        adam = torch.optim.Adam(parameters, lr=self.config.fnet_lr, fused=True)
        self._descent = Descent("fnet_loss", adam, self.config.fnet_clip)
        if self.config.bonus_dtype == "bfloat16":
            setting, faster = "algo.bonus_dtype=bfloat16", "algo.bonus_dtype=float32"
            warn_of_slow_bfloat16(setting, faster, self.largest_surprise.device)

    def descents(self) -> list[Descent]:
        return [self._descent]

    # rewarding

    def reward(self, batch: Episodes, q: JointQ, noise: Noise) -> tuple[Tensor, Stats]:
        """r_F (B, T) = beta2 * sum over agents of the mean over draws of their gain, stretched to [0, rho]."""
        if self.config.beta2 == 0:
            return torch.zeros_like(batch.reward), {}
        valid, aware = self.gains(batch, q, noise)
        if self.profile.repaired:
            surprises = surprise(aware.likelihood)
        else:
            surprises = surprise_as_released(aware.likelihood, len(batch.reward))
        rho, largest = relative_surprise(surprises, self.largest_surprise)
        self.largest_surprise.copy_(largest)
        worth = normalised(aware.gain, rho, self.config.reward_shift, repaired=self.profile.repaired)
        bonus = torch.zeros_like(batch.reward)
        bonus[valid] = self.config.beta2 * worth.mean(-1).sum(-1)
        return bonus, {
            "bonus/awareness": masked_mean(bonus, batch.mask),
            "formation/rho": rho.mean(),
            "formation/surprise": surprises.mean(),
        }

    @torch.no_grad()
    def gains(self, batch: Episodes, q: JointQ, noise: Noise) -> tuple[Tensor, Awareness]:
        """(B, T) bool, the M steps t that are judged, and what the histories at t+1 tell of the formation at t+1."""
        valid = self._steps(batch)
        histories = q.histories(batch)[:, 1:]
        formation = batch.columns["formation"][:, 1:][valid]
        near, far = batch.columns["nearest"].long(), batch.columns["farthest"].long()
        if self.profile.repaired:
            laws = partners(self.encoder(histories[valid]), far[:, 1:][valid], near[:, 1:][valid])
            formation = formation / self.config.formation_scale
        else:
            laws = partners_as_released(self.encoder(histories), far[:, :-1], near[:, :-1])
        generator, dtype = noise("fox.awareness"), DTYPES[self.config.bonus_dtype]
        return valid, awareness(self.decoder, laws, formation, self.config.n_latent_samples, generator, dtype)

    def _steps(self, batch: Episodes) -> Tensor:
        """(B, T) bool: steps that were played; released (rows B6, B11), padding too."""
        return batch.mask.bool() if self.profile.repaired else torch.ones_like(batch.mask, dtype=torch.bool)

    # predicting

    def fit(self, batch: Episodes, q: JointQ, noise: Noise) -> Stats:
        """``fnet_updates`` steps on random (episode, step, agent); what is told of it was so before."""
        generator, updates, size = noise("fox.fit"), self.config.fnet_updates, self.profile.fnet_minibatch
        checked, *trios = self._trios(batch, q, CHECKED + updates * size, generator).split([CHECKED, *[size] * updates])
        with torch.no_grad():
            stats = self._judge(self.predict(checked, generator), checked)
        for trio in trios:
            told = self.predict(trio, generator)
            stats["gradient_norm/fnet"] = self._descent(told.objective(self._balance, self.profile.kl_weight))
        return stats

    @torch.no_grad()
    def _trios(self, batch: Episodes, q: JointQ, n: int, generator: torch.Generator) -> Trio:
        steps = self._steps(batch)
        near, far = batch.columns["nearest"][:, :-1][steps].long(), batch.columns["farthest"][:, :-1][steps].long()
        formation = batch.columns["formation"][:, :-1][steps] / self.config.formation_scale
        return Trio.draw(q.histories(batch)[:, :-1][steps], far, near, formation, n, generator)

    def predict(self, trio: Trio, generator: torch.Generator) -> Prediction:
        """With fresh latents."""
        shape = (3, len(trio.own), self.config.latent_dim)
        drawn = torch.randn(shape, generator=generator, device=trio.own.device)
        return predict(self.encoder, self.decoder, self.historian, trio, drawn, self._balance)

    def _judge(self, told: Prediction, trio: Trio) -> Stats:
        spread = (trio.formation - trio.formation.mean(0)).square().mean()
        return {
            "fnet/error": told.error,
            "fnet/r2": 1 - told.error / spread.clamp(min=1e-12),
            "fnet/kl": told.divergence,
            "fnet/history": told.history + self.profile.kl_weight * told.divergence,
        }


def build(spec: EnvSpec, config: Config) -> Parts:
    """The value, and what rewards formations. A team of one has none: its value sees no latent either."""
    profile, sees_formation = config.settled(), config.formation_head and spec.n_agents > 1
    encoder = Encoder(config.hidden, config.fnet_hidden, config.latent_dim)
    q = FormationQ(
        FormationAgent(spec, config, config.latent_dim if sees_formation else None),
        Monotonic(spec, config.mixing_embed, config.hyper_embed, state_norm=config.state_norm),
        encoder,
        config,
        local_l1=config.local_l1,
        lagged_encoder=config.target_encoder == "lagged",
        mean_outside_training=profile.eval_latent == "mean",
    )
    if spec.n_agents == 1 or not (config.formation_head or config.beta1 or config.beta2):
        return Parts(q, config.scaling())
    novelty = FormationNovelty(
        spec,
        beta=config.beta1,
        shift=config.reward_shift,
        decimals=profile.round,
        bits=config.hash_bits,
        law=profile.hash_init,
        capacity=config.table_capacity,
        source=config.formation_source,
        requery=config.count_refresh == "requery",
        repaired=profile.repaired,
    )
    if not (config.formation_head or config.beta2):
        return Parts(q, (*config.scaling(), novelty))
    return Parts(q, (*config.scaling(), novelty, FormationAwareness(spec, config, encoder)))
