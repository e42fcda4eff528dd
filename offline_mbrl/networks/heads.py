"""Output heads: the last layer's shape and meaning."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from offline_mbrl.networks import distributions
from offline_mbrl.types import Array

SMALLEST_SCALE = 1e-4  # standard deviation of a mixture's component


class ZeroHead(nn.Module):
    """A dense layer that starts at exactly zero: uniform logits, zero outputs."""

    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[D]` to `[size]`."""
        return nn.Dense(self.size, kernel_init=nn.initializers.zeros_init())(x)


# --- outputs to distributions of continuous actions ---


def squashed_normal(x: Array, bound: Callable[[Array], Array]) -> distributions.SquashedNormal:
    """Means, then log standard deviations as `bound` limits them, from outputs `[2 A]`."""
    mean, raw = jnp.split(x, 2)
    return distributions.SquashedNormal(mean=mean, log_std=bound(raw))


def between(raw: Array, low: float, high: float) -> Array:
    """`low + (high - low) (tanh(raw) + 1) / 2`: bounds that keep a gradient everywhere."""
    return low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)


def normal_mixture(x: Array, num_components: int) -> distributions.NormalMixture:
    """Logits, means, then softplus scales of K diagonal normals, from outputs `[K (1 + 2 A)]`."""
    logits = x[:num_components]
    mean, raw = x[num_components:].reshape(2, num_components, -1)
    std = jax.nn.softplus(raw) + SMALLEST_SCALE
    return distributions.NormalMixture(logits=logits, mean=mean, std=std)
