"""The members of the family, small, and episodes for them to learn from."""

from __future__ import annotations

from dataclasses import replace

import torch

from algos import iql, pqn_vdn, qatten, qmix, qplex, qtran, vdn, wqmix
from marl.types import EnvSpec, Episodes

GROUPS = {"places": (0, 1, 2, 3, 4, 5), "clock": (5,)}
SPEC = EnvSpec(
    "hand", n_agents=3, n_actions=4, obs_dim=4, state_dim=6, horizon=6, state_groups=GROUPS, by_agent=("places",)
)
BUILDS = {
    "iql": (iql, iql.Config()),
    "vdn": (vdn, vdn.Config()),
    "qmix": (qmix, qmix.Config()),
    "qplex": (qplex, qplex.Config()),
    "cw_qmix": (wqmix, wqmix.Config(weighting="central")),
    "ow_qmix": (wqmix, wqmix.Config(weighting="optimistic")),
    "qatten": (qatten, qatten.Config()),
    "qtran": (qtran, qtran.Config()),
    "pqn_vdn": (pqn_vdn, pqn_vdn.Config(hidden=16)),
}


def built(name: str, spec: EnvSpec = SPEC, **settings: object):
    module, config = BUILDS[name]
    torch.manual_seed(0)
    return module.build(spec, replace(config, **settings)).q


def batch(spec: EnvSpec = SPEC, lengths: tuple[int, ...] = (2, 5, 6), padding: int = 0) -> Episodes:
    """Random episodes; padding is zero and offers no action, as where episodes are recorded."""
    draw = torch.Generator().manual_seed(7)
    b, t = len(lengths), max(lengths)
    seen = torch.arange(t + 1) <= torch.tensor(lengths)[:, None]
    played = seen[:, 1:]
    avail = torch.rand(b, t + 1, spec.n_agents, spec.n_actions, generator=draw) < 0.7
    avail[..., 1] = True
    avail &= seen[..., None, None]
    noise = torch.rand(avail.shape, generator=draw)
    actions = noise[:, :-1].masked_fill(~avail[:, :-1], -1).argmax(-1) * played[..., None]
    terminal = torch.zeros(b, t, dtype=torch.bool)
    terminal[1, lengths[1] - 1] = True
    fields = {
        "obs": torch.randn(b, t + 1, spec.n_agents, spec.obs_dim, generator=draw) * seen[..., None, None],
        "state": torch.randn(b, t + 1, spec.state_dim, generator=draw) * seen[..., None],
        "avail": avail,
        "actions": actions,
        "executed": actions,
        "reward": torch.randn(b, t, generator=draw) * played,
        "terminal": terminal,
    }
    longer = {
        name: torch.cat([value, value.new_zeros(b, padding, *value.shape[2:])], 1) for name, value in fields.items()
    }
    return Episodes.of(longer, torch.tensor(lengths))
