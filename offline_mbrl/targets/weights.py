"""Weights of the data's actions by their advantage (CRR, arXiv:2006.15134, section 3)."""

import jax.numpy as jnp

from offline_mbrl.types import Array


def indicator(advantage: Array, *, at_zero: float = 0.0) -> Array:
    """1 where the advantage is positive, `at_zero` where it is exactly 0, else 0; elementwise."""
    return jnp.heaviside(advantage, at_zero)


def exponential(advantage: Array, *, temperature: float, maximum: float) -> Array:
    """`exp(advantage / temperature)`, at most `maximum`; elementwise, finite for any advantage."""
    return jnp.exp(jnp.minimum(advantage / temperature, jnp.log(maximum)))
