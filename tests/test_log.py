"""Risk: the record of a run is wrong, has a seam after a kill, or leaves the terminal broken."""

from __future__ import annotations

import csv
import json
import math
import os
import pty
import subprocess
import sys
import time
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from marl.reporting import terminal, video
from marl.reporting.log import CSV, EVENTS, JSON_LINES, Log, LogDamaged, repeats
from marl.reporting.progress import Progress, duration, number

AWKWARD = {"train/return": 0.1 + 0.2, "loss/td": 1 / 3, "q/taken": -1e-17, "updates/total": 12345678.0, 'a,"b': 2.0}


def board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def json_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / JSON_LINES).read_text().splitlines()]


def rows(folder: Path) -> list[list[str]]:
    with (folder / CSV).open(newline="") as file:
        return list(csv.reader(file))


def repeated(folder: Path) -> tuple[list[dict[str, float]], list[list[str]]]:
    """What must be the same in two runs."""
    lines = [{k: v for k, v in line.items() if k != "wall" and repeats(k)} for line in json_lines(folder)]
    return lines, [row for row in rows(folder) if repeats(row[1])]


def moving(frames: int, height: int = 24, width: int = 36) -> np.ndarray:
    pictures = np.zeros((frames, height, width, 3), np.uint8)
    for t, picture in enumerate(pictures):
        picture[:, t % width] = (255, 40 * (t % 6), 0)
    return pictures


def test_scalars_come_back_exactly_and_are_the_same_everywhere(tmp_path):
    with Log(tmp_path, total_steps=100, terminal=False) as log:
        log.scalars(AWKWARD, 10)
        log.scalars({"train/return": np.float32(0.1), "loss/td": 5.0}, 20)
        assert len(json_lines(tmp_path)) == 2, "a line is on disk as soon as it is told"

    first, second = json_lines(tmp_path)
    assert {key: first[key] for key in AWKWARD} == AWKWARD
    assert first["step"] == 10 and first["wall"] <= second["wall"]
    assert second["train/return"] == float(np.float32(0.1))

    header, *told = rows(tmp_path)
    assert header == ["step", "tag", "value"]
    assert {(int(step), tag): float(value) for step, tag, value in told} == {
        (line["step"], tag): value
        for line in (first, second)
        for tag, value in line.items()
        if tag not in ("step", "wall")
    }
    events = board(tmp_path)
    assert set(events.Tags()["scalars"]) == set(AWKWARD)
    for tag in AWKWARD:
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert shown == [(line["step"], float(np.float32(line[tag]))) for line in (first, second) if tag in line]


def test_json_stays_valid_when_a_value_is_not_finite(tmp_path):
    with Log(tmp_path, total_steps=1, terminal=False) as log:
        log.scalars({"eval/return_se": math.nan, "q/target": -math.inf}, 1)
    line = (tmp_path / JSON_LINES).read_text()
    told = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert math.isnan(float(told["eval/return_se"])) and float(told["q/target"]) == -math.inf
    assert [row[2] for row in rows(tmp_path)[1:]] == ["nan", "-inf"]


@pytest.mark.parametrize("tag", ["step", "wall"])
def test_names_that_json_lines_need_are_refused(tmp_path, tag):
    with Log(tmp_path, total_steps=1, terminal=False) as log, pytest.raises(ValueError, match=f"'{tag}' is no tag"):
        log.scalars({tag: 1.0}, 1)


def test_a_run_has_one_name_in_tensorboard_and_says_its_settings(tmp_path):
    with Log(tmp_path, total_steps=1, terminal=False) as log:
        log.hyperparameters(
            {"algo.name": "vdn", "algo.lr": 5e-4, "env.reward": None, "phases": [1, "a|b"], "ordered": True}
        )
        log.text("plan", "*first*", 3)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    events = board(tmp_path)
    assert events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode().count("\n") == 6
    assert events.Tensors("plan/text_summary")[0].step == 3
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"algo.lr" in content and b"vdn" in content


