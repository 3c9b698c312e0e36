"""A small world's episodes, and bonuses that foresee them: what tests of FIM and LAIES have in common."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from algos import assemble
from marl.config import Learning
from marl.dice import TRAIN
from marl.learner import Learner
from marl.replay import Replay
from marl.types import EnvSpec, Episodes, Tensors
from marl.worker import Plan, Worker
from tests.toys import Clockwork, Copies

SPEC = EnvSpec(
    "yard", n_agents=3, n_actions=4, obs_dim=5, state_dim=6, horizon=12, state_groups={"own": (0, 1), "far": (2, 3, 4)}
)


def snapshot(replay: Replay) -> dict[str, Tensors]:
    """What is stored now, whatever comes later."""
    kept = {name: {key: value.clone() for key, value in piece().items()} for name, piece in replay.state().items()}
    return {name: partial(dict, piece) for name, piece in kept.items()}


def episodes(lengths, spec=SPEC, seed=0, **columns):
    """Random ones, under an attacker: what the world received is not what the agents chose."""
    rng = np.random.default_rng(seed)
    records = []
    for length in lengths:
        team = (length, spec.n_agents)
        avail = rng.random((length + 1, spec.n_agents, spec.n_actions)) < 0.7
        actions, executed = rng.integers(0, spec.n_actions, (2, *team))
        for choice in (actions, executed):
            np.put_along_axis(avail[:-1], choice[..., None], True, -1)
        avail[-1, :, 0] = True
        records.append(
            {
                "obs": rng.standard_normal((length + 1, spec.n_agents, spec.obs_dim)).astype(np.float32),
                "state": rng.standard_normal((length + 1, spec.state_dim)).astype(np.float32),
                "avail": avail,
                "actions": actions.astype(np.uint8),
                "executed": executed.astype(np.uint8),
                "reward": rng.standard_normal(length).astype(np.float32),
                "terminal": np.arange(length) == length - 1,
            }
        )
    made = Episodes.of_records(records, {name: spec.fields()[name] for name in records[0]})
    return replace(made, columns=columns)


@torch.no_grad()
def by_hand(model, batch, target, marginal, measure=torch.abs):
    """(M, N, C) what is expected of each agent's alternatives, one concatenated input at a time."""
    told, read = [], (batch.state - model.centre) / model.unit
    for b, t in batch.mask.nonzero().tolist():
        memory = torch.zeros(1, 1, model.gru.hidden_size)
        onehot = torch.nn.functional.one_hot(batch.executed, model.n_actions).float()
        if t:
            inputs = torch.cat([read[b, :t], onehot[b, :t].flatten(1)], 1)
            memory = model.gru(model.first(inputs).relu()[:, None])[1]
        origin = target.of(batch.state[b, t])
        rows = []
        for agent in range(model.n_agents):
            total = torch.zeros_like(origin)
            for action in range(model.n_actions):
                joint = onehot[b, t].clone()
                joint[agent] = 0
                joint[agent, action] = 1
                entered = model.first(torch.cat([read[b, t], joint.flatten()])).relu()
                after = model.gru(entered[None, None], memory)[0][0, 0]
                total += marginal[b, t, agent, action] * measure(model.displacement(after, origin, target))
            rows.append(total)
        told.append(torch.stack(rows))
    return torch.stack(told)


def built(config, spec=SPEC, seed=0):
    torch.manual_seed(seed)
    parts = assemble(spec, config)
    for _, part in parts.named():
        part.equip()
    return parts


def settled(bonus, rounds=2):
    """The same bonus, its delayed model trusted."""
    bonus.model.rounds.fill_(rounds)
    bonus.slow_model.load_state_dict(bonus.model.state_dict())
    return bonus


def run(config, updates=6, seed=3):
    """A learner on Clockwork after some updates."""
    torch.manual_seed(seed)
    parts = assemble(Clockwork.spec, config)
    layout = {**Clockwork.spec.fields(), **parts.columns()}
    replay = Replay(Clockwork.spec, layout, 32, torch.device("cpu"))
    learner = Learner(parts, replay, Learning(8, 1.0, 8), seed)
    worker = Worker(assemble(Clockwork.spec, config), Copies(Clockwork, 8)(), seed)
    for number in range(2):
        worker.load(learner.weights())
        for record in worker.play(Plan(number, TRAIN, 8 * number, 8, epsilon=0.7)).records:
            learner.absorb(record)
            learner.improve()
    for _ in range(updates):
        learner.update()
    return learner
