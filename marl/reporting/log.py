"""What a run tells: the same scalars to TensorBoard, JSON lines, CSV and the terminal."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from marl.reporting import chart, video
from marl.reporting.terminal import Terminal, terminal_for
from marl.types import Array

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from marl.parts import Bars

JSON_LINES = "scalars.jsonl"
CSV = "scalars.csv"
EVENTS = "events.out.tfevents.*"
HEADER = ("step", "tag", "value")
ACCIDENTAL = ("time/", "throughput/", "workers/")
"""Tags that depend on the machine and its accidents, as ``wall`` does; all others repeat bit for bit."""
COMPARED = ("eval/return", "eval/success", "train/return")
"""What TensorBoard's table of hyper-parameters shows of each run."""
BOARD_WIDTH = 480
"""Pixels; TensorBoard keeps a film in memory."""


class LogDamaged(Exception):
    """A log file is shorter than a checkpoint remembers it."""


def repeats(tag: str) -> bool:
    """Whether two runs of one seed log the same numbers under ``tag``."""
    return not tag.startswith(ACCIDENTAL)


class Log:
    """The record of one run in its folder.

    ``scalars.jsonl`` has one object per call of `scalars`, ``scalars.csv`` one row per value, both exact to the last
    bit (JSON has no NaN: "nan", "inf" and "-inf" stand there as strings); TensorBoard keeps 32 bits.

    Args:
        folder: the run's; its event files lie in it directly, so that the run has its own name in TensorBoard
        total_steps: environment steps of the whole run
        terminal: whether progress is shown
    """

    def __init__(self, folder: Path, *, total_steps: int, terminal: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._step = -1
        self._terminal: Terminal = terminal_for(folder, total_steps, terminal)
        self._board: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._open()

    def _open(self) -> None:
        self._lines = (self.folder / JSON_LINES).open("a", encoding="utf-8")
        self._table = (self.folder / CSV).open("a", encoding="utf-8", newline="")
        self._rows = csv.writer(self._table, lineterminator="\n")
        if self._table.tell() == 0:
            self._rows.writerow(HEADER)

    # what is told

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Scalars by tag, after ``step`` environment steps.

        Raises:
            ValueError: a tag is called ``step`` or ``wall``, which mean something else.
        """
        taken = {"step", "wall"} & values.keys()
        if taken:
            raise ValueError(f"{taken.pop()!r} is no tag: JSON lines use that name for themselves")
        wall, numbers = time.time(), {tag: float(value) for tag, value in values.items()}
        told = {tag: value if math.isfinite(value) else str(value) for tag, value in numbers.items()}
        self._lines.write(json.dumps({"step": step, "wall": wall, **told}) + "\n")
        self._lines.flush()
        self._rows.writerows((step, tag, repr(value)) for tag, value in numbers.items())
        self._table.flush()
        board = self._board_at(step)
        for tag, value in numbers.items():
            board.add_scalar(tag, value, step, walltime=wall)
        self._terminal.show(numbers, step)

    def hyperparameters(self, flat: Mapping[str, object]) -> None:
        """Settings by dotted key, for TensorBoard's HParams tab and as a text. Told once in a run, not on resume."""
        from torch.utils.tensorboard.summary import hparams

        plain = (bool, int, float, str)
        kept = {key: value if isinstance(value, plain) else str(value) for key, value in flat.items()}
        experiment, start, _ = hparams(kept, dict.fromkeys(COMPARED, 0.0))  # type: ignore[no-untyped-call]
        self._add(experiment, 0)
        self._add(start, 0)
        rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in flat.items())
        self.text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A text in TensorBoard."""
        self._board_at(step).add_text(tag, markdown, step)

    def video(self, tag: str, frames: Array, step: int, fps: float) -> Path:
        """A film in TensorBoard's images, and in ``videos/``: MP4 with the extra ``video``, else GIF.

        Args:
            frames: (T, height, width, 3) uint8
            fps: frames per second

        Raises:
            ValueError: the frames have another shape or type, or ``fps`` is not positive.
        """
        file = video.save(frames, fps, self.folder / "videos" / f"{tag.replace('/', '_')}_{step:010d}")
        self._picture(tag, video.gif(frames, fps, BOARD_WIDTH), frames.shape[1:3], step)
        return file

    def bars(self, tag: str, bars: Bars, step: int) -> None:
        """A bar chart in TensorBoard's images."""
        drawn = chart.draw(bars)
        self._picture(tag, chart.png(drawn), drawn.shape[:2], step)

    def note(self, message: str) -> None:
        """One line for the user."""
        self._terminal.say(message)

    def warn(self, message: str) -> None:
        """One line of warning for the user."""
        self._terminal.say(message, warning=True)

    # resume

    def state(self) -> dict[str, Any]:
        """How far the files have come, JSON-able; everything told so far is on disk then."""
        self.flush()
        files = [self.folder / JSON_LINES, self.folder / CSV, *sorted(self.folder.glob(EVENTS))]
        return {"step": self._step, "bytes": {file.name: file.stat().st_size for file in files}}

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Forget what was told after ``state``; an empty one is the beginning. To be called before anything is told.

        Files are cut to their length of then, event files that came later are deleted, and a TensorBoard that is open
        (with its usual loader) drops the later steps.

        Raises:
            LogDamaged: a file is shorter than it was then.
        """
        lengths: Mapping[str, int] = state.get("bytes", {})
        self._close_files()
        for name in (JSON_LINES, CSV):
            _cut(self.folder / name, lengths.get(name, 0))
        for file in self.folder.glob(EVENTS):
            if file.name in lengths:
                _cut(file, lengths[file.name])
            else:
                file.unlink()
        self._step = state.get("step", -1)
        self._purge_step = self._step + 1
        self._open()

    def flush(self) -> None:
        """Put everything told so far on disk."""
        for file in (self._lines, self._table):
            file.flush()
            os.fsync(file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Finish the files and give the terminal back. Closing twice is allowed."""
        try:
            self._close_files()
        finally:
            self._terminal.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close_files(self) -> None:
        self._lines.close()
        self._table.close()
        if self._board is not None:
            self._board.close()
            self._board = None

    def _picture(self, tag: str, encoded: bytes, size: tuple[int, ...], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width = size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def _add(self, summary: object, step: int) -> None:
        writer: Any = self._board_at(step).file_writer
        writer.add_summary(summary, step)

    def _board_at(self, step: int) -> SummaryWriter:
        """TensorBoard's writer, opened when it is first needed: it takes a second to import."""
        from torch.utils.tensorboard import SummaryWriter

        self._step = max(step, self._step)
        if self._board is None:
            self._board = SummaryWriter(str(self.folder), purge_step=self._purge_step, flush_secs=10)
        return self._board


def _cut(file: Path, length: int) -> None:
    file.touch()
    if file.stat().st_size < length:
        raise LogDamaged(f"{file} has {file.stat().st_size} bytes, but had {length} when the checkpoint was written")
    os.truncate(file, length)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
