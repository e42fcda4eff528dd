"""How far to trust weighted estimates: influences of episodes, effective sample sizes, signs.

Standard errors are those of the infinitesimal jackknife: an estimate is a function of how often
each episode counts, and its gradient there gives the influence of each. For a mean that is the
usual standard error, for self-normalized forms the delta method's; none is below what the
effective number of episodes allows (`least_standard_error`). They cannot account for weights that
were never observed: look at `low_support`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, Metrics

# Of an unnormalized weight: beyond it an estimate is meaningless, but it stays finite.
LARGEST_LOG_WEIGHT = 40.0
# Effective episodes: below it support is low, for 95 % intervals cover less than 90 % of the time.
MIN_EPISODES = 10.0
# How far the mean weight may be from its expectation 1, beside 3 standard errors.
WEIGHT_SLACK = 0.05


def with_influence(
    value: Callable[[Array], tuple[Array, Any]], size: int
) -> tuple[Array, Array, Any]:
    """An estimate, and how much each episode moves it.

    An episode's influence is N times the derivative by its count (Jaeckel's infinitesimal
    jackknife; Efron, 1982).

    Args:
      value: counts `[N]` to (estimate [], auxiliary output).
      size: N.

    Returns:
      (estimate at counts of one, influences `[N]`, auxiliary output).
    """
    (estimate, aux), gradient = jax.value_and_grad(value, has_aux=True)(jnp.ones(size))
    return estimate, size * gradient, aux


def standard_error(influence: Array) -> Array:
    """`sqrt(sum_i influence_i^2 / (N (N - 1)))` `[]` of influences `[N]`; without overflow."""
    size = influence.shape[0]
    scale = jnp.maximum(jnp.max(jnp.abs(influence)), jnp.finfo(influence.dtype).tiny)
    return scale * jnp.sqrt(jnp.mean(jnp.square(influence / scale)) / (size - 1))


def least_standard_error(
    baseline: Array | float, sums: Array, log_weights: Array, *, gamma: float
) -> Array:
    """What the spread of as many episodes as effectively count leaves of uncertainty, `[]`.

    One episode with all the weight moves a self-normalized estimate by nothing: its jackknife says
    0. What stays is the variance of the unweighted sums over the effective number of episodes, the
    harmonic mean over steps by `gamma^t`, beside that of all episodes' own. Where all weights are
    equal this is the usual standard error of a mean.

    Args:
      baseline: `[N]` what each episode begins with, never weighted.
      sums: `[N]` discounted sums of what is weighted, here without weights.
      log_weights: `[N, T]`.
      gamma: discount factor.
    """
    size = sums.shape[0]
    powers = gamma ** jnp.arange(log_weights.shape[1])
    sizes = jnp.maximum(effective_sample_size(log_weights), 1.0)
    lost = jnp.sum(powers / sizes) / jnp.sum(powers) - 1.0 / size
    of_all = jnp.var(baseline + sums, ddof=1) / size
    return jnp.sqrt(of_all + jnp.maximum(lost, 0.0) * jnp.var(sums, ddof=1))


def relative_weights(log_weights: Array, counts: Array) -> Array:
    """Weights `[N, T]` as shares of the largest that counts; all 0 where every weight is 0."""
    counted = jnp.where(counts > 0, log_weights, -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(counted, axis=0, keepdims=True))
    shift = jnp.where(jnp.isfinite(largest), largest, 0.0)
    return jnp.exp(jnp.minimum(log_weights - shift, 0.0))


def effective_sample_size(log_weights: Array) -> Array:
    """`(sum w)^2 / sum w^2` over the first axis of `[N, ...]`: from 0, without any weight, to N."""
    weights = relative_weights(log_weights, jnp.ones_like(log_weights))
    squares = jnp.sum(jnp.square(weights), axis=0)
    square_of_sum = jnp.square(jnp.sum(weights, axis=0))
    return jnp.where(squares > 0, square_of_sum / jnp.where(squares > 0, squares, 1.0), 0.0)


def diagnostics(
    log_ratios: Array, log_weights: Array, mask: Array, influence: Array, *, gamma: float
) -> Metrics:
    """Scalars about a weighted estimate.

    Args:
      log_ratios: `[N, T]`.
      log_weights: `[N, T]`, made of them.
      mask: `[N, T]`, 1 while the step really happened.
      influence: `[N]` of the episodes.
      gamma: discount factor.

    Returns:
      * `effective_sample_size`: of the weights at the last step; `_min`: the least of any step.
        Episodes that ended keep their weight.
      * `largest_weight`: as a share of all at the last step.
      * `mean_weight`: over episodes, and over steps by `gamma^t`. Its expectation is 1 where the
        data support the policy; it is below where the policy acts as the data never do.
      * `mean_log_ratio`: of the steps that happened, each within 40 of 0.
      * `stderr_sample_size`: `(sum influence^2)^2 / sum influence^4`, the number of episodes that
        the standard error rests on.
      * `low_support`: 1 where the last number, or the effective sample without clipping and
        truncation, is below 10, or the mean weight is significantly not 1. Where it is 0, 95 %
        intervals cover the truth at least 90 % of the time on the linear-Gaussian system.
    """
    sizes = effective_sample_size(log_weights)
    plain = jnp.cumsum(log_ratios, axis=1)  # neither clipped nor truncated
    last = relative_weights(log_weights[:, -1:], jnp.ones_like(mask[:, -1:]))
    bounded = jnp.clip(log_ratios, -LARGEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT)
    stderr_sample_size = jnp.where(
        jnp.any(influence != 0),
        effective_sample_size(2.0 * jnp.log(jnp.abs(influence))),
        influence.shape[0],
    )
    few = jnp.minimum(stderr_sample_size, effective_sample_size(plain[:, -1])) < MIN_EPISODES
    plain_weights = _mean_over_steps(plain, gamma)
    weights = _mean_over_steps(log_weights, gamma)
    biased = _is_not_one(plain_weights) | _is_not_one(weights)
    return {
        "effective_sample_size": sizes[-1],
        "effective_sample_size_min": jnp.min(sizes),
        "largest_weight": jnp.max(last) / jnp.maximum(jnp.sum(last), 1.0),
        "mean_weight": jnp.mean(weights),
        "mean_log_ratio": jnp.sum(bounded) / jnp.maximum(jnp.sum(mask), 1.0),
        "stderr_sample_size": stderr_sample_size,
        "low_support": jnp.asarray(few | biased, jnp.float32),
    }


def _mean_over_steps(log_weights: Array, gamma: float) -> Array:
    """Each episode's mean weight `[N]` over steps, by `gamma^t`; of expectation 1."""
    powers = gamma ** jnp.arange(log_weights.shape[1])
    weights = jnp.exp(jnp.minimum(log_weights, LARGEST_LOG_WEIGHT))
    return jnp.sum(weights * powers[None], axis=1) / jnp.sum(powers)


def _is_not_one(weights: Array) -> Array:
    mean = jnp.mean(weights)
    return jnp.abs(mean - 1.0) > WEIGHT_SLACK + 3.0 * standard_error(weights - mean)
