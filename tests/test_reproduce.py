"""Risk: a table of results says what no run has shown."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from marl.fields import Mistake
from marl.reporting.curves import Series
from marl.reporting.statistics import Estimate
from marl.reproduce import REGISTRIES, main
from marl.reproduction import compare, report, results, tables
from marl.reproduction.jobs import Job, Pool, Stage
from marl.reproduction.tables import Figure, Header, Row, read

ROOT = Path(__file__).parent.parent
Capture = pytest.CaptureFixture[str]
TINY = (
    "env=meet rollout.envs_per_worker=4 learner.batch=8 learner.burn_in=8 learner.updates_per_episode=0.5 "
    "checkpoint.every_steps=200 eval.every_steps=500 eval.episodes=6 log.every_steps=100 algo.hidden=16"
)
PLAIN = {
    "title": "Tiny",
    "scale": "Return of an episode.",
    "steps": 2000,
    "seeds": 2,
    "window": 2,
    "settings": TINY,
    "algorithms": {"qmix": "algo=qmix"},
    "sources": {"Book": "Somebody 2020, Table 1"},
    "tasks": {"meet": {"random": -1.0, "published": {"qmix": [{"value": 9.0, "source": "Book"}]}}},
}


def saved(folder: Path, **changes: object) -> Path:
    """A table's file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump({**PLAIN, **changes}))
    return file


def arguments(table: Path, home: Path, *more: str) -> list[str]:
    return [str(table), f"results={home / 'results'}", f"logdir={home / 'runs'}", *more]


def raw(home: Path) -> dict[str, str]:
    """Every recorded evaluation, as text."""
    return {str(file.relative_to(home)): file.read_text() for file in sorted((home / "results").rglob("*.csv"))}


