"""Settings: what a command line, files and saved runs are made into, and how mistakes are told."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib import import_module, metadata
from pathlib import Path

import pytest
from omegaconf import MISSING, OmegaConf

import algos
import envs
from algos.factored import Optimizer
from marl.command import cli
from marl.command.compose import Registries, files
from marl.command.guide import settings as listed
from marl.command.request import one, several
from marl.command.runs import held_folder, open_folder, to_yaml
from marl.command.typed import put, tree
from marl.config import Replay, Rollout, Settings
from marl.env import EnvUnavailable
from marl.fields import Mistake, leaves

REGISTRIES = Registries(algos.ALGORITHMS, envs.ENVIRONMENTS)
Capture = pytest.CaptureFixture[str]
TOY = ("algo=qmix", "env=meet")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder, which is not the sources'."""
    monkeypatch.chdir(tmp_path)


def settings(*arguments: str) -> Settings:
    return one(arguments, REGISTRIES)


def run(main: Callable[[Settings], int], *arguments: str) -> int:
    return cli.run(main, arguments, algos.ALGORITHMS, envs.ENVIRONMENTS)


def never(settings: Settings) -> int:
    raise AssertionError("a run began")


def told(capsys: Capture, *arguments: str) -> str:
    """The one line that a mistake is told in."""
    status = run(never, *arguments)
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert list(Path().iterdir()) == []
    return err


