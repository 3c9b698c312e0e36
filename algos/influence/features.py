"""Groups of state features that a world declares, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from marl.fields import Mistake, suggestion
from marl.types import EnvSpec, Episodes

WHOLE = "state"
"""What the one group of a world that declares none is called."""


def groups(spec: EnvSpec) -> Mapping[str, tuple[int, ...]]:
    """Features by meaning; all of them under one name where the world says nothing."""
    return spec.state_groups or {WHOLE: tuple(range(spec.state_dim))}


def feature_mask(spec: EnvSpec, names: Sequence[str], key: str) -> Tensor:
    """(S,) bool: features of the named groups.

    Raises:
        Mistake: the world has no group of that name.
    """
    known = groups(spec)
    for name in names:
        if name not in known:
            allowed = f"env={spec.name} has {', '.join(known)}{suggestion(name, known)}"
            raise Mistake(f"{key}={name}: no such group of state features; {allowed}")
    return _marked(spec, (known[name] for name in names))


def native_mask(spec: EnvSpec, excluded: Sequence[str], key: str, usual: Sequence[str]) -> Tensor:
    """(S,) bool: all features but those of the excluded groups; of these a world need not have the ``usual`` ones.

    Raises:
        Mistake: the world has no group of another name.
    """
    known = groups(spec)
    return ~feature_mask(spec, [name for name in excluded if name in known or name not in usual], key)


def _marked(spec: EnvSpec, members: Iterable[tuple[int, ...]]) -> Tensor:
    mask = torch.zeros(spec.state_dim, dtype=torch.bool)
    for features in members:
        mask[list(features)] = True
    return mask


def refuse_unseen(spec: EnvSpec, key: str) -> None:
    """Refuse a world that does not tell which features each agent sees.

    Raises:
        Mistake: it has no column `visible`.
    """
    column = spec.columns.get("visible")
    if column is None or column.shape != (spec.n_agents, spec.state_dim) or column.span != "views":
        raise Mistake(f"{key}=true: env={spec.name} has no column visible; allowed is false")


def visible_features(batch: Episodes, features: Tensor) -> Tensor:
    """(M, N, C) bool: which of ``features`` (C,) each agent sees before each step that was played."""
    return batch.columns["visible"][:, :-1][batch.mask.bool()][..., features]


def alive(batch: Episodes) -> Tensor:
    """(B, T, N) 1 for agents that act before each step; for all where the world has no column `alive`."""
    if "alive" in batch.columns:
        return batch.columns["alive"][:, :-1, : batch.actions.shape[-1]].float()
    return torch.ones_like(batch.actions, dtype=torch.float)


def labels(spec: EnvSpec) -> tuple[str, ...]:
    """The group and the place in it of every feature, as in boxes.2; its index where it belongs to none."""
    told = [str(feature) for feature in range(spec.state_dim)]
    for name, features in groups(spec).items():
        for place, feature in enumerate(features):
            told[feature] = f"{name}.{place}"
    return tuple(told)
