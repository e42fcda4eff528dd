"""How well estimates order and price a set of policies: the metrics of the DOPE benchmark, with its bootstrap.

As DOPE's notebook computes them (Fu et al., "Benchmarks for Deep Off-Policy Evaluation", arXiv:2103.16596; public
code `google-research/deep_ope`). Per task, true values g and estimates v of K policies are both normalized by the
smallest and largest true value, and v is capped at 2 from above only. Intervals come from resampling the policies with
replacement; what normalizes stays that of the full set.

What the notebook leaves open is settled here:

* an estimate that is not finite is missing: it ranks last, is left out of error and bias, and is counted;
* of equal estimates, regret takes the truly worst first, so that an estimator that tells nothing is not flattered;
* a resample in which a metric is undefined (all drawn policies are one, or the best of them is the worst of the set)
  is left out of that metric's mean and interval.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.types import UsageError

CAP = 2.0  # of normalized estimates, above only
Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (truth [..., K], estimates [..., K]) -> [...]


class Measured(NamedTuple):
    """One metric."""

    value: float  # on the full set of policies
    mean: float  # over resamples
    std: float  # over resamples
    low: float  # ends of the percentile interval
    high: float
    replicates: np.ndarray  # [R] float64, NaN where the metric is undefined


class Scores(NamedTuple):
    """Of one estimator on one task, or over tasks."""

    metrics: Mapping[str, Measured]  # rank_correlation, absolute_error, regret_at_<k>, raw_absolute_error, bias
    num_policies: int
    num_missing: int  # estimates that were not finite


def normalized(truth: Any, estimates: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both by the smallest and largest true value, estimates capped at 2; missing ones become NaN.

    Args:
      truth: `[K]` true values, finite.
      estimates: `[K]`.

    Raises:
      UsageError: see `score`.
    """
    truth, estimates = _checked(truth, estimates)
    low, high = truth.min(), truth.max()
    return (truth - low) / (high - low), np.minimum((estimates - low) / (high - low), CAP)


