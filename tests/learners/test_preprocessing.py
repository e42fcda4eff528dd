"""Learners on standardized observations and transformed rewards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transition_rows import SIZES, SPEC, batch

from offline_mbrl.data.normalize import ReturnRange, Statistics
from offline_mbrl.learners import sac
from offline_mbrl.learners.parts import preprocessing
from offline_mbrl.learners.parts.preprocessing import InputConfig
from offline_mbrl.types import Actor, Context

STATISTICS = Statistics(
    mean=np.array([1.0, -2.0, 5.0], np.float32),
    std=np.array([0.5, 3.0, 0.0], np.float32),
    returns=ReturnRange(low=np.float32(-50.0), high=np.float32(200.0)),
)
CONTEXT = Context(statistics=STATISTICS)
OBSERVATION = jnp.array([1.5, 1.0, 5.001])
KEY = jax.random.key(1)


@functools.cache
def learners():
    """A learner, the same on standardized observations, and a state of both."""
    inner = sac.make(sac.Config(**SIZES), SPEC)
    outer = preprocessing.with_standardized_observations(inner)
    return inner, outer, outer.init(jax.random.key(0), batch(), CONTEXT)


def standardized(observation):
    return jnp.asarray((np.asarray(observation) - STATISTICS.mean) / (STATISTICS.std + 1e-3))


# --- observations ---


def test_an_observation_loses_its_mean_and_deviation_and_constants_stay_bounded():
    result = preprocessing.standardize(STATISTICS, OBSERVATION, 1e-3)
    np.testing.assert_allclose(result, [0.5 / 0.501, 3.0 / 3.001, 1.0], rtol=1e-3)


def test_the_policy_on_raw_observations_is_the_inner_one_on_standardized_ones():
    inner, outer, state = learners()
    params = outer.policy_params(state, CONTEXT)
    inner_params = inner.policy_params(state, CONTEXT)
    inputs = standardized(OBSERVATION)
    np.testing.assert_allclose(
        outer.policy.mode(params, OBSERVATION), inner.policy.mode(inner_params, inputs), rtol=1e-5
    )
    np.testing.assert_allclose(
        outer.policy.sample(params, OBSERVATION, KEY),
        inner.policy.sample(inner_params, inputs, KEY),
        rtol=1e-5,
    )


def test_the_density_is_the_inner_ones_and_absent_where_that_has_none():
    inner, outer, state = learners()
    action = jnp.array([0.2, -0.7])
    assert outer.policy.log_prob is not None
    assert inner.policy.log_prob is not None
    np.testing.assert_allclose(
        outer.policy.log_prob(outer.policy_params(state, CONTEXT), OBSERVATION, action),
        inner.policy.log_prob(state.actor, standardized(OBSERVATION), action),
        rtol=1e-5,
    )
    without = preprocessing.without_density(inner)
    assert preprocessing.with_standardized_observations(without).policy.log_prob is None


def test_the_statistics_are_exported_with_the_policy():
    """Nothing but the exported parameters is needed to act, whatever the context was."""
    _, outer, state = learners()
    params = outer.policy_params(state, CONTEXT)
    np.testing.assert_array_equal(params["mean"], STATISTICS.mean)
    np.testing.assert_array_equal(params["std"], STATISTICS.std)
    moved = {**params, "mean": params["mean"] + 1.0}
    np.testing.assert_allclose(
        outer.policy.mode(moved, OBSERVATION + 1.0),
        outer.policy.mode(params, OBSERVATION),
        rtol=1e-4,
    )


def test_a_step_and_held_out_losses_see_both_observations_standardized():
    inner, outer, state = learners()
    raw = batch()
    prepared = raw._replace(
        observation=standardized(raw.observation),
        next_observation=standardized(raw.next_observation),
    )
    _, expected = inner.step(state, CONTEXT, prepared, KEY)
    _, metrics = outer.step(state, CONTEXT, raw, KEY)
    assert inner.validate is not None
    assert outer.validate is not None
    held_out = outer.validate(state, CONTEXT, raw, KEY)
    for name in ("loss/actor", "loss/critic"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4)
        np.testing.assert_allclose(held_out[name], expected[name], rtol=1e-4)


def test_a_policy_with_memory_is_refused():
    inner, _, _ = learners()
    remembering = inner._replace(
        policy=Actor(init=lambda *_: (), act=lambda *_: (jnp.zeros(2), ()))
    )
    with pytest.raises(ValueError, match="only a policy without memory"):
        preprocessing.with_standardized_observations(remembering)


# --- rewards ---


def test_rewards_are_scaled_by_the_range_of_returns_and_shifted():
    config = InputConfig(return_range=1_000.0, reward_scale=0.5, reward_shift=-1.0)
    transform = preprocessing.affine_rewards(config)
    np.testing.assert_allclose(transform(jnp.array([0.0, 1.0]), STATISTICS), [-1.0, 1.0])


def test_a_learner_on_transformed_rewards_learns_from_them():
    inner, _, state = learners()
    raw = batch()
    outer = preprocessing.with_inputs(inner, InputConfig(reward_scale=10.0, reward_shift=-5.0))
    _, metrics = outer.step(state, CONTEXT, raw, KEY)
    _, expected = inner.step(state, CONTEXT, raw._replace(reward=10.0 * raw.reward - 5.0), KEY)
    np.testing.assert_allclose(metrics["loss/critic"], expected["loss/critic"], rtol=1e-6)


def test_default_inputs_leave_a_learner_as_it_is():
    inner, _, _ = learners()
    assert preprocessing.with_inputs(inner, InputConfig()) is inner
