"""Risk: who plays, or where, changes what is played."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter, deque
from pathlib import Path

import numpy as np
import psutil
import pytest

from marl.crews import dispatch
from marl.crews.crew import Crew, Event, Fault, Placed, Ready
from marl.crews.dispatch import ATTEMPTS, Fleet, WorkerError
from marl.crews.ledger import HANDFUL
from marl.worker import Rollout
from tests.troubles import MakeWorker, fleet, plan, play, same, weights

ROOT = Path(__file__).parent.parent


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


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_play_what_one_would_play(expected, workers):
    with fleet("local", workers=workers) as crew:
        same(expected, play(crew))
        assert crew.restarts == 0


@pytest.mark.ray
def test_ray_plays_what_one_would_play(expected, ray_here):
    with fleet("ray", workers=2) as crew:
        same(expected, play(crew))
        assert crew.restarts == 0


def test_the_algorithm_does_not_matter():
    make = MakeWorker("vdn")
    with fleet("inline", make) as one, fleet("local", make, workers=2) as other:
        same(play(one, "vdn", plans=4), play(other, "vdn", plans=4))


def test_any_order_brings_each_plan_once(expected):
    with fleet("local", workers=2, ordered=False) as crew:
        played = play(crew)
    same(expected, sorted(played, key=lambda rollout: rollout.plan.number))


def test_weights_are_those_of_the_moment_of_publishing():
    with fleet("inline") as crew:
        current = weights(seed=1)
        version = crew.publish(current)
        crew.submit(plan(0), version)
        for array in current.values():
            array[...] = np.nan
        kept = crew.weights_of(version)
        for name, array in weights(seed=1).items():
            np.testing.assert_array_equal(kept[name], array)
        assert np.isfinite(crew.receive().records[0]["obs"]).all()


def test_transposed_weights_arrive_as_they_are():
    with fleet("inline") as crew:
        table = np.arange(6.0).reshape(2, 3)
        kept = crew.weights_of(crew.publish({"table": table.T, "count": np.array(7)}))
    np.testing.assert_array_equal(kept["table"], table.T)
    assert kept["count"].shape == () and kept["count"] == 7


def test_what_is_in_flight_can_be_asked_for_again(expected):
    with fleet("local") as first:
        for number in range(5):
            if number % 3 == 0:
                version = first.publish(weights(seed=number))
            first.submit(plan(number), version)
        received = [first.receive()]
        asked = first.outstanding()
        assert [(p.number, v) for p, v in asked] == [(1, 1), (2, 1), (3, 2), (4, 2)] and first.in_flight == 4
        saved = {v: first.weights_of(v) for _, v in asked}
    with fleet("inline") as second:
        for old, kept in saved.items():
            version = second.publish(kept)
            for again in (p for p, v in asked if v == old):
                second.submit(again, version)
        received += [second.receive() for _ in asked]
    same(expected[:5], received)


def test_weights_are_kept_as_long_as_they_are_needed():
    with fleet("inline") as crew:
        old = crew.publish(weights(seed=1))
        crew.submit(plan(0), old)
        new = crew.publish(weights(seed=2))
        assert crew.weights_of(old).keys() == crew.weights_of(new).keys()
        crew.receive()
        with pytest.raises(KeyError, match="version 1 are not kept: kept are \\[2\\]"):
            crew.submit(plan(1), old)
        crew.submit(plan(1), new)
        assert crew.receive().plan == plan(1)


def test_nothing_is_received_that_was_not_asked_for():
    with fleet("inline") as crew, pytest.raises(RuntimeError, match="no plan is in flight"):
        crew.receive()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"backend": "rya"}, "rollout.backend=rya: allowed are inline, local, ray"),
        ({"workers": 0}, "rollout.workers=0: at least 1"),
        ({"timeout": 0.0}, "rollout.timeout=0.0: more than 0"),
        ({"backend": "ray", "address": "here"}, "ray.address=here: allowed are auto, host:port"),
        ({"backend": "ray", "address": "here:99999"}, "ray.address=here:99999: allowed are auto, host:port"),
    ],
)
def test_a_wrong_argument_is_told_in_a_line(wrong, told):
    with pytest.raises(ValueError, match=told):
        fleet(**({"backend": "local"} | wrong))


class Mob(Crew):
    """Workers that answer in any order, die whenever they like, and check how they are treated."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._held: dict[int, deque] = {}
        self._starting: set[int] = set()
        self._versions: dict[int, int] = {}
        self._deaths: Counter = Counter()

    def start(self, seat):
        assert seat not in self._held
        self._held[seat] = deque()
        self._starting.add(seat)

    def give(self, seat, plan, weights):
        assert seat not in self._starting
        if weights is not None:
            self._versions[seat] = weights.version
        self._held[seat].append((plan, self._versions[seat]))
        assert len(self._held[seat]) <= HANDFUL

    def stop(self, seat):
        del self._held[seat]
        self._starting.discard(seat)
        self._versions.pop(seat, None)

    def wait(self, seconds):
        heard = [seat for seat in self._held if self._chance.random() < 0.5]
        return [Event(seat, self._news(seat)) for seat in heard if seat in self._starting or self._held[seat]]

    def _news(self, seat):
        doing = ("start", seat) if seat in self._starting else self._held[seat][0][0].number
        if self._chance.random() < 0.3 and self._deaths[doing] < ATTEMPTS - 1:
            self._deaths[doing] += 1
            return Fault("died")
        del self._deaths[doing]
        if seat in self._starting:
            self._starting.remove(seat)
            return Ready(0)
        plan, version = self._held[seat].popleft()
        return Rollout(plan, [], {"version": version})

    def forget(self, version):
        assert all(version != needed for held in self._held.values() for _, needed in held)

    def close(self):
        self._held.clear()


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens_to_workers_each_plan_is_received_once(seed, ordered):
    warned: list[str] = []
    crew = Fleet(Mob(seed), 1 + seed % 4, ordered=ordered, timeout=1e9, warn=warned.append)
    asked, received = [], []
    for number in range(12):
        if number % 4 == 0:
            version = crew.publish({"w": np.array(number)})
        crew.submit(plan(number), version)
        asked.append((plan(number), version))
        if crew.in_flight > 5:
            received.append(crew.receive())
        assert crew.in_flight == len(asked) - len(received) == len(crew.outstanding())
    while crew.in_flight:
        received.append(crew.receive())
    told = [(rollout.plan, rollout.seconds["version"]) for rollout in received]
    assert (told if ordered else sorted(told, key=lambda pair: pair[0].number)) == asked
    assert len(warned) == crew.restarts > 0
    crew.close()


