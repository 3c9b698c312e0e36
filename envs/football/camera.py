"""Pictures of any engine of this process by the game's own 3-D renderer, on machines with and without a screen.

The renderer is a second engine that plays nothing: it loads the moment to be shown. So playing costs nothing more for
being filmed, and no copy plays differently for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import gfootball_engine as library
import numpy as np

from envs.football.engine import Engine, kick_off
from envs.football.scenarios import Match
from marl.env import EnvUnavailable
from marl.types import Array

# Two renderers in one process draw over one another, and the library cannot free one: each process has one at most.
_cameras: list[Camera] = []


def camera(width: int, height: int) -> Camera:
    """The camera of this process; the first call takes 6 s and 500 MB.

    Raises:
        EnvUnavailable: this process has a camera of another size.
    """
    if not _cameras:
        _cameras.append(Camera(width, height))
    if _cameras[0].size != (width, height):
        had, wanted = (f"env.render_width={x} env.render_height={y}" for x, y in (_cameras[0].size, (width, height)))
        raise EnvUnavailable(f"{wanted}: this process already films with {had}, and it can have one renderer only")
    return _cameras[0]


class Camera:
    """A renderer of pictures (height, width, 3) uint8."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self._game = library.GameEnv()
        self._game.game_config.render = True
        self._game.game_config.render_resolution_x = width
        self._game.game_config.render_resolution_y = height
        with _off_screen():
            self._game.start_game()
        self._match: Match | None = None
        self._filmed: tuple[int, int] | None = None

    def picture(self, engine: Engine) -> Array:
        """What ``engine`` shows now (0.2 s at 640 x 360 without a graphics card)."""
        assert engine.match is not None
        if engine.match != self._match:
            self._game.reset(kick_off(engine.match, 0), False)
            self._match = engine.match
        self._game.set_state(engine.snapshot())
        episode = (id(engine), engine.episode)
        if episode != self._filmed:
            self._game.render(False)  # the lens follows the ball with one picture's delay
            self._filmed = episode
        self._game.render(True)
        width, height = self.size
        rows = np.frombuffer(self._game.get_frame(), np.uint8).reshape(height, width, 3)
        return rows[::-1].copy()


@contextmanager
def _off_screen() -> Iterator[None]:
    """Keep the engine from opening a window, and its greeting out of standard output."""
    display = os.environ.pop("DISPLAY", None)
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        if display is not None:
            os.environ["DISPLAY"] = display
