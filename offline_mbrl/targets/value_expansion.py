"""How returns of different depths in a model become one value, for one state.

The returns `[H + 1, K, M]` are those of K particles by M values at depths 0..H
(`rollouts.expand`). A weighting turns them into a `Posterior` of the value:

* `gaussian`: depths are independent observations of the value, each with the variance of its
  samples (CBOP, ICLR 2023); its mean is STEVE's target (arXiv:1807.01675, equation 8);
* `student_t`: the same with heavier tails;
* `fixed`: a constant weight for each depth, all of it on the last in MVE (arXiv:1803.00101).
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp

from offline_mbrl.types import Array

SMALLEST_VARIANCE = 1e-5  # of a depth, as in CBOP's code


class Posterior(NamedTuple):
    """A belief about one value, and what it rests on."""

    mean: Array  # []
    variance: Array  # []
    weights: Array  # [H + 1] of the depths; their sum is 1


class Prior(NamedTuple):
    """A normal belief before any return."""

    mean: float
    variance: float


# (returns [H + 1, K, M], mask [H + 1], 0 where a depth does not count) -> posterior
Weighting = Callable[[Array, Array], Posterior]


# --- moments of each depth ---


def moments(returns: Array, *, unbiased: bool = True) -> tuple[Array, Array]:
    """Mean and variance `[H + 1]` of the samples of each depth.

    By the law of total variance: the mean over particles of the variance between values, plus the
    variance over particles of their mean.

    Args:
      returns: `[H + 1, K, M]`.
      unbiased: multiplies the variance by `K M / (K M - 1)`, as the released code does.
    """
    chex.assert_rank(returns, 3)
    particle_mean = jnp.mean(returns, axis=2)
    within = jnp.mean(jnp.var(returns, axis=2), axis=1)
    variance = within + jnp.var(particle_mean, axis=1)
    return jnp.mean(particle_mean, axis=1), _corrected(variance, returns, unbiased)


def _corrected(variance: Array, returns: Array, unbiased: bool) -> Array:
    count = returns.shape[1] * returns.shape[2]
    return variance * count / max(count - 1, 1) if unbiased else variance


# --- weights by precision ---


def gaussian(
    returns: Array, mask: Array, *, prior: Prior | None = None, unbiased: bool = True
) -> Posterior:
    """The posterior of a value that each depth observes with normal noise.

    With precisions `rho_h = 1 / sigma_h^2`: mean `sum_h rho_h mu_h / rho`, variance `1 / rho`,
    `rho = sum_h rho_h`. A prior is one more term of each sum.

    Args:
      returns: `[H + 1, K, M]`.
      mask: `[H + 1]`, 0 where a depth does not count; depth 0 always does.
      prior: None: every value was equally likely.
      unbiased: of the variances; see `moments`.

    Source: CBOP, equations of its section 4 (OpenReview dNqxZgyjcYA).
    """
    mean, variance = moments(returns, unbiased=unbiased)
    return combine(mean, variance, mask, prior=prior)


def combine(mean: Array, variance: Array, mask: Array, *, prior: Prior | None = None) -> Posterior:
    """`gaussian` of moments `[H + 1]`.

    Args:
      mean: `[H + 1]`.
      variance: `[H + 1]`; a depth of infinite variance counts for nothing.
      mask: `[H + 1]`; see `gaussian`.
      prior: see `gaussian`.
    """
    precision = _precisions(variance, mask)
    total = jnp.sum(precision)
    weights = precision / total
    estimate = _weighted_mean(weights, mean)
    if prior is not None:
        evidence = total
        total = evidence + 1.0 / prior.variance
        estimate = (evidence * estimate + prior.mean / prior.variance) / total
    return Posterior(mean=estimate, variance=1.0 / total, weights=weights)


def _precisions(variance: Array, mask: Array) -> Array:
    counts = mask.at[0].set(1).astype(variance.dtype)
    return counts / jnp.maximum(variance, SMALLEST_VARIANCE)


def _weighted_mean(weights: Array, values: Array) -> Array:
    """`sum_h w_h v_h`, where a value without weight may be anything."""
    return jnp.sum(jnp.where(weights > 0, weights * values, 0.0))


def student_t(
    returns: Array, mask: Array, *, degrees: float = 2.0, unbiased: bool = True
) -> Posterior:
    """The posterior with Student's t likelihoods, as the released code approximates it.

    `rho_h = nu / ((nu - 1) sigma_h^2)`, mean as in `gaussian`, and with n depths that count
    variance `(nu / rho + sum_h w_h (mu_h - mean)^2) / (nu + n)`. The code has n = H + 1 even where
    depths are masked.

    Args:
      returns: `[H + 1, K, M]`.
      mask: `[H + 1]`; see `gaussian`.
      degrees: nu, above 1.
      unbiased: of the variances; see `moments`.
    """
    mean, variance = moments(returns, unbiased=unbiased)
    posterior = combine(mean, variance, mask)
    precision = _precisions(variance, mask)
    total = jnp.sum(precision) * degrees / (degrees - 1.0)
    spread = _weighted_mean(posterior.weights, jnp.square(mean - posterior.mean))
    count = jnp.sum(precision > 0)
    return posterior._replace(variance=(degrees / total + spread) / (degrees + count))


# --- constant weights ---


def fixed(weights: Array) -> Weighting:
    """Mean and unbiased variance of each sample's weighted return; no depth is masked.

    A particle whose episode has ended goes on with a value of 0, so that its return is right.

    Args:
      weights: `[H + 1]`.
    """

    def weighting(returns: Array, mask: Array) -> Posterior:
        del mask
        weighted = jnp.tensordot(weights, returns, axes=1)[None]
        mean, variance = moments(weighted)
        return Posterior(
            mean=mean[0], variance=jnp.maximum(variance[0], SMALLEST_VARIANCE), weights=weights
        )

    return weighting


def uniform_weights(horizon: int) -> Array:
    """`1 / (H + 1)` of every depth, `[H + 1]`."""
    return jnp.full(horizon + 1, 1.0 / (horizon + 1))


def last_weight(horizon: int) -> Array:
    """All weight on depth H, `[H + 1]`."""
    return jnp.zeros(horizon + 1).at[horizon].set(1.0)


def geometric_weights(horizon: int, decay: float) -> Array:
    """`(1 - lambda) / (1 - lambda^(H + 1)) lambda^h`, `[H + 1]`.

    Args:
      horizon: H.
      decay: lambda, from 0 (all weight on depth 0) to 1 (uniform, the limit).
    """
    powers = jnp.power(decay, jnp.arange(horizon + 1, dtype=jnp.float32))
    return powers / jnp.sum(powers)


# --- what is read of a posterior ---


def lower_bound(posterior: Posterior, psi: float) -> Array:
    """`mean - psi sqrt(variance)`, `[]`."""
    return posterior.mean - psi * jnp.sqrt(posterior.variance)


def expected_horizon(posterior: Posterior) -> Array:
    """`E[h] = sum_h h w_h`, `[]`: how far the value rests on the model."""
    depths = jnp.arange(posterior.weights.shape[0], dtype=posterior.weights.dtype)
    return jnp.sum(depths * posterior.weights)
