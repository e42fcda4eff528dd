"""Several fits of one policy as one estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.ope import convergence, intervals
from offline_mbrl.types import Estimate, UsageError

FITS = Estimate(
    value=jnp.array([1.0, 2.0, 3.0]),
    stderr=jnp.array([0.3, 0.4, 0.5]),
    per_episode=jnp.array([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]]),
    diagnostics={
        "drift": jnp.array([0.1, 0.2, 0.6]),
        "updates_too_few": jnp.array([0.0, 1.0, 0.0]),
    },
)


# 97.5 % of Student's t with two degrees of freedom, of three fits, over the normal's.
STUDENT = 4.302653 / 1.959964


def test_the_spread_over_resamples_stays_and_that_over_seeds_averages_out():
    within = (0.09 + 0.16 + 0.25) / 3
    resampled = intervals.combine(FITS, resampled=True)
    seeds = intervals.combine(FITS, resampled=False)
    np.testing.assert_allclose(
        resampled.stderr, np.sqrt(within + STUDENT**2 * (1 + 1 / 3)), rtol=1e-6
    )
    np.testing.assert_allclose(seeds.stderr, np.sqrt(within + STUDENT**2 / 3), rtol=1e-6)
    np.testing.assert_allclose([resampled.value, seeds.value], 2.0)
    np.testing.assert_allclose(seeds.per_episode, [1.0, 3.0])
    np.testing.assert_allclose(seeds.diagnostics["between_fits"], 1.0)


def test_values_whose_squares_overflow_have_a_finite_error():
    huge = FITS._replace(value=1e20 * FITS.value, stderr=1e20 * FITS.stderr)
    found = intervals.combine(huge, resampled=True)
    plain = intervals.combine(FITS, resampled=True)
    np.testing.assert_allclose(found.stderr, 1e20 * plain.stderr, rtol=1e-5)
    infinite = FITS._replace(stderr=jnp.array([0.3, jnp.inf, 0.5]))
    assert intervals.combine(infinite, resampled=True).stderr == jnp.inf


def test_a_single_fit_is_refused():
    for rows in (slice(0, 1), 0):
        single = jax.tree.map(lambda leaf, rows=rows: leaf[rows], FITS)
        with pytest.raises(UsageError, match="combine takes at least 2 fits"):
            intervals.combine(single, resampled=True)


@pytest.mark.parametrize("size", [2, 3, 4, 10])
def test_intervals_of_few_resamples_cover_like_those_of_many(size):
    """An estimate errs by N(0, 1), each resample about it by as much again."""
    generator = np.random.default_rng(0)
    fits = generator.normal(size=(4_000, 1)) + generator.normal(size=(4_000, size))
    zeros = jnp.zeros((4_000, size))
    estimates = Estimate(jnp.asarray(fits), zeros, None, {})
    combined = jax.vmap(lambda fits: intervals.combine(fits, resampled=True))(estimates)
    covered = np.abs(combined.value) < 1.96 * combined.stderr
    assert abs(np.mean(covered) - 0.95) < 0.015


def test_a_flag_of_one_fit_is_a_flag_of_all_and_other_figures_are_means():
    diagnostics = intervals.combine(FITS, resampled=True).diagnostics
    assert diagnostics["updates_too_few"] == 1.0
    np.testing.assert_allclose(diagnostics["drift"], 0.3, rtol=1e-6)


def test_estimates_without_episodes_combine():
    assert intervals.combine(FITS._replace(per_episode=None), resampled=True).per_episode is None


def settle(values, *, over, needed_updates):
    track = convergence.start()
    for value in values:
        track = convergence.follow(track, jnp.float32(value), over=over)
    return convergence.diagnostics(track, needed_updates=needed_updates, width=jnp.float32(10.0))


def test_a_value_that_still_climbs_or_had_too_few_updates_is_flagged_and_a_settled_one_is_not():
    assert settle(np.linspace(0.0, 5.0, 60), over=20, needed_updates=30)["updates_too_few"] == 1
    assert settle(np.full(60, 5.0), over=20, needed_updates=30)["updates_too_few"] == 0
    assert settle(np.full(60, 5.0), over=20, needed_updates=61)["updates_too_few"] == 1


def test_drift_is_the_fast_mean_less_the_slow_one_and_both_begin_as_plain_means():
    assert settle([1.0], over=20, needed_updates=0)["drift"] == 0
    slope = settle(np.arange(400.0), over=20, needed_updates=0)["drift"]
    np.testing.assert_allclose(slope, 19.0 - 1.0, rtol=1e-3)  # lags of 1 / rate - 1 updates
