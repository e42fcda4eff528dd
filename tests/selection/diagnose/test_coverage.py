"""Coverage of predictive intervals: the levels where the model is right, closed forms elsewhere."""

import diagnosed_models as known
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from offline_mbrl.data import memory
from offline_mbrl.selection.diagnose import coverage

NOISE = 0.3


def transitions(num_episodes=100, length=20):
    data = known.dataset(num_episodes=num_episodes, length=length, noise=NOISE)
    return memory.Transitions(1).gather(data, np.asarray(data.starts))


def judged(params, batch=None):
    predictive = coverage.of_steps(known.model())
    return coverage.calibration(predictive, params, transitions() if batch is None else batch)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_coverage_is_that_of_a_gaussian_with_the_stated_deviation(factor):
    result = judged(known.params(std=factor * NOISE))
    quantile = scipy.stats.norm.ppf(0.5 + result.level / 2)
    expected = 2 * scipy.stats.norm.cdf(factor * quantile) - 1
    error = np.sqrt(expected * (1 - expected))
    count = result.num_transitions
    assert (np.abs(result.coverage - expected) < 4 * error / np.sqrt(3 * count)).all()
    spread = 4 * error / np.sqrt(count)
    assert (np.abs(result.entries - expected[:, None]) < spread[:, None]).all()
    assert np.sign(np.round(result.gap, 2)) == np.sign(factor - 1)


def test_the_mixture_is_that_of_the_elites():
    params = known.params(std=NOISE, members=3)
    network = params.network["members"] | {"bias": jnp.array([0.0, 100.0, 100.0])}
    whole = params._replace(network={"members": network, "shared": {}})
    alone = whole._replace(elites=jnp.array([0]))
    assert abs(judged(alone).gap) < 0.02
    # Two thirds of the mixture lie far above: no outcome is in its upper two thirds.
    coverage_of_states = judged(whole).entries[:, : known.SIZE]
    assert np.max(coverage_of_states[:3]) == 0
    assert np.min(coverage_of_states[-1]) > 0.9


def test_a_deterministic_model_that_is_right_is_inside_all_intervals():
    data = known.dataset(num_episodes=5)
    batch = memory.Transitions(1).gather(data, np.asarray(data.starts))
    exact = judged(known.params(std=1e-3), batch)
    np.testing.assert_array_equal(exact.coverage, 1.0)
    # One that is wrong and states no deviation is outside all.
    wrong = judged(known.params(std=0.0, bias=1.0), batch)
    np.testing.assert_array_equal(wrong.entries[:, :2], 0.0)


def test_constant_entries_count_nowhere():
    params = known.params(std=NOISE)
    statistics = params.statistics._replace(varies=jnp.array([True, False, True]))
    result = judged(params._replace(statistics=statistics))
    assert np.isnan(result.entries[:, 1]).all()
    np.testing.assert_allclose(result.coverage, result.entries[:, [0, 2]].mean(axis=1), rtol=1e-6)