def play(log: Log, first: int, last: int) -> None:
    for step in range(first, last + 1, 10):
        log.scalars({"train/return": step / 7, "time/learner": 0.5}, step)
        if step % 20 == 0:
            log.scalars({"eval/return": step / 3}, step - 10)


def test_a_killed_run_leaves_no_seam(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with Log(whole, total_steps=100, terminal=False) as log:
        play(log, 10, 100)

    script = f"""
import json, os, signal
from pathlib import Path
from marl.reporting.log import Log
from tests.test_log import play
folder = Path({str(killed)!r})
log = Log(folder, total_steps=100, terminal=False)
play(log, 10, 40)
(folder / "state.json").write_text(json.dumps(log.state()))
play(log, 50, 80)
log.flush()
with (folder / "scalars.jsonl").open("a") as file:
    file.write('{{"step": 90, "wal')
with (folder / "scalars.csv").open("a") as file:
    file.write("90,train/ret")
os.kill(os.getpid(), signal.SIGKILL)
"""
    dead = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent)
    assert dead.returncode == -9
    time.sleep(1.0 - time.time() % 1.0)  # TensorBoard reads event files in the order of the second of their birth
    state = json.loads((killed / "state.json").read_text())
    assert board(killed).Scalars("train/return")[-1].step == 80

    with Log(killed, total_steps=100, terminal=False) as log:
        log.rewind(state)
        play(log, 50, 100)
        again = log.state()
    assert repeated(killed) == repeated(whole)
    for tag in ("train/return", "eval/return"):
        shown = [[(event.step, event.value) for event in board(folder).Scalars(tag)] for folder in (killed, whole)]
        assert shown[0] == shown[1]

    with Log(killed, total_steps=100, terminal=False) as log:
        log.rewind(again)
    assert repeated(killed) == repeated(whole), "rewinding to the end changes nothing"


def test_a_tensorboard_that_is_open_forgets_what_was_lost(tmp_path, monkeypatch):
    # Files are read by name. Those of one second are told apart by a count without zeros in front, of this process.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    log = Log(tmp_path, total_steps=100, terminal=False)
    play(log, 10, 40)
    state = log.state()
    play(log, 50, 80)
    log.close()
    watching = board(tmp_path)
    assert [event.step for event in watching.Scalars("train/return")] == list(range(10, 81, 10))
    with Log(tmp_path, total_steps=100, terminal=False) as log:
        log.rewind(state)
        play(log, 50, 60)
    watching.Reload()
    assert [event.step for event in watching.Scalars("train/return")] == list(range(10, 61, 10))


def test_an_empty_state_is_the_beginning(tmp_path):
    with Log(tmp_path, total_steps=100, terminal=False) as log:
        play(log, 10, 40)
    with Log(tmp_path, total_steps=100, terminal=False) as log:
        log.rewind({})
        log.scalars({"train/return": 1.0}, 10)
    assert rows(tmp_path) == [["step", "tag", "value"], ["10", "train/return", "1.0"]]
    assert len(json_lines(tmp_path)) == 1
    assert len(board(tmp_path).Scalars("train/return")) == 1
    assert len(list(tmp_path.glob(EVENTS))) == 1


@pytest.mark.parametrize("name", [JSON_LINES, CSV])
def test_a_log_that_lost_lines_is_named(tmp_path, name):
    with Log(tmp_path, total_steps=100, terminal=False) as log:
        play(log, 10, 40)
        state = log.state()
    os.truncate(tmp_path / name, 20)
    with Log(tmp_path, total_steps=100, terminal=False) as log, pytest.raises(LogDamaged, match=f"{name} has 20 bytes"):
        log.rewind(state)


