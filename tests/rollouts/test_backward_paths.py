"""Backward rollouts in the order of time: where paths end, what of them happened, and terminals."""

import jax
import jax.numpy as jnp
import numpy as np
import rollout_models as linear

from offline_mbrl.rollouts import adjust, imagination, reverse
from offline_mbrl.types import Context, Prediction, Trajectory

KEY = jax.random.key(0)
MODEL = linear.model()
CONTEXT = Context(upstream={"model": linear.params(3)})
HORIZON = 5


def starts(size, seed=1):
    return jax.random.normal(jax.random.key(seed), (size, 3))


def paths(observation, *, model=MODEL, order=reverse.reversed_in_time, **settings):
    """Rollouts of the linear model, taken for a reverse one, in the order of time."""
    imagine = imagination.by_rollout(model, linear.policy(), horizon=HORIZON, **settings)
    roll_out = jax.jit(order(imagine))
    return roll_out(CONTEXT, linear.policy_params(), observation, jnp.int32(0), KEY)


def ended_at(probability):
    """Ends rollouts after random steps."""

    def apply(params, observation, action, prediction: Prediction, key):
        ends = jax.random.bernoulli(key, probability)
        return prediction._replace(discount=jnp.where(ends, 0.0, 1.0))

    return adjust.Adjust(apply=apply, changes_observation=False)


def beyond(limit):
    """A rule: the next state's first entry is above a limit."""

    def rule(observation, action, next_observation):
        del observation, action
        return next_observation[0] > limit

    return rule


def test_a_path_is_read_from_its_end_to_its_start():
    backward = Trajectory(
        observation=jnp.array([[0.0], [1.0], [2.0], [2.0], [2.0]]),  # two of four steps happened
        action=jnp.array([[10.0], [11.0], [0.0], [0.0]]),
        reward=jnp.array([20.0, 21.0, 0.0, 0.0]),
        discount=jnp.array([0.0, 1.0, 1.0, 1.0]),
        mask=jnp.array([1.0, 1.0, 0.0, 0.0]),
        extras={"diverged": jnp.array([0.0, 0.0, 1.0, 1.0])},
    )
    forward = reverse.forwards(backward)
    np.testing.assert_array_equal(forward.observation[:, 0], [2, 1, 0, 0, 0])
    np.testing.assert_array_equal(forward.action[:, 0], [11, 10, 0, 0])
    np.testing.assert_array_equal(forward.reward, [21, 20, 0, 0])
    np.testing.assert_array_equal(forward.discount, [1, 0, 0, 0])
    np.testing.assert_array_equal(forward.mask, [1, 1, 0, 0])
    np.testing.assert_array_equal(forward.extras["diverged"], [0, 0, 1, 1])


def test_chained_rows_of_ten_thousand_paths_end_in_the_states_they_started_from():
    observation = starts(10_000)
    trajectory = paths(observation, adjust=lambda context: ended_at(0.3))
    rows, happened = imagination.transitions(trajectory)
    by_path = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(HORIZON, 10_000, *leaf.shape[1:]),
        (rows.observation, rows.next_observation, happened),
    )
    before, after, valid = by_path
    lengths = valid.sum(axis=0)
    assert set(lengths) == {1, 2, 3, 4, 5}
    np.testing.assert_array_equal(valid, np.arange(HORIZON)[:, None] < lengths)
    last = (lengths - 1, np.arange(10_000))
    np.testing.assert_array_equal(after[last], observation)
    linked = valid[1:]  # a row that follows another begins where that one ended
    np.testing.assert_array_equal(before[1:][linked], after[:-1][linked])


def test_rows_are_those_of_the_backward_rollout():
    observation = starts(50)
    backward = paths(observation, order=lambda imagine: imagine)
    forward = paths(observation)
    np.testing.assert_array_equal(forward.observation, backward.observation[:, ::-1])
    np.testing.assert_array_equal(forward.action, backward.action[:, ::-1])
    np.testing.assert_array_equal(forward.reward, backward.reward[:, ::-1])
    assert forward.mask.all()


def test_a_rollout_without_a_finite_step_gives_no_row():
    observation = starts(4).at[0].set(jnp.nan)
    trajectory = paths(observation)
    np.testing.assert_array_equal(trajectory.mask.sum(axis=1), [0, 5, 5, 5])
    np.testing.assert_array_equal(trajectory.extras["diverged"].max(axis=1), [1, 0, 0, 0])


def test_a_terminal_state_has_one_step_that_leads_to_it():
    observation = starts(200)
    rule = adjust.terminate(reverse.of_reverse(beyond(0.0)))
    trajectory = paths(observation, adjust=lambda context: rule)
    is_terminal = np.asarray(observation[:, 0] > 0)
    lengths = np.asarray(trajectory.mask.sum(axis=1))
    assert (lengths[is_terminal] == 1).all()
    assert (lengths[~is_terminal] > 1).all()
    np.testing.assert_array_equal(trajectory.discount[:, 0][is_terminal], 0)
    # A row's discount says whether it leads to a terminal state.
    rows, happened = imagination.transitions(trajectory)
    leads_to_one = np.asarray(rows.next_observation[:, 0] > 0)
    kept = np.asarray(happened)
    np.testing.assert_array_equal((rows.discount == 0)[kept], leads_to_one[kept])


def test_a_path_goes_on_from_a_terminal_and_only_its_last_step_ends_there():
    observation = starts(200)
    trajectory = paths(
        observation,
        model=model_that_ends(beyond(0.0)),
        order=lambda imagine: reverse.reversed_in_time(reverse.ending_in_terminals(imagine)),
        adjust=lambda context: reverse.go_on,
        measure=lambda context: reverse.continuation,
    )
    assert trajectory.mask.all()
    assert set(trajectory.extras) == {"diverged"}
    np.testing.assert_array_equal(trajectory.discount[:, :-1], 1)
    np.testing.assert_array_equal(trajectory.discount[:, -1] == 0, observation[:, 0] > 0)


def model_that_ends(rule):
    """The linear model with a rule of forward transitions, as explicit models have it."""

    def step(params, state, action, key):
        after, prediction = MODEL.step(params, state, action, key)
        ends = reverse.of_reverse(rule)(state, action, after)
        return after, prediction._replace(discount=jnp.where(ends, 0.0, 1.0))

    return MODEL._replace(step=step)
