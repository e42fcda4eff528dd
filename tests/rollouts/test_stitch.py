"""Windows stitched to episodes: constant rewards, terminals, what is not finite, and seams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.rollouts import stitch, unroll
from offline_mbrl.types import Trajectory

KEY = jax.random.key(0)
GAMMA = 0.9


def counting(num_steps):
    """Windows whose observation counts the steps, from `start` on."""

    def sample(params, start, key):
        del params, key
        observation = start[None] + jnp.arange(num_steps + 1.0)[:, None]
        return Trajectory(
            observation=observation,
            action=observation[:-1],
            reward=jnp.ones(num_steps),
            discount=jnp.ones(num_steps),
            mask=jnp.ones(num_steps),
        )

    return sample


@pytest.mark.parametrize("window_steps", [1, 3, 7, 20])
def test_a_constant_reward_is_a_geometric_sum_for_any_window(window_steps):
    run = stitch.stitched(counting(window_steps), horizon=10, window_steps=window_steps)
    data = jax.jit(run)((), jnp.zeros(1), KEY)
    np.testing.assert_array_equal(data.observation[:, 0], np.arange(11.0))
    value = unroll.discounted_return(data, GAMMA)
    np.testing.assert_allclose(value, (1.0 - GAMMA**10) / (1.0 - GAMMA), rtol=1e-6)


@pytest.mark.parametrize("last", [1, 3, 4, 10])
def test_the_reward_of_the_step_that_terminates_is_the_last(last):
    run = stitch.stitched(
        counting(3),
        horizon=10,
        window_steps=3,
        terminates=lambda observation, action, after: after[0] >= last,
    )
    data = run((), jnp.zeros(1), KEY)
    value = unroll.discounted_return(data, GAMMA)
    np.testing.assert_allclose(value, (1.0 - GAMMA**last) / (1.0 - GAMMA), rtol=1e-6)
    happened = np.arange(10) < last
    np.testing.assert_array_equal(data.mask, happened)
    np.testing.assert_array_equal(data.discount, np.arange(10) + 1 < last)
    np.testing.assert_array_equal(data.observation[:, 0], np.minimum(np.arange(11), last))
    np.testing.assert_array_equal(data.action[:, 0], np.where(happened, np.arange(10), 0.0))
    np.testing.assert_array_equal(data.extras["diverged"], 0.0)


def test_the_windows_own_discount_ends_too():
    def sample(params, start, key):
        window = counting(3)(params, start, key)
        return window._replace(discount=(window.observation[1:, 0] != 5.0).astype(jnp.float32))

    data = stitch.stitched(sample, horizon=9, window_steps=3)((), jnp.zeros(1), KEY)
    np.testing.assert_array_equal(data.mask, np.arange(9) < 5)


def test_what_is_not_finite_did_not_happen_and_is_no_terminal():
    def sample(params, start, key):
        window = counting(3)(params, start, key)
        bad = window.observation == 5.0
        return window._replace(observation=jnp.where(bad, jnp.nan, window.observation))

    data = stitch.stitched(sample, horizon=9, window_steps=3)((), jnp.zeros(1), KEY)
    np.testing.assert_array_equal(data.mask, np.arange(9) < 4)
    np.testing.assert_array_equal(data.extras["diverged"], np.arange(9) >= 4)
    np.testing.assert_array_equal(data.discount, 1.0)
    np.testing.assert_array_equal(data.observation[4:], 4.0)


def test_a_reward_function_and_a_seam_are_used():
    run = stitch.stitched(
        counting(2),
        horizon=4,
        window_steps=2,
        reward=lambda observation, action, after: 10.0 * observation[0] + after[0],
        seam=lambda observation: observation + 0.5,
    )
    data = run((), jnp.zeros(1), KEY)
    # Seams move the start of the next window, not the observation that was reached.
    np.testing.assert_allclose(data.observation[:, 0], [0.0, 1.0, 2.0, 3.5, 4.5])
    np.testing.assert_allclose(data.reward, [1.0, 12.0, 28.5, 39.5])