MISTAKES = [
    # choices
    ("algo=fxo env=meet", ["algo=fxo", "qmix, qplex", "did you mean fox?"]),
    ("algo=qmix env=gfr", ["env=gfr", "matrix, meet", "did you mean grf?"]),
    ("experiment=fox3v1", ["experiment=fox3v1", "fox_corner", "did you mean fox_3v1?"]),
    ("env=meet", ["algo:", "qmix", "algo=NAME"]),
    ("algo=qmix", ["env:", "meet", "env=NAME"]),
    ("algo=null env=meet", ["algo:", "algo=NAME"]),
    ("algo=qmix env=meet algo.base=vdn", ["algo.base=vdn", "qmix wraps no other"]),
    ("algo=qmix env=meet algo.base.base=vdn", ["algo.base.base=vdn", "wraps no other"]),
    ("algo=random_attack algo.base=vd env=meet", ["algo.base=vd", "allowed are", "did you mean vdn?"]),
    ("algo=random_attack algo.base.name=vdn env=meet", ["algo.base.name=vdn", "algo.base=NAME"]),
    ("algo=qmix env=meet env.name=grf", ["env.name=grf", "env=NAME"]),
    # keys
    ("algo=qmix env=meet learner.bach=3", ["learner.bach=3", "batch, burn_in", "did you mean learner.batch?"]),
    ("algo=qmix env=meet algo.hiden=3", ["algo.hiden=3", "mixing_embed", "did you mean algo.hidden?"]),
    ("algo=random_attack env=meet algo.base.hiden=3", ["algo.base.hiden=3", "did you mean algo.base.hidden?"]),
    ("algo=qmix env=meet lr=3", ["lr=3", "learner", "did you mean algo.optimizer.lr?"]),
    ("algo=qmix env=meet sede=3", ["sede=3", "did you mean seed?"]),
    ("algo=qmix env=meet from_=3", ["from_=3", "did you mean from?"]),
    ("algo=qmix env=meet steps.x=3", ["steps.x=3", "no such setting"]),
    ("algo=qmix env=meet learner=3", ["learner=3", "learner.batch"]),
    # types
    ("algo=qmix env=meet algo.optimizer.lr=high", ["algo.optimizer.lr=high", "a number"]),
    ("algo=qmix env=meet learner.batch=3.5", ["learner.batch=3.5", "a whole number"]),
    ("algo=qmix env=meet compile=maybe", ["compile=maybe", "true or false"]),
    ("algo=qmix env=meet seed=null", ["seed=null", "a whole number"]),
    ("algo=qmix env=meet phases=3", ["phases=3", "name, steps"]),
    ("algo=qmix env=meet phases=[{name:a,stps:3}]", ["phases=", "stps", "name, steps"]),
    ("algo=qmix env=meet seed=${nix}", ["seed", "nix"]),
    # values
    ("algo=qmix env=meet rollout.workers=0", ["rollout.workers=0", "1 and more"]),
    ("algo=qmix env=meet steps=-5", ["steps=-5", "1 and more"]),
    ("algo=qmix env=meet eval.episodes=-1", ["eval.episodes=-1", "1 and more"]),
    ("algo=qmix env=meet learner.updates_per_episode=0", ["learner.updates_per_episode=0.0", "above 0"]),
    ("algo=qmix env=meet rollout.epsilon_finish=1.5", ["rollout.epsilon_finish=1.5", "0 to 1"]),
    ("algo=qmix env=meet replay.alpha=nan", ["replay.alpha=nan", "0 and more"]),
    ("algo=qmix env=meet rollout.timeout=inf", ["rollout.timeout=inf", "above 0"]),
    ("algo=qmix env=meet precision=bf61", ["precision=bf61", "fp32, tf32, bf16", "did you mean bf16?"]),
    ("algo=qmix env=meet device=gpu", ["device=gpu", "auto, cpu, cuda, cuda:N"]),
    ("algo=qmix env=meet device=cuda:99", ["device=cuda:99", "auto, cpu"]),
    ("algo=qmix env=meet name=a:b", ["name=a:b", "letters, digits"]),
    ("algo=qmix env=meet name=a/b", ["name=a/b", "letters, digits"]),
    ("algo=qmix env=meet name=..", ["name=..", "letters, digits"]),
    ("algo=qmix env=meet learner.batch=6000", ["learner.batch=6000", "replay.capacity (5000)"]),
    ("algo=qmix env=grf rollout.workers=8", ["rollout.inflight=4", "rollout.workers (8)"]),
    ("algo=qmix env=meet rollout.workers=2", ["rollout.workers=2", "rollout.backend=inline"]),
    ("algo=fox env=meet algo.td_lambda=5", ["algo.td_lambda=5", "0 to 1"]),
    # values without effect
    (
        "algo=qmix env=meet algo.n_step=5",
        ["algo.n_step=5: algo.returns=peng has no use", "say algo.returns=n_step too"],
    ),
    ("algo=fox env=meet algo.returns=n_step algo.td_lambda=0.5", ["algo.td_lambda=0.5", "or algo.returns=watkins"]),
    (
        "algo=qmix env=meet recipe=tuned algo.target_every_episodes=9",
        ["algo.target_tau=0.01", "say algo.target_tau=0.0"],
    ),
    (
        "algo=qmix env=meet algo.optimizer.alpha=0.9",
        ["algo.optimizer.name=adam has no", "say algo.optimizer.name=rmsprop"],
    ),
    ("algo=fim algo.base=vdn env=meet algo.base.n_step=5", ["algo.base.n_step=5", "say algo.base.returns=n_step too"]),
    (
        "algo=qmix env=meet rollout.backend=ray ray.address=here:abc",
        ["ray.address=here:abc: allowed are auto, host:port"],
    ),
    ("algo=qmix env=meet ray.address=auto", ["ray.address: rollout.backend=", "say rollout.backend=ray too"]),
    (
        "algo=qmix env=meet eval.every_steps=0 log.video_every_steps=100",
        ["log.video_every_steps=100: evaluations are filmed", "allowed is 0"],
    ),
    ("algo=qmix env=matrix env.k=-5", ["env.k=-5.0: env.game=climbing has no use for it", "say env.game=penalty too"]),
    ("algo=fim env=meet algo.trace_mode=none algo.eta=0.5", ["algo.eta=0.5: algo.trace_mode=none has no use for it"]),
    ("algo=fim env=meet algo.selection=all algo.rho=1", ["algo.rho=1.0: algo.selection=all has no use for it"]),
    (
        "algo=fox env=meet algo.fnet_every_episodes=0 algo.fnet_batch=4",
        ["algo.fnet_batch=4: algo.fnet_every_episodes=0 has no use for it"],
    ),
    ("algo=s2q env=meet algo.floor=1 algo.mixed=0 algo.own_draws=true", ["own_draws=true: algo.mixed=0 has no use"]),
    (
        "algo=qmix env=meet eval.every_steps=0 eval.episodes=4",
        ["eval.episodes=4: eval.every_steps=0 has no use for it"],
    ),
    ("algo=qmix env=meet replay.alpha=0.6", ["replay.prioritised=false has no use", "say replay.prioritised=true too"]),
    # beside others
    ("algo=qmix env=meet phases=[{name:a,steps:3}]", ["steps=2000000", "3", "phases"]),
    ("algo=qmix env=meet steps=3 phases=[{name:a,steps:3},{name:b,steps:0}]", ["phases.1.steps=0", "1 and more"]),
    ("algo=qmix env=meet env.agents=1", ["env.agents=1", "2 and more"]),
    ("algo=qmix env=meet learner.threads=100000", ["learner.threads=100000", "1 to 1024"]),
    ("algo=qmix env=jaxmarl env.id=smax", ["env.id=smax", "did you mean SMAX?"]),
    ("algo=qmix env=jaxmarl env.id=SMAX env.kwargs.attack_mode=closet", ["attack_mode=closet", "mean closest?"]),
    ("algo=qmix env=stag_hunt env.stags=1000", ["env.grid=10", "32 and more", "env.stags=1000"]),
    # syntax
    ("algo=qmix env=meet learner.batch", ["learner.batch", "key=value"]),
    ("algo=qmix env=meet name=[1", ["name=[1", "key=value"]),
    ("algo=qmix env=meet ~seed", ["~seed", "key=value"]),
    ("algo=qmix env=meet seed=0,1", ["seed=0,1", "-m"]),
    ("algo=qmix env=meet --multi", ["--multi", "did you mean --multirun?"]),
    ("-m algo=qmix env=meet learner.updates_per_episode=interval(0,1)", ["interval(0,1)", "range(start,stop)"]),
    ("-m algo=qmix env=meet seed=range(3,0)", ["seed=range(3,0)", "no value"]),
    ("-m algo=qmix env=meet seed=range(0,9,0)", ["seed=range(0,9,0)", "zero"]),
    # saved runs
    ("from=nowhere", ["from=nowhere", "config.yaml", "runs"]),
    ("resume=nowhere", ["resume=nowhere", "config.yaml", "runs"]),
    ("from=a resume=b", ["resume=b", "from=a"]),
]


