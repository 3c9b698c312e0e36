"""How this process holds the memory that tensors on a CPU come and go in."""

from __future__ import annotations

import torch

BLOCK = 31 * 2**20
"""Bytes; glibc learns from blocks of less than 32 MiB."""


def keep_freed_memory() -> None:
    """Let freed memory of up to 62 MiB stay in this process instead of going back to the system.

    An update allocates and frees some megabytes hundreds of times. By default glibc returns them each time and has
    them handed out again page by page, which costs up to a tenth of the update. It raises its thresholds to the
    largest block it has seen freed (mallopt(3), M_MMAP_THRESHOLD); so one is. Elsewhere this does nothing.
    """
    torch.empty(BLOCK, dtype=torch.uint8)
