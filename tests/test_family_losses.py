"""Risk: a member of the family is drawn to other returns than its settings say. Losses against loops over steps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from algos import fox
from algos.factored import FactoredConfig
from marl.dice import Noise
from marl.types import EnvSpec, Episodes
from tests.family import BUILDS, batch, built

SPEC = EnvSpec("duo", n_agents=2, n_actions=2, obs_dim=4, state_dim=6, horizon=6)
"""So few choices that some are greedy, by one agent or by both."""
AGENTS = torch.arange(SPEC.n_agents)
LENGTHS = (2, 5, 6, 4, 6)
RETURNS = [
    {"td_lambda": 0.6},
    {"td_lambda": 0.6, "double_q": False},
    {"returns": "n_step", "n_step": 2},
    {"returns": "watkins", "td_lambda": 0.7},
    {"returns": "harutyunyan", "td_lambda": 0.4},
]
REFUSED = [(name, RETURNS[1]) for name in ("cw_qmix", "ow_qmix", "pqn_vdn")]

Values = Callable[[int, int, Tensor], Tensor]
"""Of (episode, view, actions (N,)): (M,)."""


def joint_values(q, name: str, batch: Episodes, prefix: str) -> tuple[Tensor, Values]:
    """Utilities (B, T+1, N, A), and the joint values that they are mixed to: of what learns, or of delayed copies."""
    agent, mixer = getattr(q, f"{prefix}agent"), getattr(q, f"{prefix}mixer")
    values, histories = agent(batch.obs, batch.last_action)

    def value(row: int, t: int, actions: Tensor) -> Tensor:
        chosen, state = values[row, t, AGENTS, actions], batch.state[row, t]
        if "central" in prefix:
            return mixer(chosen, state)
        if name == "qtran":
            return mixer(histories[row, t], state, actions)
        best = values[row, t].masked_fill(~batch.avail[row, t], -torch.inf).amax(-1)
        return mixer(chosen, best, state, actions)

    return values, value


def drawn_to(
    config: FactoredConfig, reward: list[float], ended: bool, following: list, taken: list, greedy: list
) -> list:
    """The returns of one episode, from its last step backwards (docs/family.md); numbers or (M,), as values are."""
    steps, gamma, decay = len(reward), config.gamma, config.td_lambda
    ahead: list = []
    for t in reversed(range(steps)):
        is_last = t == steps - 1
        goes_on = 0.0 if is_last and ended else gamma
        if config.returns == "n_step":
            end = min(t + config.n_step, steps)
            value = 0 * following[0] if end == steps and ended else following[end - 1]
            paid = sum(gamma**k * one for k, one in enumerate(reward[t:end]))
            ahead.insert(0, paid + gamma ** (end - t) * value)
        elif is_last:
            ahead.insert(0, reward[t] + goes_on * following[t])
        elif config.returns == "peng":
            ahead.insert(0, reward[t] + goes_on * ((1 - decay) * following[t] + decay * ahead[0]))
        else:
            kept = decay * (config.returns == "harutyunyan" or greedy[t + 1])
            ahead.insert(0, reward[t] + goes_on * (following[t] + kept * (ahead[0] - taken[t + 1])))
    return ahead


@torch.no_grad()
def expected(q, name: str, batch: Episodes) -> dict[str, float]:
    """The TD error's loss, and that of the central value where there is one, step by step."""
    config, weighted = q.config, name in ("cw_qmix", "ow_qmix")
    live, value = joint_values(q, name, batch, "")
    slow, later = joint_values(q, name, batch, "slow_central_" if weighted else "slow_" if q.lagging else "")
    if weighted:
        _, known = joint_values(q, name, batch, "central_")
    judge = live if config.double_q else slow
    choices = judge.masked_fill(~batch.avail, -torch.inf).argmax(-1)
    td, central = [], []
    for row, length in enumerate(batch.mask.sum(1).long().tolist()):
        made, best = batch.actions[row], choices[row]
        greedy = [bool((made[t] == best[t]).all()) for t in range(length)]
        following = [later(row, t + 1, best[t + 1]) for t in range(length)]
        taken = [later(row, t, made[t]) for t in range(length)]
        ended = bool(batch.terminal[row].any())
        targets = drawn_to(config, batch.reward[row, :length].tolist(), ended, following, taken, greedy)
        for t, target in enumerate(targets):
            joint, weight = value(row, t, made[t]), 1.0
            if name == "cw_qmix":
                weight = 1.0 if greedy[t] or target > later(row, t, best[t]) else config.alpha
            if name == "ow_qmix":
                weight = 1.0 if joint < target else config.alpha
            td.append(config.td_weight * weight * (joint - target).square())
            if weighted:
                central.append(config.central_weight * (known(row, t, made[t]) - target).square())
    losses = {"loss/td": torch.cat(td).mean().item()}
    return losses | ({"loss/central": torch.cat(central).mean().item()} if weighted else {})


@pytest.mark.parametrize(
    ("name", "settings"),
    [case for case in product(BUILDS, RETURNS) if case not in REFUSED],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_losses_are_of_the_returns_that_are_asked_for(name, settings):
    q = built(name, SPEC, **settings)
    draw = torch.Generator().manual_seed(5)
    for copied, _ in q.targets():
        for parameter in copied.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    told = q.loss(batch(SPEC, LENGTHS, padding=2), Noise(0, 0)).stats
    for loss, value in expected(q, name, batch(SPEC, LENGTHS)).items():
        assert told[loss].item() == pytest.approx(value, rel=1e-4), loss


@pytest.mark.parametrize("settings", RETURNS, ids=lambda value: "-".join(map(str, value.values())))
def test_losses_of_fox_are_of_the_returns_that_are_asked_for(settings):
    """Its latents are drawn anew by each pass, live and delayed, and for no padding."""
    torch.manual_seed(0)
    q = fox.build(SPEC, fox.Config(hidden=16, latent_dim=4, fnet_hidden=8, **settings)).q
    for copied, _ in q.targets():
        for parameter in copied.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    played = batch(SPEC, LENGTHS)

    def seen_by(agent: torch.nn.Module, purpose: str) -> Callable[..., tuple[Tensor, None]]:
        return lambda *_: (q.unroll(agent, played, Noise(0, 0), purpose).values, None)

    told = q.loss(batch(SPEC, LENGTHS, padding=2), Noise(0, 0)).stats
    by_hand = SimpleNamespace(
        config=q.config, lagging=True, agent=seen_by(q.agent, "live"), mixer=q.mixer,
        slow_agent=seen_by(q.slow_agent, "target"), slow_mixer=q.slow_mixer,
    )  # fmt: skip
    for loss, value in expected(by_hand, "fox", played).items():
        assert told[loss].item() == pytest.approx(value, rel=1e-4), loss
