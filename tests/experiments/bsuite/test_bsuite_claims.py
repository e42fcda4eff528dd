"""Claims on BSuite follow the scores, in both directions."""

import numpy as np
import pytest

from experiments.benchmarks import claims
from experiments.benchmarks.bsuite import claims as bsuite_claims
from experiments.benchmarks.bsuite import grid, observations
from experiments.benchmarks.bsuite.observations import MARGIN, Comparison, extra_loss, gain
from experiments.benchmarks.claims import FAILS, HOLDS, MISSING, UNSETTLED, Claim, Interval

SETTINGS = tuple(grid.Setting("muzero", simulations=n) for n in (2, 4, 8, 16))
SEEDS = np.array([-0.02, 0.0, 0.02])[:, None]  # of one environment


def comparison(settings, quantity, **fields):
    return Comparison("1", "coverage", "it is so", settings, quantity, **fields)


def judged(quantity, levels, *, noise=1.0, **fields):
    """The claim on scores at a level for each setting, three seeds around it."""
    settings = SETTINGS[: len(levels)]
    scores = {
        setting: level + noise * SEEDS for setting, level in zip(settings, levels, strict=True)
    }
    return bsuite_claims.judge(comparison(settings, quantity, **fields), scores)


@pytest.mark.parametrize(
    ("levels", "verdict"), [((0.2, 0.9), HOLDS), ((0.9, 0.2), FAILS), ((0.5, 0.5), UNSETTLED)]
)
def test_a_difference_holds_fails_or_is_unsettled_by_its_interval(levels, verdict):
    claim = judged(gain, levels)
    assert claim.verdict == verdict
    assert claim.measured.value == pytest.approx(levels[1] - levels[0])
    assert claim.measured.low <= claim.measured.value <= claim.measured.high


def test_point_values_alone_decide_nothing():
    assert judged(gain, (0.5, 0.6), noise=20.0).verdict == UNSETTLED


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ((0.9, 0.3, 0.9, 0.9), HOLDS),
        ((0.9, 0.9, 0.9, 0.3), FAILS),
        ((0.9, 0.3, 0.8, 0.2), UNSETTLED),
    ],
)
def test_who_loses_more_is_the_difference_of_two_losses(levels, verdict):
    assert judged(extra_loss, levels).verdict == verdict


@pytest.mark.parametrize(
    ("levels", "below", "verdict"),
    [
        ((0.9, 0.9, 0.9, 0.9), True, HOLDS),
        ((0.9, 0.9, 0.9, 0.9), False, FAILS),
        ((0.9, 0.9, 0.2, 0.9), True, FAILS),
        ((0.9, 0.9, 0.2, 0.9), False, HOLDS),
    ],
)
def test_a_spread_is_compared_with_the_margin_from_either_side(levels, below, verdict):
    fields = {"threshold": MARGIN, "below": below}
    assert judged(observations.spread, levels, noise=0.5, **fields).verdict == verdict


def test_an_arm_that_never_learned_is_not_called_robust():
    fields = {"threshold": MARGIN, "below": True}
    flat = judged(observations.spread, (0.05, 0.05, 0.05, 0.05), noise=0.5, **fields)
    lost = judged(observations.loss, (0.05, 0.02), noise=0.5, **fields)
    assert flat.verdict == lost.verdict == UNSETTLED
    assert lost.reason == "nothing to lose: tree, visits (MuZero) at best 0.05"
    assert judged(gain, (0.05, 0.4)).verdict == HOLDS  # a comparison needs no such level


def test_noise_alone_is_seldom_called_a_spread():
    rng = np.random.default_rng(0)
    spread = comparison(SETTINGS, observations.spread, threshold=MARGIN)
    verdicts = [
        bsuite_claims.judge(spread, {own: rng.normal(0.8, 0.2, (3, 1)) for own in SETTINGS}).verdict
        for _ in range(40)
    ]
    assert verdicts.count(HOLDS) <= 12  # percentiles: 24 of 40


def test_environments_enter_together_and_each_is_resampled_by_itself():
    scores = {
        SETTINGS[0]: np.tile([0.0, 1.0], (4, 1)),
        SETTINGS[1]: np.tile([0.5, 1.5], (4, 1)),
    }
    claim = bsuite_claims.judge(comparison(SETTINGS[:2], gain), scores)
    assert claim.measured == pytest.approx((0.5, 0.5, 0.5))


def test_settings_without_two_seeds_are_not_judged():
    both = comparison(SETTINGS[:2], gain)
    assert bsuite_claims.judge(both, {SETTINGS[0]: SEEDS}).verdict == MISSING
    single = {setting: SEEDS[:1] for setting in SETTINGS}
    assert bsuite_claims.judge(both, single).verdict == MISSING


@pytest.mark.parametrize("preset", grid.PRESETS.values())
def test_every_claim_is_about_settings_that_the_studies_run(preset):
    studies = grid.studies(preset)
    for own in observations.comparisons(preset):
        assert own.observation in observations.OBSERVATIONS
        shown = {setting for study in studies.values() for setting in grid.all_settings(study)}
        assert shown.issuperset(own.settings), own.statement
        assert own.study in studies


def test_an_observation_is_mixed_when_claims_hold_and_others_do_not():
    def with_verdict(verdict):
        return Claim("1", "coverage", "it is so", Interval(0.0), verdict)

    holds, fails, unsettled = map(with_verdict, (HOLDS, FAILS, UNSETTLED))
    missing = with_verdict(MISSING)
    summary = bsuite_claims.summary
    assert summary([holds, holds]) == "holds (2 of 2 claims)"
    assert summary([holds, unsettled]) == ("holds in part (of 2 claims: 1 holds, 1 cannot be told)")
    assert summary([holds, fails]).startswith("mixed (of 2 claims")
    assert summary([fails, unsettled]).startswith("does not hold in part")
    assert summary([missing, unsettled]).startswith(claims.UNSETTLED)
