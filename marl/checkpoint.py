"""Saved runs: safetensors and JSON in a folder that appears whole or not at all. Nothing is unpickled."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from marl.types import Tensors

STATE = "state.json"
FORMAT = 2
"""Of what is saved; 1 held the replay in one piece."""
REPLACED = ".replaced"


class NoCheckpoint(FileNotFoundError):
    """A run has no checkpoint that can be used."""


class OtherFormat(NoCheckpoint):
    """A checkpoint is whole, and of another version of this program."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run was at ``step`` consumed environment steps."""

    step: int
    tensors: Mapping[str, Tensors]
    """By the name of their file without its ending. One file's are in memory at a time."""
    state: Mapping[str, Any]
    """JSON-able."""


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write under a temporary name, rename, then drop all but the last ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{checkpoint.step:012d}"
    writing = folder / ".writing"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    sums = {}
    for name, tensors in checkpoint.tensors.items():
        file = writing / f"{name}.safetensors"
        write_tensors(tensors(), file)
        sums[file.name] = _checksum(file)
        _sync(file)
    told = {"format": FORMAT, "step": checkpoint.step, "sums": sums, "state": checkpoint.state}
    (writing / STATE).write_text(json.dumps(told))
    _sync(writing / STATE)
    aside = final.with_name(f"{final.name}{REPLACED}")
    if final.exists():  # whichever of the two is there when the process ends at once, `saved` finds it
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    writing.rename(final)
    shutil.rmtree(aside, ignore_errors=True)
    _sync(folder)
    for old in saved(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """As safetensors, wherever they are and however they lie."""
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, file)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def load_latest(folder: Path, warn: Callable[[str], None], only: tuple[str, ...] | None = None) -> Checkpoint:
    """The newest checkpoint that is whole; ``only`` limits which files are read. Damaged ones are named in a warning.

    Raises:
        NoCheckpoint: there is none, or the newest whole one is of another version of this program.
    """
    paths = saved(folder)
    for path in reversed(paths):
        try:
            return _load(path, only)
        except OtherFormat:
            raise
        except (OSError, ValueError, KeyError) as fault:
            before = "" if path == paths[0] else "; the one before it is used"
            warn(f"checkpoint {path} is damaged ({fault}){before}")
    raise NoCheckpoint(f"{folder}: no checkpoint that can be used; from={folder.parent} starts such a run anew")


def _load(path: Path, only: tuple[str, ...] | None) -> Checkpoint:
    written = json.loads((path / STATE).read_text())
    sums = written["sums"]
    if (found := written.get("format", 1)) != FORMAT:
        raise OtherFormat(f"{path}: saved in format {found}, this version reads {FORMAT}")
    tensors: dict[str, Tensors] = {}
    for name, checksum in sums.items():
        stem = name.removesuffix(".safetensors")
        if only is None or stem in only:
            if _checksum(path / name) != checksum:
                raise ValueError(f"{name} is not what was written")
            tensors[stem] = partial(load_file, path / name)
    return Checkpoint(written["step"], tensors, written["state"])


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """What a checkpoint holds is put where ``config.yaml`` has made room for it.

    Raises:
        NoCheckpoint: there is other room than that.
    """
    try:
        yield
    except (RuntimeError, KeyError) as fault:
        first = str(fault).partition("\n")[2].partition("\n")[0].strip() or str(fault)
        raise NoCheckpoint(f"{folder}: config.yaml describes something else than was saved: {first}") from fault


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def _checksum(file: Path) -> int:
    total = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def _sync(path: Path) -> None:
    """Have the disk hold what was written, so that a rename never outruns its contents."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
