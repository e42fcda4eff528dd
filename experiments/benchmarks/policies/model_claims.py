"""What the papers on explicit models claim, judged from the runs of this benchmark.

MOPO (arXiv:2005.13239): a penalty helps, in between of none and too much. CBOP (arXiv:2210.03802):
a worse model is trusted for fewer steps, and without caution values are overestimated. Critics move
with their policy: what they say settles nothing while a score still rises.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy import stats

from experiments.benchmarks import claims
from experiments.benchmarks.claims import Claim, Interval
from experiments.benchmarks.policies.arms import NOISY, SWEEP
from experiments.benchmarks.policies.claims import (
    difference,
    scores_of,
    settled,
    unless_rising,
)
from experiments.benchmarks.policies.measures import GAP
from experiments.benchmarks.policies.presets import Preset
from experiments.benchmarks.policies.runs import Row, Setting, measures_of

HORIZON = "expansion/expected_horizon"

Runs = Mapping[Setting, Mapping[int, Row]]


def judge(preset: Preset, runs: Runs) -> list[Claim]:
    """All claims whose arms the preset has, for each of its datasets."""
    judged = []
    for data in preset.datasets:
        own = {arm: [*runs.get(Setting(arm, data.name), {}).values()] for arm in preset.arms}
        judged += [claim._replace(source=data.name) for claim in of_dataset(own)]
    return judged


def of_dataset(runs: Mapping[str, Sequence[Row]]) -> list[Claim]:
    """The claims whose arms are there.

    Args:
      runs: arm -> runs on one dataset; none yet where they are empty.
    """
    judged = []
    for better, worse in (("mopo_coef_1", "mopo_coef_0"), ("mopo_coef_0", "sac")):
        if {better, worse} <= runs.keys():
            judged.append(better_score(better, worse, runs))
    if runs.keys() >= SWEEP.keys():
        judged.append(interior_optimum([*SWEEP], runs))
    for clean, noisy in pairwise(NOISY):
        if {clean, noisy} <= runs.keys():
            judged.append(shorter_horizon(noisy, clean, runs))
    if {"cbop", "cbop_psi_0"} <= runs.keys():
        judged.append(gap_above_zero("cbop_psi_0", runs["cbop_psi_0"]))
        judged.append(gap_above_zero("cbop", runs["cbop"], below=True))
    return judged


def better_score(better: str, worse: str, runs: Mapping[str, Sequence[Row]]) -> Claim:
    """That one arm's mean score is above another's.

    Args:
      better: the one.
      worse: the other.
      runs: arm -> runs.
    """
    measured = difference(scores_of(runs[better]), scores_of(runs[worse]))
    verdict, reason = settled(claims.verdict(measured), runs[better], runs[worse])
    return _claim(f"{better} scores above {worse}", measured, verdict, reason)


def interior_optimum(arms: Sequence[str], runs: Mapping[str, Sequence[Row]]) -> Claim:
    """That the best weight is neither the smallest nor the largest of a sweep.

    The quantity is the difference of the best inner arm and the better of the two ends. The best is
    picked by the same runs, which favors it a little.

    Args:
      arms: of the sweep, by weight.
      runs: arm -> runs.
    """
    statement = f"the best of {', '.join(arms)} is an inner one"
    if min(len(runs[arm]) for arm in arms) < 2:
        return _claim(statement, None, claims.MISSING)

    def mean(arm: str) -> float:
        return float(scores_of(runs[arm]).mean())

    inner = max(arms[1:-1], key=mean)
    end = max((arms[0], arms[-1]), key=mean)
    measured = difference(scores_of(runs[inner]), scores_of(runs[end]))
    verdict, open_end = settled(claims.verdict(measured), runs[inner], runs[end])
    reason = "; ".join(filter(None, [f"{inner} against {end}", open_end]))
    return _claim(statement, measured, verdict, reason)


def shorter_horizon(noisy: str, clean: str, runs: Mapping[str, Sequence[Row]]) -> Claim:
    """That the expected horizon of one arm is below that of another.

    Args:
      noisy: the one.
      clean: the other.
      runs: arm -> runs.
    """
    measured = difference(values_of(runs[noisy], HORIZON), values_of(runs[clean], HORIZON))
    verdict, reason = unless_rising(claims.verdict(measured, below=True), runs[noisy], runs[clean])
    return _claim(f"{noisy} has a shorter expected horizon than {clean}", measured, verdict, reason)


def gap_above_zero(arm: str, runs: Sequence[Row], *, below: bool = False) -> Claim:
    """That the critics' values are above the returns, or below them.

    Args:
      arm: its name.
      runs: of the arm.
      below: that they are below.
    """
    statement = f"{arm} {'does not overestimate' if below else 'overestimates'} (values - returns)"
    measured = mean(values_of(runs, GAP))
    verdict, reason = unless_rising(claims.verdict(measured, below=below), runs)
    return _claim(statement, measured, verdict, reason)


def mean(values: np.ndarray) -> Interval | None:
    """The mean with Student's interval; None of fewer than two values.

    Args:
      values: `[S]`.
    """
    if len(values) < 2:
        return None
    value = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Interval(value, value - half, value + half)


def values_of(runs: Sequence[Row], name: str) -> np.ndarray:
    """What the runs report by this name, without those that report no number."""
    reported = np.array([measures_of(row).get(name, np.nan) for row in runs])
    return reported[np.isfinite(reported)]


def _claim(statement: str, measured: Interval | None, verdict: str, reason: str = "") -> Claim:
    return Claim(
        source="",
        study="models",
        statement=statement,
        measured=measured,
        verdict=verdict,
        reason=reason,
    )
