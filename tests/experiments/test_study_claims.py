"""Verdicts by intervals, and the sentences made of them."""

import numpy as np
import pytest

from experiments.benchmarks import claims
from experiments.benchmarks.claims import FAILS, HOLDS, MISSING, UNSETTLED, Claim, Interval


def claim(measured, *, threshold=0.0, reason=""):
    verdict = claims.verdict(measured, threshold)
    return Claim("paper", "study", "it is so", measured, verdict, reason)


@pytest.mark.parametrize(
    ("ends", "above", "below"),
    [
        ((0.2, 0.4), HOLDS, FAILS),
        ((-0.4, -0.2), FAILS, HOLDS),
        ((-0.1, 0.1), UNSETTLED, UNSETTLED),
        ((0.0, 0.1), UNSETTLED, UNSETTLED),
        ((np.nan, np.nan), UNSETTLED, UNSETTLED),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(ends, above, below):
    measured = Interval(0.3, *ends)
    assert claims.verdict(measured) == above
    assert claims.verdict(measured, below=True) == below
    shifted = Interval(1.3, *(end + 1.0 for end in ends))
    assert claims.verdict(shifted, 1.0) == above


def test_missing_runs_are_not_judged():
    assert claims.verdict(None) == claims.verdict(None, below=True) == MISSING
    assert claims.summary([], "claims") == MISSING


def test_sentences_say_what_the_verdicts_are():
    holds = claim(Interval(0.7, 0.6, 0.8))
    fails = claim(Interval(-0.7, -0.8, -0.6))
    unsettled = claim(Interval(0.1, -0.1, 0.3), reason="few seeds")
    single = claim(Interval(0.5))
    assert claims.sentences([fails, holds, unsettled, single, claim(None)]) == [
        "- Holds here: it is so (+0.70, +0.60 to +0.80).",
        "- Does not hold here: it is so (-0.70, -0.80 to -0.60).",
        "- Cannot be told from these runs: it is so (+0.10, -0.10 to +0.30; few seeds); "
        "it is so (+0.50).",
        "- Not measured yet: it is so.",
    ]
    assert claims.summary([holds, holds], "cases") == "holds (2 of 2 cases)"
    counts = "of 3 claims: 1 holds, 1 does not hold, 1 cannot be told"
    assert claims.summary([unsettled, fails, holds], "claims") == counts
