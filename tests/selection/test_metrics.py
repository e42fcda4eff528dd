import numpy as np
import pytest
from scipy import stats

from offline_mbrl.selection import metrics
from offline_mbrl.types import UsageError

TRUTH = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
NAN = np.nan


def value(estimates, name, truth=TRUTH, **settings):
    return metrics.score(truth, estimates, num_replicates=2, **settings).metrics[name].value


def test_both_are_normalized_by_the_true_extremes_and_estimates_capped_above_only():
    truth, estimates = metrics.normalized(TRUTH, [-30.0, 20.0, 30.0, 90.0, 91.0])
    np.testing.assert_allclose(truth, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(estimates, [-1, 0.25, 0.5, 2, 2])


@pytest.mark.parametrize(
    ("estimates", "rho", "error", "regret_1", "regret_2", "raw", "bias"),
    [
        (TRUTH, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        (TRUTH + 5, 1.0, 0.125, 0.0, 0.0, 5.0, 5.0),
        (TRUTH[::-1], -1.0, 0.6, 1.0, 0.75, 24.0, 0.0),
        # ranks 2 1 3 5 4: d^2 = 1+1+0+1+1, rho = 1 - 6*4/(5*24) = 0.8; errors .25 .25 0 .25 .25
        ([20, 10, 30, 50, 40], 0.8, 0.2, 0.25, 0.0, 8.0, 0.0),
        # the two highest are capped to 2: their ranks tie at 4.5; errors 0 0 0 1.25 1
        ([10, 20, 30, 500, 400], 9.5 / np.sqrt(95), 0.45, 0.25, 0.0, 162.0, 162.0),
    ],
)
def test_hand_computed_vectors(estimates, rho, error, regret_1, regret_2, raw, bias):
    found = metrics.score(TRUTH, estimates, ks=(1, 2), num_replicates=2).metrics
    assert list(found) == [
        "rank_correlation",
        "absolute_error",
        "regret_at_1",
        "regret_at_2",
        "raw_absolute_error",
        "bias",
    ]
    wanted = [rho, error, regret_1, regret_2, raw, bias]
    np.testing.assert_allclose([one.value for one in found.values()], wanted, atol=1e-12)


def test_rank_correlation_is_scipys_row_by_row():
    generator = np.random.default_rng(0)
    truth, estimates = generator.integers(6, size=(2, 40, 9)).astype(float)  # with ties
    wanted = [stats.spearmanr(g, v).statistic for g, v in zip(truth, estimates, strict=True)]
    np.testing.assert_allclose(metrics.rank_correlation(truth, estimates), wanted, atol=1e-12)


def test_regret_in_a_resample_is_relative_to_its_own_best():
    np.testing.assert_allclose(
        metrics.regret_at_k(np.array([0.0, 0.5]), np.array([1.0, 0.0]), 1), 1.0
    )
    np.testing.assert_allclose(
        metrics.regret_at_k(np.array([0.25, 0.5]), np.array([1.0, 0.0]), 1), 0.5
    )


def test_regret_takes_the_worst_of_equal_estimates():
    assert value(np.zeros(5), "regret_at_1") == 1.0
    assert value(np.zeros(5), "regret_at_5") == 0.0
    assert value([0, 1, 1, 1, 1], "regret_at_1") == 0.75
    assert (
        value([9, 9, 0, 0, 0], "regret_at_1", truth=TRUTH[::-1]) == 0.25
    )  # in whatever order they are listed


def test_missing_estimates_rank_last_and_are_counted():
    found = metrics.score(TRUTH, [10, 20, 30, 40, NAN], ks=(1, 4), num_replicates=2)
    assert (found.num_missing, found.num_policies) == (1, 5)
    # ranks 2 3 4 5 1 against 1 .. 5: d^2 = 4 * 1 + 16
    np.testing.assert_allclose(found.metrics["rank_correlation"].value, 1 - 6 * 20 / 120)
    np.testing.assert_allclose([found.metrics[f"regret_at_{k}"].value for k in (1, 4)], 0.25)
    assert found.metrics["absolute_error"].value == 0.0
    for bad in (np.inf, -np.inf):
        assert (
            value([10, 20, 30, 40, bad], "rank_correlation")
            == found.metrics["rank_correlation"].value
        )


def test_estimates_that_are_all_missing_have_no_score_but_the_worst_regret():
    found = metrics.score(TRUTH, [NAN] * 5, num_replicates=50)
    assert found.num_missing == 5
    assert np.isnan(found.metrics["rank_correlation"].value)
    assert np.isnan(found.metrics["absolute_error"].mean)
    assert found.metrics["regret_at_1"].value == 1.0


def test_a_constant_estimator_has_no_rank_correlation_and_says_so_with_nan():
    found = metrics.score(TRUTH, np.full(5, 30.0), num_replicates=100).metrics
    assert np.isnan(found["rank_correlation"].value)
    assert np.isnan(found["rank_correlation"].mean)
    np.testing.assert_allclose(found["absolute_error"].value, 0.3)


def test_undefined_resamples_are_left_out_of_mean_and_interval():
    found = metrics.score([0.0, 1.0], [0.0, 1.0], num_replicates=400).metrics
    undefined = np.isnan(found["rank_correlation"].replicates)
    assert 0.4 < undefined.mean() < 0.6  # both drawn policies are one
    assert (found["rank_correlation"].mean, found["rank_correlation"].low) == (1.0, 1.0)
    both_worst = np.isnan(found["regret_at_1"].replicates)
    assert 0.2 < both_worst.mean() < 0.3
    assert found["regret_at_1"].mean == 0.0


def test_bootstrap_is_over_policies_with_the_full_sets_normalization():
    generator = np.random.default_rng(1)
    truth = generator.normal(size=30)
    estimates = truth + 0.5 * generator.normal(size=30)
    found = metrics.score(truth, estimates, num_replicates=1000, seed=3).metrics
    rows = np.random.default_rng(3).integers(30, size=(1000, 30))
    g, v = metrics.normalized(truth, estimates)
    wanted = np.array([np.abs(g[row] - v[row]).mean() for row in rows])
    np.testing.assert_allclose(found["absolute_error"].replicates, wanted)
    error = found["absolute_error"]
    np.testing.assert_allclose([error.mean, error.std], [wanted.mean(), wanted.std()])
    np.testing.assert_allclose([error.low, error.high], np.quantile(wanted, [0.025, 0.975]))
    np.testing.assert_allclose(error.std, np.abs(g - v).std() / np.sqrt(30), rtol=0.1)
    rho = np.array([stats.spearmanr(g[row], v[row]).statistic for row in rows[:50]])
    np.testing.assert_allclose(found["rank_correlation"].replicates[:50], rho)


def test_the_same_seed_draws_the_same_policies_for_every_estimator():
    plain, shifted = (
        metrics.score(TRUTH, TRUTH + shift, seed=5).metrics["bias"] for shift in (1.0, 4.0)
    )
    np.testing.assert_allclose(shifted.replicates - plain.replicates, 3.0)
    other = metrics.score(TRUTH, TRUTH[::-1], seed=6).metrics["bias"].replicates
    assert (other != metrics.score(TRUTH, TRUTH[::-1], seed=5).metrics["bias"].replicates).any()


def test_aggregation_is_the_mean_over_tasks_in_every_resample():
    generator = np.random.default_rng(2)
    tasks = {
        name: metrics.score(
            TRUTH, TRUTH + 10 * generator.normal(size=5), seed=index, num_replicates=200
        )
        for index, name in enumerate(("a", "b", "c"))
    }
    found = metrics.aggregate(tasks)
    for name in ("absolute_error", "bias", "rank_correlation", "regret_at_1"):
        each = np.stack([task.metrics[name].replicates for task in tasks.values()])
        with np.errstate(invalid="ignore"):
            means = np.nanmean(each, axis=0)
        np.testing.assert_allclose(found.metrics[name].mean, np.nanmean(means))
        np.testing.assert_allclose(found.metrics[name].std, np.nanstd(means))
        np.testing.assert_allclose(
            found.metrics[name].value, np.mean([t.metrics[name].value for t in tasks.values()])
        )
    assert (found.num_policies, found.num_missing) == (15, 0)
    # independent tasks average out
    assert found.metrics["absolute_error"].std < max(
        t.metrics["absolute_error"].std for t in tasks.values()
    )


def test_a_regret_over_more_policies_than_there_are_is_over_all():
    assert value(TRUTH[::-1], "regret_at_9", ks=(9,)) == 0.0


@pytest.mark.parametrize(
    ("truth", "estimates", "message"),
    [
        ([1.0], [1.0], "at least two policies"),
        ([1.0, 2.0], [1.0], r"one number per policy \[K\], got \(2,\) and \(1,\)"),
        ([1.0, NAN], [1.0, 2.0], "true value of policy 1 is not finite"),
        ([3.0, 3.0], [1.0, 2.0], "all 2 policies have the true value 3"),
    ],
)
def test_bad_input_is_refused_in_words(truth, estimates, message):
    with pytest.raises(UsageError, match=message):
        metrics.score(truth, estimates)


def test_tasks_scored_differently_are_not_aggregated():
    one, other = (
        metrics.score(TRUTH, TRUTH, num_replicates=5),
        metrics.score(TRUTH, TRUTH, num_replicates=6),
    )
    with pytest.raises(UsageError, match="not scored with the same"):
        metrics.aggregate({"a": one, "b": other})
    with pytest.raises(UsageError, match="no task"):
        metrics.aggregate({})
