"""From settings to an exit status: a run is made, played, and told how it ended."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from marl import build
from marl.checkpoint import NoCheckpoint, write_tensors
from marl.command import cli
from marl.command.runs import held_folder
from marl.config import Settings
from marl.descent import NonFinite
from marl.fields import Mistake, one_line
from marl.replay import ROUNDED, ReplayTooLarge
from marl.reporting.log import LogDamaged
from marl.run import Run, Stopped

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What is wrong with a disk that takes no more."""
CPU_IS_FULL = "DefaultCPUAllocator"
"""In the message of torch's error, which for a CPU has no class of its own."""


def train(settings: Settings) -> int:
    """One run, fresh or resumed; the exit status.

    Raises:
        Mistake: something that only the attempt shows, such as what no memory holds or a disk that is full.
    """
    torch.set_num_threads(settings.learner.threads)
    device = build.device(settings)
    env_spec, films = build.spec(settings), settings.log.video_every_steps
    if films:
        build.refuse_films(env_spec, f"log.video_every_steps={films}", none="0")
    with _out_of_memory_told(device):
        learner = build.learner(settings, env_spec, device)
        with held_folder(settings) as folder:
            run = Run(settings, learner, folder)
            try:
                return _to_the_end(run)
            finally:
                run.close()


@contextmanager
def _out_of_memory_told(device: torch.device) -> Iterator[None]:
    try:
        yield
    except ReplayTooLarge as refusal:
        raise Mistake(str(refusal)) from refusal
    except RuntimeError as fault:
        if not isinstance(fault, torch.OutOfMemoryError) and CPU_IS_FULL not in str(fault):
            raise
        less = "algo.hidden, learner.batch, replay.capacity and replay.float=float16 are what saves it"
        raise Mistake(f"device={device}: out of memory; {less}; {one_line(fault)}") from fault


def _to_the_end(run: Run) -> int:
    try:
        with run.stoppable():
            run.resume() if run.settings.resume else run.begin()
            run.play()
        return 0
    except Stopped:
        steps = run.learner.clock.steps
        run.log.note(f"stopped at step {steps}; go on with: python -m marl.train resume={run.folder}")
        return cli.INTERRUPTED
    except NonFinite as fault:
        run.log.warn(_save_failed_batch(run, fault))
        return 1
    except (NoCheckpoint, LogDamaged) as fault:
        raise Mistake(str(fault)) from fault
    except (OSError, SafetensorError) as fault:
        if isinstance(fault, OSError) and fault.errno not in UNWRITABLE:
            raise
        later = f"resume={run.folder} goes on once it can"
        raise Mistake(f"{run.folder}: cannot be written any more: {fault}; {later}") from fault


def _save_failed_batch(run: Run, fault: NonFinite) -> str:
    """Save the batch that broke the run; one line for the user."""
    clock, batch = run.learner.clock, run.learner.batch
    line = f"{fault} at update {clock.updates}, step {clock.steps}; training stopped"
    if batch is None:
        return line
    broken = [name for name in ROUNDED if not torch.isfinite(getattr(batch, name)).all()]
    if broken:
        half = run.settings.replay.float == "float16"
        reason = "; replay.float=float16 holds no more than 65504, allowed are float32, bfloat16" if half else ""
        line = f"{line}; {' and '.join(broken)} of its batch has entries that are not finite{reason}"
    file = run.folder / f"nonfinite-{clock.updates:09d}.safetensors"
    fields = {name: value for name, value in vars(batch).items() if name != "columns"}
    fields |= {f"columns.{name}": value for name, value in batch.columns.items()}
    writing = file.with_suffix(".writing")
    write_tensors(fields, writing)
    writing.rename(file)
    return f"{line}; its batch is in {file}"
