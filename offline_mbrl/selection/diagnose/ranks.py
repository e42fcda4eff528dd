"""How two figures of the same transitions agree in their order, and how sure that is.

Steps of one episode resemble one another, so that whole episodes are resampled, not steps: what is
drawn twice counts twice. The interval is what other episodes of the same behavior would give; with
few of them it is too narrow.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from offline_mbrl.types import Array, Key

CONFIDENCE = 0.95  # probability mass of the intervals
NUM_REPLICATES = 1_000
AT_ONCE = 50  # replicates that are held side by side


class Correlation(NamedTuple):
    """Spearman's correlation with a percentile interval."""

    value: float  # NaN where either figure is constant
    low: float  # NaN beside NaN, and where there is a single episode
    high: float


def spearman(values: np.ndarray, others: np.ndarray) -> float:
    """Spearman's correlation of figures `[M]`; NaN where either is constant."""
    if np.ptp(values) == 0 or np.ptp(others) == 0:
        return np.nan
    result: Any = scipy.stats.spearmanr(values, others)
    return float(result.statistic)


def correlation(
    values: np.ndarray,
    others: np.ndarray,
    episode: np.ndarray,
    key: Key,
    *,
    num_replicates: int = NUM_REPLICATES,
) -> Correlation:
    """Spearman's correlation with a bootstrap interval over episodes.

    Args:
      values: `[M]` of one figure.
      others: `[M]` of the other.
      episode: `[M]` which episode each belongs to, by any numbers.
      key: consumed; the same key draws the same episodes for every figure.
      num_replicates: resamples of the episodes. Those in which a figure is constant are left out.
    """
    value = spearman(values, others)
    names, numbers = np.unique(episode, return_inverse=True)
    if len(names) < 2 or not np.isfinite(value):
        return Correlation(value=value, low=np.nan, high=np.nan)
    drawn = resampled(levels(values), levels(others), numbers, key, len(names), num_replicates)
    drawn = np.asarray(drawn, np.float64)
    if np.isnan(drawn).all():
        return Correlation(value=value, low=np.nan, high=np.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return Correlation(value=value, low=float(low), high=float(high))


def levels(values: np.ndarray) -> np.ndarray:
    """`[M]` the place of each value among the different ones: 0 for the least; ties share it."""
    return np.unique(values, return_inverse=True)[1]


@functools.partial(jax.jit, static_argnums=(4, 5))
def resampled(
    values: Array, others: Array, episode: Array, key: Key, num_episodes: int, num_replicates: int
) -> Array:
    """Spearman's correlation of resamples of the episodes, `[R]`; NaN where a figure is constant.

    Args:
      values: `[M]` levels of one figure.
      others: `[M]` levels of the other.
      episode: `[M]` number of each row's episode.
      key: consumed.
      num_episodes: how many there are.
      num_replicates: R.
    """

    def replicate(key: Key) -> Array:
        draws = jax.random.randint(key, (num_episodes,), 0, num_episodes)
        times = jnp.zeros(num_episodes).at[draws].add(1.0)
        return weighted_spearman(values, others, times[episode])

    return jax.lax.map(replicate, jax.random.split(key, num_replicates), batch_size=AT_ONCE)


def weighted_spearman(values: Array, others: Array, weight: Array) -> Array:
    """Spearman's correlation of rows that are there `weight` times, `[]`; NaN of a constant.

    Args:
      values: `[M]` levels of one figure.
      others: `[M]` levels of the other.
      weight: `[M]` how often each row is there.
    """
    x, y = (_centered_ranks(part, weight) for part in (values, others))
    scale = jnp.sqrt(jnp.sum(weight * x * x) * jnp.sum(weight * y * y))
    return jnp.sum(weight * x * y) / jnp.where(scale > 0, scale, jnp.nan)


def _centered_ranks(levels: Array, weight: Array) -> Array:
    """Mean ranks of rows that are there `weight` times, less their mean, as shares of all."""
    of_level = jax.ops.segment_sum(weight, levels, levels.shape[0])
    total = jnp.sum(weight)
    rank = (jnp.cumsum(of_level) - 0.5 * of_level)[levels] / total
    return rank - jnp.sum(weight * rank) / total
