"""What the runs of a row say together, and how that stands to what was published and to chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from marl.fields import Mistake
from marl.reporting.curves import common_steps, held
from marl.reporting.statistics import Estimate, iqm_interval, mean_interval
from marl.reproduction.results import PREFIX, Recorded
from marl.reproduction.tables import Figure, Header


def standing(runs: Sequence[Recorded], header: Header) -> Estimate:
    """The table's summary of the runs of one row.

    ``last``: each run's mean of its last evaluations, then centre and 95 % interval over runs. ``max``: the evaluation
    at which the mean over runs is highest, with the interval there (EPyMARL, Papoudakis et al. 2021, section 4), which
    flatters all who use it alike; that of untrained networks, at step 0, is none of them.

    Raises:
        Mistake: a run did not log the metric.
    """
    for run in runs:
        if header.metric not in run.evaluations:
            raise Mistake(f"{run.config}: no {header.metric} beside it; allowed is a metric that the world tells")
    series = [run.evaluations[header.metric] for run in runs]
    centre = mean_interval if header.centre == "mean" else iqm_interval
    if header.summary == "last":
        return centre(np.array([curve.values[-header.window :].mean() for curve in series]))
    steps = common_steps(series)
    learned = steps[steps > 0]
    values = np.stack([held(curve, learned) for curve in series])
    return centre(values[:, int(values.mean(0).argmax())])


def fresh(runs: Sequence[Recorded], header: Header) -> Estimate | None:
    """The final policies on episodes of their own: over runs; of a single one over its episodes."""
    name = header.metric.removeprefix(PREFIX)
    told = [run.about["fresh"][name] for run in runs if run.about["fresh"] is not None]
    if not told:
        return None
    return mean_interval([one["value"] for one in told]) if len(told) > 1 else Estimate(**told[0])


def versus(ours: Estimate, figure: Figure) -> str:
    """``better`` or ``worse`` where the intervals are apart, ``within`` where they meet; a bare number is a point."""
    if math.isnan(ours.low):
        return "no interval"
    margin = figure.margin or 0.0
    if ours.low > figure.value + margin:
        return "better"
    return "worse" if ours.high < figure.value - margin else "within"


def below_random(ours: Estimate, random: float | None) -> bool:
    """Whether what was learned is worse than no learning at all."""
    return random is not None and ours.value < random
