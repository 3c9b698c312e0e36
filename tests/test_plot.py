"""Risk: a picture shows what the runs do not say."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image

from marl.plot import draw, main
from marl.reporting.curves import (
    Group,
    Run,
    Series,
    Unplottable,
    common_steps,
    curve,
    differing,
    find_runs,
    grouped,
    held,
    thinned,
)
from marl.reporting.log import Log

pytest.importorskip("rliable")
pytest.importorskip("matplotlib")


def write_run(folder: Path, settings: dict[str, object], logged: dict[str, dict[int, float]]) -> Path:
    from omegaconf import OmegaConf

    folder.mkdir(parents=True)
    config = OmegaConf.create()
    for key, value in settings.items():
        OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.save(config, folder / "config.yaml")
    rows = sorted((step, tag, value) for tag, points in logged.items() for step, value in points.items())
    (folder / "scalars.csv").write_text("step,tag,value\n" + "".join(f"{s},{t},{v!r}\n" for s, t, v in rows))
    return folder


def settings(algo: str = "qmix", seed: int = 0, **more: object) -> dict[str, object]:
    return {"algo.name": algo, "env.name": "grf", "env.scenario": "corner", "seed": seed} | more


def seeds(root: Path, values: list[float], algo: str = "qmix", **more: object) -> list[Path]:
    """Runs whose return is their value at step 10, twice that at step 20."""
    return [
        write_run(root / f"{algo}-{seed}", settings(algo, seed, **more), {"eval/return": {10: v, 20: 2 * v}})
        for seed, v in enumerate(values)
    ]


def group(*series: dict[int, float]) -> Group:
    runs = [
        Run(Path(f"run{n}"), {"seed": n}, {"m": Series(np.array(list(s)), np.array(list(s.values()), float))})
        for n, s in enumerate(series)
    ]
    return Group("task", "label", runs)


def test_a_curve_is_the_interquartile_mean_of_its_seeds(tmp_path):
    seeds(tmp_path, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1000.0])
    (only,) = grouped(find_runs([tmp_path]), ["algo"])
    drawn = curve(only, "eval/return")
    assert drawn.steps.tolist() == [10, 20] and drawn.band.value.tolist() == [4.5, 9.0] and drawn.band.n == 8
    assert (drawn.band.low < drawn.band.value).all() and (drawn.band.value < drawn.band.high).all()
    assert 1.0 < drawn.band.low[0] < 3.5


def test_runs_of_other_lengths_and_steps_are_held_at_their_last_value():
    ragged = group({0: 0.0, 100: 1.0, 200: 2.0, 300: 3.0}, {50: 10.0, 150: 20.0, 250: 30.0})
    series = [run.logged["m"] for run in ragged.runs]
    steps = common_steps(series)
    assert steps.tolist() == [50, 100, 150, 200, 250]
    assert held(series[0], steps).tolist() == [0, 1, 1, 2, 2]
    assert held(series[1], steps).tolist() == [10, 10, 20, 20, 30]
    assert curve(ragged, "m").band.value.tolist() == [5, 5.5, 10.5, 11, 16]


def test_long_curves_are_thinned_between_their_true_ends():
    steps = thinned(common_steps([Series(np.arange(7, 5007), np.zeros(5000))]))
    assert len(steps) == 200 and (steps[0], steps[-1]) == (7, 5006)


def test_runs_without_a_stretch_in_common_are_refused():
    with pytest.raises(Unplottable, match="ends at step 20, before another begins at 30"):
        curve(group({10: 0.0, 20: 0.0}, {30: 0.0, 40: 0.0}), "m")


def test_what_a_log_writes_is_what_is_read(tmp_path):
    run = write_run(tmp_path / "run", settings(), {})
    with Log(run, total_steps=20, terminal=False) as log:
        log.rewind({})
        for step, value in ((20, 0.1 + 0.2), (10, 1 / 3)):
            log.scalars({"eval/return": value, "loss/td": 1.0}, step)
    with (run / "scalars.csv").open("a") as file:
        file.write("30,eval/retu")
    (read,) = find_runs([run])
    assert read.task == "grf corner"
    assert read.logged["eval/return"].steps.tolist() == [10, 20]
    assert read.logged["eval/return"].values.tolist() == [1 / 3, 0.1 + 0.2]


def test_tasks_and_algorithms_are_kept_apart(tmp_path):
    seeds(tmp_path / "a", [1.0, 2.0], "qmix")
    seeds(tmp_path / "b", [1.0], "fox")
    seeds(tmp_path / "c", [1.0], "fox", **{"env.scenario": "counter"})
    groups = grouped(find_runs([tmp_path]), ["algo"])
    assert [(g.task, g.label, len(g.runs)) for g in groups] == [
        ("grf corner", "fox", 1),
        ("grf corner", "qmix", 2),
        ("grf counter", "fox", 1),
    ]


def test_any_setting_can_tell_curves_apart(tmp_path):
    for beta in (0.0, 0.5):
        seeds(tmp_path / f"{beta}", [1.0, 2.0], "fox", **{"algo.beta1": beta})
    runs = find_runs([tmp_path])
    assert [g.label for g in grouped(runs, ["algo", "algo.beta1"])] == ["fox, algo.beta1=0.0", "fox, algo.beta1=0.5"]
    seeds(tmp_path / "none", [1.0], "qmix")
    runs = find_runs([tmp_path])
    labels = ["fox, algo.beta1=0.0", "fox, algo.beta1=0.5", "qmix"]
    assert [g.label for g in grouped(runs, ["algo", "algo.beta1"])] == labels
    labels = ["algo.beta1=0.0", "algo.beta1=0.5", "without algo.beta1"]
    assert [g.label for g in grouped(runs, ["algo.beta1"])] == labels
    with pytest.raises(Unplottable, match="--by algo.beta2: no run has that setting; did you mean algo.beta1"):
        grouped(runs, ["algo.beta2"])


def test_runs_are_found_while_one_of_them_replaces_its_checkpoints(tmp_path):
    (run,) = seeds(tmp_path, [1.0])
    done = Event()

    def replace_checkpoints() -> None:
        for step in count():
            folder = run / "checkpoints" / str(step)
            folder.mkdir(parents=True)
            folder.rmdir()
            if done.is_set():
                return

    training = Thread(target=replace_checkpoints)
    training.start()
    try:
        for _ in range(200):
            assert len(find_runs([tmp_path])) == 1
    finally:
        done.set()
        training.join()


def test_a_seed_never_counts_twice(tmp_path):
    seeds(tmp_path / "a", [1.0, 2.0])
    seeds(tmp_path / "b", [1.0])
    with pytest.raises(Unplottable, match="seed 0 twice for qmix on grf corner: .*/a/qmix-0 and .*/b/qmix-0"):
        grouped(find_runs([tmp_path]), ["algo"])
    assert len(find_runs([tmp_path / "a", tmp_path / "a" / "qmix-1"])) == 2, "naming a run twice does not read it twice"


def test_runs_that_are_not_the_same_experiment_are_noted(tmp_path, capsys):
    write_run(tmp_path / "a", settings(seed=0, **{"learner.batch": 32, "device": "cpu"}), {"eval/return": {1: 1.0}})
    write_run(
        tmp_path / "b", settings(seed=1, **{"learner.batch": 64, "device": "cuda"}), {"eval/return": {1: 2.0, 9: 3.0}}
    )
    (only,) = grouped(find_runs([tmp_path]), ["algo"])
    assert differing(only) == ["learner.batch"]
    assert main([str(tmp_path), "--out", str(tmp_path / "plot.png")]) == 0
    out = capsys.readouterr().out
    assert "differ in learner.batch; tell them apart with --by" in out
    assert "drawn to step 1, where its shortest run ends; its longest has 9" in out


def test_the_picture_says_how_many_seeds_and_draws_an_interval_only_where_there_is_one(tmp_path):
    seeds(tmp_path / "a", [0.2, 0.3, 0.4, 0.3, 0.2], "qmix")
    seeds(tmp_path / "b", [0.5], "fox")
    seeds(tmp_path / "c", [0.1, 0.2], "fox", **{"env.scenario": "counter"})
    curves = [curve(g, "eval/return") for g in grouped(find_runs([tmp_path]), ["algo"])]
    first, second = draw(curves, "eval/return").axes
    assert (first.get_title(), second.get_title()) == ("grf corner", "grf counter")
    assert first.get_xlabel() == "environment steps" and first.get_ylabel() == "eval/return"
    said = [text.get_text() for text in first.get_legend().get_texts()]
    assert said == ["fox  (n = 1, no interval)", "qmix  (n = 5 seeds)"]
    assert (len(first.collections), len(second.collections)) == (1, 1)
    assert first.lines[0].get_ydata().tolist() == [0.5, 1.0]
    assert first.lines[0].get_color() == second.lines[0].get_color() != first.lines[1].get_color()


def test_the_command_draws_a_png_and_says_its_numbers(tmp_path, capsys):
    folders = seeds(tmp_path, [1.0, 2.0, 3.0, 4.0])
    out = tmp_path / "pictures" / "plot.png"
    assert main([*map(str, folders), "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 800
    told, path = capsys.readouterr().out.splitlines()
    assert told.startswith("qmix on grf corner: eval/return 5 [") and told.endswith("] at step 20, n = 4")
    assert path == str(out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs/qmx-0"], "no run at runs/qmx-0; did you mean runs/qmix-0 or runs/qmix-1?"),
        (["lost"], "no run at lost"),
        (["empty"], "no run at or below empty: there is no scalars.csv"),
        (["bare"], "bare has no config.yaml"),
        (["nameless"], "nameless/config.yaml does not say algo.name and seed"),
        (["odd"], "odd/scalars.csv: '1,eval/return' is not step,tag,value"),
        (["broken"], "broken/config.yaml is no configuration: "),
        (["runs", "--metric", "eval/retrun"], "no run logged eval/retrun; did you mean eval/return?"),
        (["runs", "--metric", "zzz"], "no run logged zzz; there are: eval/return, eval/success"),
        (["runs", "--metric", "eval/success"], "runs/qmix-1 did not log eval/success, others did"),
        (["runs", "--by", "learner.bach"], "--by learner.bach: no run has that setting; did you mean learner.batch?"),
        (["runs", "--out", "empty"], "--out empty: allowed is a file that ends with .png"),
        (["runs", "--out", "curve.pdf"], "--out curve.pdf: allowed is a file that ends with .png"),
        (["runs", "--out", "bare/scalars.csv/x.png"], "--out bare/scalars.csv/x.png: cannot be written: "),
        (["binary"], "binary/scalars.csv is no table: "),
        (["runs", "--metrics"], "unrecognized arguments: --metrics"),
        ([], "the following arguments are required: runs"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    more = {"learner.batch": 32}
    write_run(Path("runs/qmix-0"), settings(seed=0, **more), {"eval/return": {1: 1.0}, "eval/success": {1: 1.0}})
    write_run(Path("runs/qmix-1"), settings(seed=1, **more), {"eval/return": {1: 1.0}})
    write_run(Path("nameless"), {"env.name": "grf"}, {"eval/return": {1: 1.0}})
    (write_run(Path("odd"), settings(), {}) / "scalars.csv").write_text("step,tag,value\n1,eval/return\n")
    (write_run(Path("broken"), settings(), {}) / "config.yaml").write_text("algo: {name: fox\n")
    (write_run(Path("binary"), settings(), {}) / "scalars.csv").write_bytes(b"\xff\xfe")
    Path("empty").mkdir()
    Path("bare").mkdir()
    Path("bare/scalars.csv").write_text("step,tag,value\n")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {said}") and err.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("package", ["matplotlib.figure", "rliable.library"])
def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch, capsys, package):
    seeds(tmp_path, [1.0, 2.0])
    monkeypatch.setitem(sys.modules, package, None)
    assert main([str(tmp_path), "--out", str(tmp_path / "plot.png")]) == 2
    err = capsys.readouterr().err
    assert 'pip install "marl[plot]"' in err and err.count("\n") == 1