@pytest.mark.parametrize("line, parts", MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_before_anything_begins(line: str, parts: list[str], capsys: Capture) -> None:
    message = told(capsys, *line.split())
    assert [part for part in parts if part not in message] == []


def test_what_an_environment_lacks_is_told_in_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(config: object) -> None:
        raise EnvUnavailable("env=meet: pip install\nthe meeting")

    monkeypatch.setattr("envs.meet.probe", lacking)
    assert told(capsys, *TOY) == "error: env=meet: pip install the meeting\n"


def test_a_mistake_found_by_the_run_itself_is_told_alike(capsys: Capture) -> None:
    def refuse(settings: Settings) -> int:
        raise Mistake("replay.capacity=5000: too large")

    assert run(refuse, *TOY) == 2
    assert capsys.readouterr().err == "error: replay.capacity=5000: too large\n"


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_the_same_name_takes_the_place_of_none_of_ours(packed: bool) -> None:
    """Researchers have folders called configs and envs: they do no harm, and packages of that name are named."""
    for name in ("algos", "configs", "envs"):
        Path(name).mkdir()
    if packed:
        Path("envs/__init__.py").touch()
    command = [sys.executable, "-m", "marl.train", *TOY, "--cfg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if packed:
        *_, last = done.stderr.splitlines()
        assert done.returncode == 1 and last.startswith(f"ImportError: envs: {Path('envs').resolve()} hides")
    else:
        assert done.returncode == 0 and "name: meet" in done.stdout


# composition


@pytest.mark.parametrize("name", sorted(algos.ALGORITHMS))
def test_every_algorithm_is_configured_by_its_own_class(name: str) -> None:
    made = settings(f"algo={name}", "env=meet")
    assert type(made.algo) is import_module(algos.ALGORITHMS[name]).Config
    assert made.algo.name == name
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize("name", sorted(envs.ENVIRONMENTS))
def test_every_environment_is_configured_by_its_own_class(name: str) -> None:
    made = settings("algo=qmix", f"env={name}")
    assert type(made.env) is import_module(envs.ENVIRONMENTS[name]).Config
    assert made.env.name == name
    assert made.name == f"qmix_{name}_s0"


@pytest.mark.parametrize("name", files("experiment"))
def test_every_published_setting_is_a_run(name: str) -> None:
    free = [] if "override /env" in _text(name) else ["env=matrix"]
    made = settings(f"experiment={name}", *free)
    assert made.algo.name == name.partition("_")[0].replace("cds", "fox")


def _text(experiment: str) -> str:
    return (Path(__file__).parent.parent / "configs" / "experiment" / f"{experiment}.yaml").read_text()


@pytest.mark.parametrize("name", ["iql", "vdn", "qmix", "qatten", "wqmix"])
def test_published_numbers_arrive(name: str) -> None:
    """PyMARL2's config files and learners; PyMARL's default.yaml."""
    later, original = settings(f"algo={name}", "env=grf"), settings(f"algo={name}", "recipe=pymarl", "env=grf")
    for made in (later, original):
        algo = made.algo
        assert (algo.hidden, algo.gamma, algo.agent_id, algo.last_action, algo.double_q) == (64, 0.99, True, True, True)
        assert (algo.target_every_episodes, algo.target_tau, algo.optimizer.clip) == (200, 0, 10)
        assert (made.replay.capacity, made.replay.prioritised) == (5000, False)
        assert (made.rollout.epsilon_start, made.rollout.epsilon_finish) == (1, 0.05)
    optimizer = later.algo.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.eps, later.algo.td_lambda) == ("adam", 1e-3, 1e-8, 0.6)
    assert later.algo.td_weight == (1 if name == "wqmix" else 0.5)
    assert (later.learner.batch, later.learner.burn_in, later.learner.updates_per_episode) == (128, 128, 0.125)
    assert later.rollout.epsilon_steps == 100_000
    optimizer = original.algo.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.alpha, optimizer.eps) == ("rmsprop", 5e-4, 0.99, 1e-5)
    assert (original.algo.td_lambda, original.algo.td_weight) == (0, 1)
    assert (original.learner.batch, original.learner.burn_in, original.learner.updates_per_episode) == (32, 32, 1)
    assert original.rollout.epsilon_steps == 50_000


