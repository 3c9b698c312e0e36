"""JAX in the process that steps a world: on one core, with no more GPU memory than it needs, compiled once."""

from __future__ import annotations

import os
import platform
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from marl.env import EnvUnavailable


def start(device: str) -> Any:
    """The JAX device that steps a world; JAX is started by the first call in a process.

    Variables that the user has set (JAX_PLATFORMS, JAX_COMPILATION_CACHE_DIR, XLA_PYTHON_CLIENT_PREALLOCATE) stand.

    Raises:
        EnvUnavailable: there is no such device for JAX here.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = imported("jax")
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu" if device == "cpu" else "cuda,cpu")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # A step is shorter than the way to another thread and back.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with _one_core():
        try:
            return jax.devices(device)[0]
        except RuntimeError as error:
            raise EnvUnavailable(f"env.device={device}: {str(error).splitlines()[0]}") from error


@contextmanager
def _one_core() -> Iterator[None]:
    """XLA sizes its pools by this variable when it starts; other workers have the other cores."""
    before = os.environ.get("NPROC")
    os.environ.setdefault("NPROC", "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["NPROC"]


def cache() -> Path:
    """Where compiled steps are kept: a folder per kind of processor, for they are its machine code."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "marl" / "jax" / f"{platform.machine()}-{_abilities()}"


def _abilities() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else [platform.processor()]
    flags = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return sha256("\n".join(flags).encode()).hexdigest()[:12]


def imported(name: str) -> Any:
    """A module of JAX or of the suite. Their imports draw from shared generators, print, and replace `sys.stdout`."""
    drawn, streams = (random.getstate(), np.random.get_state()), (sys.stdout, sys.stderr, sys.__stdout__)
    sys.stdout = sys.__stdout__ = StringIO()  # type: ignore[misc,assignment]
    try:
        return import_module(name)
    finally:
        sys.stdout, sys.stderr, sys.__stdout__ = streams  # type: ignore[misc]
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
