"""A flat picture of a football pitch, cheap enough for a video of every evaluation."""

from __future__ import annotations

import numpy as np

from envs.football.observation import Scene
from marl.types import Array

_GRASS, _LINE = (46, 125, 62), (222, 236, 222)
_LEFT, _RIGHT, _BALL, _AGENT, _TIME = (40, 98, 214), (214, 58, 48), (255, 255, 255), (255, 214, 64), (255, 214, 64)
_METRES = np.array([54.4, 83.6])
"""Metres per unit of the engine's coordinates."""
_HALF_LENGTH, _HALF_WIDTH, _MARGIN = 54.4, 35.1, 4.0


class Pitch:
    """Draws scenes of ``width`` by ``height`` pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._scale = min(width / (2 * (_HALF_LENGTH + _MARGIN)), height / (2 * (_HALF_WIDTH + _MARGIN)))
        self._empty = self._marked()

    def draw(self, scene: Scene, elapsed: float) -> Array:
        """(height, width, 3) uint8; agents' players wear a ring, the bar below is the share of time ``elapsed``."""
        picture = self._empty.copy()
        for index, place in enumerate(scene.left):
            self._disc(picture, place, 1.9, _AGENT if index in scene.controlled else _LEFT)
            self._disc(picture, place, 1.4, _LEFT)
        for place in scene.right:
            self._disc(picture, place, 1.9, _RIGHT)
        # A ball in the air looks larger.
        self._disc(picture, scene.ball[:2], 0.8 + 0.15 * float(max(scene.ball[2], 0.0)), _BALL)
        picture[-max(2, self.height // 90) :, : round(self.width * min(elapsed, 1.0))] = _TIME
        return picture

    def _disc(self, picture: Array, place: Array, radius: float, colour: tuple[int, int, int]) -> None:
        x, y = place * _METRES * self._scale + (self.width / 2, self.height / 2)
        reach = max(radius * self._scale, 1.0)
        left, top = max(int(x - reach - 1), 0), max(int(y - reach - 1), 0)
        patch = picture[top : max(int(y + reach + 2), 0), left : max(int(x + reach + 2), 0)]
        rows = np.arange(top, top + patch.shape[0])[:, None] + 0.5 - y
        columns = np.arange(left, left + patch.shape[1]) + 0.5 - x
        cover = np.clip(reach + 0.5 - np.hypot(rows, columns), 0, 1)[..., None]
        patch[:] = patch * (1 - cover) + np.array(colour) * cover

    def _marked(self) -> Array:
        """The empty pitch: a pixel near a line takes the line's colour by its nearness."""
        across = np.abs((np.arange(self.width) + 0.5 - self.width / 2) / self._scale)
        down = np.abs(((np.arange(self.height) + 0.5 - self.height / 2) / self._scale)[:, None])
        boxes = [  # nearest and farthest x, half height, in metres
            (0.0, _HALF_LENGTH, _HALF_WIDTH),
            (_HALF_LENGTH - 16.5, _HALF_LENGTH, 20.2),
            (_HALF_LENGTH - 5.5, _HALF_LENGTH, 9.2),
            (_HALF_LENGTH, _HALF_LENGTH + 2.5, 3.7),
        ]
        distance = np.abs(np.hypot(across, down) - 9.15)
        for near, far, half in boxes:
            centre, reach = (near + far) / 2, (far - near) / 2
            outside = np.maximum(np.abs(across - centre) - reach, down - half)
            distance = np.minimum(distance, np.abs(outside))
        cover = np.clip(0.8 - distance * self._scale + 0.2, 0, 1)[..., None]
        marked: Array = (np.array(_GRASS) * (1 - cover) + np.array(_LINE) * cover).astype(np.uint8)
        return marked
