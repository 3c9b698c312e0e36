"""FoX: exploration by formations of the team (Jo, Lee, Yeom, Han 2024), on a QMIX with local heads (CDS)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from algos.factored import FactoredConfig, Optimizer
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
from marl.dice import Noise
from marl.nets import Monotonic
from marl.ops import masked_mean
from marl.parts import Bonus, Cadence, Descent, JointQ, Parts, Stats
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
ALLOWED = {
    "profile": tuple(PROFILES),
    "hash_init": ("gaussian", "uniform01"),
    "eval_latent": ("mean", "sample"),
    "target_encoder": ("live", "lagged"),
    "count_refresh": ("snapshot", "requery"),
    "reward_shift": ("nonneg", "nonpos"),
    "bonus_dtype": tuple(DTYPES),
}


@dataclass
class Config(FactoredConfig):
    """None: as the profile says."""

    name: str = "fox"
    agent_id: bool = False
    td_lambda: float = 0.0
    td_weight: float = 1.0
    optimizer: Optimizer = field(default_factory=lambda: Optimizer("rmsprop", lr=5e-4, alpha=0.99, eps=1e-5))
    mixing_embed: int = 32
    hyper_embed: int = 64
    profile: str = "fixed"  # fixed: as meant | reference: as released
    beta1: float = 0.01  # weight of the count bonus
    beta2: float = 0.01  # weight of the awareness bonus
    local_l1: float = 0.1  # weight of the mean absolute local value
    formation_head: bool = True  # False, and both betas 0: the CDS base, without FNet
    round: int | None = None  # decimals of a distance (R)
    hash_bits: int = 9  # signs that make up a direction (K)
    hash_init: str | None = None  # law of the projection: gaussian | uniform01
    formation_source: str = "obs"  # or the group of the state that holds the agents' positions, agent by agent
    table_capacity: int = 2**22  # slots of the count table, a power of two; 12 bytes each, three quarters can be filled
    count_refresh: str = "snapshot"  # counts as they were on arrival | requery: as they are at each update
    reward_shift: str = "nonneg"  # bonuses above 0 | nonpos: below 0, where staying alive must not pay
    latent_dim: int = 64
    fnet_hidden: int = 128
    n_latent_samples: int = 20  # draws of the latents for the awareness bonus (S)
    fnet_lr: float = 1e-3
    fnet_clip: float = 1.0  # of the joint gradient norm of E, G, T
    kl_weight: float | None = None
    flip_weight: float = 0.1  # how much E forgets what does not tell of the formation
    formation_scale: float = 1000.0  # F is divided by this before it is predicted
    fnet_every_episodes: int = 16  # 0: after every update, on its batch
    fnet_batch: int = 8  # episodes of the fresh batch
    fnet_updates: int = 25
    fnet_minibatch: int | None = None
    eval_latent: str | None = None  # latent outside training: mean | sample
    target_encoder: str = "live"  # encoder of the delayed agent: live | lagged, a delayed copy
    bonus_dtype: str = "bfloat16"  # of the decoder's products in the awareness bonus; networks stay float32

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            value = vars(self)[name]
            if value is not None and value not in allowed:
                raise ValueError(f"algo.{name}={value}: not known; allowed: {', '.join(allowed)}")
        if self.table_capacity < 8 or self.table_capacity & (self.table_capacity - 1):
            raise ValueError(f"algo.table_capacity={self.table_capacity}: allowed: a power of two from 8 on")
        if not 1 <= self.hash_bits <= 24:
            raise ValueError(f"algo.hash_bits={self.hash_bits}: allowed: 1 to 24")

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
        """``fnet_updates`` steps on random (episode, step, agent); what is told of the prediction was so before them."""
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
    """The value, and what rewards formations.

    Raises:
        ValueError: a team of one has no formation.
    """
    if spec.n_agents < 2:
        raise ValueError(f"algo={config.name}: env={spec.name} has a team of {spec.n_agents}; allowed: 2 agents or more")
    profile = config.settled()
    encoder = Encoder(config.hidden, config.fnet_hidden, config.latent_dim)
    q = FormationQ(
        FormationAgent(spec, config, config.latent_dim if config.formation_head else None),
        Monotonic(spec, config.mixing_embed, config.hyper_embed),
        encoder,
        config,
        local_l1=config.local_l1,
        lagged_encoder=config.target_encoder == "lagged",
        mean_outside_training=profile.eval_latent == "mean",
    )
    if not (config.formation_head or config.beta1 or config.beta2):
        return Parts(q)
    novelty = FormationNovelty(
        spec,
        beta=config.beta1,
        shift=config.reward_shift,
        decimals=profile.round,
        bits=config.hash_bits,
        law=profile.hash_init,
        slots=config.table_capacity,
        source=config.formation_source,
        requery=config.count_refresh == "requery",
        repaired=profile.repaired,
    )
    if not (config.formation_head or config.beta2):
        return Parts(q, (novelty,))
    return Parts(q, (novelty, FormationAwareness(spec, config, encoder)))
