"""Risk: what `marl.evaluate` says of a saved policy is not what that policy does."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

import algos
import envs
from marl import build, evaluate
from marl.command import cli
from marl.command.runs import open_folder
from marl.dice import EVALUATE
from marl.reporting.tally import summary
from marl.run import Run
from marl.training import train
from marl.worker import Plan

TRAIN = [
    "algo=vdn", "env=matrix", "env.game=climbing", "steps=64", "algo.hidden=8", "rollout.workers=1",
    "rollout.backend=inline", "rollout.envs_per_worker=8", "learner.batch=8", "learner.burn_in=8",
    "eval.every_steps=64", "eval.episodes=2", "log.terminal=false", "checkpoint.every_steps=64",
]  # fmt: skip
REGISTERED = (algos.ALGORITHMS, envs.ENVIRONMENTS)
RANDOM = (11 - 30 - 30 + 7 + 6 + 0 + 0 + 0 + 5) / 9
"""What a choice at random pays in climbing."""


def played(settings):
    """A whole run, as `marl.train` makes it."""
    learner = build.learner(settings, build.spec(settings), build.device(settings))
    run = Run(settings, learner, open_folder(settings))
    try:
        run.play()
    finally:
        run.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of some updates, with its checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    settings = cli.parse([*TRAIN, "name=short", f"logdir={folder}"], algos.ALGORITHMS, envs.ENVIRONMENTS)
    played(settings)
    return folder / "short"


def told(saved, *arguments):
    """What is written of an evaluation."""
    before = set(saved.glob("evaluations/*.json"))
    assert evaluate.evaluate([f"run={saved}", *arguments]) == 0
    (new,) = set(saved.glob("evaluations/*.json")) - before
    return json.loads(new.read_text())


def test_greedy_play_is_the_same_each_time_and_for_any_number_of_workers(saved, capsys):
    once = told(saved, "episodes=20")
    assert once["return"] == told(saved, "episodes=20")["return"] == told(saved, "episodes=20", "workers=2")["return"]
    assert once["return"]["low"] == once["return"]["high"], "one state, one greedy choice"
    assert once["step"] == 64 and once["request"]["episodes"] == 20
    assert "return" in capsys.readouterr().out


def test_a_saved_policy_starts_where_no_evaluation_of_its_training_did():
    settings = cli.parse(["algo=vdn", "env=meet", "algo.hidden=8"], *REGISTERED)
    parts = algos.assemble(build.spec(settings), settings.algo)
    idle = {name: np.zeros_like(tensor.detach().numpy()) for name, tensor in parts.travelling().items()}
    rollouts = evaluate.play(settings, evaluate.Request(episodes=32), idle, 0, pytest.fail)
    firsts = [record["obs"][0] for rollout in rollouts for record in rollout.records]
    training = build.MakeWorker(settings, 32)().play(Plan(0, EVALUATE, 0, 32)).records
    assert len({first.tobytes() for first in firsts}) > 16
    assert any((first != record["obs"][0]).any() for first, record in zip(firsts, training, strict=True))


def test_success_is_a_share_of_the_episodes():
    records = [{"reward": np.ones(2, np.float32), "won": np.array(won)} for won in (True, True, True, False)]
    told = evaluate.measure([summary(record) for record in records])
    assert (told["success"].value, told["success"].n, told["return"].value) == (0.75, 4, 2.0)


def test_epsilon_replaces_choices_by_random_ones(saved):
    mixed, noisy = (told(saved, "episodes=2000", f"epsilon={share}")["return"] for share in (0.5, 1))
    assert noisy["low"] < RANDOM < noisy["high"]
    assert mixed["low"] < mixed["value"] < mixed["high"] and mixed["value"] != noisy["value"]
    others = told(saved, "episodes=2000", "epsilon=1", "seed=7")["return"]
    assert others["value"] != noisy["value"], "other seeds draw other choices"


def test_an_attacker_of_choice_plays_along(saved):
    attacked = told(saved, "episodes=200", "attack=random_actions", "attack.probability=1")
    assert attacked["request"]["attack"]["probability"] == 1
    assert attacked["return"]["low"] < attacked["return"]["high"], "choices are not the policy's own any more"


def test_what_interfered_in_training_is_named_and_may_be_left_out(tmp_path):
    trained = ["algo=random_attack", "algo.base=vdn", "algo.attack.probability=1", "algo.attack.budget=100"]
    settings = cli.parse(
        [*trained, *TRAIN[1:4], "algo.base.hidden=8", *TRAIN[5:], "name=robust", f"logdir={tmp_path}"],
        algos.ALGORITHMS,
        envs.ENVIRONMENTS,
    )
    played(settings)
    saved = tmp_path / "robust"
    disturbed, alone = told(saved, "episodes=200"), told(saved, "episodes=200", "interventions=false")
    harmless = told(saved, "episodes=200", "interventions=false", "attack=random_actions", "attack.probability=0")
    assert disturbed["return"]["low"] < disturbed["return"]["high"]
    assert alone["return"]["low"] == alone["return"]["high"] == harmless["return"]["value"]
    both = told(saved, "episodes=20", "attack=random_actions")
    assert both["request"]["attack"] and both["request"]["interventions"]
    names = sorted(path.name for path in saved.glob("evaluations/*.json"))
    labels = ["clean", "random_actions", "training", "training+random_actions"]
    assert names == sorted(f"0000000064_{label}.json" for label in labels)


def test_one_episode_has_no_interval(saved, capsys):
    once = told(saved, "episodes=1", "epsilon=0.3")["return"]
    assert once["low"] is once["high"] is None and once["n"] == 1, "JSON has no NaN"
    assert "none of one episode" in capsys.readouterr().out


def test_a_configuration_that_was_edited_is_not_taken_for_that_of_the_checkpoint(saved, tmp_path, capsys):
    edited = tmp_path / "edited"
    shutil.copytree(saved, edited)
    config = edited / "config.yaml"
    config.write_text(config.read_text().replace("hidden: 8\n", "hidden: 16\n"))
    for refused in (evaluate.evaluate([f"run={edited}"]), cli.run(train, [f"resume={edited}"], *REGISTERED)):
        assert refused == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"error: {edited}: config.yaml describes something else") and "size mismatch" in line


def test_help_tells_every_setting(capsys):
    assert evaluate.evaluate(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {entry.name}=" in text for entry in dataclasses.fields(evaluate.Request))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "run: no run is chosen"),
        (["run=nowhere_at_all"], "run=nowhere_at_all: no saved run; allowed are"),
        (["run={saved}", "seed=-1"], "seed=-1: allowed are 0 and more"),
        (["run={saved}", "episodes=0"], "episodes=0: allowed are 1 and more"),
        (["run={saved}", "workers=0"], "workers=0: allowed are 1 and more"),
        (["run={saved}", "epsilon=1.5"], "epsilon=1.5: allowed are 0 to 1"),
        (["run={saved}", "epsilom=0.5"], "epsilon"),
        (["run={saved}", "attack=random_action"], "random_actions"),
        (["run={saved}", "attack.budget=3"], "no attacker is chosen"),
        (["run={saved}", "attack=random_actions", "attack.budget=-3"], "attack.budget=-3: allowed are"),
        (["run={saved}", "attack=random_actions", "attack.budgt=3"], "did you mean attack.budget?"),
        (["run={saved}", "attack=random_actions", "attack.name=other"], "chosen by attack=NAME"),
        (["run={saved}", "attack=random_actions,none"], "attack=random_actions,none: allowed is one value"),
        (["run={saved}", "seed=1,2"], "seed=1,2: allowed is one value"),
        (["run={saved}", "video=true"], "video=true: matrix:climbing draws no pictures; allowed is video=false"),
        (["{saved}"], "allowed is key=value"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(saved, arguments, wanted, capsys):
    assert evaluate.evaluate([argument.format(saved=saved) for argument in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and wanted in line and line.count("\n") == 1
