"""Sentences follow the numbers, in both directions."""

import numpy as np
import pytest

from experiments.benchmarks.bsuite import findings, grid

SETTINGS = tuple(grid.Setting("muzero", simulations=n) for n in (2, 4, 8, 16))
SEEDS = np.array([-0.02, 0.0, 0.02])[:, None]  # of one environment


def judged(quantity, levels, *, noise=1.0, **settings):
    """Verdict on made-up scores: a level for each setting, three seeds around it."""
    used = SETTINGS[: len(levels)]
    claim = findings.Claim(1, "coverage", "it is so", used, quantity, **settings)
    scores = {setting: level + noise * SEEDS for setting, level in zip(used, levels, strict=True)}
    return findings.judge(claim, scores)


@pytest.mark.parametrize(("levels", "verdict"), [
    ((0.2, 0.9), findings.HOLDS), ((0.9, 0.2), findings.FAILS), ((0.5, 0.5), findings.OPEN)])  # fmt: skip
def test_a_difference_holds_fails_or_cannot_be_told_by_its_interval(levels, verdict):
    found = judged(findings.gain, levels)
    assert found.verdict == verdict
    assert found.value == pytest.approx(levels[1] - levels[0])
    assert found.low <= found.value <= found.high


def test_point_values_alone_decide_nothing():
    assert judged(findings.gain, (0.5, 0.6), noise=20.0).verdict == findings.OPEN


@pytest.mark.parametrize(("levels", "verdict"), [
    ((0.9, 0.3, 0.9, 0.9), findings.HOLDS), ((0.9, 0.9, 0.9, 0.3), findings.FAILS),
    ((0.9, 0.3, 0.8, 0.2), findings.OPEN)])  # fmt: skip
def test_who_loses_more_is_the_difference_of_two_losses(levels, verdict):
    assert judged(findings.extra_loss, levels).verdict == verdict


@pytest.mark.parametrize(("levels", "below", "verdict"), [
    ((0.9, 0.9, 0.9, 0.9), True, findings.HOLDS), ((0.9, 0.9, 0.9, 0.9), False, findings.FAILS),
    ((0.9, 0.9, 0.2, 0.9), True, findings.FAILS), ((0.9, 0.9, 0.2, 0.9), False, findings.HOLDS)])  # fmt: skip
def test_a_spread_is_held_against_the_margin_from_either_side(levels, below, verdict):
    assert judged(findings.spread, levels, threshold=findings.MARGIN, below=below, noise=0.5).verdict == verdict


def test_an_arm_that_never_learned_is_not_called_robust():
    flat = judged(findings.spread, (0.05, 0.05, 0.05, 0.05), threshold=findings.MARGIN, below=True, noise=0.5)
    lost = judged(findings.loss, (0.05, 0.02), threshold=findings.MARGIN, below=True, noise=0.5)
    assert flat.verdict == lost.verdict == findings.OPEN
    assert "nothing to lose: tree, visits (MuZero) at best 0.05" in findings.sentence(lost)
    assert judged(findings.gain, (0.05, 0.4)).verdict == findings.HOLDS  # a comparison needs no such level


def test_noise_alone_is_seldom_called_a_spread():
    rng, claim = np.random.default_rng(0), findings.Claim(2, "budget", "", SETTINGS, findings.spread, findings.MARGIN)
    found = [findings.judge(claim, {one: rng.normal(0.8, 0.2, (3, 1)) for one in SETTINGS}) for _ in range(40)]
    assert sum(one.verdict == findings.HOLDS for one in found) <= 12  # percentiles: 24 of 40


def test_more_environments_enter_together_and_each_is_resampled_by_itself():
    claim = findings.Claim(1, "coverage", "", SETTINGS[:2], findings.gain)
    scores = {SETTINGS[0]: np.tile([0.0, 1.0], (4, 1)), SETTINGS[1]: np.tile([0.5, 1.5], (4, 1))}
    found = findings.judge(claim, scores)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_what_was_not_run_is_not_judged():
    claim = findings.Claim(1, "coverage", "it is so", SETTINGS[:2], findings.gain)
    assert findings.judge(claim, {SETTINGS[0]: SEEDS}).verdict == findings.MISSING
    assert findings.judge(claim, {one: SEEDS[:1] for one in SETTINGS}).verdict == findings.MISSING


def test_the_lines_say_what_the_verdicts_are():
    holds, fails = judged(findings.gain, (0.2, 0.9)), judged(findings.gain, (0.9, 0.2))
    open_ = judged(findings.gain, (0.5, 0.5))
    told = findings.lines([holds, fails, open_])
    assert [line.split(":")[0] for line in told] == [
        "- Holds here", "- Does not hold here", "- Cannot be told from these runs"]  # fmt: skip
    assert "it is so (+0.70, " in told[0]
    assert findings.summary([holds, holds]) == "holds (2 of 2 claims)"
    assert findings.summary([fails, fails]) == "does not hold (2 of 2 claims)"
    assert findings.summary([holds, open_]) == "holds in part (of 2 claims: 1 holds, 1 cannot be told)"
    assert findings.summary([holds, fails]) == "mixed (of 2 claims: 1 holds, 1 does not hold)"
    assert findings.summary([fails, open_]).startswith("does not hold in part")
