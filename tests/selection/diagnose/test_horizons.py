"""Errors by horizon: none for a perfect model, closed forms for known errors."""

import diagnosed_models as known
import jax
import numpy as np
import pytest

from offline_mbrl.selection.diagnose import horizons

KEY = jax.random.key(0)
GAMMA = 0.9
LENGTH = 30
STEPS = np.arange(1, LENGTH + 1)


def errors(dataset=None, *, num_rollouts=1, **settings):
    dataset = known.dataset(length=LENGTH) if dataset is None else dataset
    return horizons.horizon_errors(
        known.model(),
        known.params(**settings),
        dataset,
        KEY,
        gamma=GAMMA,
        num_windows=32,
        num_rollouts=num_rollouts,
    )


def test_horizons_are_spaced_by_1_2_3_5_and_end_with_the_longest():
    assert horizons.log_spaced(1_000) == (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1_000)
    assert horizons.log_spaced(37) == (1, 2, 3, 5, 10, 20, 30, 37)
    assert horizons.log_spaced(1) == (1,)


def test_a_perfect_model_has_no_error_at_any_horizon():
    perfect = errors()
    assert perfect.error.shape == (LENGTH,)  # the episodes end before 1,000 steps
    assert np.max(perfect.error) < 1e-5
    assert np.max(np.abs(perfect.return_bias)) < 1e-4
    assert np.max(perfect.ended) == 0
    assert horizons.trusted_steps(perfect) == LENGTH
    assert np.min(perfect.mean_error) > 0.5
    assert np.min(perfect.unchanged_error) > 0.5


def test_a_bias_accumulates_as_the_geometric_sum():
    bias = 0.05
    biased = errors(bias=bias)
    offset = bias * (1 - known.DECAY**STEPS) / (1 - known.DECAY)
    np.testing.assert_allclose(biased.error, offset, rtol=1e-3)
    np.testing.assert_allclose(biased.entries[:, 1], offset, rtol=1e-3)
    np.testing.assert_allclose(biased.median_error, offset, rtol=1e-3)
    # The reward of step k is the sum of both entries before it.
    before = np.concatenate([[0.0], offset[:-1]])
    expected = np.cumsum(GAMMA ** (STEPS - 1) * known.SIZE * before)
    np.testing.assert_allclose(biased.return_bias, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(biased.return_error, expected, rtol=1e-3, atol=1e-5)


def test_the_trusted_horizon_is_where_the_mean_becomes_better():
    far = errors(bias=0.2)
    trusted = horizons.trusted_steps(far)
    assert 0 < trusted < LENGTH
    assert far.error[trusted - 1] <= far.mean_error[trusted - 1]
    assert far.error[trusted] > far.mean_error[trusted]


def test_the_mean_of_sampled_rollouts_has_the_variance_of_truth_and_mean():
    noise = 0.3
    data = known.dataset(num_episodes=400, length=5, noise=noise)
    settings = {"gamma": GAMMA, "num_windows": 400, "num_rollouts": 4}
    sampled = horizons.horizon_errors(
        known.model(), known.params(noise=noise), data, KEY, **settings
    )
    variance = noise**2 * np.cumsum(known.DECAY ** (2 * np.arange(5)))
    np.testing.assert_allclose(sampled.error**2, variance * (1 + 1 / 4), rtol=0.2)


def test_a_model_that_ends_episodes_is_counted_and_stays_where_it_is():
    ending = errors(end=1.0)
    assert ending.ended[0] == 0  # the step that ends happened
    np.testing.assert_array_equal(ending.ended[1:], 1.0)
    assert ending.error[5] > 0.1
    assert np.max(ending.diverged) == 0


def test_a_model_that_diverges_is_counted():
    diverging = errors(bias=np.nan)
    np.testing.assert_array_equal(diverging.diverged, 1.0)
    assert np.isfinite(diverging.error).all()


def test_windows_start_at_episodes_and_in_between_and_end_with_them():
    data = known.dataset(num_episodes=8, length=LENGTH)
    rows = horizons.start_rows(data, 32, seed=0)
    firsts = np.arange(8) * (LENGTH + 1)
    assert set(firsts) <= set(rows)
    assert len(np.unique(rows)) == 32
    counts = errors(data).num_windows
    assert counts[0] == 32
    assert counts[-1] == 8
    assert (np.diff(counts) <= 0).all()
    assert len(horizons.start_rows(data, 10_000, seed=0)) == len(data.starts)


def test_episodes_that_are_not_in_starts_are_not_judged():
    data = known.dataset(num_episodes=2, length=LENGTH)
    second = data._replace(starts=data.starts[LENGTH:])
    assert (horizons.start_rows(second, 100, seed=0) > LENGTH).all()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_step_without_a_known_outcome_is_not_judged(terminal):
    data = known.dataset(num_episodes=2, length=3, terminal=terminal)
    observation = np.array(data.observation)
    observation[[3, 7]] = observation[[2, 6]]  # a copy of the state before it
    counts = errors(data._replace(observation=observation)).num_windows
    assert counts[0] == 6 - 2 * terminal
    assert counts[2] == 2 - 2 * terminal
