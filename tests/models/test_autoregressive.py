"""Autoregressive densities: what each conditional sees, that they are densities, and that samples follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from autoregressive_examples import DENSITIES, ORDERS, D, X, plain_sample, random_params


@pytest.mark.parametrize("name", DENSITIES)
def test_a_conditional_sees_the_entries_before_it_and_exactly_no_other(name):
    density, order = DENSITIES[name], np.asarray(ORDERS[name])
    params = random_params(density)
    x, y = jax.random.normal(jax.random.key(2), (X,)), jax.random.normal(jax.random.key(3), (D,))
    jacobians = jax.jit(jax.jacobian(density.moments, argnums=3))(params, {}, x, y)
    for jacobian in jacobians:
        in_turn = np.asarray(jacobian)[np.ix_(order, order)]
        assert np.all(np.triu(in_turn) == 0)
        assert np.all(in_turn[np.tril_indices(D, -1)] != 0)


@pytest.mark.parametrize("name", ["shared", "shared in another order", "masked", "masked in another order"])
def test_sampling_equals_one_whole_evaluation_per_entry(name):
    density = DENSITIES[name]
    params, x, key = random_params(density, scale=0.3), jnp.array([0.5, -1.0, 2.0]), jax.random.key(4)
    noise = jax.random.normal(key, (D,))
    expected = jax.jit(lambda: plain_sample(density, params, x, noise, ORDERS[name]))()
    np.testing.assert_allclose(jax.jit(density.sample)(params, {}, x, key), expected, rtol=1e-4, atol=1e-5)
    means = jax.jit(lambda: plain_sample(density, params, x, 0 * noise, ORDERS[name]))()
    np.testing.assert_allclose(jax.jit(density.mode)(params, {}, x), means, rtol=1e-4, atol=1e-5)
