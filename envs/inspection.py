"""A look at what a world says: shapes, types, bounds and columns, against its own spec."""

from __future__ import annotations

import numpy as np

from marl.env import BatchedEnv, Env, Moment, Moments, SideBySide
from marl.fields import one_line
from marl.types import Array, Column, EnvSpec


class Faults:
    """What was found: each rule once, with the first place where it was broken."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def add(self, rule: str, place: str = "") -> None:
        self.found.setdefault(one_line(rule), place)

    def lines(self) -> list[str]:
        return [f"{rule} ({place})" if place else rule for rule, place in self.found.items()]


def everything(moments: Moments, copied: bool = False) -> dict[str, Array]:
    """Everything that is told, columns included, by name."""
    arrays = {**moments._asdict(), **moments.columns}
    del arrays["columns"]
    return {name: np.array(array) if copied else np.asarray(array) for name, array in arrays.items()}


def look(spec: EnvSpec, moments: Moments, copies: int, place: str, faults: Faults) -> None:
    """Compare what ``copies`` copies tell with their spec."""
    needed = {**layout(spec), **spec.columns}
    told = everything(moments)
    if set(moments.columns) != set(spec.columns):
        faults.add(f"columns {sorted(moments.columns)} are delivered, {sorted(spec.columns)} are declared", place)
    for name, column in needed.items():
        if name not in told:
            continue
        have, shape = told[name], (copies, *column.shape)
        if have.shape != shape or have.dtype != np.dtype(column.dtype):
            faults.add(f"{name} is {have.dtype} {have.shape}: {column.dtype} {shape} is needed", place)
    if not (np.isfinite(told["obs"]).all() and np.isfinite(told["state"]).all()):
        faults.add("obs or state has entries that are not finite", place)
    if not told["avail"].any(-1).all():
        faults.add("an agent has no available action", place)
    low, high = spec.reward_range
    slack = 1e-6 * max([1.0, *(abs(bound) for bound in spec.reward_range if np.isfinite(bound))])
    if not np.isfinite(told["reward"]).all():
        faults.add("reward is not finite", place)
    elif not ((told["reward"] >= low - slack) & (told["reward"] <= high + slack)).all():
        faults.add(f"reward {told['reward']} is outside of spec.reward_range {spec.reward_range}", place)
    if (told["terminal"] & told["truncated"]).any():
        faults.add("an episode is terminal and truncated at once: where the task itself ended, it is terminal", place)


def layout(spec: EnvSpec) -> dict[str, Column]:
    """What every world tells."""
    fixed = {name: spec.fields()[name] for name in ("obs", "state", "avail", "reward", "terminal")}
    return {**fixed, "truncated": fixed["terminal"]}


def watched(env: BatchedEnv, faults: Faults) -> BatchedEnv:
    """The same copies, with a look at what each of them says before it is cast."""
    if isinstance(env, SideBySide):
        env.copies[:] = [_Watched(copy, faults) for copy in env.copies]
    return env


class _Watched(Env):
    def __init__(self, copy: Env, faults: Faults) -> None:
        self._copy, self._faults = copy, faults
        self.spec = copy.spec

    def reset(self, seed: int) -> Moment:
        return self._looked_at(self._copy.reset(seed), "reset")

    def step(self, actions: Array) -> Moment:
        return self._looked_at(self._copy.step(actions), "step")

    def render(self) -> Array:
        return self._copy.render()

    def close(self) -> None:
        self._copy.close()

    def _looked_at(self, moment: Moment, call: str) -> Moment:
        declared, add = self.spec.columns, self._faults.add
        for name, column in layout(self.spec).items():
            told = np.asarray(vars(moment)[name])
            exact = told.dtype == np.dtype(column.dtype) if column.shape else told.dtype.kind in "fiub"
            if told.shape != column.shape or not exact:
                add(f"{name} is {told.dtype} {told.shape}: {column.dtype} {column.shape} is needed", call)
        for name, value in moment.columns.items():
            if name not in declared:
                add(f"column {name!r} is delivered and not declared in spec.columns", call)
            elif np.shape(value) != declared[name].shape:
                add(f"column {name!r} has shape {np.shape(value)}: {declared[name].shape} is needed", call)
            elif not np.allclose(np.asarray(value, declared[name].dtype), value, equal_nan=True):
                add(f"column {name!r} does not fit into {declared[name].dtype}", call)
        due = {"views"} | ({"steps"} if call == "step" else set())
        due |= {"episode"} if moment.terminal or moment.truncated else set()
        for name, column in declared.items():
            if column.span in due and name not in moment.columns:
                add(f"column {name!r} is declared for {column.span} and missing", call)
        kept = {name: value for name, value in moment.columns.items() if name in declared}
        return Moment(moment.obs, moment.state, moment.avail, moment.reward, moment.terminal, moment.truncated, kept)
