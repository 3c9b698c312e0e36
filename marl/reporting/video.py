"""Pictures of an episode as a film: MP4 where ffmpeg is at hand, animated GIF everywhere."""

from __future__ import annotations

from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np

from marl.types import Array

FASTEST_GIF = 50
"""Frames per second; browsers slow a GIF down that asks for more."""


def save(frames: Array, fps: float, stem: Path) -> Path:
    """Write ``stem``.mp4, or ``stem``.gif where the extra ``video`` is not installed, and say which.

    A file of that name is there whole or not at all.

    Args:
        frames: (T, height, width, 3) uint8
        fps: frames per second

    Raises:
        ValueError: the frames have another shape or type, or ``fps`` is not positive.
    """
    _check(frames, fps)
    stem.parent.mkdir(parents=True, exist_ok=True)
    ffmpeg = _ffmpeg()
    suffix = ".gif" if ffmpeg is None else ".mp4"
    unfinished = stem.with_name(f"{stem.name}.unfinished{suffix}")
    if ffmpeg is None:
        unfinished.write_bytes(gif(frames, fps))
    else:
        _write_mp4(ffmpeg, unfinished, frames, fps)
    return unfinished.replace(stem.with_name(stem.name + suffix))


def gif(frames: Array, fps: float, width: int | None = None) -> bytes:
    """An endless animated GIF, not wider than ``width``; equal neighbours become one frame that stays longer.

    Args:
        frames: (T, height, width, 3) uint8
        fps: frames per second; a GIF counts in hundredths of a second and plays at most 50

    Raises:
        ValueError: the frames have another shape or type, or ``fps`` is not positive.
    """
    from PIL import Image

    _check(frames, fps)
    pictures = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    if width is not None and frames.shape[2] > width:
        size = (width, max(1, round(frames.shape[1] * width / frames.shape[2])))
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    encoded = BytesIO()
    first, *others = (picture.quantize() for picture in pictures)
    centiseconds = round(100 / min(fps, FASTEST_GIF))
    first.save(encoded, "GIF", save_all=True, append_images=others, duration=10 * centiseconds, loop=0)
    return encoded.getvalue()


def _write_mp4(ffmpeg: ModuleType, path: Path, frames: Array, fps: float) -> None:
    height, width = frames.shape[1:3]
    writer = ffmpeg.write_frames(
        str(path), (width, height), fps=fps, codec="libx264", macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()


def _ffmpeg() -> ModuleType | None:
    """The package that brings ffmpeg, if it is installed and has a program for this machine."""
    try:
        package = import_module("imageio_ffmpeg")
        package.get_ffmpeg_exe()
    except (ModuleNotFoundError, RuntimeError):
        return None
    return package


def _check(frames: Array, fps: float) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0 or frames.dtype != np.uint8:
        raise ValueError(f"frames are (T, height, width, 3) uint8, not {frames.shape} {frames.dtype}")
    if not fps > 0:
        raise ValueError(f"fps={fps} is not positive")
