"""`python -m marl.plot runs/...`: learning curves of runs, with what their seeds allow to be said, as PNG."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from marl.reporting.curves import Curve, Unplottable, curve, differing, find_runs, grouped, metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that readers with any colour vision can tell apart (Okabe and Ito 2008)."""
DASHES = ("-", "--", "-.", ":")


def draw(curves: Sequence[Curve], metric: str) -> Figure:
    """One panel per task, one colour per group.

    Raises:
        ModuleNotFoundError: matplotlib is missing; the message says what to install.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError('plots need matplotlib: pip install "marl[plot]"') from missing
    tasks = sorted({c.group.task for c in curves})
    labels = sorted({c.group.label for c in curves})
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(5.6 * columns if columns > 1 else 7.2, 4.2 * rows), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, task in zip(panels, tasks):
        for c in curves:
            if c.group.task == task:
                _draw_curve(panel, c, labels.index(c.group.label))
        _dress(panel, task, metric)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    if any(c.band.n > 1 for c in curves):
        told = "line: interquartile mean over seeds · shade: 95 % stratified bootstrap interval"
        figure.supxlabel(told, fontsize=8, color="0.4")
    return figure


def _draw_curve(panel: Axes, drawn: Curve, index: int) -> None:
    colour, dashes = OKABE_ITO[index % len(OKABE_ITO)], DASHES[index // len(OKABE_ITO) % len(DASHES)]
    seeds = f"n = {drawn.band.n} seeds" if drawn.band.n > 1 else "n = 1, no interval"
    marker = "o" if len(drawn.steps) <= 25 else None
    width = 1.8 if drawn.band.n > 1 else 1.2
    style = {"color": colour, "linestyle": dashes, "linewidth": width, "marker": marker, "markersize": 3.5}
    panel.plot(drawn.steps, drawn.band.value, label=f"{drawn.group.label}  ({seeds})", **style)  # type: ignore[arg-type]
    if drawn.band.n > 1:
        panel.fill_between(drawn.steps, drawn.band.low, drawn.band.high, color=colour, alpha=0.18, linewidth=0)


def _dress(panel: Axes, task: str, metric: str) -> None:
    from matplotlib.ticker import EngFormatter

    panel.set_title(task, fontsize=11)
    panel.set_xlabel("environment steps")
    panel.set_ylabel(metric)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    if metric.endswith("/success"):
        panel.set_ylim(-0.03, 1.03)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="0.92", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.legend(frameon=False, fontsize=9)


def make_room(out: Path) -> None:
    """Make the folder of the PNG.

    Raises:
        Unplottable: no PNG can be written there.
    """
    if out.is_dir() or out.suffix.lower() != ".png":
        raise Unplottable(f"--out {out}: allowed is a file that ends with .png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unplottable(f"--out {out}: cannot be written: {error.strerror}") from error
    if not os.access(out.parent, os.W_OK):
        raise Unplottable(f"--out {out}: cannot be written: {out.parent} is read-only")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Unplottable(message)


def main(arguments: Sequence[str]) -> int:
    """Draw what the command line asks for; the exit status."""
    parser = _Parser(prog="python -m marl.plot", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or folders with runs below them")
    parser.add_argument("--metric", default="eval/return", help="tag to draw (eval/return)")
    parser.add_argument("--by", default="algo", help="settings that tell curves apart, with commas (algo)")
    parser.add_argument("--out", type=Path, default=Path("plot.png"), help="where the PNG goes (plot.png)")
    try:
        asked = parser.parse_args(arguments)
        make_room(asked.out)
        runs = find_runs(asked.runs)
        metric_of(runs, asked.metric)
        curves = [curve(group, asked.metric) for group in grouped(runs, asked.by.split(","))]
        figure = draw(curves, asked.metric)
    except (Unplottable, ModuleNotFoundError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    writing = asked.out.with_name(f".{asked.out.name}-{os.getpid()}")
    figure.savefig(writing, format="png")
    writing.replace(asked.out)
    for c in curves:
        _report(c, asked.metric)
    print(asked.out)
    return 0


def _report(drawn: Curve, metric: str) -> None:
    group, band = drawn.group, drawn.band
    name, end = f"{group.label} on {group.task}", int(drawn.steps[-1])
    interval = f" [{band.low[-1]:.4g}, {band.high[-1]:.4g}]" if band.n > 1 else ", no interval"
    print(f"{name}: {metric} {band.value[-1]:.4g}{interval} at step {end:,}, n = {band.n}")
    longest = max(int(run.logged[metric].steps[-1]) for run in group.runs)
    if longest > end:
        print(f"note: {name} is drawn to step {end:,}, where its shortest run ends; its longest has {longest:,}")
    varied = differing(group)
    if varied:
        print(f"note: runs of {name} differ in {', '.join(varied)}; tell them apart with --by")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
