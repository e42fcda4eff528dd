"""Expectile regression against closed forms."""

import jax.numpy as jnp
import numpy as np

from offline_mbrl.targets.expectile import expectile_loss


def test_errors_of_either_sign_are_weighed_by_the_expectile():
    loss = expectile_loss(jnp.array([-1.0, 2.0]), 0.7)
    np.testing.assert_allclose(loss, [0.3, 2.8], rtol=1e-6)
    np.testing.assert_allclose(jnp.mean(loss), 1.55, rtol=1e-6)


def test_the_middle_expectile_is_half_the_squared_error():
    error = jnp.linspace(-3.0, 3.0, 7)
    np.testing.assert_allclose(expectile_loss(error, 0.5), 0.5 * error**2, rtol=1e-6)
