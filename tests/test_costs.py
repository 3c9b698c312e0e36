"""Risk: updates are compared that did not do the same work."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import algos
import envs
from marl import build, costs, rates, sections
from marl.command import cli
from marl.fields import Mistake

SMALL = ["env=matrix", "algo.hidden=8", "learner.batch=4", "learner.burn_in=4"]


def test_every_update_is_told_beside_the_first(capsys):
    assert costs.main([*SMALL, "--", "algo=qmix", "--", "algo=s2q", "algo.floor=30", "--", "algo=wqmix"], turns=2) == 0
    rows = re.findall(r"([\w=.]+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) *$", capsys.readouterr().out, re.MULTILINE)
    assert [row[0] for row in rows] == ["algo=qmix", "algo.floor=30", "algo=wqmix"]
    assert rows[0][3:] == ("1.00", "1.00") and all(float(number) > 0 for row in rows for number in row[1:])


def test_there_are_episodes_for_the_largest_batch():
    runs = costs.asked([*SMALL, "--", "algo=vdn", "--", "algo=vdn", "learner.batch=9", "--", "algo=vdn"])
    told = [(run.name, run.settings.learner.batch) for run in runs]
    assert told == [("algo=vdn", 4), ("algo=vdn learner.batch=9", 9), ("algo=vdn", 4)]
    assert costs.costs(runs, turns=1).row_count == 3


@pytest.mark.parametrize(
    ("algorithm", "part"),
    [
        # pays by a copy of a model that was fitted twice
        (
            "algo=fim algo.base=vdn algo.base.target_every_episodes=8 algo.model_every_episodes=8 algo.model_updates=2 "
            "algo.statistic_steps=50",
            "bonuses",
        ),
        ("algo=fox algo.target_every_episodes=8 algo.fnet_every_episodes=4", "fit"),  # has a cadence of its own
    ],
)
def test_what_an_update_waits_for_at_first_is_in_its_cost(algorithm, part):
    (run,) = costs.asked(["env=push_box", "env.width=7", "env.horizon=20", *SMALL[2:], "--", *algorithm.split()])
    records = costs.episodes(run.settings)
    learner = build.learner(run.settings, build.spec(run.settings), build.device(run.settings))
    update = rates.updates(learner, records, 2)
    assert 0 < update.parts[part] < update.total
    assert sum(update.parts.values()) < 1.1 * update.total
    assert part != "bonuses" or "fim/reward" in learner.update()


@pytest.mark.parametrize(("threads", "clock"), [(1, "CPU"), (2, "wall")])
def test_an_update_says_whose_time_it_tells(threads, clock):
    (run,) = costs.asked([*SMALL, "--", "algo=vdn"])
    learner = build.learner(run.settings, build.spec(run.settings), torch.device("cpu"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert rates.updates(learner, costs.episodes(run.settings), 1).clock == clock
    finally:
        torch.set_num_threads(before)


def test_a_section_lasts_until_the_device_has_done_what_it_asked(monkeypatch):
    monkeypatch.setattr(sections, "catch_up", lambda device: time.sleep(0.05))
    with (
        profile(activities=[ProfilerActivity.CPU]) as recorded,
        sections.awaiting(torch.device("cpu")),
        sections.section("unroll"),
    ):
        pass
    assert sum(event.cpu_time_total for event in recorded.events() if event.name == "unroll") >= 0.05e6


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["env=matrix", "--", "algo=qmix", "--", "algo=vdn", "env=meet"], "env: "),
        (["env=matrix", "--", "algo=qmix", "--", "algo=no_such"], "algo=no_such"),
        (["env=matrix", "algo=qmix"], "nothing to compare"),
        (["env=matrix", "--cfg", "--", "algo=qmix"], "--cfg"),
        ([*SMALL, "--", "algo=vdn", "--", "algo=qmix", "algo.optimizer.lr=1e38"], "lr=1e38: td_loss is not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(arguments, told, capsys):
    assert costs.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and told in line and line.count("\n") == 1


def test_a_run_too_short_to_be_measured_is_told_in_one_line():
    arguments = ["algo=vdn", "env=meet", "steps=10", "eval.every_steps=0", "log.terminal=false"]
    short = cli.parse(arguments, algos.ALGORITHMS, envs.ENVIRONMENTS)
    with pytest.raises(Mistake, match="steps=10: a run that ends before it makes updates cannot be measured"):
        rates.end_to_end(short)


@pytest.mark.slow
def test_the_bench_sets_what_is_achieved_beside_what_is_possible():
    """Of an algorithm that watches first, then learns with all kinds of parts."""
    settings = ["env=meet", "algo=fim", "learner.batch=32", "learner.burn_in=32"]
    command = [sys.executable, "-m", "marl.bench", *settings]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = {
        name.strip(): figures.split()
        for name, figures in re.findall(r"^ *(\S.*?)  +([\d,. ]+?) *$", told, re.MULTILINE)
    }
    raw, rollouts = rows["raw simulator, steps per CPU second"], rows["rollouts, steps per CPU second"]
    assert len(raw) == 1 and len(rollouts) == 2
    ratio = float(rollouts[0].replace(",", "")) / float(raw[0].replace(",", ""))
    assert float(rollouts[1]) == pytest.approx(ratio, abs=0.01)
    assert len(rows["training, steps per wall second"]) == 2
    assert {
        "learner, ms per update",
        "learner, updates per CPU second",
        "backward",
        "optimiser",
        "moved per episode, bytes",
    } <= rows.keys()
