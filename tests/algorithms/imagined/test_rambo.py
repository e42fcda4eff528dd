"""RAMBO: the adversary's gradient, and what it does to a model."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.algorithms.imagined import rambo

ADVANTAGE = jnp.array([1.0, -1.0, 3.0, -3.0])


def test_the_gradient_moves_the_mean_away_from_what_is_better_than_average():
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    std = 2.0

    def loss(mean):
        log_prob = -0.5 * ((x - mean) / std) ** 2
        return rambo.adversary_loss(ADVANTAGE, log_prob)

    scaled = ADVANTAGE / jnp.std(ADVANTAGE)
    expected = jnp.mean(scaled * (x - 0.5) / std**2)
    np.testing.assert_allclose(jax.grad(loss)(0.5), expected, rtol=1e-5)


def test_advantages_carry_no_gradient_and_no_scale():
    log_prob = jnp.array([0.1, 0.2, 0.3, 0.4])
    gradient = jax.grad(lambda advantage: rambo.adversary_loss(advantage, log_prob))(ADVANTAGE)
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_allclose(
        rambo.adversary_loss(100 * ADVANTAGE + 7, log_prob),
        rambo.adversary_loss(ADVANTAGE, log_prob),
        rtol=1e-5,
    )
