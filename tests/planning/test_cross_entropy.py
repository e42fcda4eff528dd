"""The cross-entropy method as an optimizer of any function: widths, known runs, and its noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planning_examples import KEY

from offline_mbrl.planning import cross_entropy
from offline_mbrl.planning.cross_entropy import Normal


@pytest.mark.parametrize(("mean", "expected"), [(0.0, 0.5), (0.8, 0.1), (-0.8, 0.1)])
def test_the_deviation_shrinks_towards_the_bounds(mean, expected):
    normal = Normal(mean=jnp.array([[mean]]), variance=jnp.array([[0.25]]))
    np.testing.assert_allclose(cross_entropy.width(normal, -1.0, 1.0), [[expected]], rtol=1e-5)


def runs(size, optimum):
    """20 runs on `-|a - optimum|^2` over `size` actions: (mean absolute error, deviation left)."""

    def score(actions, key):
        del key
        return -jnp.sum((actions - optimum) ** 2, axis=(1, 2))

    @jax.jit
    @jax.vmap
    def run(key):
        optimize = functools.partial(cross_entropy.optimize, num_candidates=400)
        normal = optimize(score, jnp.zeros((size, 1)), key).normal
        error = jnp.mean(jnp.abs(normal.mean - optimum))
        return error, jnp.mean(jnp.sqrt(normal.variance))

    return [float(jnp.mean(each)) for each in run(jax.random.split(KEY, 20))]


def test_known_runs_of_the_released_iterations():
    """Means over seeds of an independent implementation, to 20 %."""
    error, std = runs(15, 0.3)
    np.testing.assert_allclose((error, std), (0.019, 0.083), rtol=0.2)
    assert runs(1, 0.3)[0] < 1e-2
    assert runs(1, 0.95)[0] < 1e-2  # although widths end at the bound


def test_moments_are_of_the_elites_with_inertia():
    normal = Normal(mean=jnp.array([[3.0]]), variance=jnp.array([[4.0]]))
    actions = jnp.array([0.0, 2.0, 9.0])[:, None, None]
    after = cross_entropy.refitted(normal, actions, jnp.array([0.5, 0.5, 0.0]), 0.1)
    np.testing.assert_allclose(after.mean, [[0.1 * 3.0 + 0.9 * 1.0]], rtol=1e-6)
    np.testing.assert_allclose(after.variance, [[0.1 * 4.0 + 0.9 * 1.0]], rtol=1e-6)


def test_iterations_end_once_the_variance_is_small():
    def optimize(min_variance, num_iterations):
        return cross_entropy.optimize(
            lambda actions, key: -jnp.sum(actions**2, axis=(1, 2)),
            jnp.full((1, 1), 0.5),
            KEY,
            num_candidates=50,
            num_iterations=num_iterations,
            min_variance=min_variance,
        ).normal

    start = optimize(1.0, 4)
    np.testing.assert_allclose((start.mean, start.variance), ([[0.5]], [[0.25]]), rtol=1e-6)
    ended, stopped = (float(optimize(least, 9).variance[0, 0]) for least in (0.0, 0.02))
    assert ended < 1e-6 < 1e-4 < stopped < 0.02


def test_the_population_decays_to_twice_the_elites():
    assert cross_entropy.population_sizes(40, 4, 2.0, 5) == (40, 20, 10, 10)


# --- colored noise ---


def noise(exponent, length):
    return cross_entropy.colored_noise(KEY, (20_000, length, 1), exponent)[..., 0]


@pytest.mark.parametrize("length", [1, 2, 7, 8])
@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_noise_of_every_color_has_unit_variance_at_every_step(exponent, length):
    samples = noise(exponent, length)
    assert samples.shape == (20_000, length)
    np.testing.assert_allclose(jnp.mean(samples, axis=0), jnp.zeros(length), atol=0.04)
    np.testing.assert_allclose(jnp.std(samples, axis=0), jnp.ones(length), atol=0.03)


def test_exponent_zero_is_white_and_a_larger_one_slower():
    white, red = (jnp.corrcoef(noise(exponent, 8).T) for exponent in (0.0, 3.0))
    np.testing.assert_allclose(white, jnp.eye(8), atol=0.04)
    neighbors = jnp.diagonal(red, offset=1)
    assert float(jnp.min(neighbors)) > 0.6
