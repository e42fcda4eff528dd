"""Expectile regression, whose solution moves from the mean to the maximum of what it sees."""

import jax.numpy as jnp

from offline_mbrl.types import Array


def expectile_loss(error: Array, expectile: float) -> Array:
    """`|expectile - 1[error < 0]| error^2`, elementwise; at 0.5 half the squared error.

    Args:
      error: what is regressed to, minus its prediction.
      expectile: in `[0, 1]`.

    Source: arXiv:2110.06169, section 4.1.
    """
    weight = jnp.where(error < 0, 1.0 - expectile, expectile)
    return weight * jnp.square(error)
