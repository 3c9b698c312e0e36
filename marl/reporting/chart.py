"""Bar charts as pictures, drawn with what TensorBoard needs anyway."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from marl.types import Array

if TYPE_CHECKING:
    from marl.parts import Bars

HEIGHT = 160
"""Pixels of the tallest bar."""
WIDTH = 900
"""Pixels that the bars share, if each then gets at least one."""
LEFT, TOP, FOOT = 52, 14, 44
PAPER, INK, PLAIN, MARKED, LINE = (255, 255, 255), (60, 60, 60), (176, 190, 210), (214, 90, 50), (40, 130, 70)


def draw(bars: Bars) -> Array:
    """(height, width, 3) uint8: marked bars orange, the line green, names of groups below their first bars."""
    count = max(len(bars.values), 1)
    pitch = max(1, min(28, WIDTH // count))
    highest = max([*map(float, bars.values), bars.line or 0.0, 1e-12])
    picture = Image.new("RGB", (LEFT + pitch * count + 90, TOP + HEIGHT + FOOT), PAPER)
    pen, ground = ImageDraw.Draw(picture), TOP + HEIGHT

    def level(value: float) -> int:
        return ground - round(HEIGHT * max(value, 0.0) / highest)

    gap = 1 if pitch > 2 else 0
    for place, (value, marked) in enumerate(zip(bars.values, bars.marked, strict=True)):
        left = LEFT + place * pitch
        pen.rectangle((left, level(value), left + pitch - 1 - gap, ground), fill=MARKED if marked else PLAIN)
    for value in (0.0, highest):
        pen.text((4, level(value) - 6), f"{value:.3g}", fill=INK)
    if bars.line is not None:
        pen.line((LEFT, level(bars.line), LEFT + pitch * count, level(bars.line)), fill=LINE)
        pen.text((LEFT + pitch * count + 4, level(bars.line) - 6), f"{bars.line:.3g}", fill=LINE)
    _name_groups(pen, bars, pitch, ground)
    return np.asarray(picture)


def _name_groups(pen: ImageDraw.ImageDraw, bars: Bars, pitch: int, ground: int) -> None:
    """In turn on two rows, for names are longer than small groups are wide."""
    before, row = None, 0
    for place, label in enumerate(bars.labels):
        group = label.rpartition(".")[0] or label
        if group != before:
            left = LEFT + place * pitch
            pen.line((left, ground, left, ground + 6 + 14 * row), fill=INK)
            pen.text((left + 3, ground + 4 + 14 * row), group, fill=INK)
            before, row = group, 1 - row


def png(picture: Array) -> bytes:
    """The file of a picture (height, width, 3) uint8."""
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()
