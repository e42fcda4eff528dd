"""n-step returns against a slow reference and the spec's example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.targets import returns


def slow(reward, discount, value, n):
    """z_i = sum_j (d_i ... d_{i+j-1}) r_{i+j} + (d_i ... d_{i+n-1}) v_{i+n}, written out."""
    out = []
    for i in range(len(reward) - n + 1):
        total, product = 0.0, 1.0
        for j in range(n):
            total += product * reward[i + j]
            product *= discount[i + j]
        out.append(total + product * value[i + n])
    return np.array(out)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_n_step_returns_equal_the_written_out_sum_with_terminals_inside(n):
    generator = np.random.default_rng(n)
    reward, value = generator.normal(size=7), generator.normal(size=8)
    discount = 0.9 * np.array([1, 1, 0, 1, 1, 0, 1.0])
    fast = returns.n_step_returns(
        jnp.asarray(reward), jnp.asarray(discount), jnp.asarray(value), n=n
    )
    np.testing.assert_allclose(fast, slow(reward, discount, value, n), rtol=1e-5, atol=1e-6)


def test_full_length_with_zero_bootstrap_is_the_discounted_sum():
    reward = jnp.array([1.0, 2.0, 3.0])
    z = returns.n_step_returns(reward, jnp.full(3, 0.5), jnp.zeros(4), n=3)
    np.testing.assert_allclose(z, [1 + 0.5 * 2 + 0.25 * 3])


def test_one_step_returns_of_the_true_values_are_the_values():
    gamma, reward = 0.9, jnp.ones(5)
    value = jnp.array([(1 - gamma ** (5 - i)) / (1 - gamma) for i in range(6)])
    z = returns.n_step_returns(reward, jnp.full(5, gamma), value, n=1)
    np.testing.assert_allclose(z, value[:-1], rtol=1e-5)


@pytest.mark.parametrize("n", [0, 4])
def test_a_length_that_does_not_fit_is_refused(n):
    with pytest.raises(ValueError, match=r"1\.\.3"):
        returns.n_step_returns(jnp.zeros(3), jnp.zeros(3), jnp.zeros(4), n=n)


def test_it_vmaps():
    z = jax.vmap(lambda r: returns.n_step_returns(r, jnp.ones(4), jnp.zeros(5), n=2))(
        jnp.ones((3, 4))
    )
    np.testing.assert_allclose(z, jnp.full((3, 3), 2.0))
