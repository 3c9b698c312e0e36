"""Whole numbers as the only arguments of a command."""

from __future__ import annotations

import sys


def counts(about: str | None, most: int) -> list[int]:
    """The numbers on the command line; anything else, or more than ``most``, and what the command is for is told."""
    words = sys.argv[1:]
    if len(words) > most or not all(word.isdecimal() and int(word) > 0 for word in words):
        sys.exit(about)
    return [int(word) for word in words]
