"""How well estimates order and price a set of policies: DOPE's metrics with its bootstrap.

As DOPE's notebook computes them (Fu et al., "Benchmarks for Deep Off-Policy Evaluation",
arXiv:2103.16596; public code `google-research/deep_ope`). Per task, true values g and estimates v
of K policies are both normalized by the smallest and largest true value, and v is capped at 2 from
above only. Intervals come from resampling the policies with replacement; the normalization stays
that of the full set.

Three choices that the notebook leaves open:

* an estimate that is not finite is missing: it ranks last, is left out of error and bias, and is
  counted;
* of equal estimates, regret takes the truly worst first, so that a constant estimator is not
  flattered;
* a resample in which a metric is undefined (all drawn policies are the same, or the best of them is
  the worst of the set) is left out of that metric's mean and interval.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.types import UsageError

CAP = 2.0  # of normalized estimates, above only
Metric = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # (truth [..., K], estimates [..., K]) -> [...]


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

    metrics: Mapping[
        str, Measured
    ]  # rank_correlation, absolute_error, regret_at_<k>, raw_absolute_error, bias
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
    """Spearman's over the last axis; ties get average ranks, NaN the last ones.

    NaN where either is constant.
    """
    from scipy import stats  # a second of CPU time, which training does without

    ranks = [
        stats.rankdata(values, axis=-1)
        for values in (truth, np.where(np.isnan(estimates), -np.inf, estimates))
    ]
    x, y = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    scale = np.sqrt(np.sum(x * x, -1) * np.sum(y * y, -1))
    with np.errstate(invalid="ignore"):
        return np.sum(x * y, -1) / np.where(scale > 0, scale, np.nan)


def absolute_error(truth: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Mean of `|estimate - truth|` over the last axis without missing estimates.

    NaN where all are missing.
    """
    return _mean(np.abs(estimates - truth))


def bias(truth: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Mean of `estimate - truth` over the last axis without missing estimates.

    NaN where all are missing.
    """
    return _mean(estimates - truth)


def regret_at_k(truth: np.ndarray, estimates: np.ndarray, k: int) -> np.ndarray:
    """What is lost by the best of the k highest estimates, over the last axis.

    `(best true value - best true value of the k highest estimates) / best true value`.

    Args:
      truth: `[..., K]`, normalized to 0 for the worst policy.
      estimates: `[..., K]`; NaN ranks last.
      k: how many policies one could try.
    """
    order = np.lexsort((truth, np.where(np.isnan(estimates), np.inf, -estimates)), axis=-1)
    best = truth.max(-1)
    best_of_k = np.take_along_axis(truth, order[..., :k], -1).max(-1)
    return (best - best_of_k) / np.where(best > 0, best, np.nan)


def score(
    truth: Any,
    estimates: Any,
    *,
    ks: Sequence[int] = (1, 5),
    num_replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Scores:
    """All metrics of one estimator on one task.

    Args:
      truth: `[K]` true discounted returns.
      estimates: `[K]` of the same policies in the same order; not finite where there is none.
      ks: of the regrets; a k that exceeds K counts as K.
      num_replicates: R resamples of the policies with replacement. The same seed draws the same
        policies for every estimator, so that differences can be paired.
      seed: of the resampling.
      confidence: probability mass of the interval.

    Returns:
      rank_correlation, absolute_error and regret_at_<k> on normalized values, raw_absolute_error
      and bias in the returns' own units (not capped).

    Raises:
      UsageError: fewer than two policies, shapes that differ, or true values that are not finite or
        all equal.
    """
    truth, estimates = _checked(truth, estimates)
    raw = (truth, estimates)
    scaled = normalized(truth, estimates)
    metrics: dict[str, tuple[Metric, tuple[np.ndarray, np.ndarray]]] = {
        "rank_correlation": (rank_correlation, scaled),
        "absolute_error": (absolute_error, scaled),
        **{f"regret_at_{k}": (functools.partial(regret_at_k, k=k), scaled) for k in ks},
        "raw_absolute_error": (absolute_error, raw),
        "bias": (bias, raw),
    }
    rows = np.random.default_rng(seed).integers(len(truth), size=(num_replicates, len(truth)))
    measured = {
        name: _measured(float(metric(g, v)), metric(g[rows], v[rows]), confidence)
        for name, (metric, (g, v)) in metrics.items()
    }
    return Scores(
        metrics=measured,
        num_policies=len(truth),
        num_missing=int(np.isnan(estimates).sum()),
    )


def aggregate(tasks: Mapping[str, Scores], *, confidence: float = 0.95) -> Scores:
    """Means over tasks, resample by resample, so that the interval is that of the mean over tasks.

    A task in which a metric is undefined, in a resample or on the full set, is left out of that
    mean.

    Args:
      tasks: scores of one estimator by task, with equally many resamples.
      confidence: probability mass of the interval.

    Raises:
      UsageError: there is no task, or their metrics or numbers of resamples differ.
    """
    rows = list(tasks.values())
    if not rows:
        raise UsageError("no task to aggregate over")
    if len({_kind(row) for row in rows}) > 1:
        raise UsageError(
            f"tasks {', '.join(tasks)} were not scored with the same metrics and number of "
            "resamples"
        )
    measured = {}
    for name in rows[0].metrics:
        replicates = np.stack([row.metrics[name].replicates for row in rows], axis=-1)
        value = _mean(np.array([row.metrics[name].value for row in rows]))
        measured[name] = _measured(float(value), _mean(replicates), confidence)
    return Scores(
        metrics=measured,
        num_policies=sum(row.num_policies for row in rows),
        num_missing=sum(row.num_missing for row in rows),
    )


# --- parts ---


def _kind(scores: Scores) -> tuple:
    """Names and numbers of resamples of the metrics."""
    return tuple((name, metric.replicates.shape) for name, metric in scores.metrics.items())


def _checked(truth: Any, estimates: Any) -> tuple[np.ndarray, np.ndarray]:
    truth = np.asarray(truth, np.float64)
    estimates = np.asarray(estimates, np.float64)
    if truth.ndim != 1 or truth.shape != estimates.shape:
        raise UsageError(
            f"true values and estimates must be one number per policy [K], got {truth.shape} and "
            f"{estimates.shape}"
        )
    if len(truth) < 2:
        raise UsageError(f"ranking needs at least two policies, got {len(truth)}")
    if not np.isfinite(truth).all():
        policy = int(np.argmin(np.isfinite(truth)))
        raise UsageError(f"the true value of policy {policy} is not finite")
    if truth.min() == truth.max():
        raise UsageError(
            f"all {len(truth)} policies have the true value {truth[0]:g}: there is nothing to rank"
        )
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
        return Measured(value=value, mean=nan, std=nan, low=nan, high=nan, replicates=replicates)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Measured(
        value=value,
        mean=float(defined.mean()),
        std=float(defined.std()),
        low=float(low),
        high=float(high),
        replicates=replicates,
    )
