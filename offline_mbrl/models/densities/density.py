"""Conditional densities in normalized units: what explicit dynamics models are made of, and the
Gaussian that they share.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, Key, Params


class Density(NamedTuple):
    """`p(y | x)` for x `[X]` (normalized observation and action) and y `[D]` (normalized change,
    then the reward).

    One member's parameters come first, then those that all members of an ensemble share (`{}` for
    most densities).
    """

    # (key) -> one member's params
    init: Callable[[Key], Params]
    # () -> initial params that members share
    shared: Callable[[], Params]
    # (params, shared, x, y, weight [D] of the entries, key) -> [] per example
    loss: Callable[[Params, Params, Array, Array, Array, Key], Array]
    # (params [E, ...], shared) -> [] beside the losses
    penalty: Callable[[Params, Params], Array]
    # (params, shared, x, y) -> [D] of each conditional
    log_prob: Callable[[Params, Params, Array, Array], Array]
    # (params, shared, x, key) -> y [D]
    sample: Callable[[Params, Params, Array, Key], Array]
    # (params, shared, x) -> y [D], the mean of each conditional
    mode: Callable[[Params, Params, Array], Array]
    # (params, shared, x, y) -> mean and standard deviation [D] of each conditional, given y where
    # the density is autoregressive
    moments: Callable[[Params, Params, Array, Array], tuple[Array, Array]]


def soft_bounds(raw: Array, low: Array | float, high: Array | float) -> Array:
    """A log scale kept between bounds, smoothly: upper first, then lower (PETS, arXiv:1805.12114,
    appendix A.1).
    """
    upper = high - jax.nn.softplus(high - raw)
    return low + jax.nn.softplus(upper - low)


def gaussian_log_prob(y: Array, mean: Array, log_std: Array) -> Array:
    """`log N(y; mean, exp(log_std)^2)`, elementwise, in nats."""
    standardized = (y - mean) * jnp.exp(-log_std)
    return -0.5 * jnp.square(standardized) - log_std - 0.5 * jnp.log(2 * jnp.pi)
