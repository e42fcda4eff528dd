"""Time reversed: an involution, the same transitions, and reverse models of a known system."""

import jax
import numpy as np
import pytest

from offline_mbrl.data import memory, normalize, reverse, splits, stream
from offline_mbrl.models import explicit, feedforward, fitting, kinds
from offline_mbrl.training import fit
from offline_mbrl.types import BoundedActions, Context, EnvironmentSpec, UsageError

STATE, ACTION = 2, 1
# s' = A s + B a + noise, with independent normal s and a: one step an episode.
A = np.array([[0.9, 0.3], [-0.2, 0.8]])
B = np.array([[0.2], [0.5]])
NOISE = 0.3
ACTION_STD = 0.3


def logged(seed=0):
    """Episodes of several lengths, some with a terminal, with extras and held-out rows."""
    generator = np.random.default_rng(seed)
    lengths = np.array([1, 4, 2, 7, 3])
    size = lengths.sum()
    is_last = np.isin(np.arange(size), np.cumsum(lengths) - 1)
    state = generator.normal(size=(size, 3))
    final = generator.normal(size=(size, 3))
    data = memory.Dataset.from_arrays(
        {
            "observation": {"x": state, "n": np.arange(size)},
            "next_observation": {
                "x": np.where(is_last[:, None], final, np.roll(state, -1, axis=0)),
                "n": np.arange(size) + 1 + 100 * is_last,
            },
            "action": generator.uniform(-1, 1, (size, 2)),
            "reward": np.arange(1.0, size + 1),
            "is_terminal": is_last & (np.arange(size) % 2 == 0),
            "behavior_log_prob": generator.normal(size=size),
        }
    )
    return splits.hold_out(data, fraction=0.3)


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_reversing_twice_gives_the_dataset_bit_for_bit():
    data = logged()
    backward = reverse.reversed_in_time(data)
    assert_same(reverse.reversed_in_time(backward), data)
    assert len(np.unique(data.episode_end)) == 5
    assert not np.array_equal(backward.action, data.action)


@pytest.mark.parametrize("part", ["starts", "held_out"])
def test_each_transition_begins_where_it_ended_and_keeps_everything_else(part):
    data = logged()
    backward = reverse.reversed_in_time(data)
    sampler = memory.Transitions(1)
    original = sampler.gather(data, getattr(data, part))
    reversed_ones = sampler.gather(backward, getattr(backward, part))
    expected = original._replace(
        observation=original.next_observation, next_observation=original.observation
    )
    assert_same(reversed_ones, expected)


def test_windows_of_reversed_data_are_those_of_the_data_read_backwards():
    data = logged()._replace(held_out=None)
    backward = reverse.reversed_in_time(data)
    end = int(data.episode_end[-1])
    first = int(np.flatnonzero(data.episode_end == end)[0])
    row = np.array([first], np.int32)
    sampler = memory.Windows(batch_size=1, length=end - first)
    forward, window = sampler.gather(data, row), sampler.gather(backward, row)
    np.testing.assert_array_equal(window.observation["x"][0], forward.observation["x"][0][::-1])
    np.testing.assert_array_equal(window.reward[0], forward.reward[0][::-1])
    assert window.mask.all()


def test_terminals_are_left_out_where_asked_and_data_of_nothing_else_are_refused():
    data = logged()
    kept = reverse.without_terminals(data)
    assert (data.discount[data.starts] == 0).any()
    assert (kept.discount[kept.starts] == 1).all()
    assert len(kept.starts) == np.sum(data.discount[data.starts])
    assert kept.observation is data.observation
    alone = data._replace(starts=data.starts[data.discount[data.starts] == 0])
    with pytest.raises(UsageError, match="keep them"):
        reverse.without_terminals(alone)


def test_data_on_the_disk_are_refused():
    data = logged()
    column = stream.Column(
        read=lambda rows: data.reward[rows], shape=data.reward.shape, dtype=data.reward.dtype
    )
    with pytest.raises(UsageError, match="--stream never"):
        reverse.reversed_in_time(data._replace(reward=column))


# --- the reverse conditional of a linear system ---


