"""Folders of runs: found, opened, and described so that a run can be started again."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from marl.config import Settings, default_name
from marl.fields import Mistake, first_line, leaves, suggestion

CONFIG = "config.yaml"
ENVIRONMENT = "environment"


def folder_of(settings: Settings) -> Path:
    """Where this run belongs, were it the first of its name."""
    return Path(settings.resume) if settings.resume else Path(settings.logdir) / str(settings.name)


def refuse_taken(settings: Settings) -> None:
    """A name that the user gave must be free; names that the program gives are numbered instead.

    Raises:
        Mistake: the folder is there already.
    """
    folder = folder_of(settings)
    if not settings.resume and folder.exists() and not _is_default(settings):
        go_on = f"resume={folder} goes on with that run"
        raise Mistake(f"name={settings.name}: {folder} is there; allowed are free names; {go_on}")


def _is_default(settings: Settings) -> bool:
    """Whether the program gave the name; in a sweep it ends with what was swept, as ``_KEY-VALUE``."""
    return re.fullmatch(rf"{re.escape(default_name(settings))}(_[\w.]+-[\w.+-]+)*", str(settings.name)) is not None


def open_folder(settings: Settings) -> Path:
    """Make the run's folder, with its configuration and surroundings written down; or find it, on resume.

    Raises:
        Mistake: the name that the user gave is taken.
    """
    folder = folder_of(settings)
    if not settings.resume:
        folder = _fresh_folder(settings)
    save(replace(settings, name=folder.name), folder)
    return folder


@contextmanager
def held_folder(settings: Settings) -> Iterator[Path]:
    """The run's folder as `open_folder` gives it, this process's alone until the end.

    Raises:
        Mistake: another process goes on with that run; nothing was written.
    """
    with ExitStack() as held:
        if settings.resume:
            held.enter_context(_alone_in(folder_of(settings)))
        folder = open_folder(settings)
        if not settings.resume:
            held.enter_context(_alone_in(folder))
        yield folder


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Mistake(f"resume={folder}: that run is alive in another process; allowed are runs that ended") from error


def make_folder(folder: Path, asked: str) -> None:
    """Make a folder, if it is not there; ``asked`` is the `key=value` that asks for it.

    Raises:
        Mistake: it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"{asked}: {folder} cannot be made: {error.strerror}; allowed are places to write to") from error


def _fresh_folder(settings: Settings) -> Path:
    refuse_taken(settings)
    first = folder = folder_of(settings)
    number = 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
        except OSError as error:
            raise Mistake(f"logdir={settings.logdir}: cannot be written: {error.strerror or error}") from error


def find(key: str, run: str, logdir: str) -> Path:
    """The saved configuration of a run given by its folder, its name in ``logdir``, or that file itself.

    Raises:
        Mistake: there is none, or a file of another name, beside which there is no run; it was asked for as ``key``.
    """
    for path in (Path(run).expanduser(), Path(logdir) / run):
        if path.is_file() and path.name != CONFIG and key != "from":
            raise Mistake(f"{key}={run}: allowed are a run's folder or {CONFIG}; from={run} starts a run like it")
        if path.is_file():
            return path
        if (path / CONFIG).is_file():
            return path / CONFIG
    names = [path.parent.name for path in sorted(Path(logdir).glob(f"*/{CONFIG}"))]
    listed = f"allowed are a run's folder or {CONFIG}, or a name in {logdir}"
    raise Mistake(f"{key}={run}: no saved run; {listed}{suggestion(run, names)}")


def read(config: Path) -> dict[str, Any]:
    """A saved configuration, but for what belongs to that one run: its name and where it came from.

    Raises:
        Mistake: it cannot be read.
    """
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(config), resolve=False)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise Mistake(f"{config}: not a configuration: {first_line(error)}") from error
    if not isinstance(saved, dict) or not all(_has_name(saved.get(key)) for key in ("algo", "env")):
        raise Mistake(f"{config}: not the configuration of a run: allowed are files with algo.name and env.name")
    return {key: value for key, value in saved.items() if key not in ("name", "resume", "from")}


def _has_name(section: Any) -> bool:
    return isinstance(section, dict) and "name" in section


# what is written


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as nested mappings, with the keys of the command line."""
    return {key.rstrip("_"): value for key, value in asdict(settings).items()}


def to_yaml(settings: Settings) -> str:
    """The whole configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(settings)))


def flat(settings: Settings) -> dict[str, str | int | float | bool]:
    """Dotted key to scalar, for tables of hyper-parameters; what is no scalar is JSON."""
    return {
        key: value if isinstance(value, str | int | float) else json.dumps(value) for key, value, _ in leaves(settings)
    }


def save(settings: Settings, folder: Path) -> None:
    """Write the configuration and the surroundings; those of earlier sessions of the run stay beside them."""
    write(folder / CONFIG, to_yaml(settings))
    session = 1 + len(list(folder.glob(f"{ENVIRONMENT}*.json")))
    file = f"{ENVIRONMENT}.json" if session == 1 else f"{ENVIRONMENT}-{session}.json"
    write(folder / file, json.dumps(describe(), indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """A reader finds the old file or the new one, never half of it."""
    writing = path.with_name(f".{path.name}-{os.getpid()}")
    with writing.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    writing.replace(path)


def describe() -> dict[str, Any]:
    """What the numbers of a run depend on beside its settings."""
    return {
        "command": sys.argv,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git": _git(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": _hardware(),
        "packages": dict(sorted((found.metadata["Name"], found.version) for found in distributions())),
    }


def _git(root: Path) -> dict[str, Any] | None:
    """Commit of the source checkout and whether files other than results differ; None for an installed copy."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    commit = _git_says(root, "rev-parse", "--verify", "HEAD")
    return {"commit": commit, "dirty": bool(_git_says(root, "status", "--porcelain", "--", ":!results"))}


def _git_says(root: Path, *command: str) -> str | None:
    told = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
    return told.stdout.strip() if told.returncode == 0 else None


def _hardware() -> dict[str, Any]:
    import torch  # slow to import; whoever trains has done so already

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
