"""Factored values: utilities of single agents, a mixer, double Q-learning with TD(lambda). What papers may import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from marl.descent import Descent
from marl.dice import EXPLORATION, Dice, Noise
from marl.fields import count, number, one_of, only_with
from marl.nets import AgentNet, Layers
from marl.ops import (
    best_available,
    best_value,
    chosen_value,
    corrected_returns,
    episode_means,
    epsilon_greedy,
    lambda_returns,
    masked_mean,
    n_step_returns,
)
from marl.parts import Bonus, Delay, JointQ, Loss, Memory, Stats, delayed
from marl.precision import full_precision, in_float32
from marl.scaling import RewardScaling
from marl.sections import section
from marl.types import EnvSpec, Episodes, View

CORRECTED = ("watkins", "harutyunyan")
"""Returns that need the value of the choice that was made."""


def decay_of_returns(default: float) -> Any:
    """A field for lambda."""
    return only_with(number(default, least=0, most=1), returns=("peng", *CORRECTED))


@dataclass
class Optimizer:
    """How the value's parameters change."""

    name: str = one_of("adam", "radam", "rmsprop")
    lr: float = number(1e-3, above=0)
    alpha: float = only_with(number(0.99, least=0, most=1), name="rmsprop")  # decay of the squared gradient
    eps: float = number(1e-8, above=0)
    clip: float = number(10.0, above=0)  # global gradient norm
    lr_decay: bool = False  # the learning rate falls linearly, to 0 at the end of the run

    def make(self, name: str, parameters: list[nn.Parameter]) -> Descent:
        """The optimiser of ``parameters``, known as ``name`` in errors and checkpoints."""
        optimizer: torch.optim.Optimizer
        if self.name == "rmsprop":
            optimizer = torch.optim.RMSprop(parameters, lr=self.lr, alpha=self.alpha, eps=self.eps)
        elif self.name == "radam":
            optimizer = torch.optim.RAdam(parameters, lr=self.lr, eps=self.eps)
        else:
            optimizer = torch.optim.Adam(parameters, lr=self.lr, eps=self.eps, fused=True)
        return Descent(name, optimizer, self.clip, falling=self.lr_decay)


@dataclass
class FactoredConfig:
    """What every factored value has to choose."""

    name: str = "factored"
    hidden: int = count(64)  # units of the agent's GRU, and of its other layers
    dense_layers: int = count(1)  # of the agent, before its GRU or the layer in its place
    recurrent: bool = True  # a GRU; False: a feed-forward agent without memory
    layer_norm: bool = False  # normalise the agent's hidden layers
    state_norm: bool = False  # normalise the state that mixers read
    shared: bool = True  # one network for all agents; False: one for each
    agent_id: bool = True  # feed the agent its index; False: agents are told apart by their observations alone
    last_action: bool = True  # feed the agent its previous choice
    gamma: float = number(0.99, least=0, most=1)
    rewards: str = one_of("raw", "scaled", "standardised")  # as they are, over their deviation, or also around 0
    returns: str = one_of("peng", "n_step", "watkins", "harutyunyan")  # what values are drawn to (docs/family.md)
    td_lambda: float = decay_of_returns(0.6)  # peng: PyMARL's TD(lambda); 0: one-step targets
    n_step: int = only_with(count(3), returns="n_step")  # rewards before the value that is believed
    double_q: bool = True  # the live network chooses the action that the delayed one values
    td_weight: float = number(0.5, above=0)  # factor before the squared error: PyMARL2 1/2, PyMARL 1
    target_every_episodes: int = only_with(count(200), target_tau=0.0)  # hard copy
    target_tau: float = number(0.0, least=0, most=1)  # if positive: soft copy after every update instead
    optimizer: Optimizer = field(default_factory=Optimizer)

    def layers(self) -> Layers:
        """The layout of the agents' network."""
        return Layers(
            self.hidden,
            self.recurrent,
            self.layer_norm,
            self.shared,
            dense=self.dense_layers,
            last_action=self.last_action,
            agent_id=self.agent_id,
        )

    @in_float32
    def td_target(self, batch: Episodes, following: Tensor, taken: Tensor | None, greedy: Tensor) -> Tensor:
        """Returns (B, T, M) of ``batch`` as ``returns`` says.

        ``following`` (B, T, M): values of the greedy choice at the view after each step; ``taken`` (B, T, M): those of
        the choice that was made, for `CORRECTED` returns only; ``greedy`` (B, T) bool: it was the greedy one.
        """
        reward = batch.reward.unsqueeze(-1)
        steps = (reward, batch.terminal, batch.mask, following, self.gamma)
        with full_precision(reward.device.type):  # these sums are products of matrices, which TF32 would round
            if self.returns == "n_step":
                return n_step_returns(*steps, self.n_step)
            if self.returns == "peng":
                return lambda_returns(*steps, self.td_lambda)
        if taken is None:
            raise ValueError(f"algo.returns={self.returns} needs the values of choices that were made: `taken`")
        kept = greedy if self.returns == "watkins" else torch.ones_like(greedy)
        return corrected_returns(*steps, self.td_lambda, taken, kept)

    def scaling(self) -> tuple[Bonus, ...]:
        """What brings rewards to unit size, as ``rewards`` says."""
        return () if self.rewards == "raw" else (RewardScaling(centred=self.rewards == "standardised"),)


class Unrolled(NamedTuple):
    """An agent network's answer to whole episodes."""

    values: Tensor
    """(B, T+1, N, A)"""
    histories: Tensor
    """(B, T+1, N, H)"""
    aside: tuple[Tensor, ...] = ()
    """What a paper's own penalty needs."""


