"""Returns of every depth against whole rollouts and a problem with a closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear

from offline_mbrl.problems import linear_quadratic as lq
from offline_mbrl.rollouts import adjust, expand, shares, unroll
from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.types import Prediction

GAMMA = 0.9
HORIZON = 4
KEY = jax.random.key(3)
START = jnp.array([1.0, -0.5, 0.3])
FIRST = jnp.array([0.2, -0.7])
PARAMS = linear.params()
ACTING = linear.policy_params()


def values(observation, action):
    """Two values, the second of them constant."""
    return jnp.stack([jnp.sum(observation) + 2.0 * jnp.sum(action), jnp.array(5.0)])


def expanded(first_action=FIRST, *, model=None, horizon=HORIZON, **settings):
    rollout = expand.expand(
        model or linear.model(), linear.policy(), values, gamma=GAMMA, horizon=horizon, **settings
    )
    return jax.jit(rollout)(PARAMS, ACTING, START, KEY, first_action)


def ends_at(step):
    """Rewards of 1; the first entry counts steps, and the episode ends above `step`."""
    counted = jnp.arange(3) == 0

    def count(params, observation, action, prediction, key):
        following = jnp.where(counted, jnp.round(observation) + 1.0, prediction.observation)
        return prediction._replace(
            observation=following,
            reward=jnp.ones(()),
            discount=jnp.where(following[0] > step, 0.0, 1.0),
        )

    return Adjust(apply=count, changes_observation=True)


@pytest.mark.parametrize("first_action", [None, FIRST])
def test_returns_are_those_of_a_longer_rollout_with_the_same_key(first_action):
    longer = unroll.unroll(linear.model(), linear.policy(), horizon=HORIZON + 1)
    path = jax.jit(longer)(PARAMS, ACTING, START, KEY, first_action)
    expected = [
        sum(GAMMA**t * path.reward[t] for t in range(h))
        + GAMMA**h * values(path.observation[h], path.action[h])
        for h in range(HORIZON + 1)
    ]
    result = expanded(first_action)
    np.testing.assert_allclose(result.returns, jnp.stack(expected), rtol=1e-5, atol=1e-5)
    assert not np.any(result.ended)


def test_the_last_reward_of_an_episode_counts_and_no_value_follows_it():
    result = expanded(adjust=ends_at(2))  # the first entry starts at 1: 2, then 3 > 2
    rewards = 1.0 + GAMMA
    assert result.ended.tolist() == [False, False, True, True, True]
    np.testing.assert_allclose(result.returns[:2, 1], [5.0, 1.0 + GAMMA * 5.0], rtol=1e-6)
    np.testing.assert_allclose(result.returns[2:], rewards, rtol=1e-6)


def test_after_a_prediction_that_is_not_finite_returns_stay_those_of_the_depth_before():
    def fail(params, observation, action, prediction, key):
        counted = prediction.observation.at[0].set(observation[0] + 1.0)
        reward = jnp.where(observation[0] >= 2.5, jnp.nan, 1.0)
        return prediction._replace(observation=counted, reward=reward)

    result = expanded(adjust=Adjust(apply=fail, changes_observation=True))
    assert result.ended.tolist() == [False, False, False, True, True]
    assert np.all(np.isfinite(result.returns))
    np.testing.assert_array_equal(result.returns[3:], jnp.stack([result.returns[2]] * 2))


def test_no_model_is_asked_at_horizon_0():
    def refuse(*_):
        raise AssertionError("the model was asked")

    result = expanded(model=linear.model()._replace(step=refuse), horizon=0)
    np.testing.assert_allclose(result.returns, values(START, FIRST)[None])
    assert result.ended.tolist() == [False]


def test_deeper_values_may_be_others():
    result = expanded(deep_values=lambda observation, action: jnp.zeros(2, jnp.bfloat16))
    np.testing.assert_allclose(result.returns[0], values(START, FIRST))
    np.testing.assert_allclose(result.returns[1:, 0], result.returns[1:, 1])  # rewards alone
    assert result.returns.dtype == jnp.float32


def test_each_particle_has_a_member_of_its_own():
    params = linear.params(3, spread=0.5)
    model = linear.model()
    rollout = expand.expand(model, linear.policy(), values, gamma=GAMMA, horizon=2)
    keys = jax.random.split(KEY, 2)
    start = jnp.stack([START, -START])
    first = jnp.stack([FIRST, FIRST])
    run = jax.jit(shares.by_particle(3).apply(model, rollout))
    alone_in = jax.jit(rollout)
    result = run(params, ACTING, start, keys, first)
    assert result.returns.shape == (3, 2, 3, 2)
    for k in range(3):
        member = model.member(params, k)
        alone = alone_in(member, ACTING, start[1], jax.random.fold_in(keys[1], k), first[1])
        np.testing.assert_allclose(result.returns[k, 1], alone.returns, rtol=1e-4, atol=1e-5)


# --- a perfect model of a linear-quadratic problem ---

GAIN = 0.5 * lq.optimal_gain()


def exact_step(params, state, action, key):
    del params, key
    following = jnp.asarray(lq.DYNAMICS, jnp.float32) @ state
    following = following + jnp.asarray(lq.DRIVE, jnp.float32) @ action
    reward = -jnp.sum(state**2) - jnp.sum(action**2)
    return following, Prediction(observation=following, reward=reward, discount=jnp.ones(()))


def exact_value(observation, action):
    """The controller's action value, and the same too high by 2."""
    cost = jnp.asarray(lq.cost_of(GAIN), jnp.float32)
    following, prediction = exact_step(None, observation, action, None)
    value = prediction.reward - lq.GAMMA * following @ cost @ following
    return jnp.stack([value, value + 2.0])


