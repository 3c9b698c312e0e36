"""Risk: a killed run goes on as another run."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from marl.checkpoint import load_latest
from marl.reporting.log import repeats

ROOT = Path(__file__).parent.parent
COMMON = [
    "env=meet",
    "steps=2000",
    "rollout.envs_per_worker=4",
    "learner.batch=8",
    "learner.burn_in=8",
    "learner.updates_per_episode=0.5",
    "checkpoint.every_steps=200",
    "eval.every_steps=500",
    "eval.episodes=6",
    "log.every_steps=100",
    "algo.hidden=16",
]


def command(logdir, *arguments):
    return [sys.executable, "-m", "marl.train", f"logdir={logdir}", *arguments]


def run(logdir, *arguments):
    done = subprocess.run(command(logdir, *arguments), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def kill_when(folder, logdir, *arguments, saved, how=signal.SIGKILL):
    """Start a run and end it once its ``saved``-th checkpoint is there."""
    process = subprocess.Popen(
        command(logdir, *arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(seen(folder)) < saved:
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(how)
    _, errors = process.communicate()
    return process.returncode, errors


def seen(folder):
    """Steps of the checkpoints that are there."""
    steps = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")]
    return range(max(steps) // 200) if steps else []


def curve(folder):
    with (folder / "scalars.csv").open() as stream:
        return [(row["step"], row["tag"], row["value"]) for row in csv.DictReader(stream) if repeats(row["tag"])]


def weights(folder):
    return load_latest(folder / "checkpoints", pytest.fail).tensors["learner"]()


def assert_same_run(one, other):
    assert curve(one) == curve(other)
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("unbroken")
    run(logdir, "algo=qmix", "name=run", *COMMON)
    return logdir / "run"


def test_a_run_killed_twice_goes_on_to_the_same_curve(unbroken, tmp_path):
    folder = tmp_path / "run"
    code, _ = kill_when(folder, tmp_path, "algo=qmix", "name=run", *COMMON, saved=3)
    assert code == -signal.SIGKILL
    kill_when(folder, tmp_path, f"resume={folder}", saved=6)
    run(tmp_path, f"resume={folder}")
    assert_same_run(unbroken, folder)


def test_a_learning_rate_that_falls_goes_on_where_it_was(tmp_path):
    shared = [*COMMON, "algo=pqn_vdn", "learner.every_episodes=8", "replay.capacity=16", "rollout.backend=inline"]
    run(tmp_path, *shared, "name=whole")
    folder = tmp_path / "run"
    kill_when(folder, tmp_path, *shared, "name=run", saved=4)
    run(tmp_path, f"resume={folder}")
    assert_same_run(tmp_path / "whole", folder)
    rates = [float(value) for _, tag, value in curve(folder) if tag == "schedule/learning_rate"]
    assert len(rates) > 10 and rates == sorted(rates, reverse=True) and rates[0] > 2.2e-4 and rates[-1] < 2e-5


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    for path in (folder / "checkpoints").iterdir():
        shutil.rmtree(path)
    before = curve(folder)
    done = subprocess.run(command(tmp_path, f"resume={folder}"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"from={folder}" in done.stderr and "Traceback" not in done.stderr
    assert curve(folder) == before


def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on_later(unbroken, tmp_path):
    folder = tmp_path / "run"
    start = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY)); "
        "sys.argv[0] = 'train'; runpy.run_module('marl.train', run_name='__main__')"
    )
    arguments = [f"logdir={tmp_path}", "algo=qmix", "name=run", *COMMON]
    done = subprocess.run([sys.executable, "-c", start, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"resume={folder}" in done.stderr and "Traceback" not in done.stderr
    run(tmp_path, f"resume={folder}")
    assert_same_run(unbroken, folder)


def test_ctrl_c_saves_and_says_how_to_go_on(unbroken, tmp_path):
    folder = tmp_path / "run"
    code, errors = kill_when(folder, tmp_path, "algo=qmix", "name=run", *COMMON, saved=2, how=signal.SIGINT)
    assert code == 130 and f"resume={folder}" in errors and "Traceback" not in errors
    run(tmp_path, f"resume={folder}")
    assert_same_run(unbroken, folder)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_one_interval_only(unbroken, tmp_path):
    folder = tmp_path / "run"
    kill_when(folder, tmp_path, "algo=qmix", "name=run", *COMMON, saved=4)
    newest = max((folder / "checkpoints").glob("[0-9]*"))
    file = newest / "learner.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    done = run(tmp_path, f"resume={folder}")
    assert str(newest) in done.stderr and "damaged" in done.stderr
    assert_same_run(unbroken, folder)


def test_a_run_can_be_started_again_from_its_folder(unbroken, tmp_path):
    run(tmp_path, f"from={unbroken}", "name=again")
    assert_same_run(unbroken, tmp_path / "again")


@pytest.mark.slow
def test_another_seed_is_another_run(unbroken, tmp_path):
    run(tmp_path, f"from={unbroken}", "name=other", "seed=1")
    assert curve(unbroken) != curve(tmp_path / "other")


def test_processes_give_the_same_run_as_playing_here(unbroken, tmp_path):
    """rollout.inflight fixes which weights play; here it is 1, whoever plays."""
    run(tmp_path, f"from={unbroken}", "name=local", "rollout.backend=local")
    assert_same_run(unbroken, tmp_path / "local")


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_number_of_workers_changes_nothing(workers, tmp_path):
    shared = [*COMMON, "algo=vdn", "rollout.inflight=4", "steps=1000"]
    run(tmp_path, *shared, "name=one", "rollout.backend=inline")
    run(tmp_path, *shared, "name=many", "rollout.backend=local", f"rollout.workers={workers}")
    assert_same_run(tmp_path / "one", tmp_path / "many")


@pytest.mark.ray
def test_ray_gives_the_same_run(tmp_path):
    shared = [*COMMON, "algo=vdn", "rollout.inflight=4", "steps=1000"]
    run(tmp_path, *shared, "name=one", "rollout.backend=inline")
    run(tmp_path, *shared, "name=many", "rollout.backend=ray", "rollout.workers=2")
    assert_same_run(tmp_path / "one", tmp_path / "many")


@pytest.mark.slow
def test_a_longer_run_goes_on_from_a_finished_one(tmp_path):
    shared = [*COMMON, "algo=vdn"]
    run(tmp_path, *shared, "name=long", "steps=1600")
    run(tmp_path, *shared, "name=short", "steps=800")
    run(tmp_path, f"resume={tmp_path / 'short'}", "steps=1600")
    assert_same_run(tmp_path / "long", tmp_path / "short")
