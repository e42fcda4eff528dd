"""What the scores say of the source's observations: intervals by resampling seeds.

A bootstrap interval of few seeds is too narrow, so that it is widened; that of a spread is
reflected, because chance widens a spread.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from experiments.benchmarks import claims
from experiments.benchmarks.bsuite.grid import ARMS, Setting
from experiments.benchmarks.bsuite.observations import Comparison, extra_spread, gain, spread
from experiments.benchmarks.claims import Claim, Interval
from offline_mbrl.evaluation import aggregate

LEARNED = 0.5  # an arm below it everywhere has nothing to lose: neither robust nor sensitive

Scores = Mapping[Setting, np.ndarray]  # setting (of the first environment) -> [S, environments]

# Chance widens a spread, and resampling widens it again: their percentiles would call noise a
# difference more often than not. The reflected (basic) bootstrap interval takes the bias off
# instead of adding it.
WIDENED_BY_CHANCE = (spread, extra_spread)


# --- statistics ---


def judge(comparison: Comparison, scores: Scores) -> Claim:
    """The claim with the interval of its quantity, by resampling seeds within each setting."""
    settings = comparison.settings
    measured = None
    reason = ""
    # A single seed says nothing about others.
    if all(len(scores.get(setting, ())) >= 2 for setting in settings):
        num_seeds = min(len(scores[setting]) for setting in settings)
        table = np.concatenate([scores[setting][:num_seeds] for setting in settings], axis=1)
        measured = interval(comparison, table, num_seeds)
        reason = nothing_to_lose(comparison, means(table, len(settings)))
    outcome = claims.verdict(measured, comparison.threshold, below=comparison.below)
    return Claim(
        source=comparison.observation,
        study=comparison.study,
        statement=comparison.statement,
        measured=measured,
        verdict=claims.UNSETTLED if reason else outcome,
        reason=reason,
    )


def means(tables: np.ndarray, num_settings: int) -> np.ndarray:
    """Interquartile means of each setting, `[..., settings]`.

    Args:
      tables: `[..., S, settings x environments]`.
      num_settings: how many settings lie beside each other.
    """
    apart = tables.reshape(*tables.shape[:-1], num_settings, -1)
    return aggregate.interquartile_mean(np.moveaxis(apart, -2, -3))


def interval(comparison: Comparison, table: np.ndarray, num_seeds: int) -> Interval:
    """Of the quantity.

    Args:
      comparison: which quantity, and of how many settings.
      table: `[S, settings x environments]`.
      num_seeds: S.
    """
    count = len(comparison.settings)

    def quantity(tables: np.ndarray) -> np.ndarray:
        return comparison.quantity(means(tables, count))

    value = float(quantity(table))
    low, high = aggregate.stratified_bootstrap(table, quantity)
    if comparison.quantity in WIDENED_BY_CHANCE:
        low, high = 2 * value - high, 2 * value - low
    factor = few_seeds(num_seeds, count)
    return Interval(value, value - factor * (value - low), value + factor * (high - value))


def few_seeds(num_seeds: int, num_settings: int) -> float:
    """By how much a bootstrap interval of so few seeds is too narrow.

    Its variance is that of a sample in place of the whole, and its quantiles are the normal ones
    instead of Student's.
    """
    lost_spread = np.sqrt(num_seeds / (num_seeds - 1))
    freedom = (num_seeds - 1) * num_settings
    return float(lost_spread * stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975))


def nothing_to_lose(comparison: Comparison, levels: np.ndarray) -> str:
    """Which arm of a claim about losses or spreads is nowhere above `LEARNED`; empty if none.

    Args:
      comparison: the claim.
      levels: `[settings]` scores.
    """
    if comparison.quantity is gain:
        return ""
    best: dict[str, float] = {}
    for level, setting in zip(levels, comparison.settings, strict=True):
        best[setting.arm] = max(best.get(setting.arm, -np.inf), level)
    if comparison.quantity is spread:  # a series, which may begin with another arm's first point
        best = {comparison.settings[-1].arm: max(best.values())}
    low = [
        f"{ARMS[arm].label} at best {level:.2f}" for arm, level in best.items() if level < LEARNED
    ]
    return f"nothing to lose: {', '.join(low)}" if low else ""


# --- sentences ---


def summary(judged: Sequence[Claim]) -> str:
    """One line on an observation: what became of its claims."""
    counts = claims.summary(judged, "claims")
    verdicts = {claim.verdict for claim in judged}
    if len(verdicts) < 2:
        return counts
    overall = {
        (True, True): "mixed",
        (True, False): "holds in part",
        (False, True): "does not hold in part",
        (False, False): claims.UNSETTLED,
    }[claims.HOLDS in verdicts, claims.FAILS in verdicts]
    return f"{overall} ({counts})"