def test_published_sizes_arrive() -> None:
    qmix, wqmix = settings("algo=qmix", "env=grf").algo, settings("algo=wqmix", "env=grf").algo
    assert (qmix.mixing_embed, qmix.hyper_embed) == (wqmix.mixing_embed, wqmix.hyper_embed) == (32, 64)
    assert (wqmix.weighting, wqmix.alpha, wqmix.central_embed, wqmix.central_weight) == ("central", 0.1, 256, 0.5)


def test_fox_brings_its_own_pace_and_replay_also_when_it_is_wrapped() -> None:
    for arguments in (["algo=fox"], ["algo=random_attack", "algo.base=fox"]):
        made = settings(*arguments, "env=grf")
        assert (made.learner.batch, made.learner.burn_in, made.learner.updates_per_episode) == (8, 32, 1.0)
        assert (made.replay.prioritised, made.replay.alpha, made.rollout.epsilon_steps) == (True, 0.3, 50_000)
    corner = settings("experiment=fox_corner")
    assert (corner.steps, corner.eval.episodes, corner.env.scenario) == (50_050_000, 20, "academy_corner")


def test_an_algorithm_wraps_any_other() -> None:
    made = settings("algo=random_attack", "env=meet", "algo.base=iql", "algo.base.hidden=32", "algo.attack.budget=2")
    assert type(made.algo.base) is import_module("algos.iql").Config
    assert (made.algo.base.hidden, made.algo.attack.budget) == (32, 2)
    assert made.learner.batch == 128
    assert made.name == "random_attack_iql_meet_s0"


def test_wraps_nest() -> None:
    made = settings("env=meet", "algo=random_attack", "algo.base=random_attack", "algo.base.base=vdn")
    assert [made.algo.name, made.algo.base.name, made.algo.base.base.name] == ["random_attack", "random_attack", "vdn"]
    inner = settings("env=meet", "algo=random_attack", "algo.base=random_attack", "algo.base.base.hidden=8")
    assert (inner.algo.base.base.name, inner.algo.base.base.hidden) == ("qmix", 8)


