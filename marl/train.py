"""`python -m marl.train algo=fox env=grf`: settings -> a run."""

from __future__ import annotations

import sys

import algos
import envs
from marl.command import cli
from marl.config import Settings


def main(settings: Settings) -> int:
    """Train; the exit status."""
    from marl.training import train  # brings torch, which --help and a mistyped key need not wait for

    return train(settings)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:], algos.ALGORITHMS, envs.ENVIRONMENTS))
