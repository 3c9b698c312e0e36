"""Named stretches of an update, for the profiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

_awaited: torch.device | None = None


@contextmanager
def section(name: str) -> Iterator[None]:
    """What is done meanwhile is told under ``name``."""
    with record_function(name):
        yield
        if _awaited is not None:
            catch_up(_awaited)


@contextmanager
def awaiting(device: torch.device) -> Iterator[None]:
    """Sections last until ``device`` has done what they asked of it: a GPU works behind the program that asks."""
    global _awaited
    _awaited = device
    try:
        yield
    finally:
        _awaited = None


def catch_up(device: torch.device) -> None:
    """Wait until ``device`` has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
