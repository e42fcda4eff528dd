import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear

from offline_mbrl.rollouts import adjust, unroll
from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.types import Actor, Policy, Prediction, UsageError

MODEL = linear.model()
POLICY = linear.policy()
PARAMS = linear.params()
ACTING = linear.policy_params()
START = jnp.array([1.0, -0.5, 0.3])
KEY = jax.random.key(0)


@functools.cache
def program(model, horizon, returns=False, policy=POLICY, **settings):
    if returns:
        return jax.jit(unroll.returns(model, policy, gamma=0.9, horizon=horizon, **settings))
    return jax.jit(unroll.unroll(model, policy, horizon=horizon, **settings))


def roll(horizon=6, *, model=MODEL, params=PARAMS, acting=ACTING, start=START, **settings):
    return program(model, horizon, **settings)(params, acting, start, KEY)


def _counted(params, state, action, key):
    following, prediction = MODEL.step(params, state, action, key)
    following = following.at[0].set(state[0] + 1)
    return following, prediction._replace(observation=following, reward=jnp.ones(()))


# Its first entry counts the steps, so that something can happen at a certain one. Rewards are 1.
COUNTING = MODEL._replace(step=_counted)
ZERO = START.at[0].set(0.0)


def ends_at(step):
    return adjust.terminate(lambda observation, action, following: following[0] >= step)


def changed(function, *, changes_observation=False):
    """An adjustment that needs nothing but the prediction."""

    def apply(params, observation, action, prediction, key):
        return function(prediction)

    return Adjust(apply=apply, changes_observation=changes_observation)


def measured(name, function):
    """A measure of the prediction alone."""

    def apply(params, observation, action, prediction):
        return {name: function(prediction)}

    return unroll.Measure(apply=apply)


def test_a_trajectory_is_the_models_steps_under_the_policys_actions():
    trajectory = roll(bounds=None)
    assert trajectory.observation.shape == (7, 3)
    assert trajectory.action.shape == (6, 2)
    quiet = linear.params(noise=0.0)
    still = {**ACTING, "std": jnp.array(0.0)}
    trajectory = roll(params=quiet, acting=still, bounds=None)
    member = linear.take(quiet.network["members"], 0)
    state = START
    for t in range(6):
        np.testing.assert_allclose(trajectory.observation[t], state, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(trajectory.action[t], still["K"] @ state, rtol=1e-5, atol=1e-7)
        reward = 0.5 + member["c"] @ state - 0.2 * state @ state
        np.testing.assert_allclose(trajectory.reward[t], reward, rtol=1e-5, atol=1e-6)
        state = member["A"] @ state + member["B"] @ (still["K"] @ state)
    np.testing.assert_array_equal(trajectory.mask, 1)
    np.testing.assert_array_equal(trajectory.discount, 1)


# --- actions ---


def test_actions_are_sampled_and_clipped_to_the_bounds():
    wild = {**ACTING, "std": jnp.array(5.0)}
    trajectory = roll(9, acting=wild)
    assert np.abs(trajectory.action).max() == 1.0
    assert np.std(np.asarray(trajectory.action)) > 0.3
    assert np.abs(roll(9, acting=wild, bounds=None).action).max() > 1.0


def test_discrete_actions_are_left_as_they_are():
    assert unroll.clipped(jnp.array(3), (-1.0, 1.0)) == 3


@pytest.mark.parametrize("returns", [False, True])
def test_a_given_first_action_takes_the_place_of_the_policys_and_of_no_other(returns):
    run = program(MODEL, 4, returns)
    first = jnp.array([0.7, -3.0])
    own = program(MODEL, 4)(PARAMS, ACTING, START, KEY).action[0]
    plain = run(PARAMS, ACTING, START, KEY)
    same = run(PARAMS, ACTING, START, KEY, own)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, same)
    other = run(PARAMS, ACTING, START, KEY, first)
    if returns:
        assert abs(other.value - plain.value) > 1e-3
        return
    np.testing.assert_allclose(other.action[0], [0.7, -1.0])  # clipped like any other
    assert np.all(np.abs(other.action[1:] - first[None]) > 1e-2)
    member = linear.take(PARAMS.network["members"], 0)
    moved = member["B"] @ (other.action[0] - own)
    difference = other.observation[1] - plain.observation[1]
    np.testing.assert_allclose(difference, moved, rtol=1e-4, atol=1e-5)


