"""Risk: a run that ends badly does not say how, or loses what one would look at."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from safetensors.torch import load_file

import algos
import envs
from marl.command import cli
from marl.learner import Learner
from marl.training import train

SMALL = [
    "algo=vdn",
    "env=meet",
    "steps=2000",
    "algo.hidden=8",
    "learner.batch=8",
    "learner.burn_in=8",
    "log.terminal=false",
]


def ends(tmp_path, capsys, *arguments):
    """The exit status and the last line for the user."""
    status = cli.run(train, [*SMALL, f"logdir={tmp_path}", *arguments], algos.ALGORITHMS, envs.ENVIRONMENTS)
    return status, capsys.readouterr().err.splitlines()[-1]


def test_a_device_that_is_full_is_one_line(monkeypatch, tmp_path, capsys):
    def full(learner):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(Learner, "improve", full)
    status, line = ends(tmp_path, capsys)
    assert status == 2
    assert line.startswith("error: device=") and "replay.capacity" in line and "Tried to allocate" in line


def test_networks_that_no_memory_holds_are_one_line_and_leave_no_folder(tmp_path, capsys):
    status, line = ends(tmp_path, capsys, "algo.hidden=10000000", "device=cpu")
    assert status == 2
    assert line.startswith("error: device=cpu: out of memory; algo.hidden,") and "you tried to allocate" in line
    assert list(tmp_path.iterdir()) == []


def test_films_of_a_world_without_pictures_are_one_line_and_leave_no_folder(tmp_path, capsys):
    status, line = ends(tmp_path, capsys, "env=matrix", "log.video_every_steps=500")
    assert status == 2
    assert line == "error: log.video_every_steps=500: matrix:climbing draws no pictures; allowed is 0"
    assert list(tmp_path.iterdir()) == []


def test_the_batch_that_broke_a_run_is_kept(tmp_path, capsys):
    status, line = ends(tmp_path, capsys, "algo.optimizer.lr=1e38", "name=broken")
    assert status == 1
    (kept,) = (tmp_path / "broken").glob("nonfinite-*.safetensors")
    assert "is not finite at update" in line and line.endswith(f"its batch is in {kept}")
    batch = load_file(kept)
    assert len(batch["reward"]) == 8 and batch["obs"].shape[1] == batch["reward"].shape[1] + 1
    assert not list((tmp_path / "broken").glob("*.writing"))


class FarAway(gymnasium.Env):
    """Five steps, seen from a distance that sixteen bits do not hold."""

    observation_space = gymnasium.spaces.Box(0, 1e6, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.left = 5
        return np.full(2, 1e5, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.full(2, 1e5, np.float32), 1.0, self.left == 0, False, {}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(("stored", "ends_with"), [("float16", 1), ("bfloat16", 0)])
def test_what_sixteen_bits_do_not_hold_is_named(tmp_path, capsys, monkeypatch, stored, ends_with):
    monkeypatch.setitem(gymnasium.registry, "Far-v0", EnvSpec("Far-v0", FarAway))
    world = [
        "env=gymnasium",
        "env.id=Far-v0",
        "env.horizon=5",
        "rollout.backend=inline",
        "rollout.workers=1",
        "steps=200",
    ]
    status, line = ends(tmp_path, capsys, *world, f"replay.float={stored}")
    assert status == ends_with, line
    assert (
        "obs and state of its batch has entries that are not finite; replay.float=float16 holds no more than 65504"
        in line
    ) == (status == 1)


def test_a_run_that_learned_nothing_says_so(tmp_path, capsys):
    status, line = ends(tmp_path, capsys, "steps=100", "learner.burn_in=500")
    assert status == 0 and "no update was made" in line and "learner.burn_in=500" in line


@pytest.mark.parametrize("second", ["algo=iql", "algo=qmix"])
def test_a_run_begins_by_saying_where_it_is(tmp_path, capsys, second):
    status, line = ends(tmp_path, capsys, second, "steps=600")
    assert status == 0 and str(tmp_path / f"{second[5:]}_meet_s0") in line