def contents(home: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted((home / "results").rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a table that was run without trouble."""
    home = tmp_path_factory.mktemp("unbroken")
    assert main(arguments(saved(home, fresh=5), home)) == 0
    return home


# running


def test_a_row_is_run_kept_and_then_left_alone(unbroken: Path, capsys: Capture) -> None:
    assert list(raw(unbroken)) == ["results/tiny/meet/qmix/s0.csv", "results/tiny/meet/qmix/s1.csv"]
    (row,) = tables.load(str(unbroken / "tiny.yaml")).rows
    runs = results.recorded(unbroken / "results", row)
    assert [run.seed for run in runs] == [0, 1]
    for run in runs:
        steps = run.evaluations["eval/return"].steps
        assert steps[0] == 0 and steps[-1] >= 2000 and len(steps) == 5
        assert set(run.evaluations) >= {"eval/return", "eval/success", "eval/length"}
        assert run.about["fresh"]["return"]["n"] == 5 and run.about["sessions"][0]["machine"]
        assert results.differing(run, results.wanted(row, REGISTRIES), REGISTRIES) == []
        assert str(unbroken) not in run.config.read_text()
    before = contents(unbroken)
    assert main(arguments(unbroken / "tiny.yaml", unbroken)) == 0
    told = capsys.readouterr().out
    assert "[1/" not in told and "2 of 2 seeds" in told and contents(unbroken) == before


def test_recorded_numbers_are_those_that_the_run_logged(unbroken: Path) -> None:
    (folder,) = (unbroken / "runs" / "tiny").glob("meet-qmix-s1-*")
    logged = [line.split(",") for line in (folder / "scalars.csv").read_text().splitlines()]
    returns = {step: value for step, tag, value in logged if tag == "eval/return"}
    head, *rows = [line.split(",") for line in raw(unbroken)["results/tiny/meet/qmix/s1.csv"].splitlines()]
    assert {row[0]: row[head.index("return")] for row in rows} == returns


@pytest.mark.slow
def test_a_table_that_was_stopped_and_killed_goes_on_to_the_same_numbers(unbroken: Path, tmp_path: Path) -> None:
    asked = arguments(saved(tmp_path), tmp_path, "jobs=1")
    command = [sys.executable, "-m", "marl.reproduce", *asked]
    for how, saves in ((signal.SIGINT, 2), (signal.SIGKILL, 5)):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while newest(tmp_path) < 200 * saves:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(how)
        _, errors = process.communicate()
        if how == signal.SIGINT:
            assert process.returncode == 130 and "stopped" in errors and "Traceback" not in errors
    wait_for_orphans(tmp_path)
    assert main(asked) == 0
    assert raw(tmp_path) == raw(unbroken)


def newest(home: Path) -> int:
    return max((int(path.name) for path in (home / "runs").glob("tiny/*/checkpoints/[0-9]*")), default=0)


def wait_for_orphans(home: Path) -> None:
    """A run outlives the command that was killed, and keeps its lock as long."""
    for file in (home / "runs" / "tiny" / ".lock").iterdir():
        with file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)


def test_a_run_that_another_process_has_is_left_to_it(unbroken: Path, tmp_path: Path, capsys: Capture) -> None:
    table = saved(tmp_path)
    (lock,) = (unbroken / "runs" / "tiny" / ".lock").glob("meet-qmix-s0-*")
    here = tmp_path / "runs" / "tiny" / ".lock" / lock.name
    here.parent.mkdir(parents=True)
    with here.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(arguments(table, tmp_path, "seeds=0")) == 1
    assert "meet/qmix seed 0: elsewhere" in capsys.readouterr().err and not raw(tmp_path)


def test_a_spent_budget_saves_and_stops(tmp_path: Path, capsys: Capture) -> None:
    assert main(arguments(saved(tmp_path, steps=10_000_000), tmp_path, "seeds=0", "budget=1s")) == 1
    told = capsys.readouterr()
    assert "1 of 1 runs are not done; the same command goes on with them" in told.err and not raw(tmp_path)


def test_what_cannot_run_is_one_line_and_the_rest_runs(tmp_path: Path, capsys: Capture) -> None:
    table = saved(
        tmp_path,
        algorithms={"qmix": "algo=qmix", "lost": "algo=qmixx"},
        tasks={"meet": {"seeds": 1}, "bad": {"settings": "env.grid=0", "algorithms": ["qmix"]}},
        steps=200,
        settings=TINY.replace("eval.every_steps=500", "eval.every_steps=100"),
    )
    assert main(arguments(table, tmp_path, "jobs=1")) == 1
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert [line for line in lines if line.startswith("meet/lost: not available: algo=qmixx: no such algorithm")]
    assert sum("bad/qmix" in line and "env.grid=0" in line for line in lines) == 1 and "Traceback" not in told.err
    assert len(raw(tmp_path)) == 1


def test_one_job_that_cannot_be_finished_ends_no_other(tmp_path: Path) -> None:
    def full() -> str:
        raise OSError(28, "No space left on device")

    def lost() -> list[str]:
        raise KeyError("config.yaml")

    def job(name: str, stages: tuple[Stage, ...], finish: Callable[[], str]) -> Job:
        return Job(name, name, stages, finish, tmp_path / f"{name}.txt", tmp_path / f"{name}.lock")

    waits = [sys.executable, "-c", "import time; time.sleep(1)"]
    jobs = [
        job("full", (), full),
        job("lost", (lost,), str),
        job("whole", (lambda: waits,), lambda: "all there"),
    ]
    how = {one.job.name: (one.how, one.line) for one in Pool(3, lambda ended: None).run(jobs)}
    assert how["whole"] == ("done", "all there")
    assert how["full"] == ("failed", "[Errno 28] No space left on device")
    assert how["lost"] == ("failed", "KeyError('config.yaml')")


def test_other_settings_are_another_experiment(unbroken: Path, tmp_path: Path) -> None:
    root = unbroken / "results"
    (row,) = tables.load(str(saved(tmp_path, settings=f"{TINY} learner.updates_per_episode=0.25"))).rows
    found = report.measured(root, row, Header(), REGISTRIES)
    assert "learner.updates_per_episode=0.5" in found.other and len(found.runs) == 2
    (row,) = tables.load(str(saved(tmp_path, settings=f"{TINY} rollout.backend=inline rollout.workers=1"))).rows
    assert report.measured(root, row, Header(), REGISTRIES).other == ""


def test_a_row_that_asks_for_other_steps_shows_those_that_were_run(unbroken: Path, tmp_path: Path) -> None:
    table = tables.load(str(saved(tmp_path, steps=2_050_000)))
    told = report.markdown(table, unbroken / "results", REGISTRIES)
    assert "| meet | qmix† | 2k | 2 |" in told and "other settings" in told
    assert report.brief(2_050_000) == "2.05M" and report.brief(1234) == "1,234"


def test_an_unfinished_run_is_not_recorded(unbroken: Path, tmp_path: Path) -> None:
    (row,) = tables.load(str(saved(tmp_path))).rows
    (folder,) = (unbroken / "runs" / "tiny").glob("meet-qmix-s0-*")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text((folder / "config.yaml").read_text())
    lines = (folder / "scalars.csv").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "scalars.csv").write_text("".join(line for line in lines if not line.startswith("20")))
    with pytest.raises(results.Incomplete, match="of 2,000"):
        results.record(tmp_path / "results", row, tmp_path / "run", 0, REGISTRIES)
    with pytest.raises(results.Incomplete, match="not evaluated on 7"):
        results.record(tmp_path / "results", row, folder, 7, REGISTRIES)
    assert not (tmp_path / "results").exists()


def test_random_play_is_measured(unbroken: Path, capsys: Capture) -> None:
    table = saved(unbroken / "elsewhere", tasks={"meet": {}})
    assert main(arguments(table, unbroken, "--random", "episodes=200")) == 0
    (row,) = tables.load(str(table)).rows
    share = results.random_of(unbroken / "results", row, Header(metric="eval/success"))
    assert share is not None and 0.0 < share < 0.9
    assert "success" in capsys.readouterr().out


# judging


def run_of(seed: int, *values: float, **about: object) -> results.Recorded:
    series = Series(np.arange(len(values)) * 10, np.array(values))
    return results.Recorded(seed, Path("s0.yaml"), {"eval/return": series}, {"fresh": None, **about})


def test_readme_is_not_emptied_by_results_that_are_not_there(tmp_path, capsys) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table: matrix -->\nfigures\n<!-- /table -->\n")
    assert main(["--readme", f"readme={readme}", f"results={tmp_path / 'nowhere'}"]) == 2
    assert "results=" in capsys.readouterr().err and "figures" in readme.read_text()


def test_last_is_the_mean_of_the_last_evaluations_with_students_interval() -> None:
    header = Header(summary="last", window=2)
    found = compare.standing([run_of(0, 0, 100, 1, 3), run_of(1, 0, 100, 3, 5)], header)
    assert found.value == 3.0 and found.n == 2
    assert found.high - found.value == pytest.approx(12.706, abs=1e-3)  # t(0.975, 1) times a standard error of 1


def test_max_is_the_best_evaluation_of_the_mean_not_the_mean_of_the_best() -> None:
    runs = [run_of(0, 0, 9, 4), run_of(1, 0, -9, 6)]
    assert compare.standing(runs, Header(summary="max")).value == 5.0


def test_the_best_of_many_evaluations_is_found() -> None:
    values = np.zeros(1000)
    values[501] = 100.0
    runs = [run_of(seed, *values) for seed in (0, 1)]
    assert compare.standing(runs, Header(summary="max")).value == 100.0


def test_final_policies_are_one_estimate_over_runs() -> None:
    about = [{"fresh": {"return": {"value": value, "low": value - 1, "high": value + 1, "n": 100}}} for value in (1, 3)]
    found = compare.fresh([run_of(seed, 1.0, **told) for seed, told in enumerate(about)], Header())
    assert found is not None and (found.value, found.n) == (2.0, 2)
    assert found.high - found.value == pytest.approx(12.706, abs=1e-3)


def test_the_final_policy_is_judged_greedy_without_attackers_and_at_its_last_step(tmp_path: Path) -> None:
    def evaluated(name: str, step: int = 9, **asked: object) -> dict[str, object] | None:
        request = {"attack": None, "episodes": 100, "epsilon": 0.0, "seed": None} | asked
        (tmp_path / "evaluations").mkdir(exist_ok=True)
        told = {"step": step, "request": request, "return": 1}
        (tmp_path / "evaluations" / f"{name}.json").write_text(json.dumps(told))
        return results.final_policy(tmp_path, 100, 9)

    others = [{"epsilon": 0.1}, {"seed": 3}, {"attack": {"name": "x"}}, {"episodes": 99}, {"step": 5}]
    for number, asked in enumerate(others):
        assert evaluated(f"{number}_clean", **asked) is None, asked
    assert evaluated("6_training") is None
    assert evaluated("7_clean") == {"step": 9, "return": 1, "episodes": 100}


def test_what_was_trained_under_attack_is_judged_without(tmp_path: Path) -> None:
    attacked = {"attacked": f"algo=random_attack algo.base=vdn {TINY.replace('algo.hidden', 'algo.base.hidden')}"}
    changes = {"steps": 200, "seeds": 1, "fresh": 5, "settings": "", "algorithms": attacked, "tasks": {"meet": {}}}
    assert main(arguments(saved(tmp_path, **changes), tmp_path)) == 0
    assert [file.name for file in tmp_path.rglob("evaluations/*")] == ["0000000200_clean.json"]


def test_untrained_networks_are_no_best_evaluation() -> None:
    """A lucky draw of weights may play a matrix game well before anything is learned."""
    runs = [run_of(0, 275, 4, 6), run_of(1, 275, 6, 3)]
    assert compare.standing(runs, Header(summary="max")).value == 5.0


def test_iqm_drops_the_outer_quarters() -> None:
    pytest.importorskip("rliable")
    runs = [run_of(seed, value) for seed, value in enumerate([0.0, 4.0, 6.0, 1000.0])]
    assert compare.standing(runs, Header(summary="last", centre="iqm")).value == 5.0


@pytest.mark.parametrize(
    ("published", "margin", "told"),
    [(1.0, 0.9, "better"), (1.0, 1.0, "within"), (5.0, 0.9, "worse"), (5.0, 1.1, "within"), (3.0, None, "within")],
)
def test_better_and_worse_need_intervals_that_are_apart(published: float, margin: float | None, told: str) -> None:
    ours = Estimate(3.0, 2.0, 4.0, 5)
    assert compare.versus(ours, Figure(value=published, margin=margin, source="Book")) == told


def test_one_seed_gives_no_verdict() -> None:
    assert (
        compare.versus(Estimate(9.0, float("nan"), float("nan"), 1), Figure(value=1.0, source="Book")) == "no interval"
    )


def test_what_ends_below_chance_is_marked(unbroken: Path, tmp_path: Path, capsys: Capture) -> None:
    table = saved(tmp_path, tasks={"meet": {"random": 1000.0}})
    told = report.markdown(tables.load(str(table)), unbroken / "results", REGISTRIES)
    assert "**below random**" in told and "Below a random policy: meet/qmix." in told
    assert main([str(table), f"results={unbroken / 'results'}", "--list"]) == 0
    assert "BELOW RANDOM (1000.0)" in capsys.readouterr().out
    assert "below" not in report.markdown(tables.load(str(saved(tmp_path))), unbroken / "results", REGISTRIES)


def test_a_grid_has_a_line_per_algorithm_and_a_column_per_task(unbroken: Path, tmp_path: Path) -> None:
    changes = {"layout": "grid", "tasks": {**PLAIN["tasks"], "other": {}}, "seeds": 3}
    told = report.markdown(tables.load(str(saved(tmp_path, **changes))), unbroken / "results", REGISTRIES)
    head, _, line, chance = [text for text in told.splitlines() if text.startswith("|")]
    assert (
        head.endswith("| meet |") and line.startswith("| qmix | ") and "2 of 3 seeds" in line and "9.0 (Book)" in line
    )
    assert chance == "| random play | −1.0 |" and "2k steps, 3 seeds." in told


def test_figures_say_how_they_were_come_by() -> None:
    row = Row("t", "task", "a", (), 1000, (0,), None, ())
    figure = Figure(value=-3.0, margin=0.5, steps=2_000_000, source="Book", read="figure")
    assert report.quoted(figure, row, 1) == "−3.0 ± 0.5 (Book, 2M, read off a figure)"


# files


def mistake(**changes: object) -> str:
    plain = {key: value for key, value in {**PLAIN, **changes}.items() if value is not ...}
    with pytest.raises(Mistake) as told:
        read("tiny", plain)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sumary": "last"}, ["tiny.yaml: sumary=last", "allowed are", "did you mean summary?"]),
        ({"summary": "lst"}, ["tiny.yaml: summary=lst", "last, max", "did you mean last?"]),
        ({"seeds": 0}, ["tiny.yaml: seeds=0", "1 and more"]),
        ({"steps": "many"}, ["tiny.yaml: steps=many", "a whole number"]),
        ({"title": ...}, ["tiny.yaml: title: is missing"]),
        ({"tasks": {}}, ["tiny.yaml: tasks"]),
        ({"tasks": {"meet": 3}}, ["tasks.meet=3", "a mapping"]),
        ({"tasks": {"meet": {"setings": ""}}}, ["tasks.meet.setings", "did you mean settings?"]),
        ({"tasks": {"meet": {"algorithms": ["qmx"]}}}, ["tasks.meet.algorithms=qmx", "did you mean qmix?"]),
        ({"tasks": {"meet": {"extra": {"vdn": ""}}}}, ["tasks.meet.extra=vdn", "allowed are qmix"]),
        ({"tasks": {"meet": {"published": {"qmix": 3}}}}, ["published.qmix=3", "a list"]),
        ({"tasks": {"meet": {"published": {"qmix": [{"value": 3}]}}}}, ["published.qmix.source: is missing"]),
        (
            {"tasks": {"meet": {"published": {"qmix": [{"value": 3, "source": "Bok"}]}}}},
            ["published.qmix.source=Bok", "did you mean Book?"],
        ),
        ({"tasks": {"a/b": {}}}, ["a/b", "letters, digits"]),
        ({"algorithms": ...}, ["tiny.yaml: algorithms"]),
        ({"settings": "env='meet"}, ["tiny.yaml: ", "env='meet", "No closing quotation"]),
    ],
)
def test_a_slip_in_a_table_is_told_in_one_line(changes: dict[str, object], words: list[str]) -> None:
    told = mistake(**changes)
    assert all(word in told for word in words), told


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["TABLE", "allowed are", "matrix"]),
        (["matrx"], ["matrx: no such table", "did you mean matrix?"]),
        (["matrix", "spread"], ["spread", "one table"]),
        (["matrix", "row=x"], ["row=x", "did you mean rows?"]),
        (["matrix", "rows=climbing/qmx"], ["rows=climbing/qmx", "did you mean climbing/qmix?"]),
        (["matrix", "seeds=a"], ["seeds=a", "whole numbers"]),
        (["matrix", "jobs=0"], ["jobs=0", "1 and more"]),
        (["matrix", "jobs=two"], ["jobs=two", "a whole number"]),
        (["matrix", "budget=1d"], ["budget=1d", "30m"]),
        (["matrix", "results=/dev/null/x"], ["/dev/null/x", "cannot be made"]),
        (["--lst"], ["--lst", "did you mean --list?"]),
        (["--readme", "readme=lost.md"], ["lost.md", "no such file"]),
        (["matrix", "--random", "--list"], ["--list: not beside --random", "one of the two"]),
    ],
)
def test_a_slip_on_the_command_line_is_told_in_one_line(argv: list[str], words: list[str], capsys: Capture) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and all(word in err for word in words), err


def test_patterns_choose_rows() -> None:
    table = read("t", {**PLAIN, "algorithms": {"a": "", "b": ""}, "tasks": {"x": {}, "y": {"seeds": 3}}})
    assert [row.name for row, _ in tables.chosen(table, "x/*,*/b", None)] == ["x/a", "x/b", "y/b"]
    assert [seeds for _, seeds in tables.chosen(table, "y/a", None)] == [(0, 1, 2)]
    assert [seeds for _, seeds in tables.chosen(table, "y/a", "4,2,4")] == [(4, 2)]


@pytest.mark.parametrize("name", tables.names())
def test_every_table_can_be_read_and_its_rows_asked_for(name: str) -> None:
    table = tables.load(name)
    assert len({row.name for row in table.rows}) == len(table.rows)
    seen: set[str] = set()
    for row in table.rows:
        if row.algorithm not in seen:
            seen.add(row.algorithm)
            try:
                assert results.wanted(row, REGISTRIES).steps == row.steps
            except Mistake as told:
                assert "\n" not in str(told)


# README


def test_readme_is_up_to_date_with_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- table: football -->" in text
    assert report.refreshed(text, ROOT / "results", REGISTRIES) == text, "python -m marl.reproduce --readme"


def test_only_what_stands_between_markers_is_made_anew(tmp_path: Path) -> None:
    text = "before\n<!-- table: football -->\nold\n<!-- /table -->\nafter\n"
    made = report.refreshed(text, tmp_path, REGISTRIES)
    assert made.startswith("before\n<!-- table: football -->\n**") and made.endswith("\n<!-- /table -->\nafter\n")
    assert "old" not in made and "0 of 4 rows measured" in made and report.refreshed(made, tmp_path, REGISTRIES) == made


@pytest.mark.parametrize(
    ("text", "words"),
    [("<!-- table: footbal -->\n<!-- /table -->", "did you mean football?"), ("<!-- table: football -->\n", "/table")],
)
def test_a_slip_in_readme_is_told(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=words):
        report.refreshed(text, tmp_path, REGISTRIES)
