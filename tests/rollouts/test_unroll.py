import functools

import jax
import jax.numpy as jnp
import numpy as np
import rollout_models as linear

from offline_mbrl.rollouts import adjust, unroll
from offline_mbrl.types import Policy, Prediction

MODEL, POLICY = linear.model(), linear.policy()
PARAMS, ACTING = linear.params(), linear.policy_params()
START, KEY = jnp.array([1.0, -0.5, 0.3]), jax.random.key(0)


@functools.cache
def program(model, horizon, returns=False, **settings):
    if returns:
        return jax.jit(unroll.returns(model, POLICY, gamma=0.9, horizon=horizon, **settings))
    return jax.jit(unroll.unroll(model, POLICY, horizon=horizon, **settings))


def roll(horizon=6, *, model=MODEL, params=PARAMS, acting=ACTING, start=START, **settings):
    return program(model, horizon, **settings)(params, acting, start, KEY)


def _counted(params, state, action, key):
    following, prediction = MODEL.step(params, state, action, key)
    following = following.at[0].set(state[0] + 1)
    return following, prediction._replace(observation=following, reward=jnp.ones(()))


# Its first entry counts the steps, so that something can happen at a certain one; every reward is 1.
COUNTING, ZERO = MODEL._replace(step=_counted), START.at[0].set(0.0)


def ends_at(step):
    return adjust.terminate(lambda observation, action, following: following[0] >= step)


def test_a_trajectory_is_the_models_steps_under_the_policys_actions():
    found = roll(bounds=None)
    assert found.observation.shape == (7, 3)
    assert found.action.shape == (6, 2)
    quiet = linear.params(noise=0.0)
    still = {**ACTING, "std": jnp.array(0.0)}
    found = roll(params=quiet, acting=still, bounds=None)
    member = linear.take(quiet["network"]["members"], 0)
    state = START
    for t in range(6):
        np.testing.assert_allclose(found.observation[t], state, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.action[t], still["K"] @ state, rtol=1e-5, atol=1e-7)
        reward = 0.5 + member["c"] @ state - 0.2 * state @ state
        np.testing.assert_allclose(found.reward[t], reward, rtol=1e-5, atol=1e-6)
        state = member["A"] @ state + member["B"] @ (still["K"] @ state)
    np.testing.assert_array_equal(found.mask, 1)
    np.testing.assert_array_equal(found.discount, 1)


def test_actions_are_sampled_and_clipped_to_the_bounds():
    wild = {**ACTING, "std": jnp.array(5.0)}
    found = roll(9, acting=wild)
    assert np.abs(found.action).max() == 1.0
    assert np.std(np.asarray(found.action)) > 0.3
    assert np.abs(roll(9, acting=wild, bounds=None).action).max() > 1.0


def test_discrete_actions_are_left_as_they_are():
    assert unroll.clipped(jnp.array(3), (-1.0, 1.0)) == 3


