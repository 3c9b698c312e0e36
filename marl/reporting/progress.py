"""How far a run is: the newest value of every tag, the pace, the time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

WINDOW = 32
"""Calls over which the time left is reckoned."""
LOSSES = 3
"""Losses that have room on a terminal."""


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
