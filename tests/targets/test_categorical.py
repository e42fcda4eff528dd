"""The projection of categorical distributions."""

import jax.numpy as jnp
import numpy as np
import optax

from offline_mbrl.targets import categorical


def test_the_projected_backup_and_its_cross_entropy():
    support = jnp.arange(3.0)
    target = categorical.project(jnp.array([0.2, 0.5, 0.3]), 0.5 + 0.5 * support, support)
    np.testing.assert_allclose(target, [0.1, 0.75, 0.15], rtol=1e-5)
    np.testing.assert_allclose(target @ support, 1.05, rtol=1e-5)
    loss = optax.softmax_cross_entropy(jnp.array([0.0, 1.0, 0.0]), target)
    np.testing.assert_allclose(loss, 0.801445, rtol=1e-5)


def test_all_mass_beyond_the_support_goes_to_its_ends():
    support = jnp.arange(3.0)
    target = categorical.project(jnp.array([0.4, 0.6]), jnp.array([-7.0, 9.0]), support)
    np.testing.assert_allclose(target, [0.4, 0.0, 0.6], rtol=1e-6)
