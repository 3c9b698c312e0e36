"""Does a world keep the contract of `marl.env`? For its author: `python -m envs.check env=NAME env.KEY=VALUE`.

Episodes are played with random available actions: alone, again after others, in another copy, and side by side with
copies held still now and then. Seeds have to fix them in all these ways. Copies of a single `Env` are watched one by
one, before `SideBySide` casts what they say. At last the world plays PettingZoo's own tests through `marl.parallel`.
"""

from __future__ import annotations

import random
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.inspection import Faults, everything, look, watched
from marl.env import BatchedEnv, EnvUnavailable, Moments
from marl.types import Array, EnvSpec

Make = Callable[[int], BatchedEnv]
SEEDS = (7, 8, 9)
HELD = 0.25
"""Share of steps for which a copy that plays beside others is held still."""


class Told(NamedTuple):
    """Everything one copy said at one moment, copied."""

    fields: Mapping[str, Array]
    ended: bool


Trace = list[Told]


def check(make: Make) -> list[str]:
    """Play a world and look.

    Args:
        make: so many copies of the world; called several times.

    Returns:
        A line for every rule of the contract that is broken; none where it is kept.

    Raises:
        EnvUnavailable: the world cannot run here.
    """
    faults = Faults()
    for part in (_check_spec, _check_play, _check_refusals, _check_pettingzoo):
        try:
            part(make, faults)
        except EnvUnavailable:
            raise
        except Exception as error:
            # Found by playing, so it is a finding like the others, and the parts that remain may find more.
            *_, (frame, line) = traceback.walk_tb(error.__traceback__)
            place = f"{Path(frame.f_code.co_filename).name}:{line}, {part.__name__.strip('_')}"
            faults.add(f"{type(error).__name__}: {str(error).strip() or 'no message'}", place)
    return faults.lines()


# what a world says of itself


def _check_spec(make: Make, faults: Faults) -> None:
    env = make(2)
    spec = env.spec
    for name in ("n_agents", "n_actions", "obs_dim", "state_dim", "horizon"):
        value = vars(spec)[name]
        if not isinstance(value, int) or value < 1:
            faults.add(f"spec.{name} is {value!r}: a whole number from 1 on is needed")
    if spec.agents and (len(spec.agents) != spec.n_agents or len(set(spec.agents)) != spec.n_agents):
        faults.add(f"spec.agents does not give {spec.n_agents} agents a name each: {spec.agents}")
    if spec.noop is not None and not 0 <= spec.noop < spec.n_actions:
        faults.add(f"spec.noop is {spec.noop}: one of {spec.n_actions} actions is needed")
    if not spec.reward_range[0] <= spec.reward_range[1]:
        faults.add(f"spec.reward_range is {spec.reward_range}: the lower bound comes first")
    _check_features(spec, faults)
    _check_declared(spec, faults)
    if env.size != 2:
        faults.add(f"size is {env.size}, 2 copies were asked for")
    env.close()
    env.close()


def _check_features(spec: EnvSpec, faults: Faults) -> None:
    for group, features in spec.state_groups.items():
        if not features:
            faults.add(f"spec.state_groups[{group!r}] is empty")
        if not all(0 <= feature < spec.state_dim for feature in features):
            faults.add(f"spec.state_groups[{group!r}] names features outside of the {spec.state_dim} of the state")
    for group in spec.by_agent:
        if len(spec.state_groups.get(group, ())) % spec.n_agents or group not in spec.state_groups:
            faults.add(f"spec.by_agent names {group!r}: no state group that divides among {spec.n_agents} agents")
    if spec.teammate_blocks is None:
        return
    if [len(blocks) for blocks in spec.teammate_blocks] != [spec.n_agents - 1] * spec.n_agents:
        faults.add(f"spec.teammate_blocks does not give each of {spec.n_agents} agents a block per team-mate")
    named = [feature for blocks in spec.teammate_blocks for block in blocks for feature in block]
    if not all(0 <= feature < spec.obs_dim for feature in named):
        faults.add(f"spec.teammate_blocks names features outside of the {spec.obs_dim} of the observation")


def _check_declared(spec: EnvSpec, faults: Faults) -> None:
    fixed = {"obs", "state", "avail", "actions", "executed", "reward", "terminal", "truncated", "mask"}
    for name, column in spec.columns.items():
        if name in fixed:
            faults.add(f"spec.columns[{name!r}] has the name of a field that every record has")
        if column.span not in ("views", "steps", "episode"):
            faults.add(f"spec.columns[{name!r}].span is {column.span!r}: views, steps or episode is needed")


# playing


def _check_pictures(env: BatchedEnv, faults: Faults) -> None:
    if not env.spec.draws:
        with suppress(EnvUnavailable):
            env.render()
            faults.add("spec.draws is False, and yet render gives a picture")


def _check_play(make: Make, faults: Faults) -> None:
    global_state = (random.getstate(), str(np.random.get_state()))
    env = watched(make(1), faults)
    alone = [_play(env, [seed], faults)[0] for seed in SEEDS]
    again = _play(env, SEEDS[:1], faults)[0]
    _check_pictures(env, faults)
    env.close()
    _compare(alone[0], again, "an episode is another one after others were played", faults)
    other = watched(make(1), faults)
    _compare(alone[0], _play(other, SEEDS[:1], faults)[0], "the same seed is another episode in another copy", faults)
    other.close()
    several = watched(make(len(SEEDS)), faults)
    if several.spec != env.spec:
        faults.add("spec depends on the number of copies")
    for seeds in (SEEDS, SEEDS[-2:]):
        beside = _play(several, seeds, faults, hold=True)
        for trace, seed in zip(beside, seeds):
            rule = "an episode is another one beside others"
            _compare(alone[SEEDS.index(seed)], trace, rule, faults)
    several.close()
    if global_state != (random.getstate(), str(np.random.get_state())):
        faults.add("the world draws from a generator that the whole process shares (random or numpy.random)")