class Crowded(Mob):
    """Only the first seat ever gets a core."""

    queued = True

    def wait(self, seconds):
        return [event for event in super().wait(seconds) if event.seat == 0]

    def _news(self, seat):
        if seat in self._starting:
            self._starting.remove(seat)
            return Ready(0)
        plan, version = self._held[seat].popleft()
        return Rollout(plan, [], {"version": version})


def test_a_worker_may_wait_for_a_core_as_long_as_others_play(monkeypatch):
    monkeypatch.setattr(dispatch, "START_LIMIT", -1.0)
    crew = Fleet(Crowded(0), 2, ordered=True, timeout=1e9, warn=pytest.fail)
    version = crew.publish({"w": np.array(0)})
    for number in range(12):
        crew.submit(plan(number), version)
    assert [crew.receive().plan.number for _ in range(12)] == list(range(12))
    crew.close()


def test_the_time_to_be_made_begins_with_a_core(monkeypatch):
    monkeypatch.setattr(dispatch, "START_LIMIT", -1.0)
    monkeypatch.setattr(Crowded, "_news", lambda self, seat: Placed())
    crew = Fleet(Crowded(0), 1, ordered=True, timeout=1e9, warn=lambda line: None)
    crew.submit(plan(0), crew.publish({"w": np.array(0)}))
    with pytest.raises(WorkerError, match=r"worker 0 took longer than -1 s while starting, like 2 workers before it"):
        crew.receive()
    crew.close()


@pytest.mark.ray
def test_ray_listens_on_this_machine_alone(ray_here):
    here = psutil.Process()
    connections = [c for p in [here, *here.children(recursive=True)] for c in p.net_connections("inet")]
    listening = {c.laddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening and all(ip == "::1" or ip.startswith("127.") for ip in listening)


CLUSTER = """
from ray.cluster_utils import Cluster
import psutil, ray
from tests.troubles import fleet, play, same
if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    with fleet("inline") as one, fleet("ray", workers=2, address=cluster.address) as two:
        same(play(one), play(two))
        assert ray.is_initialized() and two.restarts == 0
        players = []
        while len(players) < 2:  # one may still be starting
            same(play(two), play(two))
            players = [p for p in psutil.Process().children(recursive=True) if p.name() == "ray::Player"]
        print("nodes", len({p.ppid() for p in players}), "players", len(players))
    assert not ray.is_initialized()
    cluster.shutdown()
"""


@pytest.mark.ray
def test_workers_spread_over_the_nodes_of_a_cluster():
    ran = subprocess.run([sys.executable, "-c", CLUSTER], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "nodes 2 players 2" in ran.stdout


@pytest.mark.ray
def test_a_cluster_that_does_not_answer_is_told_in_a_line():
    script = (
        "from tests.troubles import *\n"
        "crew = fleet('ray', address='127.0.0.1:1')\n"
        "try:\n    crew.submit(plan(0), crew.publish(weights()))\n"
        "except ValueError as error:\n    print(error)\n"
        "crew.close()"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "ray.address=127.0.0.1:1: no Ray cluster answers there" in ran.stdout, ran.stderr
