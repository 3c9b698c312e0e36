"""S2Q: sub-values for the second best, third best .. joint action follow a shifting optimum (Jo, Lee, Han 2026)."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from algos.factored import CORRECTED
from algos.successive.central import Central
from algos.successive.rows import Rows
from algos.successive.selection import EncoderDecoder, divergence, draw, softmax
from algos.successive.settings import Config, check, doubt, refuse_world, sub_mixer
from algos.successive.sub_values import SubAgents, suppressed, weights
from algos.successive.terms import Aims, Live, Losses, masked_means, report
from marl.descent import Descent
from marl.dice import EXPLORATION, TRAIN, Dice, Noise
from marl.mixers import StateInput
from marl.ops import best_available, chosen_value, episode_means, epsilon_greedy, masked_mean
from marl.parts import Delay, JointQ, Loss, Parts, Stats, delayed
from marl.sections import section
from marl.types import EnvSpec, Episodes, View

__all__ = ["Config", "S2Q", "build", "check"]


class Playing(NamedTuple):
    """What E teams remember."""

    hidden: Tensor
    """(E, K1, N, H)"""
    coin: Tensor
    """(E,) in [0, 1), thrown once per training episode; -1 until then"""
    central: Tensor
    """(E, N, H) of the central agents, where they play along; H is 0 otherwise"""


class S2Q(JointQ):
    """Sub-values Q_0 = Q_tot .. Q_K, the central value Q*, and what chooses among the sub-values while training."""

    slow_central: Central
    ready: Tensor
    """() bool: the learner has made an update, so that its choice means something"""

    def __init__(self, spec: EnvSpec, config: Config) -> None:
        super().__init__()
        self.config, k1, layers = config, config.successors + 1, config.layers()
        self.state = StateInput(config.state_norm)
        self.agents = SubAgents(spec, layers, k1, config.latent_dim if config.comm else 0)
        self.mixers = nn.ModuleList(sub_mixer(spec, config) for _ in range(k1))
        self.central = Central(spec, layers, config.central_embed, config.central_outputs)
        self.slow_central = delayed(self.central)  # type: ignore[assignment]
        sizes = (k1, config.latent_hidden, config.latent_dim)
        self.chooser = EncoderDecoder(spec.n_agents * config.hidden, spec.state_dim, *sizes)
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.delay = Delay(config.target_every_episodes, config.target_tau)
        self._doubt = doubt(spec, config)

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.slow_central, self.central)]

    def stays(self) -> list[nn.Module]:
        return [] if self._central_plays else [self.central]

    def equip(self) -> None:
        if self._doubt:
            warnings.warn(self._doubt, stacklevel=2)
        learned = [p for p in self.parameters() if p.requires_grad]
        self._descent = self.config.optimizer.make("td_loss", learned)

    def descents(self) -> list[Descent]:
        return [self._descent]

    def compilable(self) -> list[nn.Module]:
        return [*self.mixers, self.central.mixer, self.slow_central.mixer, self.chooser]  # type: ignore[list-item]

    # acting

    def memory(self, n: int) -> Playing:
        coin = torch.full((n,), -1.0)
        central = self.central.agent.start(n)
        return Playing(self.agents.start(n), coin, central if self._central_plays else central[..., :0])

    @property
    def _central_plays(self) -> bool:
        return self.config.draw_from == "central"

    def _message(self, hidden: Tensor) -> Tensor | None:
        """z (E, Z) of what network 0 remembers, whose gradient reaches the encoder only."""
        return self.chooser.latent(self.agents.remembered(hidden).detach()) if self.config.comm else None

    def _step(self, view: View, memory: Playing) -> tuple[Tensor, Tensor, Playing]:
        """Values (K1, E, N, A), histories (E, N, H) of network 0, and the memory after this view."""
        message = self._message(memory.hidden)
        told = None if message is None else message * self.ready
        values, features, hidden = self.agents.step(view.obs, view.last_action, memory.hidden, told)
        return values, features[0], memory._replace(hidden=hidden)

    def act(self, view: View, memory: Playing, epsilon: float, dice: Dice) -> tuple[Tensor, Playing]:
        values, histories, memory = self._step(view, memory)
        if dice.purpose == TRAIN:
            values, memory = self._choose(view, values, histories, memory, dice)
        else:
            values = values[0]
        if epsilon == 0:
            return best_available(values, view.avail), memory
        return epsilon_greedy(values, view.avail, epsilon, dice.uniform(EXPLORATION, (values.shape[1], 2))), memory

    def _choose(
        self, view: View, values: Tensor, histories: Tensor, memory: Playing, dice: Dice
    ) -> tuple[Tensor, Playing]:
        """Values (E, N, A) of the sub-values that play: network 0, or in some episodes one drawn at each step."""
        if memory.coin[0] < 0:
            memory = memory._replace(coin=torch.from_numpy(dice.uniform("s2q.coin")))
        probabilities, memory = self._probabilities(view, values, histories, memory)
        agents = values.shape[2]
        uniform = torch.from_numpy(dice.uniform("s2q.choice", (agents if self.config.own_draws else 1,)))
        chosen = draw(probabilities.unsqueeze(1).expand(-1, uniform.shape[1], -1), uniform)
        mixed = (memory.coin < self.config.mixed) & self.ready
        network = (chosen * mixed.unsqueeze(1)).expand(-1, agents)
        index = network[None, ..., None].expand(1, -1, -1, values.shape[-1])
        return values.gather(0, index).squeeze(0), memory

    def _probabilities(self, view: View, values: Tensor, histories: Tensor, memory: Playing) -> tuple[Tensor, Playing]:
        """(E, K1) what a sub-value is drawn from."""
        if self.config.draw_from == "learned":
            return self.chooser(histories).probabilities, memory
        if self.config.draw_from == "uniform":
            return values.new_full((values.shape[1], len(values)), 1 / len(values)), memory
        utilities, central = self.central.agent.step(view.obs, view.last_action, memory.central)
        candidates = best_available(values, view.avail)
        scores = self.central(utilities, self.state(view.state), candidates).movedim(0, -1)
        return softmax(scores, self.config.temperature), memory._replace(central=central)

    def utilities(self, view: View, memory: Playing) -> Tensor:
        return self._step(view, memory)[0][0]

    def mix(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        joint: Tensor = self.mixers[0](chosen, best, self.state(state), actions)
        return joint.squeeze(-1)

    # learning

    def unroll(self, batch: Episodes) -> tuple[Tensor, Tensor]:
        """Values (K1, B, T+1, N, A), and histories (B, T+1, N, H) of network 0."""
        if not self.config.comm:
            values, features = self.agents(batch.obs, batch.last_action)
            return values, features[0]
        hidden, steps = self.agents.start(len(batch.obs)), []
        for obs, last_action in zip(batch.obs.unbind(1), batch.last_action.unbind(1), strict=True):
            values, features, hidden = self.agents.step(obs, last_action, hidden, self._message(hidden))
            steps.append((values, features[0]))
        return torch.stack([values for values, _ in steps], 2), torch.stack([told for _, told in steps], 1)

    def histories(self, batch: Episodes) -> Tensor:
        return self.unroll(batch)[1]

    def _joint(self, values: Tensor, best: Tensor, state: Tensor, actions: Tensor, rows: Rows) -> Tensor:
        """Q_k (K1, B, T) of the actions taken, from values (K1, B, T+1, N, A) and their maxima (K1, B, T+1, N)."""
        taken = values[:, :, :-1]
        chosen = chosen_value(taken, actions.expand(*taken.shape[:-1]))
        joint = [
            rows.apply(mixer, c, b, state, actions)
            for mixer, c, b in zip(self.mixers, chosen, best[:, :, :-1], strict=True)
        ]
        return torch.stack(joint).squeeze(-1)

    def live(self, batch: Episodes) -> Live:
        """What the networks say of these episodes; of padding, 0 but for values and histories."""
        state, played = self.state(batch.state), Rows(batch.mask)
        acted = state[:, :-1]
        values, histories = self.unroll(batch)
        best, greedy = values.detach().masked_fill(~batch.avail, -torch.inf).max(-1)
        joint = self._joint(values, best, acted, batch.actions, played)
        utilities = self.central.utilities(batch.obs[:, :-1], batch.last_action[:, :-1])
        central = self.central(utilities, acted, batch.actions, played)
        return Live(state, values, greedy, histories, joint, central)

    @torch.no_grad()
    def aims(self, live: Live, batch: Episodes) -> Aims:
        """What the networks are drawn to."""
        config, views = self.config, slice(None, -1)
        utilities = self.slow_central.utilities(batch.obs, batch.last_action)
        candidates = self.slow_central(utilities, live.state, live.greedy, Rows(batch.seen))
        delayed_too = config.suppress_by == "delayed" or config.returns in CORRECTED
        believed = live.central
        if delayed_too:
            believed = self.slow_central(utilities[:, views], live.state[:, views], batch.actions)
        chosen = (batch.actions == live.greedy[:, :, views]).all(-1)
        following = candidates[0, :, 1:].unsqueeze(-1)
        target = config.td_target(batch, following, believed.unsqueeze(-1), chosen[0]).squeeze(-1)
        loss = live.central if config.suppress_by == "live" else believed
        amount = config.alpha * (loss if config.floor is None else loss.clamp(min=config.floor))
        aims = suppressed(target, amount, chosen)
        scores = candidates[..., views]
        weight = weights(live.joint - aims, live.central, scores, config.least_weight)
        return Aims(target, aims, weight, scores, softmax(scores.movedim(0, -1), config.temperature), chosen)

    def losses(self, batch: Episodes) -> tuple[Losses, Live, Aims, Stats]:
        """What is minimised, and what it was made of."""
        mask, factor = batch.mask, self.config.td_weight
        with section("unroll"):
            live = self.live(batch)
            guess = self.chooser(live.histories[:, :-1].detach())
        with section("targets"):
            aims = self.aims(live, batch)
        rebuilt = masked_mean((guess.state - batch.state[:, :-1]).square(), mask)
        told = divergence(aims.probabilities, guess.probabilities, mask)
        losses = Losses(
            factor * masked_mean((live.central - aims.target).square(), mask),
            factor * masked_means(aims.weight * (live.joint - aims.aims).square(), mask),
            told + rebuilt,
        )
        drawn = self._shares(guess.probabilities.detach(), aims.probabilities, mask)
        stats = report(losses, live, aims, drawn, mask)
        stats |= {"choice/kl": told.detach() * len(drawn), "choice/state_error": rebuilt.detach()}
        return losses, live, aims, stats

    def _shares(self, guess: Tensor, probabilities: Tensor, mask: Tensor) -> Tensor:
        """(K1,) how often each sub-value plays in training."""
        uniform = torch.full_like(guess, 1 / guess.shape[-1])
        told = {"learned": guess, "central": probabilities, "uniform": uniform}[self.config.draw_from]
        drawn = masked_means(told.movedim(-1, 0), mask) * self.config.mixed
        drawn[0] += 1 - self.config.mixed
        return drawn

    def loss(self, batch: Episodes, noise: Noise) -> Loss:
        losses, live, aims, stats = self.losses(batch)
        squared = (live.joint[0].detach() - aims.target).square()
        return Loss(losses.total(), stats, episode_means(squared, batch.mask))

    def descend(self, loss: Loss) -> Stats:
        norm = self._descent(loss.value)
        self.ready.fill_(True)
        return {"gradient_norm/td": norm}


def build(spec: EnvSpec, config: Config) -> Parts:
    """The value, if it can order this world's actions.

    Raises:
        Mistake: a setting that cannot be in this world.
    """
    refuse_world(spec, config)
    return Parts(S2Q(spec, config), config.scaling())