def linear_system(size, seed=0):
    """The system's data: standard normal states, actions of deviation 0.3."""
    generator = np.random.default_rng(seed)
    state = generator.normal(size=(size, STATE))
    action = np.clip(ACTION_STD * generator.normal(size=(size, ACTION)), -1, 1)
    following = state @ A.T + action @ B.T + NOISE * generator.normal(size=(size, STATE))
    return memory.Dataset.from_arrays(
        {
            "observation": state,
            "action": action,
            "next_observation": following,
            "reward": state[:, 0] + 0.1 * generator.normal(size=size),
            "is_terminal": np.zeros(size, bool),
            "is_truncated": np.ones(size, bool),
        }
    )


def reverse_conditional():
    """`p(s | s', a) = N(gain (s' - B a), covariance)`, of Bayes' rule."""
    precision = np.eye(STATE) + A.T @ A / NOISE**2
    covariance = np.linalg.inv(precision)
    return covariance @ A.T / NOISE**2, covariance


def test_least_squares_on_reversed_transitions_give_the_reverse_conditional():
    backward = reverse.reversed_in_time(linear_system(40_000))
    rows = memory.Transitions(1).gather(backward, backward.starts)
    inputs = np.concatenate([rows.observation, rows.action], axis=1).astype(np.float64)
    coefficients, *_ = np.linalg.lstsq(inputs, rows.next_observation, rcond=None)
    gain, covariance = reverse_conditional()
    scale = np.abs(gain).max()
    np.testing.assert_allclose(coefficients[:STATE].T, gain, atol=0.05 * scale)
    np.testing.assert_allclose(coefficients[STATE:].T, -gain @ B, atol=0.05 * scale)
    residual = rows.next_observation - inputs @ coefficients
    np.testing.assert_allclose(np.cov(residual.T), covariance, atol=0.05 * np.abs(covariance).max())


def test_an_explicit_model_of_reversed_data_is_the_reverse_conditional():
    backward = reverse.reversed_in_time(linear_system(20_000))
    spec = EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((STATE,), np.float32),
        action=BoundedActions((-1.0,), (1.0,)),
    )
    fast = fitting.Config(
        num_updates=1_500, batch_size=256, learning_rate=1e-2, refresh_every=250, bootstrap=False
    )
    config = feedforward.FeedforwardConfig(hidden_layers=(16,), num_members=1, fit=fast)
    stage = kinds.stage(config, spec)
    split = stage.prepare(backward)
    context = Context(statistics=stage.statistics(split))
    settings = {"num_updates": 1_500, "block_updates": 500, "context": context}
    state = fit.fit(stage.learner, split, key=jax.random.key(0), **settings).state
    params = fit.over_seeds(stage.learner.policy_params, state, context)
    predict = explicit.conditionals(kinds.density(config, spec))
    rows = memory.Transitions(1).gather(backward, backward.starts[:2_000])
    rows = jax.tree.map(np.asarray, rows)
    moments = jax.vmap(predict, (None, 0))(params, rows)
    gain, covariance = reverse_conditional()
    mean = (rows.observation - rows.action @ B.T) @ gain.T
    error = np.asarray(moments.mean)[:, 0, :STATE] - mean
    assert np.sqrt(np.mean(error**2)) < 0.05 * np.std(rows.next_observation)
    # The density's entries are independent given (s', a): their deviations are the marginal ones.
    deviations = np.mean(np.asarray(moments.std)[:, 0, :STATE], axis=0)
    np.testing.assert_allclose(deviations, np.sqrt(np.diag(covariance)), rtol=0.05)


def test_statistics_of_reversed_data_have_the_opposite_change():
    data = linear_system(500)
    forward, backward = (
        normalize.transition_statistics(part) for part in (data, reverse.reversed_in_time(data))
    )
    np.testing.assert_allclose(backward.delta_mean, -forward.delta_mean, atol=1e-6)
    np.testing.assert_allclose(backward.delta_std, forward.delta_std, rtol=1e-5)
    assert backward.reward_mean == pytest.approx(float(forward.reward_mean), rel=1e-5)
