"""How sure a number is: standard errors, and intervals that are right for few runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from marl.types import Array

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    """NaN where n is too small to say."""
    high: float
    n: int
    """Episodes or runs it rests on."""

    def plain(self) -> dict[str, float | None]:
        """JSON-able, with null for NaN."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}


class Band(NamedTuple):
    """A curve with its pointwise confidence interval."""

    value: Array
    """(P,)"""
    low: Array
    """(P,) NaN where n is 1"""
    high: Array
    n: int
    """Runs it rests on."""


def mean(values: Sequence[float] | Array) -> float:
    """Arithmetic mean of (n,) values.

    Raises:
        ValueError: there are none, or one is NaN.
    """
    return float(_checked(values).mean())


def standard_error(values: Sequence[float] | Array) -> float:
    """Sample standard deviation (n - 1) over the root of n; NaN for one value, which says nothing of spread.

    Raises:
        ValueError: there are no values, or one is NaN.
    """
    checked = _checked(values)
    if len(checked) < 2:
        return float("nan")
    return float(checked.std(ddof=1) / np.sqrt(len(checked)))


def mean_interval(values: Sequence[float] | Array, confidence: float = 0.95) -> Estimate:
    """Mean of (n,) values with Student's interval, t with n - 1 degrees of freedom; no interval for one value.

    Raises:
        ValueError: there are no values, or one is NaN.
    """
    from scipy.stats import t

    value, n = mean(values), len(values)
    margin = float(t.ppf(0.5 + confidence / 2, n - 1)) * standard_error(values) if n > 1 else float("nan")
    return Estimate(value, value - margin, value + margin, n)


def success_interval(successes: int, episodes: int, confidence: float = 0.95) -> Estimate:
    """Rate of success with Wilson's score interval (Wilson 1927), which stays within [0, 1] and holds at 0 and 1.

    Raises:
        ValueError: not 0 <= successes <= episodes, or no episode.
    """
    from scipy.stats import binomtest

    if episodes < 1 or not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes")
    interval = binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    return Estimate(successes / episodes, float(interval.low), float(interval.high), episodes)


def iqm_interval(scores: Array, confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Interquartile mean over runs, and tasks if there are several, with its stratified bootstrap interval.

    The mean of what is left when floor(count / 4) scores are dropped at each end (Agarwal et al. 2021, "Deep RL at
    the Edge of the Statistical Precipice", section 4.3), so that fewer than 4 scores give their mean. Runs are drawn
    again within each task, as many as there are. One run gives no interval.

    Args:
        scores: (runs,) or (runs, tasks)

    Raises:
        ValueError: there are no scores, or one is NaN.
        ModuleNotFoundError: rliable is missing; the message says what to install.
    """
    runs = _checked(scores)
    band = _bootstrapped(runs.reshape(len(runs), -1, 1), confidence, resamples, seed)
    return Estimate(float(band.value[0]), float(band.low[0]), float(band.high[0]), band.n)


def iqm_band(scores: Array, confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0) -> Band:
    """`iqm_interval` at every point of curves.

    Args:
        scores: (runs, P)

    Raises:
        ValueError: there are no scores, or one is NaN.
        ModuleNotFoundError: rliable is missing; the message says what to install.
    """
    return _bootstrapped(_checked(scores)[:, None, :], confidence, resamples, seed)


def _bootstrapped(scores: Array, confidence: float, resamples: int, seed: int) -> Band:
    """(runs, tasks, P): percentile bootstrap, stratified by task."""
    runs = len(scores)
    if runs == 1:
        unknown = np.full(scores.shape[-1], np.nan)
        return Band(_interquartile_mean(scores), unknown, unknown, 1)
    try:
        from rliable.library import get_interval_estimates
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError('intervals over runs need rliable: pip install "marl[plot]"') from missing
    with _numpy_seeded(seed):
        centres, intervals = get_interval_estimates(
            {"runs": scores}, _interquartile_mean, reps=resamples, confidence_interval_size=confidence
        )
    low, high = intervals["runs"]
    return Band(centres["runs"], low, high, runs)


def _interquartile_mean(scores: Array) -> Array:
    """(..., P) to (P,). scipy's `trim_mean` takes ten times as long, two thousand times."""
    ranked = np.sort(scores.reshape(-1, scores.shape[-1]), axis=0)
    dropped = len(ranked) // 4
    return np.asarray(ranked[dropped : len(ranked) - dropped].mean(0))


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """rliable draws from NumPy's global generator whatever it is given, so that is lent to it and put back."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def _checked(values: Sequence[float] | Array) -> Array:
    checked = np.asarray(values, np.float64)
    if checked.size == 0:
        raise ValueError("no values")
    if np.isnan(checked).any():
        raise ValueError("a value is NaN")
    return checked
