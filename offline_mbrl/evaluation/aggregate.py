"""Scores over seeds and tasks: normalized, aggregated, with stratified bootstrap intervals.

The statistics are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice" (arXiv:2108.13264). Each takes scores `[..., S, tasks]` and reduces the last
two axes, so that thousands of bootstrap replicates are one call.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from offline_mbrl.types import UsageError

Scores = Any  # array-like [..., S, tasks]


def normalized_score(score: Any, reference_random: Any, reference_expert: Any) -> np.ndarray:
    """0 for the random policy, 1 for the expert: `(score - random) / (expert - random)`.

    Args:
      score: `[...]` raw returns.
      reference_random: return of the random policy, one number or one per task on the last axis.
      reference_expert: return of the expert, likewise.

    Raises:
      UsageError: the two references are equal.
    """
    low = np.asarray(reference_random, np.float64)
    high = np.asarray(reference_expert, np.float64)
    if (low == high).any():
        raise UsageError(
            f"no score can be normalized: the references for random and expert are both {low}"
        )
    return (np.asarray(score, np.float64) - low) / (high - low)


def interquartile_mean(scores: Scores) -> Any:
    """Mean of the middle half of all runs of all tasks."""
    from scipy import stats  # a second of CPU time, which training does without

    return stats.trim_mean(_runs(scores), 0.25, axis=-1)


def mean(scores: Scores) -> Any:
    """Mean over all runs of all tasks."""
    return _runs(scores).mean(-1)


def median(scores: Scores) -> Any:
    """Median over tasks of each task's mean over seeds."""
    return np.median(np.mean(np.asarray(scores), axis=-2), axis=-1)


def optimality_gap(scores: Scores, target: float = 1.0) -> Any:
    """How far runs stay below `target` on average; a run above it does not make up for another."""
    return target - np.minimum(_runs(scores), target).mean(-1)


def probability_of_improvement(scores: Scores, others: Scores) -> float:
    """How often a run of one method beats a run of another on the same task; ties count half.

    Args:
      scores: `[S, tasks]`.
      others: `[R, tasks]` of the other method.

    Source: arXiv:2108.13264, section 4.3.
    """
    mine = np.asarray(scores)[:, None]
    theirs = np.asarray(others)[None]
    return float(np.mean((mine > theirs) + 0.5 * (mine == theirs)))


def performance_profile(scores: Scores, thresholds: Any) -> np.ndarray:
    """Share of all runs of all tasks with a score above each threshold, `[thresholds]`.

    Args:
      scores: `[S, tasks]`.
      thresholds: one-dimensional.

    Source: arXiv:2108.13264, section 4.2.
    """
    return (_runs(scores)[..., None] > np.asarray(thresholds)).mean(axis=-2)


def stratified_bootstrap(
    scores: Scores,
    statistic: Callable[[np.ndarray], Any] = interquartile_mean,
    *,
    seed: int = 0,
    num_replicates: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic, by drawing seeds with replacement within each task.

    Args:
      scores: `[S, tasks]` finite.
      statistic: reduces the last two axes of `[..., S, tasks]`, as all functions of this file do.
      seed: of the resampling; the same seed gives the same interval.
      num_replicates: resampled score tables.
      confidence: probability mass between the ends.

    Returns:
      The lower and the upper end.

    Raises:
      UsageError: the scores are not a finite, non-empty table.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise UsageError(
            f"the interval needs a finite table of scores [seeds, tasks], got shape {table.shape}"
        )
    num_seeds, num_tasks = table.shape
    rows = np.random.default_rng(seed).integers(
        num_seeds, size=(num_replicates, num_seeds, num_tasks)
    )
    replicates = np.asarray(statistic(table[rows, np.arange(num_tasks)]))
    if replicates.shape != (num_replicates,):
        raise UsageError(
            "the statistic must reduce the last two axes of [..., S, tasks], got "
            f"{replicates.shape}"
        )
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _runs(scores: Scores) -> np.ndarray:
    """`[..., S, tasks]` to `[..., S * tasks]`."""
    table = np.asarray(scores)
    if table.ndim < 2:
        raise UsageError(
            f"scores need the axes [seeds, tasks], got shape {table.shape}; for one task add "
            "[:, None]"
        )
    return table.reshape(*table.shape[:-2], -1)
