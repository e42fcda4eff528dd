"""Estimators measured on clones of parts of the log."""

import dataclasses

import jax
import numpy as np
import pytest
from selection_examples import TINY, estimate

from offline_mbrl import selection
from offline_mbrl.data import episodes
from offline_mbrl.problems import known
from offline_mbrl.selection import calibration, judging
from offline_mbrl.selection.comparison.behavior import Logged
from offline_mbrl.types import UsageError


@pytest.fixture(scope="module")
def data():
    problem = known.linear_gaussian(0, num_episodes=40, horizon=10)
    return selection.prepare(problem.dataset, problem.spec)


def test_halves_share_no_episode_and_parts_follow_the_log(data):
    others, parts = calibration.halves(data, 4)
    rows = [episodes.first_rows(own.dataset) for own in (others, *parts)]
    assert [len(own) for own in rows] == [20, 5, 5, 5, 5]
    together = np.concatenate(rows)
    assert len(np.unique(together)) == len(together) == 40
    assert np.all(np.diff(np.concatenate(rows[1:])) > 0)


def test_too_few_episodes_are_refused_with_the_number_that_is_needed(data):
    with pytest.raises(UsageError, match="48 episodes are needed, these data have 40"):
        calibration.halves(data, 6)


def test_clones_of_parts_are_judged_and_measured(data):
    calibrated = selection.calibrate(
        data,
        key=jax.random.key(0),
        estimators=("model_ff", "fqe"),
        seeds=1,
        settings=dataclasses.replace(TINY, bootstrap=True),
    )
    assert calibrated.names == tuple(f"part {number} of 4" for number in range(1, 5))
    assert {own.name for own in calibrated.judgement.policies} == set(calibrated.names)
    model = calibrated.estimators["model_ff"]
    assert 0 <= model.coverage <= 1
    assert np.isfinite(model.bias)
    assert calibrated.estimators["fqe"].may_vote == 0.0  # 20 updates are too few


def test_what_is_measured_of_an_estimator():
    values = {"a": 1.0, "b": 2.0, "c": 4.0}
    logged = {
        name: Logged(estimate(value), estimate(value + 10), undiscounted=0.0)
        for name, value in values.items()
    }
    shifted = {
        name: {
            "model_ff": estimate(value + 0.1, stderr=0.1),
            "fqe": estimate(10 - value, stderr=0.1, updates_too_few=1.0),
        }
        for name, value in values.items()
    }
    measured = calibration.measure(judging.judgement(shifted, logged["a"]), logged)
    np.testing.assert_allclose(measured["model_ff"], (1.0, 1.0, 0.1, 1.0), rtol=1e-5)
    # Values go on after the time limit: 11, 12, 14 against 9, 8, 6.
    expected = (0.0, -1.0, (-2 - 4 - 8) / 3, 0.0)
    np.testing.assert_allclose(measured["fqe"], expected, rtol=1e-5)
