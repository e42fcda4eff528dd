"""Gaps of likelihood, their intervals, and the claims that they decide."""

import likelihood_rows
import numpy as np
import pytest
from likelihood_rows import QUICK, TASK, row
from scipy import stats

from experiments.benchmarks.likelihood import claims, runs, settings


def test_intervals_are_students():
    worse = np.array([1.0, 1.2, 1.1])
    better = np.array([0.5, 0.8, 0.6])
    expected = stats.ttest_ind(worse, better).confidence_interval(0.95)
    gap = claims.gap(worse, better)
    np.testing.assert_allclose([gap.low, gap.high], [expected.low, expected.high], rtol=1e-9)
    mean = claims.interval(worse)
    expected = stats.ttest_1samp(worse, 0).confidence_interval(0.95)
    np.testing.assert_allclose([mean.low, mean.high], [expected.low, expected.high], rtol=1e-9)


def test_single_runs_borrow_the_spread_of_others():
    worse = np.array([1.0, 1.2, 1.1])
    better = np.array([0.5, 0.8, 0.6])
    own = claims.gap(worse, better)
    borrowed = claims.gap(worse[:1], better[:1], [worse, better])
    np.testing.assert_allclose(
        borrowed.high - borrowed.value, (own.high - own.value) * 3**0.5, rtol=1e-9
    )
    assert np.isnan(claims.gap(worse[:1], better[:1]).low)
    assert claims.gap(worse, better[:0]) is None
    assert claims.interval(better[:0]) is None


@pytest.mark.parametrize(
    ("masked", "at_least"), [(-3.0, "holds"), (-2.2, "does not hold"), (-2.305, "cannot be told")]
)
def test_the_size_of_a_gap_is_judged_by_the_whole_interval(masked, at_least):
    levels = {"feedforward": -2.0, "masked": masked}
    finished = runs.finished(likelihood_rows.rows_of_time(levels))
    judged = {
        claim.source: claim.verdict
        for claim in claims.of_time(finished, QUICK, "cheetah_run")
        if "masked" in claim.statement
    }
    assert judged == {"better": "holds", "size": at_least}


def test_configurations_are_ranked_by_other_transitions_than_those_reported():
    sweep = settings.sweep(QUICK, TASK, "masked")
    table = [
        row(setting, 0, -float(number), "grid", selection_z=float(number))
        for number, setting in enumerate(sweep)
    ]
    ranked = claims.ranked(runs.finished(table), QUICK, TASK, "masked")
    assert claims.top(ranked, 1) == [0.0]
    assert claims.top(ranked, 5).mean() == -2.0
    assert claims.ranked(runs.finished(table[:4]), QUICK, TASK, "masked") == []


def test_a_single_run_with_more_parameters_is_judged_by_the_others_spread():
    wide = settings.curves(QUICK, TASK)["feedforward"][512]
    levels = {"feedforward": -2.0, "shared": -3.0}
    table = [*likelihood_rows.rows_of_time(levels), row(wide, 0, -2.5, "parameters")]
    judged = [
        claim
        for claim in claims.of_sizes(runs.finished(table), QUICK, TASK)
        if claim.measured is not None
    ]
    assert [claim.verdict for claim in judged] == ["holds", "holds"]
    np.testing.assert_allclose([claim.measured.value for claim in judged], [1.0, 0.49], atol=1e-9)
