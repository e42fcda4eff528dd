"""What the sources claim of estimators, judged by differences over the same resampled policies."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import claims
from experiments.benchmarks.claims import Claim, Interval
from offline_mbrl.selection import metrics

AUTOREGRESSIVE = "arXiv:2104.13877"
DOPE = "arXiv:2103.16596"
MOST_UNSETTLED = 0.5  # share of an estimator's fits that may say they have not settled
METRICS = ("rank_correlation", "absolute_error")
LARGER_IS_BETTER = ("rank_correlation",)


class Comparison(NamedTuple):
    """A sentence of a source: `better` has the better `metric` than `worse`."""

    source: str
    text: str
    better: str
    worse: str


COMPARISONS = (
    Comparison(
        source=AUTOREGRESSIVE,
        text=f"autoregressive models evaluate better than feedforward ones ({AUTOREGRESSIVE})",
        better="model_ar",
        worse="model_ff",
    ),
    Comparison(
        source=AUTOREGRESSIVE,
        text="autoregressive models evaluate better than FQE-L2 (same)",
        better="model_ar",
        worse="fqe",
    ),
    Comparison(
        source=AUTOREGRESSIVE,
        text="autoregressive models evaluate better than FQE-D (same)",
        better="model_ar",
        worse="fqe_distributional",
    ),
    Comparison(
        source=DOPE,
        text=f"FQE is ahead of doubly robust estimates (order of DOPE's figures, {DOPE})",
        better="fqe",
        worse="doubly_robust",
    ),
    Comparison(
        source=DOPE,
        text="FQE is ahead of importance sampling (same)",
        better="fqe",
        worse="clipped_per_decision_is_cloned",
    ),
    Comparison(source=DOPE, text="FQE is ahead of DICE (same)", better="fqe", worse="best_dice"),
)


def judge(over: Mapping[str, metrics.Scores], unsettled: Mapping[str, float]) -> list[Claim]:
    """Every comparison under every metric; open where a fit of either side has not settled.

    Args:
      over: scores over tasks, by estimator.
      unsettled: share of the estimates whose fit has not settled, by estimator; NaN where no row
        says.
    """
    judged = []
    for metric in METRICS:
        for comparison in COMPARISONS:
            pair = (comparison.better, comparison.worse)
            complete = all(name in over for name in pair)
            measured = gap(over[pair[0]], over[pair[1]], metric) if complete else None
            notes = [
                f"`{name}` says of {unsettled[name]:.0%} of its estimates that it has not settled"
                for name in pair
                if complete and unsettled[name] > MOST_UNSETTLED
            ]
            judged.append(
                Claim(
                    source=comparison.source,
                    study="ope",
                    statement=f"{comparison.text}, {metric.replace('_', ' ')}",
                    measured=measured,
                    verdict=claims.UNSETTLED if notes else claims.verdict(measured),
                    reason="; ".join(notes),
                )
            )
    return judged


def gap(better: metrics.Scores, worse: metrics.Scores, metric: str) -> Interval:
    """How far the first is ahead, and the 95 % interval over resamples.

    Args:
      better: scores of one estimator.
      worse: of another, over the same resamples.
      metric: which.
    """
    sign = 1.0 if metric in LARGER_IS_BETTER else -1.0
    first = better.metrics[metric]
    second = worse.metrics[metric]
    replicates = sign * (first.replicates - second.replicates)
    defined = replicates[~np.isnan(replicates)]
    value = float(sign * (first.value - second.value))
    if not len(defined):
        return Interval(value)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def compared(over: Mapping[str, metrics.Scores]) -> list[str]:
    """Estimators with scores that a comparison names, in order."""
    pairs = [(comparison.better, comparison.worse) for comparison in COMPARISONS]
    return list(dict.fromkeys(name for pair in pairs for name in pair if name in over))


def lines(judged: Sequence[Claim]) -> list[str]:
    """A line of Markdown for each claim."""
    return [line(claim) for claim in judged]


def line(claim: Claim) -> str:
    """The statement, its verdict, and the difference."""
    if claim.measured is None:
        return f"- {claim.statement}: not run."
    value, low, high = claim.measured
    reason = f"; {claim.reason}" if claim.reason else ""
    return (
        f"- {claim.statement}: **{claim.verdict}**; ahead by {value:.2f} "
        f"[{low:.2f}, {high:.2f}]{reason}."
    )