def test_the_last_action_is_the_policys_at_the_last_observation():
    trajectory = roll(3)
    key = jax.random.key(5)
    expected = POLICY.sample(ACTING, trajectory.observation[-1], key)
    action = unroll.last_action(POLICY, ACTING, trajectory, key)
    np.testing.assert_allclose(action, np.clip(expected, -1, 1))


# --- actors ---


def sum_of_observations():
    """An actor whose action is the sum of all first entries that it has seen, a hundredth of it."""

    def init(params, observation, key):
        return {"sum": jnp.zeros(())}

    def act(params, carry, observation, key):
        total = carry["sum"] + observation[0]
        return jnp.full(2, 0.01 * total), {"sum": total}

    return Actor(init=init, act=act)


def test_an_actor_carries_its_memory_from_step_to_step():
    trajectory = roll(5, model=COUNTING, start=ZERO, policy=sum_of_observations())
    totals = np.cumsum(np.arange(5))  # observations 0, 1, 2, 3, 4
    np.testing.assert_allclose(trajectory.action[:, 0], 0.01 * totals, rtol=1e-5)


def test_an_actors_memory_begins_anew_in_every_rollout():
    run = program(COUNTING, 3, policy=sum_of_observations())
    first = run(PARAMS, ACTING, ZERO, KEY)
    again = run(PARAMS, ACTING, ZERO, KEY)
    np.testing.assert_array_equal(first.action, again.action)


@pytest.mark.parametrize("returns", [False, True])
def test_a_policy_and_the_actor_of_it_give_the_same_bits(returns):
    def init(params, observation, key):
        return ()

    def act(params, carry, observation, key):
        return POLICY.sample(params, observation, key), carry

    plain = roll(returns=returns)
    lifted = roll(returns=returns, policy=Actor(init=init, act=act))
    jax.tree.map(np.testing.assert_array_equal, plain, lifted)


def test_the_last_action_of_an_actor_is_refused():
    with pytest.raises(UsageError, match="last_action"):
        unroll.last_action(sum_of_observations(), ACTING, roll(3), KEY)


# --- ends ---


