"""How this process holds the memory that tensors on a CPU come and go in."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What malloc.h calls M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
KEPT = 2**30
"""Bytes of freed memory at most that stay."""
SAFE = 32 * 2**20
"""The largest block that older versions of glibc take from what they hold."""


def keep_freed_memory() -> None:
    """Let freed memory of up to 1 GiB stay in this process instead of going back to the system.

    An update allocates and frees some megabytes hundreds of times. By default glibc returns them and has them handed
    out again page by page, which costs up to a tenth of the update (mallopt(3)). Elsewhere this does nothing.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(TRIM_THRESHOLD, KEPT)
        if not library.mallopt(MMAP_THRESHOLD, KEPT):
            library.mallopt(MMAP_THRESHOLD, SAFE)