@functools.cache
def exact_expansions():
    model = linear.model()._replace(step=exact_step)
    rollout = expand.expand(
        model, lq.controller(), exact_value, gamma=lq.GAMMA, horizon=8, adjust=adjust.identity
    )
    starts = jnp.asarray(lq.starts(), jnp.float32)
    first = jnp.linspace(-0.5, 0.5, len(starts))[:, None]
    keys = jax.random.split(KEY, len(starts))
    gain = {"gain": jnp.asarray(GAIN, jnp.float32)}
    result = jax.jit(jax.vmap(rollout, (None, None, 0, 0, 0)))(PARAMS, gain, starts, keys, first)
    return result, jax.vmap(exact_value)(starts, first)


def test_in_a_perfect_model_the_true_value_is_the_return_at_every_depth():
    result, value = exact_expansions()
    expected = jnp.broadcast_to(value[:, None, 0], result.returns.shape[:2])
    np.testing.assert_allclose(result.returns[..., 0], expected, rtol=1e-4, atol=1e-5)


def test_in_a_perfect_model_the_error_of_a_value_shrinks_by_gamma_at_each_depth():
    result, value = exact_expansions()
    error = result.returns[..., 1] - value[:, None, 0]
    expected = 2.0 * lq.GAMMA ** jnp.arange(9)
    np.testing.assert_allclose(error, jnp.broadcast_to(expected, error.shape), rtol=1e-4)


# --- adjustments ---


def test_clipped_observations_leave_the_reward():
    params = linear.params(limit=0.1)
    prediction = Prediction(jnp.array([1.0, -1.0, 0.05]), jnp.array(3.0), jnp.ones(()))
    clipped = adjust.clip_observation.apply(params, START, FIRST, prediction, KEY)
    np.testing.assert_allclose(clipped.observation, [0.1, -0.1, 0.05])
    assert float(clipped.reward) == 3.0


def test_noise_is_measured_in_deviations_of_the_data():
    std = jnp.array([1.0, 10.0, 0.0])
    params = PARAMS._replace(statistics=PARAMS.statistics._replace(observation_std=std))
    prediction = Prediction(START, jnp.array(3.0), jnp.ones(()))
    noisy = jax.vmap(adjust.noise(0.5).apply, (None, None, None, None, 0))(
        params, START, FIRST, prediction, jax.random.split(KEY, 4_000)
    )
    deviation = jnp.std(noisy.observation, axis=0)
    np.testing.assert_allclose(deviation, 0.5 * std, rtol=0.05)