def rank_correlation(truth: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Spearman's over the last axis; ties get average ranks, NaN the last ones. NaN where either is constant."""
    from scipy import stats  # a second of CPU time, which training does without

    ranks = [stats.rankdata(values, axis=-1) for values in (truth, np.where(np.isnan(estimates), -np.inf, estimates))]
    x, y = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    scale = np.sqrt(np.sum(x * x, -1) * np.sum(y * y, -1))
    with np.errstate(invalid="ignore"):
        return np.sum(x * y, -1) / np.where(scale > 0, scale, np.nan)


def absolute_error(truth: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Mean of `|estimate - truth|` over the last axis, missing estimates left out; NaN where all are."""
    return _mean(np.abs(estimates - truth))


def bias(truth: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Mean of `estimate - truth` over the last axis, missing estimates left out; NaN where all are."""
    return _mean(estimates - truth)


def regret_at_k(truth: np.ndarray, estimates: np.ndarray, k: int) -> np.ndarray:
    """`(best true value - best true value of the k highest estimates) / best true value` over the last axis.

    Args:
      truth: `[..., K]`, normalized to 0 for the worst policy.
      estimates: `[..., K]`; NaN ranks last.
      k: how many policies one could try.
    """
    order = np.lexsort((truth, np.where(np.isnan(estimates), np.inf, -estimates)), axis=-1)
    best, found = truth.max(-1), np.take_along_axis(truth, order[..., :k], -1).max(-1)
    return (best - found) / np.where(best > 0, best, np.nan)


def score(
    truth: Any, estimates: Any, *, ks: Sequence[int] = (1, 5), num_replicates: int = 1000, seed: int = 0,
    confidence: float = 0.95,
) -> Scores:  # fmt: skip
    """All metrics of one estimator on one task.

    Args:
      truth: `[K]` true discounted returns.
      estimates: `[K]` of the same policies in the same order; not finite where there is none.
      ks: of the regrets; one that exceeds K is taken as K.
      num_replicates: R resamples of the policies with replacement. The same seed draws the same policies for every
        estimator, so that differences can be paired.
      seed: of the resampling.
      confidence: probability mass of the interval.

    Returns:
      rank_correlation, absolute_error and regret_at_<k> on normalized values, raw_absolute_error and bias in the
      returns' own units (not capped).

    Raises:
      UsageError: fewer than two policies, shapes that differ, or true values that are not finite or all equal.
    """
    truth, estimates = _checked(truth, estimates)
    both = normalized(truth, estimates)
    rows = np.random.default_rng(seed).integers(len(truth), size=(num_replicates, len(truth)))
    metrics: dict[str, tuple[Metric, Any]] = {
        "rank_correlation": (rank_correlation, both), "absolute_error": (absolute_error, both),
        **{f"regret_at_{k}": (lambda g, v, k=k: regret_at_k(g, v, k), both) for k in ks},
        "raw_absolute_error": (absolute_error, (truth, estimates)), "bias": (bias, (truth, estimates)),
    }  # fmt: skip
    found = {}
    for name, (metric, (g, v)) in metrics.items():
        found[name] = _measured(float(metric(g, v)), metric(g[rows], v[rows]), confidence)
    return Scores(found, len(truth), int(np.isnan(estimates).sum()))


def aggregate(tasks: Mapping[str, Scores], *, confidence: float = 0.95) -> Scores:
    """Means over tasks, resample by resample, so that the interval is that of the mean over tasks.

    A task in which a metric is undefined, in a resample or on the full set, is left out of that mean.

    Args:
      tasks: scores of one estimator by task, with equally many resamples.
      confidence: probability mass of the interval.

    Raises:
      UsageError: there is no task, or their metrics or numbers of resamples differ.
    """
    rows = list(tasks.values())
    if not rows:
        raise UsageError("no task to aggregate over")
    if len({(tuple(row.metrics), *(one.replicates.shape for one in row.metrics.values())) for row in rows}) > 1:
        raise UsageError(f"tasks {', '.join(tasks)} were not scored with the same metrics and number of resamples")
    found = {}
    for name in rows[0].metrics:
        replicates = _mean(np.stack([row.metrics[name].replicates for row in rows], axis=-1))
        value = _mean(np.array([row.metrics[name].value for row in rows]))
        found[name] = _measured(float(value), replicates, confidence)
    return Scores(found, sum(row.num_policies for row in rows), sum(row.num_missing for row in rows))


# --- parts ---


def _checked(truth: Any, estimates: Any) -> tuple[np.ndarray, np.ndarray]:
    truth, estimates = np.asarray(truth, np.float64), np.asarray(estimates, np.float64)
    if truth.ndim != 1 or truth.shape != estimates.shape:
        raise UsageError(f"true values and estimates must be one number per policy [K], got {truth.shape} and "
                         f"{estimates.shape}")  # fmt: skip
    if len(truth) < 2:
        raise UsageError(f"ranking needs at least two policies, got {len(truth)}")
    if not np.isfinite(truth).all():
        raise UsageError(f"the true value of policy {int(np.argmin(np.isfinite(truth)))} is not finite")
    if truth.min() == truth.max():
        raise UsageError(f"all {len(truth)} policies have the true value {truth[0]:g}: there is nothing to rank")
    return truth, np.where(np.isfinite(estimates), estimates, np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis without NaN; NaN where nothing is left."""
    present = ~np.isnan(values)
    count = present.sum(-1)
    return np.where(present, values, 0.0).sum(-1) / np.where(count > 0, count, np.nan)


def _measured(value: float, replicates: np.ndarray, confidence: float) -> Measured:
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        nan = float("nan")
        return Measured(value, nan, nan, nan, nan, replicates)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Measured(value, float(defined.mean()), float(defined.std()), float(low), float(high), replicates)