def test_reward_of_the_terminating_transition_counts_and_nothing_after_it():
    found = roll(model=COUNTING, adjust=ends_at(3), start=ZERO)
    np.testing.assert_array_equal(found.reward, [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(found.mask, [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(found.discount, [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.extras["diverged"], 0)
    np.testing.assert_array_equal(found.observation[:, 0], [0, 1, 2, 3, 3, 3, 3])
    np.testing.assert_array_equal(found.observation[3:], np.tile(found.observation[3], (4, 1)))
    np.testing.assert_array_equal(found.action[3:], 0)


def test_a_step_that_is_not_finite_freezes_the_rollout_and_is_told_apart():
    cases = [(field, bad) for field in ("observation", "reward", "discount") for bad in (np.nan, np.inf)]

    def spoiled(params, observation, action, prediction, key):  # the last entry of the start is the case
        for index, (field, bad) in enumerate(cases):
            here = (observation[0] >= 2) & (observation[2] == index)
            value = getattr(prediction, field)
            prediction = prediction._replace(**{field: jnp.where(here, jnp.full_like(value, bad), value)})
        return prediction._replace(observation=prediction.observation.at[2].add(observation[2]))

    model = COUNTING._replace(step=lambda params, state, action, key: tuple(
        jax.tree.map(lambda leaf: leaf.at[2].set(0.0) if leaf.shape == (3,) else leaf, part)
        for part in COUNTING.step(params, state, action, key)))  # fmt: skip
    rollout = jax.vmap(unroll.unroll(model, POLICY, horizon=5, adjust=spoiled), (None, None, 0, None))
    found = jax.jit(rollout)(PARAMS, ACTING, jnp.stack([ZERO.at[2].set(float(i)) for i in range(len(cases))]), KEY)
    rows = lambda *values: np.tile(values, (len(cases), 1))  # noqa: E731
    np.testing.assert_array_equal(found.mask, rows(1, 1, 0, 0, 0))
    np.testing.assert_array_equal(found.reward, rows(1, 1, 0, 0, 0))
    np.testing.assert_array_equal(found.discount, 1)  # nothing is known after it
    np.testing.assert_array_equal(found.extras["diverged"], rows(0, 0, 1, 1, 1))
    np.testing.assert_array_equal(found.observation[..., 0], rows(0, 1, 2, 2, 2, 2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_clipping_does_not_hide_that_a_prediction_is_infinite():
    def step(params, state, action, key):
        following, prediction = MODEL.step(params, state, action, key)
        return following, prediction._replace(observation=jnp.full_like(following, jnp.inf))

    found = roll(3, model=MODEL._replace(step=step), params=linear.params(limit=1.0), adjust=adjust.clip_to_data)
    np.testing.assert_array_equal(found.extras["diverged"], 1)
    np.testing.assert_array_equal(found.mask, 0)


def test_an_action_that_is_not_finite_counts_as_diverged():
    nan = Policy(lambda params, observation, key: jnp.full(2, jnp.nan), POLICY.mode)
    harmless = MODEL._replace(step=lambda params, state, action, key: MODEL.step(params, state, jnp.zeros(2), key))
    found = jax.jit(unroll.unroll(harmless, nan, horizon=3))(PARAMS, ACTING, START, KEY)
    np.testing.assert_array_equal(found.extras["diverged"], 1)
    np.testing.assert_array_equal(found.action, 0)


def test_clipping_keeps_states_and_rewards_within_the_data():
    found = roll(9, params=linear.params(limit=0.1), adjust=adjust.clip_to_data, start=jnp.zeros(3))
    assert np.abs(found.observation).max() <= np.float32(0.1)
    assert np.abs(found.reward).max() == np.float32(0.1)


def test_the_model_goes_on_from_an_adjusted_observation():
    moved = lambda p, o, a, prediction, key: prediction._replace(observation=prediction.observation + 10)  # noqa: E731
    plain, found = roll(bounds=None), roll(2, bounds=None, adjust=moved)
    np.testing.assert_allclose(found.observation[1], plain.observation[1] + 10, rtol=1e-5)
    member = linear.take(PARAMS["network"]["members"], 0)
    wanted = linear.mean(member, found.observation[1], found.action[1])[:-1] + 10
    np.testing.assert_allclose(found.observation[2], wanted, atol=0.5)  # noise of 0.1


def test_a_models_hidden_state_survives_adjustments_that_leave_the_observation():
    def step(params, state, action, key):
        following, prediction = MODEL.step(params, state["observation"], action, key)
        return {"observation": following, "steps": state["steps"] + 1}, prediction._replace(reward=state["steps"])

    hidden = MODEL._replace(
        step=step, reset=lambda params, observation, key: {"observation": observation, "steps": jnp.zeros(())}
    )
    penalty = lambda p, o, a, prediction, key: prediction._replace(reward=prediction.reward - 1)  # noqa: E731
    found = roll(3, model=hidden, adjust=penalty)
    np.testing.assert_array_equal(found.reward, [-1, 0, 1])


def test_adjustments_chain_in_their_order_with_keys_of_their_own():
    add = lambda p, o, a, prediction, key: prediction._replace(reward=prediction.reward + 1)  # noqa: E731
    double = lambda p, o, a, prediction, key: prediction._replace(reward=prediction.reward * 2)  # noqa: E731
    draw = lambda p, o, a, prediction, key: prediction._replace(  # noqa: E731
        reward=prediction.reward + jax.random.uniform(key))  # fmt: skip
    start = Prediction(START, jnp.array(3.0), jnp.ones(()))
    apply = lambda *parts: adjust.chain(*parts)(PARAMS, START, jnp.zeros(2), start, KEY).reward  # noqa: E731
    assert apply(add, double) == 8
    assert apply(double, add) == 7
    assert apply() == 3
    assert abs((apply(draw) - 3) - (apply(draw, draw) - apply(draw))) > 1e-3


def test_measures_see_the_prediction_before_it_is_adjusted_and_stop_with_the_rollout():
    hide = lambda p, o, a, prediction, key: prediction._replace(reward=jnp.zeros(()))  # noqa: E731
    measure = lambda params, observation, action, prediction: {"raw": prediction.reward}  # noqa: E731
    found = roll(4, model=COUNTING, start=ZERO, adjust=adjust.chain(ends_at(2), hide), measure=measure)
    np.testing.assert_array_equal(found.extras["raw"], [1, 1, 0, 0])
    np.testing.assert_array_equal(found.reward, 0)


def test_returns_are_the_discounted_sum_of_the_same_trajectory():
    measure = lambda params, observation, action, prediction: {"level": 2 * prediction.reward}  # noqa: E731
    settings = {"model": COUNTING, "adjust": ends_at(3), "measure": measure}
    for first, steps in ((0.0, 3), (-9.0, 7)):
        start = START.at[0].set(first)
        whole, found = roll(7, start=start, **settings), roll(7, start=start, returns=True, **settings)
        np.testing.assert_allclose(found.value, (1 - 0.9**steps) / 0.1, rtol=1e-5)
        np.testing.assert_allclose(unroll.discounted_return(whole, 0.9), found.value, rtol=1e-6)
        assert (found.length, found.continuation) == (steps, float(steps == 7))
        assert (found.largest_reward, found.diverged, found.measured["level"]) == (1, 0, 2)


def test_returns_and_unroll_share_their_randomness():
    np.testing.assert_allclose(roll(returns=True).value, unroll.discounted_return(roll(), 0.9), rtol=1e-5)


def test_a_continuation_between_0_and_1_weighs_what_comes_after_it():
    half = lambda p, o, a, prediction, key: prediction._replace(discount=jnp.array(0.5))  # noqa: E731
    found = roll(4, model=COUNTING, adjust=half, returns=True)
    np.testing.assert_allclose(found.value, sum(0.45**t for t in range(4)), rtol=1e-6)


def test_horizon_one_is_the_reward_of_the_first_step():
    np.testing.assert_allclose(roll(1, returns=True).value, roll().reward[0], rtol=1e-6)


def test_one_start_equals_its_row_under_vmap():
    starts, keys = jnp.arange(15.0).reshape(5, 3) / 10, jax.random.split(KEY, 5)
    many = jax.jit(jax.vmap(unroll.unroll(MODEL, POLICY, horizon=6), (None, None, 0, 0)))(PARAMS, ACTING, starts, keys)
    one = program(MODEL, 6)(PARAMS, ACTING, starts[3], keys[3])
    jax.tree.map(lambda row, leaf: np.testing.assert_allclose(row[3], leaf, rtol=1e-4, atol=1e-5), many, one)


def test_a_longer_horizon_begins_with_the_shorter_rollout():
    np.testing.assert_allclose(roll(9).reward[:6], roll().reward, rtol=1e-6)
