"""The feedforward density: what it can reach, and that it samples what it evaluates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explicit_examples import jitted, many_steps, spec

from offline_mbrl.data import memory, splits
from offline_mbrl.models import explicit, feedforward, fitting, likelihood
from offline_mbrl.models.densities.conditionals import ConditionalConfig
from offline_mbrl.training import fit
from offline_mbrl.types import Context, UsageError

STATE = 5
ACTION = 1
D = STATE + 1
CORRELATION = np.full((D, D), 0.9) + 0.1 * np.eye(D)
# 1.4189 nats per entry: independent entries of variance 1
OPTIMUM = 0.5 * np.log(2 * np.pi * np.e)
MIXTURE = feedforward.Config((8,), ConditionalConfig(num_components=3))


@functools.cache
def correlated():
    """A fit of (change, reward) = A x + e, e of variance 1 and correlation 0.9 in all entries.

    And its data, with held-out rows.
    """
    rng = np.random.default_rng(0)
    size = 30_000
    a = 0.5 * rng.normal(size=(STATE + ACTION, D))
    observation = rng.normal(size=(size, STATE))
    action = rng.uniform(-1, 1, (size, ACTION))
    noise = rng.multivariate_normal(np.zeros(D), CORRELATION, size)
    y = np.concatenate([observation, action], axis=1) @ a + noise
    arrays = {
        "observation": observation,
        "action": action,
        "next_observation": observation + y[:, :-1],
        "reward": y[:, -1],
        "is_terminal": np.zeros(size, bool),
        "is_truncated": np.ones(size, bool),
    }
    dataset = splits.hold_out(memory.Dataset.from_arrays(arrays), fraction=0.4)
    density = feedforward.make(feedforward.Config((32,)), STATE, ACTION)
    model = explicit.make(density, spec(STATE, ACTION))
    config = fitting.Config(
        num_updates=1_001, refresh_every=250, learning_rate=5e-3, bootstrap=False
    )
    learner = fitting.make(model, config)
    context = Context(statistics=fitting.training_statistics(dataset))
    result = fit.fit(
        learner,
        dataset,
        key=jax.random.key(0),
        num_updates=config.num_updates,
        context=context,
        block_updates=500,
    )
    return jitted(model), fit.policy_params(learner, result.state, context), dataset


def test_independent_entries_reach_their_optimum_and_no_more():
    model, params, dataset = correlated()
    report = jax.jit(lambda params, rows: likelihood.report(model, params, rows))
    reported = report(params, fitting.held_out(dataset, 10**6))
    np.testing.assert_allclose(OPTIMUM, 1.4189, atol=1e-4)
    np.testing.assert_allclose(reported.nll_raw.mean, OPTIMUM, atol=0.02)
    means = reported.entries_unit.mean(axis=1)
    np.testing.assert_allclose(means, reported.nll_unit.mean, rtol=1e-4)


def test_samples_have_the_variance_of_the_noise_and_no_correlation():
    model, params, _ = correlated()
    row = memory.Transition(jnp.zeros(STATE), jnp.zeros(ACTION), 0.0, 1.0, ())
    predicted = many_steps(model, params, row, 100_000)
    drawn = np.concatenate([predicted.observation, predicted.reward[:, None]], axis=1)
    covariance = np.cov(drawn.T)
    assert np.max(np.abs(covariance - np.diag(np.diag(covariance)))) < 0.03
    np.testing.assert_allclose(np.diag(covariance), 1.0, atol=0.1)


@pytest.mark.parametrize("config", [feedforward.Config((8,)), MIXTURE], ids=["gaussian", "mixture"])
def test_every_conditional_integrates_to_one_and_has_the_moments_it_says(config):
    density = feedforward.make(config, 2, 1)
    params = density.init(jax.random.key(0))
    x, grid = jnp.array([0.3, -1.0, 0.5]), jnp.linspace(-12, 12, 4_001)
    at = jax.jit(jax.vmap(lambda y: density.log_prob(params, {}, x, jnp.full(3, y))))
    density_at = np.exp(at(grid))
    mean, std = (
        np.asarray(moment) for moment in jax.jit(density.moments)(params, {}, x, jnp.zeros(3))
    )
    grid = np.asarray(grid)[:, None]
    np.testing.assert_allclose(np.trapezoid(density_at, grid, axis=0), 1.0, atol=1e-4)
    np.testing.assert_allclose(np.trapezoid(grid * density_at, grid, axis=0), mean, atol=1e-4)
    np.testing.assert_allclose(
        np.trapezoid((grid - mean) ** 2 * density_at, grid, axis=0), std**2, rtol=1e-3
    )
    np.testing.assert_allclose(jax.jit(density.mode)(params, {}, x), mean, rtol=1e-6)


@pytest.mark.parametrize("config", [feedforward.Config((8,)), MIXTURE], ids=["gaussian", "mixture"])
def test_the_loss_is_the_mean_negative_log_likelihood_and_no_entry_sees_another(config):
    density = feedforward.make(config, 2, 1)
    params, (x, y) = density.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (2, 3))
    log_prob = jax.jit(density.log_prob)(params, {}, x, y)
    loss = jax.jit(density.loss)(params, {}, x, y, jnp.ones(3), jax.random.key(0))
    np.testing.assert_allclose(loss, -np.mean(log_prob), rtol=1e-6)
    jacobian = np.array(jax.jit(jax.jacobian(density.log_prob, argnums=3))(params, {}, x, y))
    np.testing.assert_array_equal(jacobian - np.diag(np.diag(jacobian)), 0.0)
    assert np.all(np.diag(jacobian) != 0)


def test_bounds_of_each_entry_hold_the_deviations():
    bounds = ConditionalConfig(log_std_min=(-3.0, -2.0, -1.0), log_std_max=0.0)
    density = feedforward.make(feedforward.Config((8,), bounds), 2, 1)
    params = jax.tree.map(lambda leaf: 100.0 * leaf, density.init(jax.random.key(0)))
    inputs = jax.random.normal(jax.random.key(1), (50, 3))
    stds = jax.jit(jax.vmap(lambda x: density.moments(params, {}, x, x)[1]))(inputs)
    low = np.array([-3.0, -2.0, -1.0])
    np.testing.assert_allclose(np.log(stds).min(axis=0), low, atol=1e-3)
    # The lower bound comes last, and its softplus lifts the upper end.
    np.testing.assert_allclose(np.log(stds).max(axis=0), low + np.log1p(np.exp(-low)), atol=1e-3)


@pytest.mark.parametrize(
    "bounds", [{"log_std_min": 1.0}, {"log_std_min": (0.0, 0.0)}, {"log_std_max": -8.0}]
)
def test_bounds_that_do_not_fit_are_refused(bounds):
    with pytest.raises(UsageError, match="log_std"):
        feedforward.make(feedforward.Config((8,), ConditionalConfig(**bounds)), 2, 1)