def test_later_layers_win() -> None:
    """Algorithm < environment < published setting < command line, wherever that stands."""
    assert settings("algo=qmix", "env=grf").rollout.epsilon_steps == 100_000
    assert settings("algo=qmix", "env=meet").rollout.epsilon_steps == 10_000
    assert settings("algo=qmix", "env=pettingzoo").rollout.envs_per_worker != 32
    assert settings("experiment=qmix_spread").rollout.envs_per_worker == 32
    assert settings("rollout.epsilon_steps=7", "experiment=qmix_spread").rollout.epsilon_steps == 7
    assert settings("experiment=qmix_spread", "algo=vdn").algo.name == "vdn"
    assert settings("seed=1", "seed=2", *TOY).seed == 2


def test_values_are_read_as_a_researcher_writes_them() -> None:
    made = settings(
        *TOY, "steps=2e5", "device=cuda:1", "rollout.backend=ray", "ray.address=10.0.0.1:6379",
        "algo.target_tau=${algo.optimizer.lr}",
    )  # fmt: skip
    assert (made.steps, made.device, made.ray.address, made.algo.target_tau) == (
        200_000,
        "cuda:1",
        "10.0.0.1:6379",
        1e-3,
    )
    assert settings("algo=qmix", "env=grf", "env.time_limit=1e2").env.time_limit == 100
    free = settings("algo=qmix", "env=gymnasium", "env.kwargs.sutton_barto_reward=true", "env.kwargs={a:{b:1}}")
    assert free.env.kwargs == {"sutton_barto_reward": True, "a": {"b": 1}}


def test_phases_are_typed() -> None:
    made = settings(*TOY, "steps=30", "phases=[{name:a,steps:10,interventions:false},{name:b,steps:20}]")
    assert [(phase.name, phase.steps, phase.interventions) for phase in made.phases] == [
        ("a", 10, False),
        ("b", 20, True),
    ]


# sweeps


def names(*arguments: str) -> list[str | None]:
    return [made.name for made in several(arguments, REGISTRIES)]


def test_a_sweep_is_one_run_for_each_value() -> None:
    runs = several([*TOY, "seed=0,1,2"], REGISTRIES)
    assert [made.seed for made in runs] == [0, 1, 2]
    assert [made.name for made in runs] == ["qmix_meet_s0", "qmix_meet_s1", "qmix_meet_s2"]
    assert names(*TOY, "seed=range(3,5)") == ["qmix_meet_s3", "qmix_meet_s4"]


def test_sweeps_multiply_and_choose() -> None:
    assert names("algo=iql,vdn", "env=meet", "seed=0,1") == [
        "iql_meet_s0",
        "iql_meet_s1",
        "vdn_meet_s0",
        "vdn_meet_s1",
    ]
    assert names("algo=random_attack", "algo.base=iql,vdn", "env=meet") == [
        "random_attack_iql_meet_s0",
        "random_attack_vdn_meet_s0",
    ]


def test_runs_of_a_sweep_are_told_apart_by_what_is_swept() -> None:
    assert names(*TOY, "algo.optimizer.lr=1e-3,2e-5") == ["qmix_meet_s0_lr-0.001", "qmix_meet_s0_lr-2e-05"]
    assert names(*TOY, "name=mine", "seed=0,1") == ["mine_seed-0", "mine_seed-1"]
    assert names(*TOY, "device=cpu,'cuda:0'") == ["qmix_meet_s0_device-cpu", "qmix_meet_s0_device-cuda-0"]
    assert names(*TOY, "log.every_steps=1,2", "eval.every_steps=3") == [
        "qmix_meet_s0_every_steps-1",
        "qmix_meet_s0_every_steps-2",
    ]
    both = names(*TOY, "log.every_steps=1,2", "eval.every_steps=3,4")
    assert both[0] == "qmix_meet_s0_log.every_steps-1_eval.every_steps-3"
    assert len(set(both)) == 4


def test_two_runs_of_one_name_are_refused() -> None:
    with pytest.raises(Mistake, match="name=mine: 2 runs"):
        several([*TOY, "name=mine,mine"], REGISTRIES)


def test_a_sweep_goes_on_after_a_failure_and_ends_with_an_interruption() -> None:
    seen: list[int] = []

    def main(made: Settings) -> int:
        seen.append(made.seed)
        return {0: 0, 1: 1, 2: 0, 3: 130}[made.seed]

    assert run(main, "-m", *TOY, "seed=0,1,2") == 1
    assert run(main, "-m", *TOY, "seed=3,0") == 130
    assert seen == [0, 1, 2, 3]


