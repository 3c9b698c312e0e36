"""QTRAN-base: a free joint value, and utilities whose sum is held to it where that decides (Son et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from algos.factored import CORRECTED, FactoredConfig, FactoredQ, agent_net, td_stats
from marl.dice import Noise
from marl.fields import count, number
from marl.mixers import StateInput
from marl.nets import mlp
from marl.ops import best_available, chosen_value, episode_means, masked_mean
from marl.parts import Loss, Parts
from marl.precision import in_float32
from marl.sections import section
from marl.types import EnvSpec, Episodes


@dataclass
class Config(FactoredConfig):
    """Weights of the losses and sizes."""

    name: str = "qtran"
    td_weight: float = number(1.0, above=0)  # factor before the squared error of the joint value
    opt_weight: float = number(1.0, least=0)  # lambda_opt: the sum of utilities is exact at the greedy action
    nopt_weight: float = number(0.1, least=0)  # lambda_nopt: and nowhere below the joint value
    joint_embed: int = count(64)  # hidden units of the joint value and of V


class JointValue(nn.Module):
    """Q_jt(s, sum_i f(h_i, u_i)), of any form, and V(s) (Son et al. 2019, section 4.1)."""

    def __init__(self, spec: EnvSpec, config: Config) -> None:
        super().__init__()
        self.n_actions, embed = spec.n_actions, config.joint_embed
        encoded = config.hidden + spec.n_actions
        self.state = StateInput(config.state_norm)
        self.encoder = mlp(encoded, encoded, encoded)
        self.joint = mlp(spec.state_dim + encoded, embed, embed, 1)
        self.value = mlp(spec.state_dim, embed, embed, 1)

    @in_float32
    def forward(self, histories: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """(..., N, H), (..., S), (..., N) long -> Q_jt (..., 1)."""
        one_hot = functional.one_hot(actions, self.n_actions).to(state.dtype)
        encoded = self.encoder(torch.cat([histories, one_hot], -1)).sum(-2)
        joint: Tensor = self.joint(torch.cat([self.state(state), encoded], -1))
        return joint

    @in_float32
    def worth(self, state: Tensor) -> Tensor:
        """V (..., 1) of (..., S)."""
        value: Tensor = self.value(self.state(state))
        return value


def optimum_error(best: Tensor, joint: Tensor, value: Tensor) -> Tensor:
    """Sum of the utilities ``best`` (..., N) of the greedy action, less its ``joint`` value (..., 1), plus V."""
    return best.sum(-1, keepdim=True) - joint + value


def other_error(chosen: Tensor, joint: Tensor, value: Tensor) -> Tensor:
    """The same for the action that was taken, where it is negative; nothing is wrong with a sum that is above."""
    return (chosen.sum(-1, keepdim=True) - joint + value).clamp(max=0)


class TransformedQ(FactoredQ):
    """Chooses by utilities, which learn from Q_jt alone; Q_jt learns from returns, and shares the agents' histories."""

    config: Config
    mixer: JointValue
    slow_mixer: JointValue

    def __init__(self, spec: EnvSpec, config: Config) -> None:
        super().__init__(agent_net(spec, config), JointValue(spec, config), config)

    def stays(self) -> list[nn.Module]:
        return [self.mixer.encoder, self.mixer.joint]

    def mix(self, chosen: Tensor, best: Tensor, state: Tensor, actions: Tensor) -> Tensor:
        """Sum of utilities + V(s): equal to Q_jt at the greedy action and nowhere below it, once learned."""
        mixed: Tensor = chosen.sum(-1) + self.mixer.worth(state).squeeze(-1)
        return mixed

    def loss(self, batch: Episodes, noise: Noise) -> Loss:
        """td_weight L_td + lambda_opt L_opt + lambda_nopt L_nopt (equations 4 to 6), over steps that were played."""
        now = batch.state[:, :-1]
        with section("unroll"):
            live = self.unroll(self.agent, batch, noise, "live")
            values, histories = live.values[:, :-1], live.histories[:, :-1]
            joint = self.mixer(histories, now, batch.actions)
            value = self.mixer.worth(now)
        with section("targets"), torch.no_grad():
            greedy = best_available(live.values, batch.avail)
            optimum = self.mixer(histories, now, greedy[:, :-1])
            target = self.joint_target(greedy, batch, noise)
        opt_error = optimum_error(chosen_value(values, greedy[:, :-1]), optimum, value)
        nopt_error = other_error(chosen_value(values, batch.actions), joint.detach(), value)
        error, config = (joint - target).square(), self.config
        td, opt, nopt = (
            weight * masked_mean(squared, batch.mask)
            for weight, squared in (
                (config.td_weight, error),
                (config.opt_weight, opt_error.square()),
                (config.nopt_weight, nopt_error.square()),
            )
        )
        stats = td_stats(td, joint, target, batch.mask) | {
            "loss/opt": opt.detach(),
            "loss/nopt": nopt.detach(),
            "qtran/value": masked_mean(value.detach(), batch.mask),
        }
        return Loss(td + opt + nopt, stats, episode_means(error.detach().mean(-1), batch.mask))

    def joint_target(self, greedy: Tensor, batch: Episodes, noise: Noise) -> Tensor:
        """Returns (B, T, 1) from delayed copies; ``greedy`` (B, T+1, N) are the live choices."""
        slow = self.unroll(self.slow_agent, batch, noise, "target")
        best = greedy if self.config.double_q else best_available(slow.values, batch.avail)
        following = self.slow_mixer(slow.histories[:, 1:], batch.state[:, 1:], best[:, 1:])
        taken = None
        if self.config.returns in CORRECTED:
            taken = self.slow_mixer(slow.histories[:, :-1], batch.state[:, :-1], batch.actions)
        return self.config.td_target(batch, following, taken, (batch.actions == best[:, :-1]).all(-1))


def build(spec: EnvSpec, config: Config) -> Parts:
    return Parts(TransformedQ(spec, config), config.scaling())