def test_a_film_is_a_file_and_moves_in_tensorboard(tmp_path):
    frames = moving(11)
    with Log(tmp_path, total_steps=1, terminal=False) as log:
        file = log.video("eval/episode", frames, 500, fps=10)
    assert file == tmp_path / "videos" / f"eval_episode_0000000500{file.suffix}"
    assert [path.name for path in file.parent.iterdir()] == [file.name], "nothing unfinished is left"
    (event,) = board(tmp_path).Images("eval/episode")
    shown = Image.open(BytesIO(event.encoded_image_string))
    assert event.step == 500 and shown.n_frames == len(frames) and shown.info["duration"] == 100
    shown.seek(4)
    assert tuple(np.asarray(shown.convert("RGB"))[0, 4]) == (255, 160, 0)


def test_mp4_has_every_frame(tmp_path):
    reader = pytest.importorskip("imageio_ffmpeg")
    file = video.save(moving(13, 25, 37), 10, tmp_path / "odd")
    assert file == tmp_path / "odd.mp4"
    frames, seconds = reader.count_frames_and_secs(str(file))
    assert (frames, round(seconds, 1)) == (13, 1.3)


def test_without_ffmpeg_a_film_is_a_gif(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    file = video.save(moving(7), 20, tmp_path / "film")
    assert file == tmp_path / "film.gif" and Image.open(file).n_frames == 7


def test_frames_that_stand_still_keep_their_time(tmp_path):
    shown = Image.open(BytesIO(video.gif(np.repeat(moving(3), 4, axis=0), 25)))
    total = 0
    for frame in range(shown.n_frames):
        shown.seek(frame)
        total += shown.info["duration"]
    assert total == 12 * 40


def test_wide_films_are_made_smaller_for_the_browser_and_keep_their_shape():
    shown = Image.open(BytesIO(video.gif(moving(2, 72, 128), 10, width=64)))
    assert shown.size == (64, 36)


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((2, 4, 4), np.uint8), 10),
        (np.zeros((2, 4, 4, 3)), 10),
        (np.zeros((0, 4, 4, 3), np.uint8), 10),
        (moving(2), 0),
    ],
)
def test_what_is_no_film_is_refused(tmp_path, frames, fps):
    with pytest.raises(ValueError, match="frames are|fps=0"):
        video.save(frames, fps, tmp_path / "film")
    assert not list(tmp_path.iterdir())


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pace_and_time_left():
    clock = Hand()
    progress = Progress(1000, clock)
    progress.take({"train/return": 1.0}, 100)
    assert progress.seconds_left() is None and progress.steps_per_second() is None
    clock.now = 10.0
    progress.take({}, 300)
    assert progress.steps_per_second() == 20.0 and progress.seconds_left() == 35.0
    progress.take({"eval/return": 3.0}, 100)
    assert progress.step == 300, "an evaluation is told under the step at which it was asked for"
    clock.now = 15.0
    assert progress.seconds_left() == 30.0
    progress.take({"throughput/steps_per_second": 77.0}, 300)
    assert progress.steps_per_second() == 77.0


def test_numbers_are_readable():
    assert [number(v) for v in (0.123456, 300000.0, 12.5, 1e-7)] == ["0.1235", "300,000", "12.5", "1e-07"]
    assert [duration(s) for s in (125, 12000, 184200)] == ["02:05", "3:20:00", "2d 03:10"]


def test_plain_lines_are_few_and_the_last_one_is_told(capsys):
    clock = Hand()
    lines = terminal.Lines(Progress(1000, clock))
    for call in range(1, 31):
        clock.now = float(call)
        lines.show({"train/return": call / 10, "loss/td": 0.5, "eval/success": 0.25, "eval/success_se": 0.1}, call * 10)
    lines.say("one\nline", warning=True)
    lines.close()
    lines.close()
    out, err = capsys.readouterr()
    told = out.splitlines()
    assert [line.split(" of ")[0] for line in told] == ["step 10", "step 110", "step 210", "step 300"]
    assert told[-1] == (
        "step 300 of 1,000 (30.0%) | 10 steps/s · 01:10 left | return 3 | eval success 0.25 ± 0.1 | loss/td 0.5"
    )
    assert err == "warning: one line\n"


