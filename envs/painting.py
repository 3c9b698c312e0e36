"""Small pictures of worlds that bring none, or none without a screen: boards of cells, and discs on a plane."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from marl.types import Array

PAPER, LINE = (255, 255, 255), (200, 200, 200)
Colour = tuple[int, int, int]


def board(cells: Array, side: int = 32) -> Array:
    """(rows * side, columns * side, 3) uint8 of colours (rows, columns, 3), with lines between the cells."""
    picture: Array = np.repeat(np.repeat(cells.astype(np.uint8), side, 0), side, 1)
    picture[::side] = picture[:, ::side] = LINE
    return picture


def plane(discs: Iterable[tuple[float, float, float, Colour]], width: int = 400, height: int = 400) -> Array:
    """(height, width, 3) uint8: discs (x, y, radius, colour) in pixels, y from below, later ones above."""
    picture = np.full((height, width, 3), PAPER, np.uint8)
    rows, columns = np.ogrid[:height, :width]
    for x, y, radius, colour in discs:
        picture[(columns - x) ** 2 + (height - 1 - rows - y) ** 2 <= max(radius, 1.0) ** 2] = colour
    return picture
