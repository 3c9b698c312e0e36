"""Risk: an interval claims more, or less, than the runs say."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from marl.reporting.statistics import iqm_band, iqm_interval, mean, mean_interval, standard_error, success_interval


def test_mean_and_standard_error_by_hand():
    assert mean([1, 2, 3, 4, 5]) == 3.0
    assert standard_error([1, 2, 3, 4, 5]) == pytest.approx(np.sqrt(2.5 / 5))
    assert standard_error([0, 1, 1, 1]) == pytest.approx(0.25)
    assert np.isnan(standard_error([2.0]))


def test_student_interval_by_hand():
    value, low, high, n = mean_interval([1, 2, 3, 4, 5])
    assert (value, n) == (3.0, 5)
    assert (low, high) == pytest.approx((3 - 2.776445 * 0.7071068, 3 + 2.776445 * 0.7071068), abs=1e-6)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_student_interval_is_scipys(confidence):
    values = np.random.default_rng(1).normal(size=7)
    low, high = stats.t.interval(confidence, 6, values.mean(), stats.sem(values))
    assert mean_interval(values, confidence)[1:3] == pytest.approx((low, high))


def test_student_interval_covers_the_truth_as_often_as_it_says_with_three_runs():
    draws = np.random.default_rng(2).normal(5.0, 2.0, size=(3000, 3))
    covered = [low <= 5.0 <= high for _, low, high, _ in map(mean_interval, draws)]
    assert 0.94 < np.mean(covered) < 0.96


def test_one_value_says_nothing_of_spread():
    value, low, high, n = mean_interval([4.0])
    assert (value, n) == (4.0, 1) and np.isnan(low) and np.isnan(high)
    assert mean_interval([4.0, 4.0, 4.0])[:3] == (4.0, 4.0, 4.0)


def test_wilson_interval_by_hand():
    value, low, high, n = success_interval(8, 10)
    assert (value, n) == (0.8, 10) and (low, high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    z2 = stats.norm.ppf(0.975) ** 2
    assert success_interval(0, 20)[:3] == pytest.approx((0.0, 0.0, z2 / (20 + z2)))
    assert success_interval(20, 20)[:3] == pytest.approx((1.0, 20 / (20 + z2), 1.0))
    assert success_interval(8, 10, 0.5)[1] > low


def test_interquartile_mean_drops_a_quarter_at_each_end():
    assert iqm_interval(np.array([1, 2, 3, 4, 5, 6, 7, 1000])).value == 4.5
    assert iqm_interval(np.array([-1000, 2, 3, 4, 50])).value == 3.0
    assert iqm_interval(np.array([1.0, 2.0, 6.0])).value == 3.0, "three scores have no quarter to drop"


def test_interquartile_mean_over_tasks_is_rliables():
    metrics = pytest.importorskip("rliable.metrics")
    scores = np.random.default_rng(3).normal(size=(6, 3))
    told = iqm_interval(scores)
    assert told.value == pytest.approx(metrics.aggregate_iqm(scores)) and told.n == 6


def test_bootstrap_interval_is_that_of_all_resamples():
    scores = np.array([0.0, 1.0, 3.0, 7.0])
    every = [np.sort(scores[list(drawn)])[1:3].mean() for drawn in product(range(4), repeat=4)]
    told = iqm_interval(scores, 0.8, resamples=10_000)
    assert told[1:3] == pytest.approx(np.percentile(every, [10, 90]), abs=0.051)


def test_bootstrap_is_stratified_by_task():
    """Tasks of different difficulty do not widen the interval: each task's runs are drawn among themselves."""
    scores = np.array([[0.0, 10.0], [0.0, 10.0], [0.0, 10.0], [0.0, 10.0]])
    assert iqm_interval(scores)[:3] == (5.0, 5.0, 5.0)


def test_more_runs_of_the_same_spread_narrow_the_interval_by_the_root():
    few = np.linspace(0, 1, 8)
    widths = [told.high - told.low for told in (iqm_interval(few), iqm_interval(np.repeat(few, 4)))]
    assert widths[0] / widths[1] == pytest.approx(2.0, rel=0.2)


def test_a_band_is_an_interval_at_every_point():
    scores = np.random.default_rng(4).normal(size=(5, 3))
    band = iqm_band(scores, resamples=10_000)
    for point in range(3):
        told = iqm_interval(scores[:, point], resamples=10_000)
        assert band.value[point] == told.value
        assert (band.low[point], band.high[point]) == pytest.approx(told[1:3], abs=0.03)
    one = iqm_band(scores[:1])
    assert one.n == 1 and np.array_equal(one.value, scores[0]) and np.isnan(one.low).all() and np.isnan(one.high).all()


def test_the_same_scores_give_the_same_interval_and_disturb_no_one():
    scores = np.random.default_rng(5).normal(size=6)
    np.random.seed(11)
    before = np.random.get_state()[1].copy()
    first, second, other = iqm_interval(scores), iqm_interval(scores), iqm_interval(scores, seed=1)
    assert first == second and first != other
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("function", [mean, standard_error, mean_interval, iqm_interval])
@pytest.mark.parametrize(("values", "said"), [([], "no values"), ([1.0, float("nan")], "NaN")])
def test_what_has_no_answer_is_refused(function, values, said):
    with pytest.raises(ValueError, match=said):
        function(np.array(values))


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_counts_are_refused(successes, episodes):
    with pytest.raises(ValueError, match=f"{successes} successes in {episodes} episodes"):
        success_interval(successes, episodes)
