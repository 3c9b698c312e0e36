"""Where a run is, on the terminal: a live panel, or plain lines where stdout is a file or a pipe."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from marl.fields import one_line
from marl.reporting.progress import Progress

PAUSE = 10.0
"""Seconds between plain lines."""


class Terminal(Protocol):
    """What a log shows of itself while it is written."""

    def show(self, values: Mapping[str, float], step: int) -> None:
        """New scalars; older ones of other tags stay as they were."""

    def say(self, message: str, *, warning: bool = False) -> None:
        """One line for the user."""

    def close(self) -> None:
        """The last state, then the terminal as it was. Closing twice is allowed."""


class Panel:
    """A live panel at the foot of the terminal; everything else scrolls above it.

    Args:
        folder: the run's
        progress: fed by `show`
        console: a terminal
    """

    def __init__(self, folder: Path, progress: Progress, console: Console) -> None:
        self._folder, self._progress, self._console = folder, progress, console
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=2)
        atexit.register(self.close)
        self._live.start(refresh=True)

    def show(self, values: Mapping[str, float], step: int) -> None:
        self._progress.take(values, step)

    def say(self, message: str, *, warning: bool = False) -> None:
        line = escape(one_line(message))
        self._console.print(f"[yellow]warning:[/] {line}" if warning else line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._live.stop()
        atexit.unregister(self.close)

    def render(self) -> Frame:
        """The panel as it is now."""
        progress = self._progress
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column()
        bar.add_column(ratio=1)
        bar.add_column(justify="right")
        share = progress.step / progress.total_steps
        bar.add_row(
            f"[bold]{progress.step:,}[/] / {progress.total_steps:,} steps",
            ProgressBar(progress.total_steps, min(progress.step, progress.total_steps)),
            f"{share:.1%}",
        )
        facts = Table.grid(padding=(0, 2), expand=True)
        for ratio in (2, 3, 3):
            facts.add_column(ratio=ratio)
        facts.add_row(self._training(), self._evaluation(), self._learning())
        places = Table.grid(padding=(0, 2))
        places.add_row(Text("run", "dim"), Text(str(self._folder), overflow="fold"))
        places.add_row(Text("watch", "dim"), Text(f"tensorboard --logdir {self._folder.parent}", overflow="fold"))
        pace = progress.pace_line() or "waiting for the first numbers"
        body = Group(bar, Text(pace), Text(), facts, Text(), places)
        return Frame(body, title=escape(self._folder.name), title_align="left", border_style="cyan")

    def _training(self) -> Table:
        value = self._progress.value
        told = {
            "return": value("train/return"),
            "success": value("train/success"),
            "length": value("train/length"),
            "episodes": value("train/episodes"),
            "epsilon": value("schedule/epsilon"),
        }
        return _block("training", told)

    def _evaluation(self) -> Table:
        progress = self._progress
        told = {
            "return": progress.value("eval/return", error="eval/return_se"),
            "success": progress.value("eval/success", error="eval/success_se"),
            "length": progress.value("eval/length"),
            "episodes": progress.value("eval/episodes"),
        }
        at = progress.at.get("eval/return")
        return _block("evaluation" if at is None else f"evaluation at {at:,}", told)

    def _learning(self) -> Table:
        progress = self._progress
        fill = progress.newest.get("replay/fill")
        told = {
            "updates": progress.value("updates/total"),
            "replay": None if fill is None else f"{fill:.0%} full",
            **{f"loss {tag.removeprefix('loss/')}": text for tag, text in progress.losses().items()},
        }
        return _block("learning", told)


class Lines:
    """Plain lines on stdout, one in `PAUSE` seconds at most and one at the end.

    Args:
        progress: fed by `show`
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._told_at: float | None = None
        self._untold = False

    def show(self, values: Mapping[str, float], step: int) -> None:
        self._progress.take(values, step)
        self._untold = True
        now = self._progress.clock()
        if self._told_at is None or now - self._told_at >= PAUSE:
            self._told_at = now
            self._tell()

    def say(self, message: str, *, warning: bool = False) -> None:
        to_stderr(message, warning=warning)

    def close(self) -> None:
        if self._untold:
            self._tell()

    def _tell(self) -> None:
        self._untold = False
        progress, value = self._progress, self._progress.value
        share = progress.step / progress.total_steps
        told = [f"step {progress.step:,} of {progress.total_steps:,} ({share:.1%})", progress.pace_line()]
        for name, text in {
            "return": value("train/return"),
            "success": value("train/success"),
            "eval return": value("eval/return", error="eval/return_se"),
            "eval success": value("eval/success", error="eval/success_se"),
            **progress.losses(),
        }.items():
            told += [f"{name} {text}"] if text is not None else []
        print(" | ".join(part for part in told if part), flush=True)


class Silent:
    """No progress; what must be said is said."""

    def show(self, values: Mapping[str, float], step: int) -> None:
        pass

    def say(self, message: str, *, warning: bool = False) -> None:
        to_stderr(message, warning=warning)

    def close(self) -> None:
        pass


def terminal_for(folder: Path, total_steps: int, wanted: bool) -> Terminal:
    """A panel where stdout is a terminal that can move its cursor, else plain lines; nothing if it is not wanted."""
    if not wanted:
        return Silent()
    progress = Progress(total_steps)
    if not sys.stdout.isatty():
        return Lines(progress)
    console = Console()
    return Lines(progress) if console.is_dumb_terminal else Panel(folder, progress, console)


def to_stderr(message: str, *, warning: bool = False) -> None:
    """One line."""
    print(("warning: " if warning else "") + one_line(message), file=sys.stderr, flush=True)


def _block(title: str, told: Mapping[str, str | None]) -> Table:
    block = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0)
    )
    block.add_column(style="dim")
    block.add_column()
    for name, text in told.items():
        block.add_row(name, "–" if text is None else text)
    return block
