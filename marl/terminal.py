"""Where a run is, on the terminal: a live panel, or plain lines where stdout is a file or a pipe."""

from __future__ import annotations

import atexit
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PAUSE = 10.0
"""Seconds between plain lines."""
WINDOW = 32
"""Calls over which the time left is reckoned."""
LOSSES = 3
"""Losses that have room."""


class Terminal(Protocol):
    """What a log shows of itself while it is written."""

    def show(self, values: Mapping[str, float], step: int) -> None:
        """New scalars; older ones of other tags stay as they were."""

    def say(self, message: str, *, warning: bool = False) -> None:
        """One line for the user."""

    def close(self) -> None:
        """The last state, then the terminal as it was. Closing twice is allowed."""


class Progress:
    """The newest value of every tag, and how fast steps go by.

    Args:
        total_steps: environment steps of the whole run
        clock: seconds, for the time left
    """

    def __init__(self, total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_steps, self.clock = total_steps, clock
        self.step = 0
        self.newest: dict[str, float] = {}
        self.at: dict[str, int] = {}
        """Step of every newest value."""
        self._marks: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    def take(self, values: Mapping[str, float], step: int) -> None:
        # A panel reads these from its own thread: they are replaced, not changed.
        self.newest = {**self.newest, **values}
        self.at = {**self.at, **dict.fromkeys(values, step)}
        if step > self.step or not self._marks:
            self.step = max(step, self.step)
            self._marks.append((self.clock(), step))

    def steps_per_second(self) -> float | None:
        """As logged, else between the calls seen here."""
        logged = self.newest.get("throughput/steps_per_second")
        return self._pace() if logged is None else logged

    def seconds_left(self) -> float | None:
        """At the pace of the last calls, evaluations and pauses included."""
        pace = self._pace()
        if pace is None:
            return None
        since = self.clock() - self._marks[-1][0]
        return max(0.0, (self.total_steps - self.step) / pace - since)

    def _pace(self) -> float | None:
        if len(self._marks) < 2:
            return None
        (began, first), (ended, last) = self._marks[0], self._marks[-1]
        return (last - first) / (ended - began) if ended > began else None

    def value(self, tag: str, *, error: str | None = None) -> str | None:
        """The newest value, with its standard error if there is one."""
        if tag not in self.newest:
            return None
        spread = "" if error is None or error not in self.newest else f" ± {number(self.newest[error])}"
        return number(self.newest[tag]) + spread

    def losses(self) -> dict[str, str]:
        """Losses by tag, the first ones that were logged."""
        tags = [tag for tag in self.newest if tag.startswith("loss/")][:LOSSES]
        return {tag: number(self.newest[tag]) for tag in tags}

    def pace_line(self) -> str:
        speed, left = self.steps_per_second(), self.seconds_left()
        told = [f"{number(speed)} steps/s"] if speed is not None else []
        told += [f"{duration(left)} left"] if left is not None else []
        return " · ".join(told)


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
        line = escape(_one_line(message))
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
        facts = Table.grid(padding=(0, 2))
        for _ in range(3):
            facts.add_column(style="dim")
            facts.add_column(min_width=18)
        for cells in zip(self._training(), self._evaluation(), self._learning()):
            facts.add_row(*(text for cell in cells for text in cell))
        places = Table.grid(padding=(0, 2))
        places.add_row(Text("run", "dim"), Text(str(self._folder), overflow="fold"))
        places.add_row(Text("watch", "dim"), Text(f"tensorboard --logdir {self._folder.parent}", overflow="fold"))
        pace = progress.pace_line() or "waiting for the first numbers"
        body = Group(bar, Text(pace), Text(), facts, Text(), places)
        return Frame(body, title=escape(self._folder.name), title_align="left", border_style="cyan")

    def _training(self) -> list[tuple[str, str]]:
        value = self._progress.value
        return _cells(
            {
                "return": value("train/return"),
                "success": value("train/success"),
                "length": value("train/length"),
                "episodes": value("train/episodes"),
                "epsilon": value("schedule/epsilon"),
            }
        )

    def _evaluation(self) -> list[tuple[str, str]]:
        progress = self._progress
        at = progress.at.get("eval/return")
        return _cells(
            {
                "evaluation": progress.value("eval/return", error="eval/return_se"),
                "success": progress.value("eval/success", error="eval/success_se"),
                "length": progress.value("eval/length"),
                "episodes": progress.value("eval/episodes"),
                "at step": None if at is None else f"{at:,}",
            }
        )

    def _learning(self) -> list[tuple[str, str]]:
        value, losses = self._progress.value, self._progress.losses()
        fill = self._progress.newest.get("replay/fill")
        rows = _cells({"updates": value("updates/total"), "replay": None if fill is None else f"{fill:.0%} full"})
        rows += list(losses.items())
        return rows + [("", "")] * (2 + LOSSES - len(rows))


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
    print(("warning: " if warning else "") + _one_line(message), file=sys.stderr, flush=True)


def number(value: float) -> str:
    """Four digits that matter; whole numbers in full with separators."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def duration(seconds: float) -> str:
    """As 02:05 or 3:20:00 or 2d 03:10."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute:02}:{second:02}"


def _cells(values: Mapping[str, str | None]) -> list[tuple[str, str]]:
    return [(name, "–" if text is None else text) for name, text in values.items()]


def _one_line(message: str) -> str:
    return " ".join(message.split())
