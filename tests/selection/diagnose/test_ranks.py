"""Rank correlations and their intervals over episodes."""

import jax
import numpy as np
import pytest
import scipy.stats

from offline_mbrl.selection.diagnose import ranks

KEY = jax.random.key(0)
EPISODES = np.repeat(np.arange(40), 5)


def drawn(seed, size=EPISODES.size):
    return np.random.default_rng(seed).normal(size=size)


def test_a_perfectly_ranked_figure_has_an_interval_at_one():
    error = drawn(0)
    same = ranks.correlation(np.exp(error), error, EPISODES, KEY)
    assert same == pytest.approx((1.0, 1.0, 1.0), abs=1e-5)
    turned = ranks.correlation(-error, error, EPISODES, KEY)
    assert turned == pytest.approx((-1.0, -1.0, -1.0), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_an_independent_figure_covers_zero_and_is_as_wide_as_theory_says(seed):
    """Where steps are independent the deviation is `1 / sqrt(M - 1)`."""
    rank = ranks.correlation(drawn(seed), drawn(seed + 10), EPISODES, KEY)
    assert rank.low < 0 < rank.high
    width = 2 * scipy.stats.norm.ppf(0.975) / np.sqrt(EPISODES.size - 1)
    assert rank.high - rank.low == pytest.approx(width, rel=0.25)


def test_copies_of_steps_within_an_episode_say_nothing_more():
    """An interval over steps would be narrower by the root of their number."""
    error, figure = drawn(0, 40), drawn(0, 40) + drawn(1, 40)
    once = ranks.correlation(figure, error, np.arange(40), KEY)
    copies = ranks.correlation(*(np.repeat(part, 5) for part in (figure, error)), EPISODES, KEY)
    np.testing.assert_allclose(copies, once, atol=1e-5)


def test_a_resample_has_the_correlation_of_its_repeated_rows():
    rng = np.random.default_rng(2)
    figure, error = rng.integers(0, 6, (2, 30))  # with ties
    weight = rng.integers(0, 4, 30)
    expected = scipy.stats.spearmanr(*(np.repeat(part, weight) for part in (figure, error)))
    levels = [ranks.levels(part) for part in (figure, error)]
    value = ranks.weighted_spearman(*levels, weight.astype(np.float32))
    assert value == pytest.approx(expected.statistic, abs=1e-5)


def test_the_same_key_draws_the_same_episodes_whatever_they_are_called():
    figure, error = drawn(0), drawn(0) + drawn(1)
    first = ranks.correlation(figure, error, EPISODES, KEY)
    assert ranks.correlation(figure, error, 2 * EPISODES + 7, KEY) == first
    assert ranks.correlation(figure, error, EPISODES, jax.random.key(1)) != first


def test_a_single_episode_or_a_constant_figure_has_no_interval():
    figure, error = drawn(0), drawn(0) + drawn(1)
    single = ranks.correlation(figure, error, 0 * EPISODES, KEY)
    assert single.value > 0.5
    assert np.isnan([single.low, single.high]).all()
    assert np.isnan(ranks.correlation(0 * figure, error, EPISODES, KEY)).all()


def test_resamples_in_which_a_figure_is_constant_are_left_out():
    """Of two episodes whose figures differ between them alone, a half draws one of them twice."""
    figure = np.array([0.0, 0.0, 1.0, 1.0])
    error = np.array([0.0, 1.0, 2.0, 3.0])
    rank = ranks.correlation(figure, error, np.array([0, 0, 1, 1]), KEY)
    assert rank == pytest.approx((rank.value, rank.value, rank.value), abs=1e-5)
