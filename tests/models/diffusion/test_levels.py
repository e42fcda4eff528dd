"""Schedules and the steps between their levels: published values and Bayes' rule."""

import numpy as np
import pytest

from offline_mbrl.models.diffusion import levels
from offline_mbrl.types import UsageError

# k -> beta, squared signal, posterior variance, c1, c2
COSINE_20 = {
    0: (0.007993, 0.99200728, 0.0, 1.0, 0.0),
    1: (0.020075, 0.97209274, 0.005750, 0.716466, 0.283514),
    4: (0.057520, 0.84701216, 0.038084, 0.356428, 0.642781),
    9: (0.135922, 0.49384359, 0.115061, 0.203013, 0.786893),
    14: (0.289725, 0.14427210, 0.269800, 0.152591, 0.784819),
    18: (0.748476, 0.00605964, 0.734897, 0.116883, 0.492423),
    19: (0.999000, 0.00000606, 0.992952, 0.077766, 0.031431),
}
COSINE_256 = {
    1: (0.000263, 0.99954828, 0.000110, 0.582039, 0.417961),
    127: (0.012178, 0.49384359, 0.012031, 0.017011, 0.981938),
    255: (0.999000, 0.00000004, 0.998963, 0.006082, 0.031622),
}
KARRAS_18 = [
    *(80.0, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.4009, 5.3152, 3.2568, 1.9233),
    *(1.0882, 0.5853, 0.2964, 0.1395, 0.0599, 0.0229, 0.0075, 0.002, 0.0),
]
SCHEDULES = {
    "cosine": levels.cosine(20),
    "linear": levels.linear(50),
    "continuous": levels.continuous_linear(10),
    "karras": levels.karras(18),
    "straight": levels.straight(7),
}


@pytest.mark.parametrize(("num_levels", "rows"), [(20, COSINE_20), (256, COSINE_256)])
def test_the_cosine_schedule_has_its_published_values(num_levels, rows):
    schedule = levels.cosine(num_levels)
    steps = levels.steps(schedule)
    for k, expected in rows.items():
        row = num_levels - 1 - k
        values = (
            steps.forward_variance[row],
            schedule.signal[row] ** 2,
            steps.variance[row],
            steps.clean[row],
            steps.noisy[row],
        )
        np.testing.assert_allclose(values, expected, atol=6e-7)
        assert steps.left[row] == k


def test_the_karras_schedule_has_its_published_values():
    np.testing.assert_allclose(levels.karras(18).noise, KARRAS_18, atol=6e-5)


def test_a_thousand_linear_levels_are_ddpms():
    beta = levels.steps(levels.linear(1_000)).forward_variance
    np.testing.assert_allclose(beta, np.linspace(0.02, 1e-4, 1_000), rtol=1e-9)


def test_the_continuous_schedule_is_the_limit_of_the_linear_one():
    fine = levels.linear(20_000)
    coarse = levels.continuous_linear(10)
    np.testing.assert_allclose(fine.signal[::2_000], coarse.signal, atol=2e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_run_from_noise_to_the_data(name):
    schedule = SCHEDULES[name]
    assert (schedule.signal[-1], schedule.noise[-1]) == (1.0, 0.0)
    assert np.all(np.diff(schedule.noise) < 0.0)
    assert np.all(np.diff(schedule.signal) >= 0.0)


@pytest.mark.parametrize("name", ["cosine", "linear", "continuous"])
def test_levels_preserve_the_variance(name):
    schedule = SCHEDULES[name]
    np.testing.assert_allclose(schedule.signal**2 + schedule.noise**2, 1.0, rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_are_bayes_rule_for_the_two_levels(name):
    """Given x_0: `x' ~ N(signal' x_0, noise'^2)` and `x = ratio x' + noise of the forward step`."""
    schedule = SCHEDULES[name]
    steps = levels.steps(schedule)
    ratio = schedule.signal[:-1] / schedule.signal[1:]
    prior = schedule.noise[1:] ** 2
    joint = ratio * prior  # covariance of x' and x
    total = schedule.noise[:-1] ** 2
    gain = joint / total
    np.testing.assert_allclose(steps.noisy, gain, rtol=1e-12)
    np.testing.assert_allclose(steps.variance, prior - gain * joint, atol=1e-9 * total.max())
    clean = schedule.signal[1:] - gain * schedule.signal[:-1]
    np.testing.assert_allclose(steps.clean, clean, atol=1e-12)
    assert (steps.clean[-1], steps.noisy[-1], steps.variance[-1]) == (1.0, 0.0, 0.0)


def test_a_thinned_schedule_keeps_both_ends():
    whole = levels.cosine(20)
    thin = levels.thinned(whole, 5)
    np.testing.assert_array_equal(thin.noise[[0, -2, -1]], whole.noise[[0, -2, -1]])
    assert set(thin.noise) <= set(whole.noise)
    np.testing.assert_array_equal(levels.thinned(whole, 20).noise, whole.noise)
    assert levels.thinned(whole, 1).noise[0] == whole.noise[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: levels.cosine(0), "cosine needs at least one level, got 0"),
        (lambda: levels.karras(4, smallest=0.0), "0 < smallest"),
        (lambda: levels.thinned(levels.cosine(4), 5), "from 1 to 4 steps.*got 5"),
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
