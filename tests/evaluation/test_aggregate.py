import numpy as np
import pytest

from offline_mbrl.evaluation import aggregate
from offline_mbrl.types import UsageError

SCORES = np.random.default_rng(0).normal(0.8, 0.5, (7, 5))


def test_statistics_equal_rliables():
    from rliable import metrics

    assert aggregate.interquartile_mean(SCORES) == pytest.approx(metrics.aggregate_iqm(SCORES))
    assert aggregate.median(SCORES) == pytest.approx(metrics.aggregate_median(SCORES))
    assert aggregate.mean(SCORES) == pytest.approx(metrics.aggregate_mean(SCORES))
    assert aggregate.optimality_gap(SCORES) == pytest.approx(
        metrics.aggregate_optimality_gap(SCORES)
    )
    assert aggregate.optimality_gap(SCORES, 0.5) == pytest.approx(
        metrics.aggregate_optimality_gap(SCORES, 0.5)
    )


def test_comparisons_equal_rliables():
    from rliable import library, metrics

    others = np.random.default_rng(1).normal(0.6, 0.5, (4, 5))
    others[0] = SCORES[0]  # ties count half
    assert aggregate.probability_of_improvement(SCORES, others) == pytest.approx(
        metrics.probability_of_improvement(SCORES, others)
    )
    thresholds = np.linspace(-1, 3, 9)
    profiles, _ = library.create_performance_profile({"method": SCORES}, thresholds, reps=2)
    np.testing.assert_allclose(
        aggregate.performance_profile(SCORES, thresholds), profiles["method"]
    )


def test_interquartile_mean_is_the_mean_of_the_middle_half():
    scores = np.array([[-100.0, 1], [2, 3], [4, 5], [6, 1000]])
    assert aggregate.interquartile_mean(scores) == np.mean([2, 3, 4, 5])


def test_median_is_over_tasks_of_means_over_seeds():
    assert aggregate.median(np.array([[0.0, 2, 10], [0, 4, 20]])) == 3


def test_optimality_gap_does_not_credit_runs_above_the_target():
    assert aggregate.optimality_gap(np.array([[0.5, 3.0]])) == 0.25


@pytest.mark.parametrize("name", ["interquartile_mean", "mean", "median", "optimality_gap"])
def test_leading_axes_are_a_loop(name):
    statistic = getattr(aggregate, name)
    tables = np.random.default_rng(1).normal(size=(4, 3, 6, 5))
    looped = [[statistic(table) for table in row] for row in tables]
    np.testing.assert_allclose(statistic(tables), looped)


def test_normalized_score_is_zero_for_random_and_one_for_the_expert():
    references = np.array([-0.667, 64.833]), np.array([1.0, 1001.0])
    found = aggregate.normalized_score(
        np.array([references[0], references[1], [0.1665, 532.9165]]), *references
    )
    np.testing.assert_allclose(found, [[0, 0], [1, 1], [0.5, 0.5]])


def test_equal_references_are_refused():
    with pytest.raises(UsageError, match="references"):
        aggregate.normalized_score(1.0, 2.0, 2.0)


# --- intervals ---


def test_interval_depends_on_its_own_seed_alone():
    np.random.seed(0)  # noqa: NPY002  the global generator must not matter
    first = aggregate.stratified_bootstrap(SCORES, seed=1)
    np.random.seed(1)  # noqa: NPY002
    assert aggregate.stratified_bootstrap(SCORES, seed=1) == first
    assert aggregate.stratified_bootstrap(SCORES, seed=2) != first


def test_seeds_are_drawn_within_each_task():
    scores = np.tile(
        [0.0, 1.0, 5.0], (4, 1)
    )  # all seeds of a task agree: nothing is left to chance
    assert aggregate.stratified_bootstrap(scores, aggregate.mean) == (2.0, 2.0)
    shifted = SCORES + np.arange(5) * 100  # differences between tasks do not widen the interval
    low, high = aggregate.stratified_bootstrap(SCORES, aggregate.mean)
    np.testing.assert_allclose(
        aggregate.stratified_bootstrap(shifted, aggregate.mean), [low + 200, high + 200]
    )


def test_interval_of_a_mean_has_its_closed_form_width():
    low, high = aggregate.stratified_bootstrap(SCORES, aggregate.mean, num_replicates=20_000)
    standard_error = np.sqrt(SCORES.var(axis=0).mean() / SCORES.size)
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.03)
    assert (high + low) / 2 == pytest.approx(SCORES.mean(), abs=0.1 * standard_error)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(300, 20, 3))
    intervals = [
        aggregate.stratified_bootstrap(
            table, aggregate.mean, seed=number, num_replicates=500, confidence=0.9
        )
        for number, table in enumerate(tables)
    ]
    assert np.mean([low <= 0 <= high for low, high in intervals]) == pytest.approx(0.88, abs=0.04)


def test_interval_agrees_with_rliables():
    from rliable import library, metrics

    _, theirs = library.get_interval_estimates(
        {"ours": SCORES}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=4000
    )
    ours = aggregate.stratified_bootstrap(SCORES, num_replicates=4000)
    np.testing.assert_allclose(ours, theirs["ours"][:, 0], atol=0.03)


@pytest.mark.parametrize("scores", [np.zeros(5), np.zeros((0, 3)), np.array([[0.0, np.nan]])])
def test_interval_of_an_unfit_table_is_refused(scores):
    with pytest.raises(UsageError, match="finite table"):
        aggregate.stratified_bootstrap(scores)


def test_statistic_that_forgets_the_leading_axis_is_refused():
    with pytest.raises(UsageError, match="last two axes"):
        aggregate.stratified_bootstrap(SCORES, np.mean)


def test_scores_without_a_task_axis_are_refused():
    with pytest.raises(UsageError, match="seeds, tasks"):
        aggregate.interquartile_mean(np.zeros(5))
