"""How far a policy is from a model of the data's actions, at one observation.

All of them see actions before `tanh`, where samples of a squashed normal are normal; a divergence
of two densities is the same before and after.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from offline_mbrl.networks.distributions import SquashedNormal
from offline_mbrl.types import Array, Key

# ([A], [A]) -> []: how alike two samples are
Kernel = Callable[[Array, Array], Array]


# --- kernels ---


def laplacian(x: Array, y: Array, *, width: float) -> Array:
    """`exp(-|x - y|_1 / (2 width))`, `[]`.

    Args:
      x: `[A]`.
      y: `[A]`.
      width: sigma.

    Source: arXiv:1906.00949, released code.
    """
    return jnp.exp(-jnp.sum(jnp.abs(x - y)) / (2.0 * width))


def gaussian(x: Array, y: Array, *, width: float) -> Array:
    """`exp(-|x - y|_2^2 / (2 width))`, `[]`: the width is not squared, as in the released code.

    Args:
      x: `[A]`.
      y: `[A]`.
      width: sigma.

    Source: arXiv:1906.00949, released code.
    """
    return jnp.exp(-jnp.sum(jnp.square(x - y)) / (2.0 * width))


# --- divergences ---


def squared_mmd(x: Array, y: Array, kernel: Kernel) -> Array:
    """`mean k(x, x') + mean k(y, y') - 2 mean k(x, y)` over all pairs, `[]`.

    Args:
      x: `[N, A]` samples.
      y: `[M, A]` samples.
      kernel: how alike two of them are.

    Source: arXiv:1906.00949, section 4, in the biased form, with the diagonal.
    """
    chex.assert_rank([x, y], 2)

    def mean(x: Array, y: Array) -> Array:
        return jnp.mean(jax.vmap(lambda x: jax.vmap(functools.partial(kernel, x))(y))(x))

    return mean(x, x) + mean(y, y) - 2.0 * mean(x, y)


def mmd(x: Array, y: Array, kernel: Kernel) -> Array:
    """`sqrt(squared_mmd + 1e-6)`, `[]`: 0.001 for equal samples.

    Args:
      x: `[N, A]` samples.
      y: `[M, A]` samples.
      kernel: how alike two of them are.

    Source: arXiv:1906.00949, released code.
    """
    return jnp.sqrt(jnp.maximum(squared_mmd(x, y, kernel), 0.0) + 1e-6)


def kl(policy: SquashedNormal, behavior: SquashedNormal) -> Array:
    """The Kullback-Leibler divergence of the policy to the behavior, `[]` nats, exact.

    Args:
      policy: at one observation.
      behavior: at the same.
    """
    ratio = jnp.exp(2.0 * (policy.log_std - behavior.log_std))
    distance = jnp.square(policy.mean - behavior.mean) * jnp.exp(-2.0 * behavior.log_std)
    return 0.5 * jnp.sum(ratio + distance - 1.0 - jnp.log(ratio))


def sampled_kl(policy: SquashedNormal, behavior: SquashedNormal, samples: Array) -> Array:
    """The mean over samples of `log pi - log b`, `[]`: unbiased, and possibly negative.

    Args:
      policy: at one observation.
      behavior: at the same.
      samples: `[N, A]` of the policy, before `tanh`.

    Source: arXiv:1911.11361, section 4, the primal estimate.
    """
    chex.assert_rank(samples, 2)

    def log_density(normal: SquashedNormal) -> Array:
        logpdf = jax.scipy.stats.norm.logpdf
        return jnp.sum(logpdf(samples, normal.mean[None], jnp.exp(normal.log_std)[None]), axis=1)

    return jnp.mean(log_density(policy) - log_density(behavior))


def samples_before_tanh(policy: SquashedNormal, key: Key, num_samples: int) -> Array:
    """Samples `[N, A]` of the normal under `tanh`.

    Args:
      policy: at one observation.
      key: consumed.
      num_samples: N.
    """
    noise = jax.random.normal(key, (num_samples, *policy.mean.shape))
    return policy.mean[None] + jnp.exp(policy.log_std)[None] * noise
