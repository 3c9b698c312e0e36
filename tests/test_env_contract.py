"""Risk: a world breaks the contract that workers rely on, and nobody notices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test

import envs
from envs import check as env_check
from marl.env import BatchedEnv, Env, EnvUnavailable, Moment, SideBySide
from marl.parallel import ParallelTeam
from marl.types import Column, EnvSpec

check = env_check.check


def world(name, **settings):
    """`make` of a registered world, by its number of copies."""
    module = envs.module(name)
    config = module.Config(**settings)
    try:
        module.probe(config)
    except EnvUnavailable as missing:
        pytest.skip(str(missing))
    return lambda size: module.make(config, size)


VARIANTS = [
    ("matrix", {"game": "two_step", "repeats": 3}),
    ("meet", {"agents": 4, "grid": 4, "horizon": 12}),
    ("pettingzoo", {"id": "mpe2.simple_speaker_listener_v4", "kwargs": {"max_cycles": 5}, "reward": "mean"}),
    ("gymnasium", {"id": "FrozenLake-v1", "horizon": 12}),
]


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in sorted(envs.ENVIRONMENTS)), *VARIANTS])
def test_worlds_keep_the_contract(name, settings):
    assert check(world(name, **settings)) == []


# worlds that break it


class Honest(Env):
    """Keeps the contract: 4 to 7 steps by the seed, ended by the task or by time, and columns of every kind."""

    spec = EnvSpec(
        "honest",
        n_agents=2,
        n_actions=3,
        obs_dim=4,
        state_dim=3,
        horizon=7,
        agents=("left", "right"),
        state_groups={"all": (0, 1, 2)},
        teammate_blocks=(((0, 1),), ((2, 3),)),
        noop=0,
        reward_range=(0.0, 4.0),
        columns={
            "alive": Column((2,), "bool", "views"),
            "cost": Column((), "float32", "steps"),
            "won": Column((), "bool", "episode"),
        },
    )

    def reset(self, seed: int) -> Moment:
        self.random = np.random.default_rng(seed)
        self.now, self.long = 0, 4 + seed % 4
        return self.tell()

    def step(self, actions) -> Moment:
        self.now += 1
        return self.tell(float(actions.sum()), cost=0.5)

    def tell(self, reward=0.0, **columns) -> Moment:
        ended = self.now == self.long
        obs = self.random.random((2, 4), np.float32)
        avail = np.asarray([[True, self.now % 2 == 0, True], [True, True, False]])
        columns["alive"] = np.asarray([True, self.now < 3])
        if ended:
            columns["won"] = True
        state = np.full(3, self.now, np.float32)
        return Moment(obs, state, avail, reward, ended and self.long < 7, ended and self.long == 7, columns)


def test_an_honest_world_is_left_alone():
    assert check(lambda size: SideBySide(Honest, size)) == []


def telling(**alterations):
    """Honest, but for what it tells: field to a function of the moment and the step."""

    class Altered(Honest):
        def tell(self, *arguments, **columns):
            told = super().tell(*arguments, **columns)
            return replace(told, **{name: alter(told, self.now) for name, alter in alterations.items()})

    return Altered


def declaring(**changes):
    """Honest, but for its spec."""

    class Declared(Honest):
        spec = replace(Honest.spec, **changes)

    return Declared


class Endless(Honest):
    def tell(self, *arguments, **columns):
        return replace(super().tell(*arguments, **columns), terminal=False, truncated=False)


class Remembering(Honest):
    episodes = 0

    def reset(self, seed):
        self.episodes += 1
        return replace(super().reset(seed), state=np.full(3, self.episodes, np.float32))


class Unseeded(Honest):
    def reset(self, seed):
        told = super().reset(seed)
        self.random = np.random.default_rng()
        return told


class SharedDice(Honest):
    def reset(self, seed):
        np.random.seed(seed)
        return super().reset(seed)

    def step(self, actions):
        return replace(super().step(actions), reward=float(np.random.random()))


class Siblings(Honest):
    """Copies that share a counter."""

    steps = [0]

    def reset(self, seed):
        self.steps[0] = 0
        return super().reset(seed)

    def step(self, actions):
        self.steps[0] += 1
        return replace(super().step(actions), state=np.full(3, self.steps[0], np.float32))


class Greedy(Honest):
    """Takes the action that is not available for an error."""

    def step(self, actions):
        raise IndexError("no such player")


class Scribbling(Honest):
    def step(self, actions):
        told = super().step(actions)
        actions[:] = 0
        return told


class Pictured(Honest):
    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


def columns_without(name):
    return lambda told, now: {key: value for key, value in told.columns.items() if key != name}


def columns_with(**more):
    return lambda told, now: {**told.columns, **more}


BROKEN = {
    "no agents": (declaring(agents=("one",)), "spec.agents does not give 2 agents a name each"),
    "twins": (declaring(agents=("same", "same")), "spec.agents does not give 2 agents a name each"),
    "noop": (declaring(noop=3), "spec.noop is 3: one of 3 actions is needed"),
    "pictures": (Pictured, "spec.draws is False, and yet render gives a picture"),
    "range": (declaring(reward_range=(1.0, 0.0)), "spec.reward_range is (1.0, 0.0)"),
    "horizon": (declaring(horizon=0), "spec.horizon is 0: a whole number from 1 on is needed"),
    "fractions": (declaring(horizon=7.0), "spec.horizon is 7.0: a whole number from 1 on is needed"),
    "empty state group": (declaring(state_groups={"ball": ()}), "spec.state_groups['ball'] is empty"),
    "state group": (declaring(state_groups={"ball": (3,)}), "spec.state_groups['ball'] names features outside"),
    "shared group": (
        declaring(state_groups={"ball": (0, 1, 2)}, by_agent=("ball",)),
        "spec.by_agent names 'ball': no state group that divides among 2 agents",
    ),
    "no such group": (declaring(by_agent=("ball",)), "spec.by_agent names 'ball': no state group"),
    "blocks": (declaring(teammate_blocks=(((0, 1),),)), "spec.teammate_blocks does not give each of 2 agents"),
    "far blocks": (declaring(teammate_blocks=(((9,),), ((0,),))), "spec.teammate_blocks names features outside"),
    "taken name": (declaring(columns={"mask": Column((), "bool", "steps")}), "spec.columns['mask'] has the name"),
    "span": (declaring(columns={"won": Column((), "bool", "often")}), "spec.columns['won'].span is 'often'"),
    "dtype": (
        declaring(columns={"won": Column((), "flout", "episode")}),
        "TypeError: data type 'flout' not understood",
    ),
    "obs shape": (telling(obs=lambda told, now: told.obs[0]), "obs is float32 (4,): float32 (2, 4) is needed"),
    "obs type": (telling(obs=lambda told, now: told.obs.astype(float)), "obs is float64 (2, 4): float32 (2, 4)"),
    "obs nan": (telling(obs=lambda told, now: told.obs * np.nan), "obs or state has entries that are not finite"),
    "state": (telling(state=lambda told, now: told.state[:1]), "state is float32 (1,): float32 (3,) is needed"),
    "infinite": (telling(state=lambda told, now: told.state + np.inf), "obs or state has entries that are not finite"),
    "avail type": (telling(avail=lambda told, now: told.avail.astype(int)), "avail is int64 (2, 3): bool (2, 3)"),
    "stuck": (telling(avail=lambda told, now: told.avail & (now < 2)), "an agent has no available action (step 2)"),
    "reward": (telling(reward=lambda told, now: 4.1), "reward [4.1] is outside of spec.reward_range"),
    "reward nan": (telling(reward=lambda told, now: np.nan), "reward is not finite"),
    "rewards": (telling(reward=lambda told, now: np.ones(2)), "reward is float64 (2,): float32 () is needed"),
    "both": (telling(terminal=lambda told, now: told.truncated), "an episode is terminal and truncated at once"),
    "born dead": (telling(terminal=lambda told, now: now == 0), "reset starts an episode that has ended"),
    "undeclared": (telling(columns=columns_with(extra=1)), "column 'extra' is delivered and not declared"),
    "views": (telling(columns=columns_without("alive")), "column 'alive' is declared for views and missing (reset)"),
    "steps": (telling(columns=columns_without("cost")), "column 'cost' is declared for steps and missing (step)"),
    "episode": (telling(columns=columns_without("won")), "column 'won' is declared for episode and missing (step)"),
    "column shape": (telling(columns=columns_with(alive=True)), "column 'alive' has shape (): (2,) is needed"),
    "column type": (
        telling(columns=lambda told, now: {**told.columns, **({"won": 0.5} if "won" in told.columns else {})}),
        "column 'won' does not fit into bool",
    ),
    "endless": (Endless, "an episode goes on at its horizon of 7 steps"),
    "memory": (Remembering, "an episode is another one after others were played (first in state at step 0)"),
    "unseeded": (Unseeded, "the same seed is another episode in another copy (first in obs at step 1)"),
    "shared dice": (SharedDice, "the world draws from a generator that the whole process shares"),
    "siblings": (Siblings, "an episode is another one beside others (first in state"),
    "raising": (Greedy, "IndexError: no such player (test_env_contract.py:160, check_play)"),
    "scribbling": (Scribbling, "step changes the arrays it is given"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_world_is_found_out(broken):
    copy, fault = BROKEN[broken]
    found = check(lambda size: SideBySide(copy, size))
    assert any(fault in line for line in found), found
    assert not any("\n" in line for line in found)


class Batch(BatchedEnv):
    """A batch by nature around an honest one."""

    def __init__(self, size):
        self.size = size
        self.inner = SideBySide(Honest, size)
        self.spec = self.inner.spec

    def reset(self, seeds):
        return self.inner.reset(seeds)

    def step(self, actions, live):
        return self.inner.step(actions, live)

    def render(self, copy=0):
        return self.inner.render(copy)

    def close(self):
        self.inner.close()


class MovesAll(Batch):
    def step(self, actions, live):
        return self.inner.step(actions, np.ones_like(live))


class Touches(Batch):
    def step(self, actions, live):
        now = self.inner.step(actions, live)
        now.reward[~live] = 0.0
        return now


class Lenient(Batch):
    def reset(self, seeds):
        return self.inner.reset(seeds[: self.size])


class Lavish(Batch):
    def __init__(self, size):
        super().__init__(size + 1)


class Silent(Batch):
    def reset(self, seeds):
        now = super().reset(seeds)
        return now._replace(columns={name: now.columns[name] for name in ("alive", "won")})


class Doubles(Batch):
    def step(self, actions, live):
        now = self.inner.step(actions, live)
        return now._replace(reward=now.reward.astype(float))


class Dies(Batch):
    closed = False

    def close(self):
        assert not self.closed, "closed twice"
        self.closed = True


@pytest.mark.parametrize(
    ("batch", "fault"),
    [
        (MovesAll, "an episode is another one beside others"),
        (Touches, "reward of a copy that was not to move changes"),
        (Lenient, "reset takes more seeds than there are copies"),
        (Lavish, "size is 3, 2 copies were asked for"),
        (Silent, "columns ['alive', 'won'] are delivered, ['alive', 'cost', 'won'] are declared (reset)"),
        (Doubles, "reward is float64 (1,): float32 (1,) is needed"),
        (Dies, "AssertionError: closed twice"),
    ],
)
def test_a_broken_batch_is_found_out(batch, fault):
    assert check(Batch) == []
    found = check(batch)
    assert any(fault in line for line in found), found


def test_the_command_tells_what_it_finds(capsys):
    assert env_check.main(["env=meet", "env.agents=3"]) == 0
    assert capsys.readouterr().out == "meet: keeps the contract\n"
    assert env_check.main(["env=matrix", "env.game=climbin"]) == 2
    assert "did you mean climbing?" in capsys.readouterr().err


def test_the_command_tells_in_one_line_what_only_playing_shows_to_be_missing(capsys, monkeypatch):
    def make(config, size):
        raise EnvUnavailable("env.device=cpu: there is none")

    monkeypatch.setattr(envs.module("matrix"), "make", make)
    assert env_check.main(["env=matrix"]) == 2
    assert capsys.readouterr().err == "error: env.device=cpu: there is none\n"


# as PettingZoo's ParallelEnv


@pytest.mark.parametrize("name", sorted(envs.ENVIRONMENTS))
@pytest.mark.filterwarnings("error::UserWarning")
def test_every_world_passes_pettingzoos_own_tests(name, capsys):
    make = world(name)
    team = ParallelTeam(make(1))
    parallel_api_test(team, num_cycles=1000)
    team.close()
    parallel_seed_test(lambda: ParallelTeam(make(1)))


def test_a_team_shows_masks_state_and_columns():
    team = ParallelTeam(Honest())
    observations, infos = team.reset(seed=1)
    assert team.agents == ["left", "right"]
    for agent in team.agents:
        assert team.observation_space(agent).contains(observations[agent])
    assert observations["left"]["action_mask"].tolist() == infos["left"]["action_mask"].tolist() == [1, 1, 1]
    assert observations["right"]["action_mask"].tolist() == infos["right"]["action_mask"].tolist() == [1, 1, 0]
    ended = False
    while not ended:
        before, state = observations, team.state()
        observations, rewards, terminated, truncated, infos = team.step({"left": 0, "right": 1})
        assert rewards == {"left": 1.0, "right": 1.0}
        ended = terminated["left"] or truncated["left"]
    assert state.tolist() == [4, 4, 4] and team.state().tolist() == [5, 5, 5]
    assert not np.array_equal(before["left"]["observation"], observations["left"]["observation"])
    assert terminated == {"left": True, "right": True} and truncated == {"left": False, "right": False}
    assert infos["left"]["alive"] and not infos["right"]["alive"] and infos["right"]["won"]
    assert team.agents == []
    with pytest.raises(ValueError, match="the episode is over"):
        team.step({})


def test_an_unavailable_action_is_replaced_and_reported_or_refused():
    lenient, strict = ParallelTeam(Honest()), ParallelTeam(Honest(), strict=True)
    lenient.reset(seed=0), strict.reset(seed=0)
    *_, infos = lenient.step({"left": 1, "right": 2})
    assert (infos["left"]["unavailable_action"], infos["right"]["unavailable_action"]) == (False, True)
    with pytest.raises(ValueError, match="action 2 of right is unavailable"):
        strict.step({"left": 1, "right": 2})


def test_a_seed_fixes_the_episodes_that_follow_it():
    team = ParallelTeam(world("meet")(1))

    def start(seed=None):
        return team.reset(seed=seed)[0]["guide"]["observation"].tolist()

    first = [start(3), *(start() for _ in range(9))]
    assert first == [start(3), *(start() for _ in range(9))]
    assert len({tuple(seen) for seen in first}) > 1


def test_a_team_can_be_drawn():
    team = ParallelTeam(world("meet")(1))
    team.reset(seed=0)
    assert team.render().shape == (96, 96, 3)
