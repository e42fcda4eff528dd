"""Returns of several depths to one value: the published vectors and identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.targets import value_expansion
from offline_mbrl.targets.value_expansion import Prior

# Two depths of four samples, two particles by two values.
RETURNS = jnp.array([[[10.0, 12.0], [11.0, 13.0]], [[9.0, 15.0], [10.0, 16.0]]])
ALL = jnp.ones(2)
POPULATION = functools.partial(value_expansion.gaussian, unbiased=False)


def samples(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_moments_are_those_of_the_published_example():
    mean, variance = value_expansion.moments(RETURNS, unbiased=False)
    close(mean, [11.5, 12.5])
    close(variance, [1.25, 9.25])
    close(value_expansion.moments(RETURNS)[1], [1.666667, 12.333333])


def test_the_law_of_total_variance_gives_the_variance_of_all_samples():
    returns = samples(3, 4, 5)
    flat = np.asarray(returns).reshape(3, -1)
    mean, variance = value_expansion.moments(returns, unbiased=False)
    close(mean, flat.mean(axis=1))
    close(variance, flat.var(axis=1))
    close(value_expansion.moments(returns)[1], flat.var(axis=1, ddof=1))


@pytest.mark.parametrize(
    ("weighting", "variance", "bound"),
    [
        (POPULATION, 1.101190, 8.470919),
        (value_expansion.gaussian, 1.468254, 7.983902),
        (value_expansion.student_t, 0.393282, 9.737681),
    ],
)
def test_posteriors_are_those_of_the_published_example(weighting, variance, bound):
    posterior = weighting(RETURNS, ALL)
    close(posterior.weights, [0.880952, 0.119048])
    close(posterior.mean, 11.619048)
    close(posterior.variance, variance)
    close(value_expansion.expected_horizon(posterior), 0.119048)
    close(value_expansion.lower_bound(posterior, 3.0), bound)


def test_the_precision_is_the_sum_of_those_of_the_depths():
    returns = samples(4, 3, 2)
    _, variance = value_expansion.moments(returns)
    posterior = value_expansion.gaussian(returns, jnp.ones(4))
    close(1.0 / posterior.variance, jnp.sum(1.0 / variance))
    close(posterior.weights, (1.0 / variance) / jnp.sum(1.0 / variance))


@pytest.mark.parametrize("num_depths", [1, 2, 5, 10])
def test_of_equally_good_depths_the_variance_shrinks_by_their_number(num_depths):
    returns = jnp.tile(samples(1, 3, 2), (num_depths, 1, 1))
    alone = value_expansion.gaussian(returns[:1], jnp.ones(1))
    posterior = value_expansion.gaussian(returns, jnp.ones(num_depths))
    close(posterior.variance, alone.variance / num_depths)
    close(posterior.mean, alone.mean)
    close(value_expansion.expected_horizon(posterior), (num_depths - 1) / 2)


@pytest.mark.parametrize("weighting", [value_expansion.gaussian, value_expansion.student_t])
def test_a_masked_depth_counts_as_if_it_were_not_there(weighting):
    mask = jnp.array([1.0, 0.0])
    posterior = weighting(RETURNS, mask)
    alone = weighting(RETURNS[:1], mask[:1])
    close(posterior.mean, 11.5)
    close(posterior.variance, alone.variance)
    close(value_expansion.expected_horizon(posterior), 0.0)


def test_depth_0_is_never_masked():
    posterior = value_expansion.gaussian(RETURNS, jnp.zeros(2))
    close([posterior.mean, posterior.variance], [11.5, 1.666667])


@pytest.mark.parametrize("mean", [0.0, 1e6, np.nan])
def test_a_depth_of_infinite_variance_changes_nothing(mean):
    base = value_expansion.combine(jnp.array([1.0, 2.0]), jnp.array([0.5, 2.0]), ALL)
    deeper = value_expansion.combine(
        jnp.array([1.0, 2.0, mean]), jnp.array([0.5, 2.0, np.inf]), jnp.ones(3)
    )
    close([deeper.mean, deeper.variance], [base.mean, base.variance])
    close(deeper.weights, [*base.weights, 0.0])


@pytest.mark.parametrize("weighting", [value_expansion.gaussian, value_expansion.student_t])
def test_a_depth_whose_samples_scatter_without_bound_changes_nothing(weighting):
    scattered = jnp.array([[[-1e10, 1e10], [-1e10, 1e10]]])
    base = weighting(RETURNS, ALL)
    deeper = weighting(jnp.concatenate([RETURNS, scattered]), jnp.ones(3))
    close(deeper.mean, base.mean)
    close(value_expansion.expected_horizon(deeper), value_expansion.expected_horizon(base))


def test_identical_samples_have_the_smallest_variance():
    posterior = value_expansion.gaussian(jnp.full((3, 2, 2), 7.0), jnp.ones(3))
    close(posterior.mean, 7.0)
    close(posterior.variance, value_expansion.SMALLEST_VARIANCE / 3)


def test_a_prior_is_one_more_observation():
    mean, variance = value_expansion.moments(RETURNS)
    as_prior = value_expansion.gaussian(RETURNS, ALL, prior=Prior(mean=3.0, variance=2.0))
    as_depth = value_expansion.combine(
        jnp.append(mean, 3.0), jnp.append(variance, 2.0), jnp.ones(3)
    )
    close([as_prior.mean, as_prior.variance], [as_depth.mean, as_depth.variance])
    close(jnp.sum(as_prior.weights), 1.0)  # of the depths alone


@pytest.mark.parametrize(
    ("decay", "weights"),
    [
        (0.5, [0.533333, 0.266667, 0.133333, 0.066667]),
        (0.9, [0.290782, 0.261704, 0.235534, 0.211980]),
        (0.0, [1.0, 0.0, 0.0, 0.0]),
        (1.0, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_geometric_weights(decay, weights):
    close(value_expansion.geometric_weights(3, decay), weights)


def test_all_weight_on_one_depth_gives_its_own_moments():
    mean, variance = value_expansion.moments(RETURNS)
    last = value_expansion.fixed(value_expansion.last_weight(1))(RETURNS, ALL)
    close([last.mean, last.variance], [mean[1], variance[1]])
    first = value_expansion.fixed(value_expansion.geometric_weights(1, 0.0))(RETURNS, ALL)
    close([first.mean, first.variance], [mean[0], variance[0]])
    assert float(value_expansion.expected_horizon(last)) == 1.0


def test_fixed_weights_average_the_returns_of_a_sample_before_its_variance_is_taken():
    posterior = value_expansion.fixed(value_expansion.uniform_weights(1))(RETURNS, jnp.zeros(2))
    weighted = np.asarray(RETURNS).mean(axis=0).ravel()
    close([posterior.mean, posterior.variance], [weighted.mean(), weighted.var(ddof=1)])


def test_particles_and_values_may_change_places():
    returns = samples(3, 4, 5)
    shuffled = returns[:, jnp.array([2, 0, 3, 1])][:, :, ::-1]
    for weighting in (value_expansion.gaussian, value_expansion.student_t):
        first, second = weighting(returns, jnp.ones(3)), weighting(shuffled, jnp.ones(3))
        jax.tree.map(close, first, second)
