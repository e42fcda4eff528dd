"""One-dimensional conditionals: densities, draws that follow them, scales inside their bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from autoregressive_examples import masked, random_params

from offline_mbrl.models import feedforward
from offline_mbrl.models.densities import conditionals
from offline_mbrl.models.densities.conditionals import ConditionalConfig
from offline_mbrl.types import UsageError

BOUNDS = (jnp.float32(-2.0), jnp.float32(1.0))
OUTPUTS = {1: [0.7, -1.0], 3: [0.3, -0.5, 0.9, -1.5, 0.2, 2.0, -0.8, -1.2, 0.1]}
GRID = jnp.linspace(-15, 15, 3001)


@pytest.fixture(params=OUTPUTS, ids=["gaussian", "mixture"])
def case(request):
    return conditionals.make(ConditionalConfig(request.param)), jnp.array(OUTPUTS[request.param])


def on_grid(conditional, outputs):
    return np.exp(jax.jit(jax.vmap(conditional.log_prob, (None, None, 0)))(outputs, BOUNDS, GRID))


def test_it_integrates_to_one_and_has_the_moments_that_it_tells(case):
    conditional, outputs = case
    density, y = on_grid(conditional, outputs), np.asarray(GRID)
    mean, std = conditional.moments(outputs, BOUNDS)
    np.testing.assert_allclose(np.trapezoid(density, y), 1, atol=1e-4)
    np.testing.assert_allclose(np.trapezoid(density * y, y), mean, atol=1e-3)
    np.testing.assert_allclose(np.trapezoid(density * (y - mean) ** 2, y) ** 0.5, std, rtol=1e-3)


def test_draws_follow_the_density(case):
    conditional, outputs = case
    noise = conditional.noise(jax.random.key(0), 20_000)
    draws = jax.jit(jax.vmap(conditional.draw, (None, None, 0)))(outputs, BOUNDS, noise)
    step = float(GRID[1] - GRID[0])
    cumulative = np.cumsum(on_grid(conditional, outputs)) * step
    test = scipy.stats.kstest(draws, lambda y: np.interp(y, GRID + step / 2, cumulative))
    assert test.pvalue > 0.01


def test_components_that_are_alike_are_one_gaussian():
    one, three = (conditionals.make(ConditionalConfig(count)) for count in (1, 3))
    outputs = jnp.array([0.7, -1.0])
    alike = jnp.array([0.1, 2.0, -3.0, *[0.7] * 3, *[-1.0] * 3])
    for y in (-1.0, 0.5, 4.0):
        expected = one.log_prob(outputs, BOUNDS, jnp.float32(y))
        np.testing.assert_allclose(
            three.log_prob(alike, BOUNDS, jnp.float32(y)), expected, rtol=1e-5
        )
    np.testing.assert_allclose(
        three.moments(alike, BOUNDS), one.moments(outputs, BOUNDS), rtol=1e-5
    )


def test_each_entry_keeps_its_own_bounds_whatever_the_order():
    low = (-3.0, -2.0, -1.0, 0.0, 1.0)
    for raw, bounds in ((-1e3, low), (1e3, np.add(low, 0.5))):
        config = ConditionalConfig(log_std_min=low, log_std_max=tuple(np.add(low, 0.5)))
        density = masked(order=(2, 0, 3, 1), reward_first=True, conditional=config)
        params = random_params(density)
        params["input"]["bias"] = (
            params["input"]["bias"].at[-9::2].set(raw)
        )  # raw log deviations of all entries
        std = jax.jit(density.moments)(params, {}, jnp.ones(6), jnp.ones(5))[1]
        np.testing.assert_allclose(np.log(std), bounds, atol=0.5)
        assert np.all(np.argsort(std) == np.arange(5))


def test_learned_bounds_are_shared_and_cost_a_hundredth_of_their_distance():
    density = masked(conditional=ConditionalConfig(learned_bounds=True, log_std_min=-4.0))
    params, shared = random_params(density), density.shared()
    np.testing.assert_allclose(density.penalty(params, shared), 0.01 * 5 * 5.0, rtol=1e-6)
    x, y = jnp.ones(6), jnp.ones(5)
    gradient = jax.jit(jax.grad(density.loss, argnums=1))(
        params, shared, x, y, jnp.ones(5), jax.random.key(0)
    )
    assert all(np.all(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))
    fixed = masked(conditional=ConditionalConfig(log_std_min=-4.0))
    assert fixed.shared() == {}
    assert fixed.penalty(params, {}) == 0
    np.testing.assert_allclose(
        density.log_prob(params, shared, x, y), fixed.log_prob(params, {}, x, y), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_components": 0}, "at least 1"),
        ({"log_std_min": (0.0, 0.0)}, "2 values"),
        ({"log_std_max": -7.0}, "below"),
    ],
)
def test_conditionals_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        masked(conditional=ConditionalConfig(**settings))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_weighted_losses_have_the_gradients_of_seitzers_equations(beta):
    """Those of the mean and log scale of a Gaussian, times its variance to the power of beta."""
    # Bounds that nothing comes near.
    config = ConditionalConfig(beta=beta, log_std_min=-20.0, log_std_max=20.0)
    density = feedforward.make(feedforward.Config((), config), 1, 1)
    y = np.array([0.3, -2.0])
    mean = np.array([0.1, 0.5])
    log_std = np.array([-2.0, 0.7])
    params = jax.tree.map(jnp.zeros_like, density.init(jax.random.key(0)))
    params["layer_0"]["bias"] = jnp.array([mean[0], log_std[0], mean[1], log_std[1]])

    def loss(params):
        x = jnp.zeros(2)
        return density.loss(params, {}, x, jnp.asarray(y), jnp.ones(2), jax.random.key(0))

    gradient = jax.grad(loss)(params)["layer_0"]["bias"]
    weight = np.exp(2 * beta * log_std)
    variance = np.exp(2 * log_std)
    np.testing.assert_allclose(gradient[::2], weight * (mean - y) / variance / 2, rtol=1e-4)
    expected = weight * (1 - (mean - y) ** 2 / variance) / 2
    np.testing.assert_allclose(gradient[1::2], expected, rtol=1e-4)


def test_a_weighted_loss_leaves_the_density_alone():
    plain, weighted = masked(), masked(conditional=ConditionalConfig(beta=0.5))
    params, x, y = random_params(plain), jnp.ones(6), jnp.ones(5)
    np.testing.assert_array_equal(
        plain.log_prob(params, {}, x, y), weighted.log_prob(params, {}, x, y)
    )