def test_a_sweep_goes_on_after_a_run_that_breaks_and_a_single_run_does_not_hide_it(capsys: Capture) -> None:
    seen: list[int] = []

    def main(made: Settings) -> int:
        seen.append(made.seed)
        raise IndexError("my slip")

    assert run(main, "-m", *TOY, "seed=0,1") == 1
    assert seen == [0, 1] and capsys.readouterr().err.count("IndexError: my slip") == 2
    with pytest.raises(IndexError):
        run(main, *TOY)


@dataclass
class Unset:
    """Settings of which one has to be given."""

    width: int = MISSING
    name: str = "unset"


def test_a_setting_without_default_is_given_or_asked_for() -> None:
    root = tree(Unset)
    put(root, "width", 3)
    assert OmegaConf.to_object(root) == Unset(3)
    with pytest.raises(Mistake, match="widht=3: no such setting; allowed are name, width; did you mean width?"):
        put(tree(Unset), "widht", 3)


def test_a_slip_in_a_file_is_not_taken_for_one_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("saved.yaml").write_text("algo: {name: qmix, hiden: 3}\nenv: {name: meet}\n")
    with pytest.raises(Mistake, match="algo.hiden=3: no such setting; .*did you mean algo.hidden.*; the saved config"):
        settings("from=saved.yaml")
    monkeypatch.setattr("envs.meet.Config", None)
    with pytest.raises(Mistake, match="env=meet: envs.meet has no dataclass Config"):
        settings(*TOY)


def test_a_sweep_goes_on_after_a_run_that_is_refused(capsys: Capture) -> None:
    seen: list[int] = []

    def main(made: Settings) -> int:
        seen.append(made.seed)
        if made.seed == 1:
            raise Mistake("replay.capacity=5000: too large")
        return 0

    assert run(main, "-m", *TOY, "seed=0,1,2") == 2
    assert seen == [0, 1, 2]
    assert capsys.readouterr().err == "error: qmix_meet_s1: replay.capacity=5000: too large\n"


# folders


def opened(*arguments: str) -> Path:
    return open_folder(settings(*arguments))


def test_a_run_starts_again_from_its_folder() -> None:
    first = settings("algo=random_attack", "algo.base=vdn", "env=meet", "algo.base.optimizer.lr=1e-5", "env.agents=3")
    folder = open_folder(first)
    assert folder == Path("runs/random_attack_vdn_meet_s0")
    for place in (str(folder), str(folder / "config.yaml"), folder.name, str(folder.resolve())):
        again = settings(f"from={place}")
        assert replace(again, from_=None) == first
        assert again.from_ == place


@pytest.mark.parametrize(
    "algo, env",
    [(name, "matrix") for name in sorted(algos.ALGORITHMS)] + [("vdn", name) for name in sorted(envs.ENVIRONMENTS)],
)
def test_every_configuration_survives_being_written(algo: str, env: str) -> None:
    first = settings(f"algo={algo}", f"env={env}")
    Path("saved.yaml").write_text(to_yaml(first))
    assert replace(settings("from=saved.yaml"), from_=None) == first


def test_settings_of_a_wrapped_algorithm_without_its_name_are_refused() -> None:
    Path("saved.yaml").write_text("algo: {name: fim, base: {gamma: 0.9}}\nenv: {name: meet}\n")
    with pytest.raises(Mistake, match="^algo.base: no algorithm is chosen; allowed are "):
        settings("from=saved.yaml")


def test_a_run_started_again_takes_changes() -> None:
    folder = opened(*TOY, "name=first", "learner.batch=16", "steps=5000")
    changed = settings(f"from={folder}", "seed=3", "algo.hidden=8")
    assert (changed.seed, changed.algo.hidden, changed.learner.batch, changed.steps) == (3, 8, 16, 5000)
    assert changed.name == "qmix_meet_s3"
    other = settings(f"from={folder}", "algo=vdn")
    assert (other.algo.name, other.learner.batch, other.name) == ("vdn", 16, "vdn_meet_s0")
    with pytest.raises(Mistake, match="learner.bach=3"):
        settings(f"from={folder}", "learner.bach=3")
    with pytest.raises(Mistake, match="experiment=qmix_spread"):
        settings(f"from={folder}", "experiment=qmix_spread")