def test_stdout_that_is_no_terminal_gets_lines_and_silence_only_what_must_be_said(tmp_path, capsys):
    with Log(tmp_path, total_steps=10) as log:
        log.scalars({"train/return": 1.0}, 5)
        log.note("saved")
    out, err = capsys.readouterr()
    assert out == "step 5 of 10 (50.0%) | return 1\n" and err == "saved\n"
    with Log(tmp_path, total_steps=10, terminal=False) as log:
        log.scalars({"train/return": 1.0}, 6)
        log.warn("worker 1 was replaced")
    assert capsys.readouterr() == ("", "warning: worker 1 was replaced\n")


@pytest.mark.parametrize("width", [80, 120])
def test_the_panel_says_where_the_run_is(tmp_path, width):
    clock = Hand()
    console = Console(file=StringIO(), record=True, width=width, force_terminal=True)
    progress = Progress(300_000, clock)
    panel = terminal.Panel(tmp_path / "fox-7", progress, console)
    panel.show({"train/return": 0.41, "train/success": 0.5, "train/length": 88.0, "train/episodes": 32.0}, 12_000)
    panel.show({"eval/return": 0.52, "eval/return_se": 0.04, "eval/success": 0.44, "eval/success_se": 0.03}, 10_000)
    clock.now = 60.0
    panel.show(
        {"loss/td": 0.0123, "loss/vae": 2.5, "updates/total": 1500.0, "replay/fill": 0.25, "schedule/epsilon": 0.91},
        30_000,
    )
    panel.say("[1/2] worker 3 was replaced", warning=True)
    panel.close()
    scrolled = console.export_text()
    console.print(panel.render())
    text = console.export_text()
    for said in (
        "fox-7",
        "30,000 / 300,000",
        "10.0%",
        "300 steps/s",
        "15:00 left",
        "0.41",
        "88",
        "0.52 ± 0.04",
        "0.44 ± 0.03",
    ):
        assert said in text, said
    for said in ("10,000", "td", "0.0123", "2.5", "1,500", "25% full", "0.91", "tensorboard --logdir"):
        assert said in text, said
    assert "warning: [1/2] worker 3 was replaced" in scrolled


def in_a_terminal(script: str) -> tuple[int, str]:
    """Exit status and everything a program writes when its standard streams are a terminal."""
    leader, follower = pty.openpty()
    environ = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=follower, stdout=follower, stderr=follower, env=environ
    )
    os.close(follower)
    written = b""
    try:
        while chunk := os.read(leader, 4096):
            written += chunk
    except OSError:  # how Linux says that the other end is gone
        pass
    finally:
        os.close(leader)
    return process.wait(), written.decode()


@pytest.mark.parametrize(
    ("ending", "said"),
    [("raise ValueError('the end')", "the end"), ("os.kill(os.getpid(), signal.SIGINT)", "Interrupt")],
)
def test_the_terminal_is_given_back_whatever_happens(tmp_path, ending, said):
    status, written = in_a_terminal(
        f"""
import os, signal
from pathlib import Path
from marl.reporting.terminal import terminal_for
terminal = terminal_for(Path({str(tmp_path)!r}), 10, True)
terminal.show({{"train/return": 1.25}}, 5)
terminal.say("look", warning=True)
{ending}
"""
    )
    assert status != 0 and said in written
    assert "\x1b[?25l" in written and "1.25" in written and "warning:" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is shown again"


def test_a_run_in_a_terminal_has_a_panel_and_gives_the_terminal_back(tmp_path):
    status, written = in_a_terminal(
        f"""
from pathlib import Path
from marl.reporting.log import Log
with Log(Path({str(tmp_path)!r}), total_steps=10) as log:
    log.scalars({{"train/return": 1.25}}, 5)
print("afterwards")
"""
    )
    assert status == 0 and "1.25" in written and "50.0%" in written
    assert "\x1b[?25h" in written[written.rindex("\x1b[?25l") :]
    assert written.endswith("afterwards\r\n")
