"""Risk: a worker that dies, hangs or errs costs more than its own time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from marl.crews.crew import GRACE
from marl.crews.dispatch import ATTEMPTS, WorkerError
from marl.env import EnvUnavailable
from marl.worker import Rollout
from tests.troubles import MakeWorker, Mishap, Trouble, fleet, plan, play, same, weights

ROOT = Path(__file__).parent.parent
PATIENCE = 5.0
RAY = pytest.param("ray", marks=pytest.mark.ray)


@pytest.fixture(scope="module")
def expected() -> list[Rollout]:
    with fleet("inline") as crew:
        return play(crew)


@pytest.fixture(scope="module")
def ray_here():
    """Ray, started by a fleet; the fleets of later tests find it running."""
    with fleet("ray", workers=1) as crew:
        crew.submit(plan(0), crew.publish(weights()))
        crew.receive()
        yield


@pytest.fixture
def backend(request):
    if request.param == "ray":
        request.getfixturevalue("ray_here")
    return request.param


def struck(backend, kind, folder, expected, told, **kw) -> None:
    """Trouble strikes once; everything is played as if it had not, and one line tells of it."""
    warned: list[str] = []
    make = MakeWorker(trouble=Trouble(kind, folder).arm())
    with fleet(backend, make, warn=warned.append, **kw) as crew:
        played = play(crew)
        assert crew.in_flight == 0 and crew.outstanding() == []
    same(expected, played if kw.get("ordered", True) else sorted(played, key=lambda rollout: rollout.plan.number))
    assert crew.restarts == len(warned) == 1
    assert told in warned[0] and "\n" not in warned[0]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("killed", "was killed by SIGKILL while playing plan 0"),
        ("segfault", "was killed by SIGSEGV while playing plan 0"),
        ("exit", "ended with exit code 3 while playing plan 0"),
        ("error", "raised Mishap: the wheel came off while playing plan 0"),
    ],
)
def test_a_lost_process_is_replaced_and_its_plans_are_played(kind, told, tmp_path, expected):
    struck("local", kind, tmp_path, expected, told)


def test_in_any_order_too_nothing_is_lost_or_counted_twice(tmp_path, expected):
    struck("local", "killed", tmp_path, expected, "was killed by SIGKILL", workers=2, ordered=False)


@pytest.mark.ray
@pytest.mark.parametrize(("kind", "told"), [("killed", "was lost ("), ("error", "raised Mishap: the wheel came off")])
def test_a_lost_actor_is_replaced_and_its_plans_are_played(kind, told, tmp_path, expected, ray_here):
    struck("ray", kind, tmp_path, expected, told, workers=2)


@pytest.mark.parametrize("backend", ["local", RAY], indirect=True)
def test_a_worker_that_hangs_is_replaced_and_its_engine_ended(backend, tmp_path, expected):
    told = f"took longer than rollout.timeout={PATIENCE:g} s while playing plan"
    struck(backend, "hang", tmp_path, expected, told, workers=2, timeout=PATIENCE)
    trouble = Trouble("hang", tmp_path)
    psutil.wait_procs(trouble.engines(), timeout=10)
    assert not trouble.engines()


def test_an_error_that_comes_back_is_told_with_its_traceback(tmp_path):
    make = MakeWorker(trouble=Trouble("error", tmp_path).arm(100))
    with fleet("local", make) as crew:
        crew.submit(plan(7), crew.publish(weights()))
        with pytest.raises(WorkerError, match=r"raised Mishap: .* while playing plan 7, like 2 workers") as caught:
            crew.receive()
        assert crew.restarts == ATTEMPTS - 1
    assert 'raise Mishap("the wheel came off")' in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "at_start"),
    [("local", True), ("local", False), pytest.param("ray", True, marks=pytest.mark.ray)],
    indirect=["backend"],
)
def test_a_world_that_cannot_run_here_is_told_at_once(backend, at_start, tmp_path):
    make = MakeWorker(trouble=Trouble("unavailable", tmp_path).arm(100), at_start=at_start)
    with fleet(backend, make) as crew:
        crew.submit(plan(0), crew.publish(weights()))
        with pytest.raises(EnvUnavailable, match="^clockwork cannot run here: wind it up$"):
            crew.receive()
        assert crew.restarts == 0


def test_what_a_worker_of_this_process_raises_is_raised_here_and_can_be_tried_again(tmp_path, expected):
    with fleet("inline", MakeWorker(trouble=Trouble("error", tmp_path).arm())) as crew:
        crew.submit(plan(0), crew.publish(weights()))
        with pytest.raises(Mishap):
            crew.receive()
        same(expected[:1], [crew.receive()])


def test_a_worker_that_cannot_be_made_is_told_at_once(tmp_path):
    make = MakeWorker(trouble=Trouble("error", tmp_path).arm(100), at_start=True)
    with fleet("local", make) as crew:
        crew.submit(plan(0), crew.publish(weights()))
        with pytest.raises(WorkerError, match="raised Mishap: the wheel came off while starting\n") as caught:
            crew.receive()
        assert crew.restarts == 0
    assert "Traceback" in str(caught.value)


def test_a_worker_that_dies_at_its_start_is_tried_again(tmp_path, expected):
    warned: list[str] = []
    make = MakeWorker(trouble=Trouble("killed", tmp_path).arm(), at_start=True)
    with fleet("local", make, warn=warned.append) as crew:
        same(expected, play(crew))
    assert warned == ["worker 0 was killed by SIGKILL while starting: it was replaced, nothing is lost"]


def test_close_leaves_nothing_behind(tmp_path):
    me = psutil.Process()
    before = set(me.children(recursive=True))
    trouble = Trouble("busy", tmp_path).arm()
    with fleet("local", MakeWorker(trouble=trouble), workers=2, ordered=False) as crew:
        version = crew.publish(weights())
        for number in range(3):
            crew.submit(plan(number), version)
        crew.receive()
        trouble.wait()
        assert trouble.engines()
    crew.close()
    left = [p for p in set(me.children(recursive=True)) - before if "resource_tracker" not in " ".join(p.cmdline())]
    assert not left and not trouble.engines()


def lingering(backend: str, folder: Path) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A learner whose two workers play for ever, and all the processes that it has."""
    trouble = Trouble("busy", folder).arm(2)
    code = f"from tests.troubles import linger; linger({backend!r}, {str(folder)!r})"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    learner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True, **pipes)
    trouble.wait(2)
    return learner, psutil.Process(learner.pid).children(recursive=True)


@pytest.mark.parametrize("backend", ["local", RAY])
def test_nothing_survives_a_learner_that_is_killed(backend, tmp_path):
    learner, processes = lingering(backend, tmp_path)
    assert sum(p.cmdline()[:1] == ["sleep"] for p in processes) == 2
    agents = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}  # Ray's own, idle: they give up after a minute
    ours = [p for p in processes if p.name() not in agents]
    learner.kill()
    _, alive = psutil.wait_procs(ours, timeout=GRACE + 30)
    assert not alive


@pytest.mark.parametrize("backend", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_ctrl_c_is_the_learners_alone(backend, tmp_path):
    learner, processes = lingering(backend, tmp_path)
    os.killpg(learner.pid, signal.SIGINT)
    told, _ = learner.communicate()
    assert learner.returncode == 0 and told == "closed\n"
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