def test_a_run_goes_on_under_its_own_settings() -> None:
    folder = opened(*TOY, "name=mine", "learner.batch=16", "steps=5000", "logdir=elsewhere")
    on = settings(
        "resume=mine", "logdir=elsewhere", "steps=6000", "device=cpu", "log.terminal=false", "checkpoint.keep=9"
    )
    assert (on.resume, on.name, on.logdir) == (str(folder), "mine", "elsewhere")
    assert (on.steps, on.device, on.log.terminal, on.checkpoint.keep, on.learner.batch) == (6000, "cpu", False, 9, 16)
    moved = folder.rename("copy")
    assert open_folder(settings("resume=copy")) == moved
    backend = settings("resume=copy", "rollout.backend=ray", "rollout.timeout=9", "ray.dashboard=true")
    assert (backend.rollout.backend, backend.rollout.timeout, backend.ray.dashboard) == ("ray", 9.0, True)


@pytest.mark.parametrize(
    "change", ["learner.batch=8", "seed=1", "algo.hidden=8", "algo=vdn", "rollout.inflight=9", "name=b"]
)
def test_a_run_that_goes_on_stays_the_same_experiment(change: str) -> None:
    folder = opened(*TOY)
    with pytest.raises(Mistake, match=f"^{change}: would change the experiment; .*from={folder}"):
        settings(f"resume={folder}", change)


def test_a_run_does_not_become_shorter() -> None:
    folder = opened(*TOY, "steps=5000")
    with pytest.raises(Mistake, match="^steps=4000: .*5000"):
        settings(f"resume={folder}", "steps=4000")


def test_a_longer_run_stays_longer() -> None:
    folder = opened(*TOY, "steps=5000")
    open_folder(settings(f"resume={folder}", "steps=9000"))
    assert settings(f"resume={folder}").steps == 9000


def test_a_mistyped_run_is_suggested() -> None:
    opened(*TOY)
    with pytest.raises(Mistake, match="did you mean qmix_meet_s0?"):
        settings("from=qmix_met_s0")


def test_a_file_that_is_no_text_is_named() -> None:
    Path("broken.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Mistake, match="broken.yaml: not "):
        settings("from=broken.yaml")


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "algo: qmix\nenv: meet\n", "seed: 3\n"])
def test_a_file_that_is_no_configuration_is_named(text: str) -> None:
    Path("broken.yaml").write_text(text)
    with pytest.raises(Mistake, match="broken.yaml: not ") as caught:
        settings("from=broken.yaml")
    assert "\n" not in str(caught.value)


def test_no_run_writes_into_another() -> None:
    assert [opened(*TOY).name for _ in range(3)] == ["qmix_meet_s0", "qmix_meet_s0-2", "qmix_meet_s0-3"]
    assert OmegaConf.load("runs/qmix_meet_s0-2/config.yaml").name == "qmix_meet_s0-2"
    opened(*TOY, "name=qmix_meet_s0_long")
    with pytest.raises(Mistake, match="^name=qmix_meet_s0_long: "):
        opened(*TOY, "name=qmix_meet_s0_long")
    opened(*TOY, "name=mine")
    with pytest.raises(Mistake, match="^name=mine: .*resume=runs/mine"):
        opened(*TOY, "name=mine")


def test_a_name_that_is_taken_is_told_before_the_first_run_of_a_sweep(capsys: Capture) -> None:
    opened(*TOY, "name=mine_seed-1")
    assert run(never, "-m", *TOY, "name=mine", "seed=0,1") == 2
    assert "name=mine_seed-1" in capsys.readouterr().err


def test_surroundings_are_written_down() -> None:
    folder = opened(*TOY)
    told = json.loads((folder / "environment.json").read_text())
    assert told["packages"]["torch"] == metadata.version("torch")
    assert told["hardware"]["cores"] == os.cpu_count()
    assert told["hardware"]["cpu"]
    assert told["python"].startswith("3.")
    sources = Path(__file__).parent.parent
    if (sources / ".git").exists():
        head = subprocess.run(["git", "-C", sources, "rev-parse", "HEAD"], capture_output=True, text=True)
        assert told["git"]["commit"] == (head.stdout.strip() if head.returncode == 0 else None)
        assert isinstance(told["git"]["dirty"], bool)
    open_folder(settings(f"resume={folder}"))
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "environment-2.json", "environment.json"]


