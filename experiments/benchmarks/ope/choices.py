"""How well `selection.judge` would choose among the benchmark's policies, from the rows alone.

Rows hold standard errors but not where errors come from, so that policies are drawn with errors of
their own: what they share, which the command knows, would tell them further apart.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import pages
from experiments.benchmarks.ope.runs import Preset, Truth
from offline_mbrl.ope import intervals
from offline_mbrl.selection import estimators, judging, metrics
from offline_mbrl.selection.comparison.behavior import Logged
from offline_mbrl.types import Estimate

NUM_SETS = 500  # random sets of policies, each judged
SET_SIZE = 4
SURE = 0.8  # choices that are said to be right with this probability, or more


class Columns(NamedTuple):
    """Estimates of one task's policies by one estimator."""

    values: np.ndarray  # [S, P]
    stderr: np.ndarray  # [S, P]
    low_support: np.ndarray  # [S, P]   NaN where no sign tells
    unsettled: np.ndarray  # [S, P]     the same
    seconds: np.ndarray  # [S, P] of CPU, a group's shared out over policies


class Choice(NamedTuple):
    """What judging a set of policies came to."""

    regret: float  # over the range of the task's true values
    stated: float  # probability that the choice is the best
    right: bool


class Chosen(NamedTuple):
    """Of one task."""

    rank_correlation: float
    regret: float  # of the choice among all policies
    coverage: float  # share of the policies whose combined interval holds the true value
    voted: int  # policies on which a family voted
    sets: list[Choice]


def combined(name: str, columns: Columns, *, bootstrap: bool) -> list[Estimate]:
    """One estimate for each policy over the seeds of a task's rows.

    Args:
      name: of the estimator.
      columns: its rows.
      bootstrap: whether fits that can be resampled were.
    """
    group = next(group for group in estimators.GROUPS.values() if name in group.names)
    flags = {"low_support": columns.low_support, "updates_too_few": columns.unsettled}
    present = {flag: values for flag, values in flags.items() if not np.isnan(values).all()}
    size = columns.values.shape[1]
    stacked = [
        Estimate(
            value=jnp.asarray(columns.values[:, policy]),
            stderr=jnp.asarray(columns.stderr[:, policy]),
            per_episode=None,
            diagnostics={
                flag: jnp.asarray(np.nan_to_num(values[:, policy]))
                for flag, values in present.items()
            },
        )
        for policy in range(size)
    ]
    if len(columns.values) == 1:
        return [jax.tree.map(lambda leaf: leaf[0], estimate) for estimate in stacked]
    resampled = bootstrap and group.resamples
    return [intervals.combine(estimate, resampled=resampled) for estimate in stacked]


def coverage(truth: Sequence[Truth], estimates: Sequence[Estimate]) -> float:
    """Share of the policies whose 95 % interval holds the true value."""
    inside = [
        abs(float(estimate.value) - row.value) <= intervals.NORMAL_95 * float(estimate.stderr)
        for row, estimate in zip(truth, estimates, strict=True)
    ]
    return float(np.mean(inside))


def choose(truth: Sequence[Truth], by_estimator: Mapping[str, Sequence[Estimate]]) -> Chosen | None:
    """The choice among all policies of a task, and among random sets; None where none has a vote.

    Args:
      truth: of the policies.
      by_estimator: their estimates, in the same order.
    """
    values = np.array([row.value for row in truth])
    everything = _judged(range(len(truth)), by_estimator)
    judged = {
        int(policy.name): policy.standing
        for policy in everything.policies
        if policy.standing is not None
    }
    if not judged:
        return None
    means = np.array([judged[row].value if row in judged else np.nan for row in range(len(truth))])
    inside = [judged[row].low <= values[row] <= judged[row].high for row in judged]
    scored = metrics.score(values, means)
    rng = np.random.default_rng(0)
    sets = [
        rng.choice(len(truth), min(SET_SIZE, len(truth)), replace=False) for _ in range(NUM_SETS)
    ]
    choices = [_choice(rows, values, by_estimator) for rows in sets]
    return Chosen(
        rank_correlation=scored.metrics["rank_correlation"].value,
        regret=_regret(range(len(truth)), int(everything.policies[0].name), values),
        coverage=float(np.mean(inside)),
        voted=len(judged),
        sets=[choice for choice in choices if choice is not None],
    )


def lines(chosen: Mapping[str, Chosen | None]) -> str:
    """A table with a line a task."""
    header = (
        "task",
        "rank correlation",
        "regret@1",
        "intervals that hold",
        f"best of {SET_SIZE}",
        "said",
        "regret",
        f"right where said with {SURE:.0%}",
    )
    rows = []
    for task, own in chosen.items():
        if own is None:
            rows.append([task, "no estimator may vote", *["-"] * 6])
            continue
        sure = [choice.right for choice in own.sets if choice.stated >= SURE]
        rows.append(
            [
                task,
                f"{own.rank_correlation:.2f}",
                f"{own.regret:.3f}",
                f"{own.coverage:.0%} of {own.voted}",
                f"{np.mean([choice.right for choice in own.sets]):.0%}",
                f"{np.mean([choice.stated for choice in own.sets]):.0%}",
                f"{np.mean([choice.regret for choice in own.sets]):.3f}",
                f"{np.mean(sure):.0%} of {len(sure)}" if sure else "never said",
            ]
        )
    note = (
        "The first three columns are of all policies of a task; the others of "
        f"{NUM_SETS} random sets of {SET_SIZE} of them: how often the first choice is the best of "
        "its set, how often it is said to be, and what it loses, in shares of the range of true "
        "values."
    )
    return f"{pages.markdown(header, rows)}\n\n{note}"


def section(
    preset: Preset,
    truth: Mapping[str, Sequence[Truth]],
    table: Mapping[str, Mapping[str, Columns]],
) -> str:
    """The table of all tasks.

    Args:
      preset: of the rows.
      truth: by task.
      table: rows by task and estimator.
    """
    chosen = {}
    for task, policies in truth.items():
        estimates = {
            name: combined(name, own, bootstrap=preset.settings.bootstrap)
            for name, own in table.get(task, {}).items()
        }
        chosen[task] = choose(policies, estimates) if estimates else None
    return lines(chosen)


# --- parts ---


def _judged(
    rows: Sequence[int], by_estimator: Mapping[str, Sequence[Estimate]]
) -> judging.Judgement:
    """The judgement of these policies, which go by their numbers, beside a behavior of value 0."""
    estimates = {str(row): {name: own[row] for name, own in by_estimator.items()} for row in rows}
    nothing = Estimate(jnp.zeros(()), jnp.zeros(()), None, {})
    return judging.judgement(estimates, Logged(nothing, nothing, undiscounted=0.0))


def _choice(
    rows: Sequence[int], values: np.ndarray, by_estimator: Mapping[str, Sequence[Estimate]]
) -> Choice | None:
    judgement = _judged(rows, by_estimator)
    first = judgement.policies[0]
    if first.standing is None:
        return None
    row = int(first.name)
    return Choice(
        regret=_regret(rows, row, values),
        stated=first.standing.best,
        right=bool(values[row] == values[np.asarray(rows)].max()),
    )


def _regret(rows: Sequence[int], row: int, values: np.ndarray) -> float:
    return float((values[np.asarray(rows)].max() - values[row]) / np.ptp(values))
