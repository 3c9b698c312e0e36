"""The agent with three heads and the value it is part of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from algos.factored import FactoredConfig, FactoredQ, Unrolled
from algos.formation.prediction import Encoder
from marl.dice import TRAIN, Dice, Noise
from marl.nets import AgentBody, AgentLinear, linear
from marl.ops import masked_mean
from marl.parts import Memory, Stats, delayed
from marl.precision import in_float32
from marl.types import EnvSpec, Episodes, View


class Heads(NamedTuple):
    """Q_i = shared(h_i) + local_i(h_i) + formation(z_i)."""

    values: Tensor
    """(..., N, A)"""
    local: Tensor
    """(..., N, A)"""
    formation: Tensor | None
    """(..., N, A)"""


class FormationAgent(nn.Module):
    """Linear, ReLU, GRU; a head that agents share if anything, one of each agent's own, and one on the latent z."""

    def __init__(self, spec: EnvSpec, config: FactoredConfig, latent: int | None) -> None:
        super().__init__()
        layers = config.layers()
        self.body = AgentBody(spec, layers)
        self.shared = linear(config.hidden, spec.n_actions, spec.n_agents, layers)
        self.local = AgentLinear(spec.n_agents, config.hidden, spec.n_actions)
        self.formation = linear(latent, spec.n_actions, spec.n_agents, layers) if latent else None

    def start(self, n: int) -> Tensor:
        return self.body.start(n)

    def step(self, obs: Tensor, last_action: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One view of E teams -> histories (E, N, H), memory."""
        return self.body.step(obs, last_action, memory)

    def forward(self, obs: Tensor, last_action: Tensor) -> Tensor:
        """Whole episodes (B, T, N, O), (B, T, N) -> histories (B, T, N, H)."""
        histories: Tensor = self.body(obs, last_action)
        return histories

    @in_float32
    def heads(self, histories: Tensor, latents: Tensor | None) -> Heads:
        """(..., N, H), (..., N, Z)."""
        local = self.local(histories)
        values = self.shared(histories) + local
        if self.formation is None:
            return Heads(values, local, None)
        formation = self.formation(latents)
        return Heads(values + formation, local, formation)


class FormationQ(FactoredQ):
    """Its TD error changes agent and mixer; it passes through the encoder E to the histories, and leaves E as it is.

    Args:
        local_l1: weight of the mean absolute output of the local heads.
        lagged_encoder: the delayed agent has a delayed encoder too; otherwise it shares the live one.
        mean_outside_training: latents are means where actions are not meant to explore; otherwise they are drawn.
    """

    agent: FormationAgent
    encoder: Encoder
    slow_encoder: Encoder

    def __init__(
        self,
        agent: FormationAgent,
        mixer: nn.Module,
        encoder: Encoder,
        config: FactoredConfig,
        *,
        local_l1: float,
        lagged_encoder: bool,
        mean_outside_training: bool,
    ) -> None:
        super().__init__(agent, mixer, config)
        self.encoder = encoder
        self.lagged_encoder = lagged_encoder
        if lagged_encoder:
            self.slow_encoder = delayed(encoder)  # type: ignore[assignment]
        self._local_l1, self._mean_outside_training = local_l1, mean_outside_training

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        lagged = [(self.slow_encoder, self.encoder)] if self.lagged_encoder else []
        return [*super().targets(), *lagged]

    def step(self, view: View, memory: Memory, dice: Dice | None) -> tuple[Tensor, Memory]:
        histories, memory = self.agent.step(view.obs, view.last_action, memory)
        if self.agent.formation is None:
            return self.agent.heads(histories, None).values, memory
        law = self.encoder(histories)
        if dice is None or (self._mean_outside_training and dice.purpose != TRAIN):
            return self.agent.heads(histories, law.mean).values, memory
        noise = torch.from_numpy(dice.normal("fox.latent", tuple(law.mean.shape[1:])))
        return self.agent.heads(histories, law.sample(noise)).values, memory

    def unroll(self, agent: nn.Module, batch: Episodes, noise: Noise, purpose: str) -> Unrolled:
        """Heads work on views that belong to an episode; values of padding are 0, and draw no noise."""
        histories = agent(batch.obs, batch.last_action)
        seen = batch.seen.bool()
        rows, latents = histories[seen], None
        if self.agent.formation is not None:
            lagged = self.lagged_encoder and agent is self.slow_agent
            law = (self.slow_encoder if lagged else self.encoder).fixed(rows)
            drawn = torch.randn(law.mean.shape, generator=noise(f"fox.{purpose}"), device=rows.device)
            latents = law.sample(drawn)
        heads = agent.heads(rows, latents)
        values = heads.values.new_zeros((*seen.shape, *heads.values.shape[1:]))
        values[seen] = heads.values
        aside = (heads.local,) if heads.formation is None else (heads.local, heads.formation)
        return Unrolled(values, histories, aside)

    def histories(self, batch: Episodes) -> Tensor:
        return self.agent(batch.obs, batch.last_action)

    def penalty(self, live: Unrolled, batch: Episodes) -> tuple[Tensor, Stats]:
        """The L1 of local heads; told beside it: the shares of local and formation heads in |Q|."""
        acted = torch.cat([batch.mask, torch.zeros_like(batch.mask[:, :1])], 1)[batch.seen.bool()]
        local, *formation = (masked_mean(head.abs().mean(-1), acted) for head in live.aside)
        size = masked_mean(live.values[:, :-1].detach().abs(), batch.mask).clamp(min=1e-8)
        stats: Stats = {"loss/local": local.detach(), "q/local_share": local.detach() / size}
        if formation:
            stats["q/formation_share"] = formation[0].detach() / size
        return self._local_l1 * local, stats
