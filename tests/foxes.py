"""Random episodes, and parts of FoX to try on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from algos import assemble, fox
from marl.types import EnvSpec, Episodes

SPEC = EnvSpec(
    "field",
    n_agents=3,
    n_actions=5,
    obs_dim=7,
    state_dim=6,
    horizon=12,
    state_groups={"positions": tuple(range(6)), "ball": (0, 1, 2)},
    by_agent=("positions",),
)


def episodes(lengths, spec=SPEC, seed=0):
    rng = np.random.default_rng(seed)
    records = []
    for length in lengths:
        team = (length, spec.n_agents)
        records.append(
            {
                "obs": rng.standard_normal((length + 1, spec.n_agents, spec.obs_dim)).astype(np.float32),
                "state": rng.standard_normal((length + 1, spec.state_dim)).astype(np.float32),
                "avail": np.ones((length + 1, spec.n_agents, spec.n_actions), bool),
                "actions": rng.integers(0, spec.n_actions, team).astype(np.uint8),
                "executed": np.zeros(team, np.uint8),
                "reward": rng.standard_normal(length).astype(np.float32),
                "terminal": np.arange(length) == length - 1,
            }
        )
    return Episodes.of_records(records, spec.fields())


def annotated(batch, parts):
    columns = {name: value for bonus in parts.bonuses for name, value in bonus.annotate(batch).items()}
    return replace(batch, columns=columns)


def built(spec=SPEC, seed=0, equipped=True, **settings):
    torch.manual_seed(seed)
    parts = assemble(spec, fox.Config(**settings))
    for _, part in parts.named():
        if equipped:
            part.equip()
    return parts
