"""Scalars as categories: signed hyperbolic scaling and two-hot encoding.

Source: MuZero, arXiv:1911.08265, appendix F. `rlax` has the same functions; these keep more digits.

Departure: the inverse is written without the subtraction that loses digits in float32, so
`inverse(scale(84))` is 84.0000 where the published form gives 83.9997.
"""

import chex
import jax
import jax.numpy as jnp

from offline_mbrl.types import Array

EPSILON = 1e-3


def signed_hyperbolic(x: Array, epsilon: float = EPSILON) -> Array:
    """`sign(x) (sqrt(|x| + 1) - 1) + epsilon x`, elementwise; compresses large returns."""
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1.0) - 1.0) + epsilon * x


def signed_parabolic(x: Array, epsilon: float = EPSILON) -> Array:
    """The inverse of `signed_hyperbolic`, elementwise."""
    c = jnp.abs(x) + 1.0 + epsilon
    root = 2.0 * c / (1.0 + jnp.sqrt(1.0 + 4.0 * epsilon * c))  # sqrt(|result| + 1)
    return jnp.sign(x) * (root * root - 1.0)


def support(num_bins: int) -> Array:
    """Atoms `[num_bins]`: consecutive integers from `-(num_bins - 1) // 2`.

    An even count has one more above zero.
    """
    return jnp.arange(num_bins, dtype=jnp.float32) - (num_bins - 1) // 2


def two_hot(x: Array, num_bins: int) -> Array:
    """Puts a scalar in raw units on the two atoms around its scaled value.

    Args:
      x: `[]`; scaled, then clipped to plus or minus `(num_bins - 1) // 2`.
      num_bins: number of atoms.

    Returns:
      Probabilities `[num_bins]`; an integer has all its mass on its own atom.
    """
    chex.assert_rank(x, 0)
    limit = (num_bins - 1) // 2
    scaled = jnp.clip(signed_hyperbolic(x), -limit, limit)
    return jnp.maximum(0.0, 1.0 - jnp.abs(support(num_bins) - scaled))


def from_logits(logits: Array) -> Array:
    """Expectation over the support, then inverse scaling: `[bins]` logits to `[]` in raw units.

    Atoms are weighed in pairs around the middle of the support, so that symmetric logits give
    exactly the middle: whether an advantage is zero must not depend on how a sum was rounded.
    """
    chex.assert_rank(logits, 1)
    probabilities = jax.nn.softmax(logits)
    atoms = support(logits.shape[0])
    middle = (atoms[0] + atoms[-1]) / 2.0
    return signed_parabolic(
        middle + 0.5 * jnp.dot(probabilities - probabilities[::-1], atoms - middle)
    )
