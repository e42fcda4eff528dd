"""Which learners beat behavior cloning, by intervals of few seeds.

A run whose score still rises when it ends settles nothing against its learner, and of cloning
nothing for the others.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from experiments.benchmarks import claims
from experiments.benchmarks.claims import Claim, Interval
from experiments.benchmarks.policies.arms import CLONING
from experiments.benchmarks.policies.presets import Preset
from experiments.benchmarks.policies.runs import Row, Setting, curve_of

MARGIN = 0.03  # of the normalized score, which a run has to gain to count as rising

Runs = Mapping[Setting, Mapping[int, Row]]


def judge(preset: Preset, runs: Runs) -> list[Claim]:
    """A claim for each dataset and each arm but cloning."""
    return [
        beats_cloning(arm, data.name, runs)
        for data in preset.datasets
        for arm in preset.arms
        if arm != CLONING
    ]


def beats_cloning(arm: str, dataset: str, runs: Runs) -> Claim:
    """That the arm's mean score is above cloning's.

    Args:
      arm: the learner.
      dataset: the data.
      runs: all.
    """
    mine = [*runs.get(Setting(arm, dataset), {}).values()]
    cloned = [*runs.get(Setting(CLONING, dataset), {}).values()]
    measured = difference(scores_of(mine), scores_of(cloned))
    verdict, reason = settled(claims.verdict(measured), mine, cloned)
    return Claim(
        source=dataset,
        study="policies",
        statement=f"{arm} beats behavior cloning",
        measured=measured,
        verdict=verdict,
        reason=reason,
    )


def settled(verdict: str, better: Sequence[Row], worse: Sequence[Row]) -> tuple[str, str]:
    """The verdict, unless the side that it is against still improved; and then why not.

    Args:
      verdict: that the runs of `better` score above those of `worse`.
      better: the ones.
      worse: the others.
    """
    against = worse if verdict == claims.HOLDS else better
    return unless_rising(verdict, against)


def unless_rising(verdict: str, *sides: Sequence[Row]) -> tuple[str, str]:
    """The verdict, unless runs of a side still improved; and then which.

    Args:
      verdict: on any figure of the runs.
      *sides: the runs of each arm that it depends on.
    """
    arms = [runs[0].arm for runs in sides if rising(runs)]
    if verdict == claims.MISSING or not arms:
        return verdict, ""
    return claims.UNSETTLED, f"{' and '.join(arms)} still rising at the end"


def scores_of(runs: Sequence[Row]) -> np.ndarray:
    """`[S]` the mean of each run's last ten evaluations."""
    return np.array([row.last_ten for row in runs])


def difference(scores: np.ndarray, others: np.ndarray) -> Interval | None:
    """The difference of two means with Welch's interval; None where a side has fewer than two runs.

    Args:
      scores: `[S]`.
      others: `[R]`.
    """
    if min(len(scores), len(others)) < 2:
        return None
    value = float(scores.mean() - others.mean())
    if np.ptp(scores) == np.ptp(others) == 0:  # Welch's has no degrees of freedom
        return Interval(value, value, value)
    interval = stats.ttest_ind(scores, others, equal_var=False).confidence_interval(0.95)
    return Interval(value, float(interval.low), float(interval.high))


def rising(runs: Sequence[Row]) -> bool:
    """Whether the mean score of the last third exceeds that of the middle third by `MARGIN`."""
    return gain(runs) > MARGIN


def gain(runs: Sequence[Row]) -> float:
    """By how much the mean score of the last third exceeds that of the middle third."""
    if not runs:
        return 0.0
    curves = np.mean([curve_of(row) for row in runs], axis=0)
    third = max(len(curves) // 3, 1)
    if len(curves) < 2 * third:
        return 0.0
    return float(curves[-third:].mean() - curves[-2 * third : -third].mean())
