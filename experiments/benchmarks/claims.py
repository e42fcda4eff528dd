"""What the runs say of a source's claims: records, verdicts by intervals, sentences.

A claim puts a measured quantity on one side of a threshold. It holds if the whole interval of the
quantity lies there, does not hold if the whole interval lies on the other side, and is not settled
otherwise: point values alone decide nothing. How a quantity and its interval are measured is each
study's own.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

HOLDS = "holds"
FAILS = "does not hold"
UNSETTLED = "cannot be told"
MISSING = "not measured"
BEGINNINGS = {
    HOLDS: "Holds here",
    FAILS: "Does not hold here",
    UNSETTLED: "Cannot be told from these runs",
    MISSING: "Not measured yet",
}


class Interval(NamedTuple):
    """A quantity with its 95 % interval, NaN where a single run has none."""

    value: float
    low: float = np.nan
    high: float = np.nan


class Claim(NamedTuple):
    """A statement, what was measured of it, and the verdict."""

    source: str  # which observation or paper it comes from
    study: str
    statement: str
    measured: Interval | None  # None where runs are missing
    verdict: str
    reason: str = ""  # why it is not settled, or what to know beside the interval


def verdict(measured: Interval | None, threshold: float = 0.0, *, below: bool = False) -> str:
    """On which side of the threshold the whole interval lies.

    Args:
      measured: the quantity; None where runs are missing.
      threshold: of the quantity.
      below: the claim is that the quantity is below the threshold instead of above it.
    """
    if measured is None:
        return MISSING
    above = measured.low > threshold
    under = measured.high < threshold
    if above or under:
        return FAILS if above == below else HOLDS
    return UNSETTLED


def sentences(claims: Sequence[Claim]) -> list[str]:
    """What holds, what does not, and what these runs leave open: a line of Markdown each."""
    lines = []
    for outcome, beginning in BEGINNINGS.items():
        cases = [sentence(claim) for claim in claims if claim.verdict == outcome]
        if cases:
            lines.append(f"- {beginning}: {'; '.join(cases)}.")
    return lines


def sentence(claim: Claim) -> str:
    """The statement with what was measured."""
    if claim.measured is None:
        return claim.statement
    reason = f"; {claim.reason}" if claim.reason else ""
    return f"{claim.statement} ({in_words(claim.measured)}{reason})"


def in_words(measured: Interval) -> str:
    """The quantity with its sign, and its interval where there is one."""
    ends = f", {measured.low:+.2f} to {measured.high:+.2f}" if np.isfinite(measured.low) else ""
    return f"{measured.value:+.2f}{ends}"


def summary(claims: Sequence[Claim], noun: str) -> str:
    """How many hold, do not hold, and are left open; `noun` is what they are called."""
    if not claims:
        return MISSING
    counts = Counter(claim.verdict for claim in claims)
    if len(counts) == 1:
        return f"{claims[0].verdict} ({len(claims)} of {len(claims)} {noun})"
    parts = ", ".join(f"{counts[outcome]} {outcome}" for outcome in BEGINNINGS if counts[outcome])
    return f"of {len(claims)} {noun}: {parts}"
