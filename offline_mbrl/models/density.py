"""Conditional densities in normalized units: what explicit dynamics models are made of, and the Gaussian they share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, PyTree


class Density(NamedTuple):
    """`p(y | x)` for x `[X]` (normalized observation and action) and y `[D]` (normalized change, then the reward).

    One member's parameters come first, then what all members of an ensemble share (`{}` for most).
    """

    init: Callable[[Array], PyTree]  # (key) -> one member's params
    shared: Callable[[], PyTree]  # () -> initial params that members share
    loss: Callable[[PyTree, PyTree, Array, Array, Array, Array], Array]
    # (params, shared, x, y, weight [D] of the entries, key) -> [] per example
    penalty: Callable[[PyTree, PyTree], Array]  # (params [E, ...], shared) -> [] beside the losses
    log_prob: Callable[[PyTree, PyTree, Array, Array], Array]  # (params, shared, x, y) -> [D] of each conditional
    sample: Callable[[PyTree, PyTree, Array, Array], Array]  # (params, shared, x, key) -> y [D]
    mode: Callable[[PyTree, PyTree, Array], Array]  # (params, shared, x) -> y [D], the mean of each conditional
    moments: Callable[[PyTree, PyTree, Array, Array], tuple[Array, Array]]
    # (params, shared, x, y) -> mean and standard deviation [D] of each conditional, given y where it is autoregressive


def soft_bounds(raw: Array, low: Array | float, high: Array | float) -> Array:
    """A log scale kept between bounds, smoothly: upper first, then lower (PETS, arXiv:1805.12114, appendix A.1)."""
    upper = high - jax.nn.softplus(high - raw)
    return low + jax.nn.softplus(upper - low)


def gaussian_log_prob(y: Array, mean: Array, log_std: Array) -> Array:
    """`log N(y; mean, exp(log_std)^2)`, elementwise, in nats."""
    return -0.5 * jnp.square((y - mean) * jnp.exp(-log_std)) - log_std - 0.5 * jnp.log(2 * jnp.pi)
