"""Pictures of a judgement: a forest plot of the policies, and estimators against each other."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offline_mbrl.ope import intervals
from offline_mbrl.selection import figure_files
from offline_mbrl.selection.judging import Judged, Judgement
from offline_mbrl.types import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PAIRS = 6  # of voting estimators in the scatter


def draw(judgement: Judgement, directory: Path) -> list[Path]:
    """Writes `forest.png`, and `scatter.png` where two estimators vote on two policies."""
    figures = {"forest": forest(judgement), "scatter": scatter(judgement)}
    return figure_files.write(figures, directory)


def forest(judgement: Judgement) -> "Figure":
    """The combined interval of each policy, its votes beside it, and the behavior's interval."""
    from matplotlib.figure import Figure

    policies = judgement.policies
    figure = Figure(figsize=(7.5, 1.2 + 0.45 * len(policies)), layout="constrained")
    axes = figure.add_subplot()
    logged = judgement.behavior.within_horizon
    half = intervals.NORMAL_95 * float(logged.stderr)
    axes.axvspan(float(logged.value) - half, float(logged.value) + half, color="0.85")
    axes.axvline(float(logged.value), color="0.5", label="logged behavior")
    families = sorted({family for policy in policies for family in policy.votes})
    for row, policy in enumerate(policies):
        _forest_row(axes, row, policy, families)
    for color, family in enumerate(families):
        axes.plot([], [], "o", color=f"C{color}", markersize=4, label=family)
    axes.set_yticks(range(len(policies)), [policy.name for policy in policies], fontsize=8)
    axes.set_ylim(len(policies) - 0.5, -0.5)
    axes.set_xlabel("discounted return, 95 %")
    axes.legend(fontsize=7)
    return figure


def _forest_row(axes, row: int, policy: Judged, families: Sequence[str]) -> None:
    standing = policy.standing
    if standing is None:
        axes.text(0.01, row, "no vote", transform=axes.get_yaxis_transform(), va="center", size=7)
        return
    axes.plot([standing.low, standing.high], [row, row], color="k", linewidth=2)
    axes.plot(standing.value, row, "s", color="k", markersize=5)
    for place, family in enumerate(families):
        if family in policy.votes:
            estimate = policy.estimates[policy.votes[family]]
            half = intervals.NORMAL_95 * float(estimate.stderr)
            height = row + 0.12 * (place + 1)
            axes.errorbar(
                float(estimate.value), height, xerr=half, fmt="o", color=f"C{place}", markersize=3
            )


def scatter(judgement: Judgement) -> "Figure | None":
    """Each pair of voting estimators: the values they give to the policies on which both vote."""
    from matplotlib.figure import Figure

    policies = judgement.policies
    voting = list(dict.fromkeys(name for policy in policies for name in policy.votes.values()))
    pairs = [
        (first, second, _both(policies, first, second))
        for first, second in itertools.combinations(voting, 2)
    ]
    pairs = [pair for pair in pairs if len(pair[2]) > 1][:MOST_PAIRS]
    if not pairs:
        return None
    figure = Figure(figsize=(3.2 * len(pairs), 3.2), layout="constrained")
    for place, (first, second, both) in enumerate(pairs, 1):
        axes = figure.add_subplot(1, len(pairs), place)
        x, y = (np.array([float(row[side].value) for row in both]) for side in (0, 1))
        x_error, y_error = (
            intervals.NORMAL_95 * np.array([float(row[side].stderr) for row in both])
            for side in (0, 1)
        )
        axes.errorbar(x, y, xerr=x_error, yerr=y_error, fmt="o", markersize=3, linewidth=0.7)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color="k", linewidth=0.7)
        axes.set(xlabel=first, ylabel=second)
    return figure


def _both(policies: Sequence[Judged], first: str, second: str) -> list[tuple[Estimate, Estimate]]:
    return [
        (policy.estimates[first], policy.estimates[second])
        for policy in policies
        if {first, second} <= set(policy.votes.values())
    ]