def _play(env: BatchedEnv, seeds: Sequence[int], faults: Faults, hold: bool = False) -> list[Trace]:
    """One episode per seed, with actions that seed and step decide among those available."""
    spec = env.spec
    dice = [np.random.default_rng((seed, 1)) for seed in seeds]
    holding = np.random.default_rng(0)
    moments = env.reset(list(seeds))
    look(spec, moments, len(seeds), "reset", faults)
    if (moments.terminal | moments.truncated).any():
        faults.add("reset starts an episode that has ended", "reset")
    traces: list[Trace] = [[_told(spec, moments, row, first=True)] for row in range(len(seeds))]
    while not all(trace[-1].ended for trace in traces):
        open_rows = np.asarray([not trace[-1].ended for trace in traces])
        live = open_rows & (holding.random(len(seeds)) >= HELD) if hold else open_rows
        actions = np.zeros((len(seeds), spec.n_agents), np.int64)
        for row in np.flatnonzero(live):
            drawn = dice[row].random((spec.n_agents, spec.n_actions))
            actions[row] = np.where(moments.avail[row], drawn, -1.0).argmax(-1)
        before = everything(moments, copied=True)
        given = actions.copy(), live.copy()
        moments = env.step(actions, live)
        if not (np.array_equal(actions, given[0]) and np.array_equal(live, given[1])):
            faults.add("step changes the arrays it is given")
        for played in np.flatnonzero(given[1]).tolist():
            traces[played].append(_told(spec, moments, played, first=False))
        place = f"step {max(map(len, traces)) - 1}"
        look(spec, moments, len(seeds), place, faults)
        for name, array in everything(moments).items():
            if not np.array_equal(array[~live], before[name][~live], equal_nan=array.dtype.kind == "f"):
                faults.add(f"{name} of a copy that was not to move changes", place)
        if any(len(trace) > spec.horizon and not trace[-1].ended for trace in traces):
            faults.add(f"an episode goes on at its horizon of {spec.horizon} steps", place)
            break
    return traces


def _told(spec: EnvSpec, moments: Moments, row: int, first: bool) -> Told:
    """What is due from one copy; the other columns may hold anything."""
    ended = bool(moments.terminal[row] or moments.truncated[row])
    due = {"views": True, "steps": not first, "episode": ended}
    idle = {name for name, column in spec.columns.items() if not due[column.span]} | ({"reward"} if first else set())
    told = {name: np.array(array[row]) for name, array in everything(moments).items() if name not in idle}
    return Told(told, ended)


def _compare(expected: Trace, found: Trace, rule: str, faults: Faults) -> None:
    for step, (one, other) in enumerate(zip(expected, found)):
        for name, array in one.fields.items():
            if not np.array_equal(array, other.fields[name], equal_nan=array.dtype.kind == "f"):
                return faults.add(rule, f"first in {name} at step {step}")
    if len(expected) != len(found):
        faults.add(rule, f"{len(expected) - 1} steps, then {len(found) - 1}")
    return None


# the rest


def _check_refusals(make: Make, faults: Faults) -> None:
    env = make(1)
    try:
        env.reset([0, 1])
    except ValueError:
        return
    finally:
        env.close()
    faults.add("reset takes more seeds than there are copies: a ValueError is needed")


def _check_pettingzoo(make: Make, faults: Faults) -> None:
    from pettingzoo.test import parallel_api_test, parallel_seed_test  # type: ignore[import-untyped]

    from marl.parallel import ParallelTeam

    def team() -> ParallelTeam:
        return ParallelTeam(make(1))

    for test, world in ((parallel_api_test, team()), (parallel_seed_test, team)):
        with redirect_stdout(StringIO()), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            try:
                test(world)
            except AssertionError as error:
                faults.add(f"PettingZoo's {test.__name__}: {error}")
        for warning in warned:
            if issubclass(warning.category, UserWarning):
                faults.add(f"PettingZoo's {test.__name__} warns: {warning.message}")
        if isinstance(world, ParallelTeam):
            world.close()


def main(arguments: Sequence[str]) -> int:
    """Check the world that ``arguments`` choose, and print what is found; the exit status."""
    import algos
    import envs
    from marl.command import cli
    from marl.fields import Mistake

    if set(cli.HELP).intersection(arguments):
        print(__doc__, end="")
        return 0
    # The settings of a run name an algorithm too; none is started here.
    unused = f"algo={next(iter(algos.ALGORITHMS))}"
    try:
        settings: Any = cli.parse([unused, *arguments], algos.ALGORITHMS, envs.ENVIRONMENTS).env
        found = check(lambda size: envs.module(settings.name).make(settings, size))
    except Mistake as mistake:
        return cli.refuse(mistake)
    for line in found:
        print(line)
    print(f"{settings.name}: {len(found)} violations" if found else f"{settings.name}: keeps the contract")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