class FactoredQ(JointQ):
    """Q_tot = mixer(Q_1 .. Q_N, s), learned by TD(lambda) towards delayed copies of both.

    ``mixer(chosen (..., N), best (..., N), state (..., S), actions (..., N)) -> (..., M)`` with M = 1, or M = N for
    separate learners: see `marl.mixers`.

    Args:
        lagging: False: no delayed copies are kept, and targets are values of the live networks.
    """

    def __init__(self, agent: nn.Module, mixer: nn.Module, config: FactoredConfig, *, lagging: bool = True) -> None:
        super().__init__()
        self.config, self.lagging = config, lagging
        self.agent, self.mixer = agent, mixer
        if lagging:
            self.slow_agent, self.slow_mixer = delayed(agent), delayed(mixer)
        self.delay = Delay(config.target_every_episodes, config.target_tau)

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.slow_agent, self.agent), (self.slow_mixer, self.mixer)] if self.lagging else []

    def learned(self) -> list[nn.Parameter]:
        """What the TD error changes."""
        return [*self.agent.parameters(), *self.mixer.parameters()]

    def equip(self) -> None:
        self._descent = self.config.optimizer.make("td_loss", self.learned())

    def descents(self) -> list[Descent]:
        return [self._descent]

    def compilable(self) -> list[nn.Module]:
        return [self.agent, self.mixer, *(copied for copied, _ in self.targets())]

    # acting

    def memory(self, n: int) -> Memory:
        return self.agent.start(n)

    def step(self, view: View, memory: Memory, dice: Dice | None) -> tuple[Tensor, Memory]:
        """Values (E, N, A) at a view, and the memory after it."""
        return self.agent.step(view.obs, view.last_action, memory)

    def act(self, view: View, memory: Memory, epsilon: float, dice: Dice) -> tuple[Tensor, Memory]:
        values, memory = self.step(view, memory, dice)
        if epsilon == 0:
            return best_available(values, view.avail), memory
        uniform = dice.uniform(EXPLORATION, (values.shape[1], 2))
        return epsilon_greedy(values, view.avail, epsilon, uniform), memory

    def utilities(self, view: View, memory: Memory) -> Tensor:
        return self.step(view, memory, None)[0]

    def mix(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Of separate learners, who each value what the whole team is paid, the mean."""
        joint: Tensor = self.mixer(chosen, best, state, actions).mean(-1)
        return joint

    # learning

    def unroll(self, agent: nn.Module, batch: Episodes, noise: Noise, purpose: str) -> Unrolled:
        """``agent`` over whole episodes; ``purpose`` names the noise, for networks that draw some."""
        return Unrolled(*agent(batch.obs, batch.last_action))

    def histories(self, batch: Episodes) -> Tensor:
        return self.agent(batch.obs, batch.last_action)[1]

    def penalty(self, live: Unrolled, batch: Episodes) -> tuple[Tensor | None, Stats]:
        """A paper's own addition () to the loss."""
        return None, {}

    def td_target(self, live: Tensor, batch: Episodes, noise: Noise) -> Tensor:
        """Returns (B, T, M) from delayed copies; ``live`` (B, T+1, N, A) chooses the actions."""
        slow = self.unroll(self.slow_agent, batch, noise, "target").values if self.lagging else live
        mixer = self.slow_mixer if self.lagging else self.mixer
        best = best_available(live if self.config.double_q else slow, batch.avail)
        maxima = best_value(slow, batch.avail)

        def joint(actions: Tensor, views: slice) -> Tensor:
            chosen = chosen_value(slow[:, views], actions)
            value: Tensor = mixer(chosen, maxima[:, views], batch.state[:, views], actions)
            return value

        following = joint(best[:, 1:], slice(1, None))
        taken = None
        if self.config.returns in CORRECTED:
            taken = joint(batch.actions, slice(None, -1))
        greedy = (batch.actions == best[:, :-1]).all(-1)
        return self.config.td_target(batch, following, taken, greedy)

    def loss(self, batch: Episodes, noise: Noise) -> Loss:
        with section("unroll"):
            live = self.unroll(self.agent, batch, noise, "live")
            taken = live.values[:, :-1]
            best = best_value(taken, batch.avail[:, :-1])
            joint = self.mixer(chosen_value(taken, batch.actions), best, batch.state[:, :-1], batch.actions)
        with section("targets"), torch.no_grad():
            target = self.td_target(live.values.detach(), batch, noise)
        squared = (joint - target).square()
        td = self.config.td_weight * masked_mean(squared, batch.mask)
        penalty, stats = self.penalty(live, batch)
        stats |= td_stats(td, joint, target, batch.mask)
        priority = episode_means(squared.detach().mean(-1), batch.mask)
        return Loss(td if penalty is None else td + penalty, stats, priority)

    def descend(self, loss: Loss) -> Stats:
        return {"gradient_norm/td": self._descent(loss.value)}


def td_stats(td: Tensor, joint: Tensor, target: Tensor, mask: Tensor) -> Stats:
    """What every TD error is told by: the loss ``td`` (), values ``joint`` and returns ``target`` (B, T, ...)."""
    joint = joint.detach()
    return {
        "loss/td": td.detach(),
        "q/taken": masked_mean(joint, mask),
        "q/target": masked_mean(target, mask),
        "q/error": masked_mean((joint - target).abs(), mask),
    }


def agent_net(spec: EnvSpec, config: FactoredConfig) -> AgentNet:
    """The recurrent agent that most papers share."""
    return AgentNet(spec, config.layers())
