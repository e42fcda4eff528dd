"""Where errors come from: vectors by source, as large as the standard errors they stand for."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.ope import errors, intervals, rollout_errors
from offline_mbrl.ope.weights import importance
from offline_mbrl.types import Estimate, Trajectory

RNG = np.random.default_rng(0)


def size_of(vectors):
    return np.sqrt(sum(float(jnp.sum(vector**2)) for vector in vectors.values()))


def test_a_means_vector_is_as_large_as_its_standard_error():
    values = RNG.normal(3.0, 2.0, 50).astype(np.float32)
    vector = errors.of_influence(jnp.asarray(values - values.mean()))
    expected = values.std(ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(jnp.linalg.norm(vector), expected, rtol=1e-5)


def test_a_direction_gets_its_size_even_where_it_is_huge_or_zero():
    direction = jnp.array([3e30, -4e30])
    np.testing.assert_allclose(errors.of_size(direction, jnp.float32(5.0)), [3.0, -4.0], rtol=1e-5)
    np.testing.assert_array_equal(errors.of_size(jnp.zeros(3), jnp.float32(5.0)), 0.0)


def test_fits_keep_what_they_share_and_what_they_differ_by():
    """Two fits with the same errors over episodes, and values of 1 and 3."""
    episodes = jnp.array([[0.3, 0.4], [0.3, 0.4]])
    fits = Estimate(
        value=jnp.array([1.0, 3.0]),
        stderr=jnp.array([0.5, 0.5]),
        per_episode=None,
        diagnostics={},
        errors={errors.EPISODES: episodes},
    )
    combined = intervals.combine(fits, resampled=False)
    np.testing.assert_allclose(combined.errors[errors.EPISODES], [0.3, 0.4], rtol=1e-5)
    factor = intervals.widening(2) * np.sqrt(0.5)
    np.testing.assert_allclose(combined.errors[errors.FITS], [-factor, factor], rtol=1e-5)
    np.testing.assert_allclose(size_of(combined.errors), combined.stderr, rtol=1e-5)


def test_rollouts_errors_are_by_start_or_by_rollout():
    returns = jnp.asarray(RNG.normal(size=40), jnp.float32)
    start = np.arange(40) % 10
    by_start = rollout_errors.by_start(returns, start)
    assert {name: vector.shape for name, vector in by_start.items()} == {errors.EPISODES: (10,)}
    np.testing.assert_allclose(
        size_of(by_start), rollout_errors.rollout_stderr(returns, start), rtol=1e-5
    )
    single = rollout_errors.by_start(returns, np.zeros(40, int))
    assert {name: vector.shape for name, vector in single.items()} == {errors.ROLLOUTS: (40,)}
    expected = np.std(returns, ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(size_of(single), expected, rtol=1e-5)


def test_members_errors_point_to_the_members_that_differ():
    returns = jnp.tile(jnp.array([0.0, 1.0, 2.0, 3.0]), 5)
    vector = rollout_errors.by_member(returns, 4, stderr=jnp.float32(2.0))
    np.testing.assert_allclose(vector, np.array([-1.5, -0.5, 0.5, 1.5]) * 2 / np.sqrt(5), rtol=1e-5)
    assert rollout_errors.by_member(returns, 1, stderr=jnp.float32(0.0)).shape == (1,)


def test_weighted_estimates_say_which_episodes_move_them():
    count, steps = 30, 4
    trajectories = Trajectory(
        observation=jnp.zeros((count, steps + 1, 1)),
        action=jnp.zeros((count, steps, 1)),
        reward=jnp.asarray(RNG.normal(size=(count, steps)), jnp.float32),
        discount=jnp.ones((count, steps)),
        mask=jnp.ones((count, steps)),
        extras={},
    )
    equal = importance.weighted_per_decision(trajectories, jnp.zeros((count, steps)), gamma=0.9)
    returns = trajectories.reward @ (0.9 ** jnp.arange(steps))
    np.testing.assert_allclose(
        equal.errors[errors.EPISODES],
        (returns - returns.mean()) / np.sqrt(count * (count - 1)),
        rtol=1e-4,
        atol=1e-6,
    )
    # With all the weight on one episode the vector vanishes, and the floor of `stderr` is its own.
    ratios = jnp.zeros((count, steps)).at[0, 0].set(30.0)
    lonely = importance.weighted_per_decision(trajectories, ratios, gamma=0.9)
    assert size_of(lonely.errors) < 0.01 * float(lonely.stderr)


def test_vectors_go_through_vmap():
    def estimate(offset):
        return intervals.combine(
            Estimate(
                value=offset + jnp.array([1.0, 2.0]),
                stderr=jnp.ones(2),
                per_episode=None,
                diagnostics={},
                errors={errors.EPISODES: jnp.ones((2, 3))},
            ),
            resampled=True,
        )

    stacked = jax.vmap(estimate)(jnp.arange(4.0))
    assert stacked.errors[errors.EPISODES].shape == (4, 3)
    assert stacked.errors[errors.FITS].shape == (4, 2)
