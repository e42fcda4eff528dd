"""Which estimators may vote on a policy: those that the data support and whose fits have settled.

Estimators that rest on the same quantity err together, so that a family has one vote, however many
of its members were fitted: that of the first of them that may vote.
"""

from collections.abc import Mapping

import numpy as np

from offline_mbrl.ope import intervals
from offline_mbrl.types import Estimate

# Families, and their estimators from the first choice to the last. Those whose weights are
# normalized come before those that add up rewards with weights of any sum.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "models": ("model_ff", "model_ar", "model_coupled"),
    "values": ("fqe", "fqe_distributional"),
    "weights": (
        "weighted_doubly_robust",
        "doubly_robust",
        "magic",
        "weighted_per_decision_is_logged",
        "weighted_is_logged",
        "weighted_per_decision_is_cloned",
        "weighted_is_cloned",
        "per_decision_is_logged",
        "ordinary_is_logged",
        "per_decision_is_cloned",
        "ordinary_is_cloned",
        "clipped_per_decision_is_logged",
        "clipped_per_decision_is_cloned",
    ),
    "ratios": ("best_dice", "dual_dice", "vpm"),
}
# Families whose values go on after a time limit; the others count the horizon's steps.
CONTINUING = ("values", "ratios")


def may_vote(estimate: Estimate) -> bool:
    """Whether an estimate of one policy is finite and raises no flag of `intervals.FLAGS`."""
    flags = [float(estimate.diagnostics.get(flag, 0.0)) for flag in intervals.FLAGS]
    return bool(np.isfinite([estimate.value, estimate.stderr]).all()) and not any(flags)


def votes(estimates: Mapping[str, Estimate]) -> dict[str, str]:
    """The estimator that votes for each family that has one.

    Args:
      estimates: of one policy, by estimator.

    Returns:
      family -> estimator; families in which none may vote are left out.
    """
    voting = {}
    for family, members in FAMILIES.items():
        for name in members:
            if name in estimates and may_vote(estimates[name]):
                voting[family] = name
                break
    return voting