def test_reward_of_the_terminating_transition_counts_and_nothing_after_it():
    trajectory = roll(model=COUNTING, adjust=ends_at(3), start=ZERO)
    np.testing.assert_array_equal(trajectory.reward, [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(trajectory.mask, [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(trajectory.discount, [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(trajectory.extras["diverged"], 0)
    np.testing.assert_array_equal(trajectory.observation[:, 0], [0, 1, 2, 3, 3, 3, 3])
    last = np.tile(trajectory.observation[3], (4, 1))
    np.testing.assert_array_equal(trajectory.observation[3:], last)
    np.testing.assert_array_equal(trajectory.action[3:], 0)


CASES = [
    (field, bad) for field in ("observation", "reward", "discount") for bad in (np.nan, np.inf)
]


def _spoil(params, observation, action, prediction, key):
    """From the third step on; the last entry of the start is the case."""
    for index, (field, bad) in enumerate(CASES):
        spoiled = (observation[0] >= 2) & (observation[2] == index)
        value = getattr(prediction, field)
        value = jnp.where(spoiled, jnp.full_like(value, bad), value)
        prediction = prediction._replace(**{field: value})
    return prediction._replace(observation=prediction.observation.at[2].add(observation[2]))


def _without_last_entry(params, state, action, key):
    state, prediction = COUNTING.step(params, state, action, key)
    cleared = prediction.observation.at[2].set(0.0)
    return state.at[2].set(0.0), prediction._replace(observation=cleared)


def test_a_step_that_is_not_finite_freezes_the_rollout_and_is_told_apart():
    model = COUNTING._replace(step=_without_last_entry)
    spoil = Adjust(apply=_spoil, changes_observation=True)
    rollout = jax.vmap(unroll.unroll(model, POLICY, horizon=5, adjust=spoil), (None, None, 0, None))
    starts = jnp.stack([ZERO.at[2].set(float(index)) for index in range(len(CASES))])
    rolled = jax.jit(rollout)(PARAMS, ACTING, starts, KEY)

    def rows(*values):
        return np.tile(values, (len(CASES), 1))

    np.testing.assert_array_equal(rolled.mask, rows(1, 1, 0, 0, 0))
    np.testing.assert_array_equal(rolled.reward, rows(1, 1, 0, 0, 0))
    np.testing.assert_array_equal(rolled.discount, 1)  # nothing is known after it
    np.testing.assert_array_equal(rolled.extras["diverged"], rows(0, 0, 1, 1, 1))
    np.testing.assert_array_equal(rolled.observation[..., 0], rows(0, 1, 2, 2, 2, 2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rolled))


def test_clipping_does_not_hide_that_a_prediction_is_infinite():
    def step(params, state, action, key):
        following, prediction = MODEL.step(params, state, action, key)
        return following, prediction._replace(observation=jnp.full_like(following, jnp.inf))

    trajectory = roll(
        3,
        model=MODEL._replace(step=step),
        params=linear.params(limit=1.0),
        adjust=adjust.clip_to_data,
    )
    np.testing.assert_array_equal(trajectory.extras["diverged"], 1)
    np.testing.assert_array_equal(trajectory.mask, 0)


def test_an_action_that_is_not_finite_counts_as_diverged():
    def step(params, state, action, key):
        return MODEL.step(params, state, jnp.zeros(2), key)

    nan = Policy(sample=lambda params, observation, key: jnp.full(2, jnp.nan), mode=POLICY.mode)
    trajectory = roll(3, model=MODEL._replace(step=step), policy=nan)
    np.testing.assert_array_equal(trajectory.extras["diverged"], 1)
    np.testing.assert_array_equal(trajectory.action, 0)


# --- adjustments ---


def test_clipping_keeps_states_and_rewards_within_the_data():
    params = linear.params(limit=0.1)
    trajectory = roll(9, params=params, adjust=adjust.clip_to_data, start=jnp.zeros(3))
    assert np.abs(trajectory.observation).max() <= np.float32(0.1)
    assert np.abs(trajectory.reward).max() == np.float32(0.1)


def test_the_model_continues_from_an_adjusted_observation():
    def move(prediction):
        return prediction._replace(observation=prediction.observation + 10)

    plain = roll(bounds=None)
    moved = roll(2, bounds=None, adjust=changed(move, changes_observation=True))
    np.testing.assert_allclose(moved.observation[1], plain.observation[1] + 10, rtol=1e-5)
    member = linear.take(PARAMS.network["members"], 0)
    expected = linear.mean(member, moved.observation[1], moved.action[1])[:-1] + 10
    np.testing.assert_allclose(moved.observation[2], expected, atol=0.5)  # noise of 0.1


def _recurrent_step(params, state, action, key):
    following, prediction = MODEL.step(params, state["observation"], action, key)
    state_after = {"observation": following, "steps": state["steps"] + 1}
    return state_after, prediction._replace(reward=state["steps"])


def _recurrent_reset(params, observation, key):
    return {"observation": observation, "steps": jnp.zeros(())}


# Rewards are the steps since the model was reset.
RECURRENT = MODEL._replace(step=_recurrent_step, reset=_recurrent_reset)


def test_a_models_hidden_state_survives_adjustments_that_leave_the_observation():
    penalty = changed(lambda prediction: prediction._replace(reward=prediction.reward - 1))
    trajectory = roll(3, model=RECURRENT, adjust=penalty)
    np.testing.assert_array_equal(trajectory.reward, [-1, 0, 1])


@pytest.mark.parametrize("changes_observation", [False, True])
def test_a_model_is_reset_where_the_record_says_so_and_not_where_arrays_are_others(
    changes_observation,
):
    def rebuild(prediction):
        observation = prediction.observation
        same = jnp.where(prediction.reward > 1e6, observation + 1, observation)
        return prediction._replace(observation=same)

    adjustment = changed(rebuild, changes_observation=changes_observation)
    trajectory = roll(4, model=RECURRENT, adjust=adjust.chain(adjust.identity, adjustment))
    expected = [0, 0, 0, 0] if changes_observation else [0, 1, 2, 3]
    np.testing.assert_array_equal(trajectory.reward, expected)
    plain = roll(4, model=RECURRENT)
    np.testing.assert_allclose(trajectory.observation, plain.observation, rtol=1e-5)


def test_adjustments_chain_in_their_order_with_keys_of_their_own():
    add = changed(lambda prediction: prediction._replace(reward=prediction.reward + 1))
    double = changed(lambda prediction: prediction._replace(reward=prediction.reward * 2))

    def draw_reward(params, observation, action, prediction, key):
        return prediction._replace(reward=prediction.reward + jax.random.uniform(key))

    draw = Adjust(apply=draw_reward, changes_observation=False)
    start = Prediction(observation=START, reward=jnp.array(3.0), discount=jnp.ones(()))

    def reward(*parts):
        return adjust.chain(*parts).apply(PARAMS, START, jnp.zeros(2), start, KEY).reward

    assert reward(add, double) == 8
    assert reward(double, add) == 7
    assert reward() == 3
    assert abs((reward(draw) - 3) - (reward(draw, draw) - reward(draw))) > 1e-3


def test_a_chain_needs_and_changes_what_any_of_its_parts_does():
    comparing = Adjust(apply=adjust.identity.apply, changes_observation=False, needs_members=True)
    chained = adjust.chain(ends_at(3), comparing)
    assert (chained.changes_observation, chained.needs_members) == (False, True)
    chained = adjust.chain(ends_at(3), adjust.clip_to_data)
    assert (chained.changes_observation, chained.needs_members) == (True, False)


def test_measures_see_the_prediction_before_it_is_adjusted_and_stop_with_the_rollout():
    hide = changed(lambda prediction: prediction._replace(reward=jnp.zeros(())))
    trajectory = roll(
        4,
        model=COUNTING,
        start=ZERO,
        adjust=adjust.chain(ends_at(2), hide),
        measure=measured("raw", lambda prediction: prediction.reward),
    )
    np.testing.assert_array_equal(trajectory.extras["raw"], [1, 1, 0, 0])
    np.testing.assert_array_equal(trajectory.reward, 0)


# --- returns ---


def test_returns_are_the_discounted_sum_of_the_same_trajectory():
    level = measured("level", lambda prediction: 2 * prediction.reward)
    settings = {"model": COUNTING, "adjust": ends_at(3), "measure": level}
    for first, steps in ((0.0, 3), (-9.0, 7)):
        start = START.at[0].set(first)
        trajectory = roll(7, start=start, **settings)
        kept = roll(7, start=start, returns=True, **settings)
        np.testing.assert_allclose(kept.value, (1 - 0.9**steps) / 0.1, rtol=1e-5)
        total = unroll.discounted_return(trajectory, 0.9)
        np.testing.assert_allclose(total, kept.value, rtol=1e-6)
        assert (kept.length, kept.continuation) == (steps, float(steps == 7))
        assert (kept.largest_reward, kept.diverged, kept.measured["level"]) == (1, 0, 2)


def test_returns_and_unroll_share_their_randomness():
    total = unroll.discounted_return(roll(), 0.9)
    np.testing.assert_allclose(roll(returns=True).value, total, rtol=1e-5)


def test_a_continuation_between_0_and_1_weighs_what_comes_after_it():
    half = changed(lambda prediction: prediction._replace(discount=jnp.array(0.5)))
    kept = roll(4, model=COUNTING, adjust=half, returns=True)
    np.testing.assert_allclose(kept.value, sum(0.45**t for t in range(4)), rtol=1e-6)


def test_horizon_one_is_the_reward_of_the_first_step():
    np.testing.assert_allclose(roll(1, returns=True).value, roll().reward[0], rtol=1e-6)


def test_one_start_equals_its_row_under_vmap():
    starts = jnp.arange(15.0).reshape(5, 3) / 10
    keys = jax.random.split(KEY, 5)
    run = jax.vmap(unroll.unroll(MODEL, POLICY, horizon=6), (None, None, 0, 0))
    rows = jax.jit(run)(PARAMS, ACTING, starts, keys)
    alone = program(MODEL, 6)(PARAMS, ACTING, starts[3], keys[3])
    jax.tree.map(
        lambda row, leaf: np.testing.assert_allclose(row[3], leaf, rtol=1e-4, atol=1e-5),
        rows,
        alone,
    )


def test_a_longer_horizon_begins_with_the_shorter_rollout():
    np.testing.assert_allclose(roll(9).reward[:6], roll().reward, rtol=1e-6)