def test_a_run_that_is_alive_is_not_gone_on_with(capsys: Capture) -> None:
    with held_folder(settings(*TOY, "name=mine")) as folder:
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(Mistake, match="resume=.*mine: that run is alive in another process"):
            with held_folder(settings(f"resume={folder}")):
                pass
        assert sorted(path.name for path in folder.iterdir()) == before
    with held_folder(settings(f"resume={folder}")) as again:
        assert again == folder


def test_a_file_beside_which_there_is_no_run_is_not_gone_on_with(tmp_path: Path) -> None:
    kept = tmp_path / "s0.yaml"
    kept.write_text((opened(*TOY) / "config.yaml").read_text())
    with pytest.raises(Mistake, match=f"resume={kept}: allowed are a run's folder or config.yaml; from={kept} starts"):
        settings(f"resume={kept}")
    with pytest.raises(Mistake, match=f"run={kept}: allowed are a run's folder or config.yaml"):
        cli.load(str(kept), algos.ALGORITHMS, envs.ENVIRONMENTS)
    assert settings(f"from={kept}").algo.name == "qmix"


def test_a_logdir_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("")
    with pytest.raises(Mistake, match="logdir=.*full: cannot be written: Not a directory"):
        opened(*TOY, f"logdir={tmp_path / 'full'}")


def test_a_saved_run_is_loaded_for_other_commands() -> None:
    folder = opened(*TOY, "name=mine", "algo.hidden=8")
    made, found = cli.load("mine", algos.ALGORITHMS, envs.ENVIRONMENTS, ["env.grid=4"])
    assert (found, made.name, made.algo.hidden, made.env.grid) == (folder, "mine", 8, 4)


# what is shown


def test_help_lists_everything_without_importing_torch() -> None:
    code = (
        "import sys, algos, envs; from marl.command import cli;"
        "status = cli.run(None, ['--help'], algos.ALGORITHMS, envs.ENVIRONMENTS);"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    sources = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": sources})
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    described = {line[0] for line in lines if len(line) > 2}
    assert described >= {*algos.ALGORITHMS, *envs.ENVIRONMENTS, *files("experiment")}
    keys = {start.partition("=")[0] for start in described}
    assert keys >= {key for key, _, _ in leaves(Settings(None, None))}


@pytest.mark.parametrize("module", [*algos.ALGORITHMS.values(), *envs.ENVIRONMENTS.values()])
def test_every_number_has_a_range_and_every_condition_a_setting(module: str) -> None:
    for key, value, entry in leaves(import_module(module).Config()):
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        assert "least" in entry.metadata or not numeric, key
    for holder in (import_module(module).Config, Optimizer, Rollout, Replay):
        named = {entry.name: entry for entry in fields(holder)}
        for entry in named.values():
            for sibling, needed in entry.metadata.get("needed", {}).items():
                assert set(needed) <= {*named[sibling].metadata.get("allowed", needed)}, entry.name


def test_every_setting_is_explained() -> None:
    assert [entry.key for entry in listed(Settings) if not entry.comment] == []


def test_help_explains_what_is_chosen(capsys: Capture) -> None:
    assert run(never, "algo=random_attack", "algo.base=qmix", "env=meet", "-h") == 0
    out = capsys.readouterr().out
    assert [key for key in ("algo.attack.budget=8", "algo.base.mixing_embed=32", "env.grid=") if key not in out] == []


def test_the_whole_configuration_can_be_shown_and_used(capsys: Capture) -> None:
    assert run(never, *TOY, "seed=5", "--cfg") == 0
    shown = capsys.readouterr().out
    Path("mine.yaml").write_text(shown)
    assert replace(settings("from=mine.yaml"), from_=None) == settings(*TOY, "seed=5")
    assert run(never, "-m", *TOY, "seed=0,1", "--config") == 0
    assert capsys.readouterr().out.count("seed:") == 2


def test_composing_leaves_folder_and_logging_alone(tmp_path: Path) -> None:
    handlers, level = list(logging.root.handlers), logging.root.level
    settings(*TOY)
    assert (logging.root.handlers, logging.root.level) == (handlers, level)
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []
