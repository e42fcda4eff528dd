"""A judgement in sentences and in numbers for machines."""

from collections.abc import Sequence
from typing import Any

from offline_mbrl.ope import intervals
from offline_mbrl.selection.judging import BEHAVIOR, SHORTLIST, Judged, Judgement
from offline_mbrl.types import Estimate

SURE = 0.975  # probability beyond which two policies count as told apart
ENOUGH_FAMILIES = 3  # whose disagreement tells what they may all be off by
MOST_REASONS = 3  # of a policy that no estimator may judge


def advice(judgement: Judgement) -> str:
    """What to deploy, how sure that is, and what speaks against it; a sentence a line."""
    judged = [policy for policy in judgement.policies if policy.standing is not None]
    unjudged = [policy for policy in judgement.policies if policy.standing is None]
    if not judged:
        lines = [
            "No choice: no estimate of any of these policies is both supported by the data and "
            "settled."
        ]
        return "\n".join([*lines, *_why_not(unjudged), _what_would_help(unjudged)])
    lines = [_choice(judgement, judged[0])]
    if len(judgement.shortlist) > 1 and judgement.chosen != BEHAVIOR:
        lines.append(
            f"To have the best of {len(judged)} with {SHORTLIST:.0%}, deploy "
            f"{len(judgement.shortlist)}: {', '.join(judgement.shortlist)}."
        )
    close = [f"{name} ({sure:.0%})" for name, sure in judgement.beaten.items() if sure < SURE]
    if close:
        lines.append(f"Better than these, but less than {SURE:.1%} sure: {', '.join(close)}.")
    families = sorted({family for policy in judged for family in policy.votes})
    if len(families) < ENOUGH_FAMILIES:
        lines.append(
            f"Only {' and '.join(families)} vote: what they are wrong by in common shows in no "
            "interval."
        )
    if unjudged:
        lines += _why_not(unjudged)
    return "\n".join(lines)


def _choice(judgement: Judgement, first: Judged) -> str:
    standing = first.standing
    assert standing is not None  # the first of those that are judged
    figures = (
        f"better than the behavior with {standing.better:.0%}, the best of those judged with "
        f"{standing.best:.0%}; what the best has more is {number(standing.regret)} on average"
    )
    if judgement.chosen == BEHAVIOR:
        return (
            f"Keep the behavior: not even the first choice, {first.name}, is likely better "
            f"({figures})."
        )
    return f"Deploy {first.name}: {figures}."


def _why_not(unjudged: Sequence[Judged]) -> list[str]:
    lines = [f"Not judged: {', '.join(policy.name for policy in unjudged)}."]
    reasons = dict.fromkeys(
        reason for policy in unjudged for reason in policy.verdict.reasons[:MOST_REASONS]
    )
    if any(
        _is_unsettled(estimate) for policy in unjudged for estimate in policy.estimates.values()
    ):
        reasons["some fits have not settled"] = None
    return lines + [f"  {reason}" for reason in reasons]


def _what_would_help(unjudged: Sequence[Judged]) -> str:
    unsettled = any(
        _is_unsettled(estimate) for policy in unjudged for estimate in policy.estimates.values()
    )
    more = " Fits that have not settled need more updates: --effort thorough." if unsettled else ""
    return (
        "What would help: episodes of these policies, or of policies between them and the "
        f"behavior.{more}"
    )


def _is_unsettled(estimate: Estimate) -> bool:
    return bool(float(estimate.diagnostics.get("updates_too_few", 0.0)))


def number(value: float) -> str:
    """Two decimals; large and tiny numbers in scientific notation."""
    return f"{value:.2f}" if value == 0 or 1e-2 <= abs(value) < 1e6 else f"{value:.2e}"


def to_json(judgement: Judgement) -> dict[str, Any]:
    """All of a judgement as what JSON can hold."""
    behavior = judgement.behavior
    return {
        "chosen": judgement.chosen,
        "shortlist": list(judgement.shortlist),
        "probability_first_is_better": judgement.beaten,
        "advice": advice(judgement).splitlines(),
        "behavior": {
            "within_horizon": _estimate_json(behavior.within_horizon),
            "continuing": _estimate_json(behavior.continuing),
            "undiscounted": behavior.undiscounted,
        },
        "policies": [
            {
                "name": policy.name,
                "standing": policy.standing._asdict() if policy.standing else None,
                "votes": policy.votes,
                "low_support": policy.verdict.low_support,
                "reasons": list(policy.verdict.reasons),
                "estimates": {
                    name: _estimate_json(estimate) for name, estimate in policy.estimates.items()
                },
            }
            for policy in judgement.policies
        ],
    }


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": float(estimate.value),
        "half_width_95": intervals.NORMAL_95 * float(estimate.stderr),
        "diagnostics": {name: float(value) for name, value in estimate.diagnostics.items()},
    }
