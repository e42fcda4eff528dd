"""True one-step errors and how penalties rank them."""

import diagnosed_models as known
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.data import memory
from offline_mbrl.rollouts.pessimism import PENALTIES, Penalty
from offline_mbrl.selection.diagnose import single_steps

KEY = jax.random.key(0)


def transitions(**settings):
    data = known.dataset(num_episodes=10, **settings)
    return memory.Transitions(1).gather(data, np.asarray(data.starts))


def judged(penalties, model=None, batch=None, **settings):
    return single_steps.one_step(
        model or known.model(),
        known.params(**settings),
        transitions() if batch is None else batch,
        penalties,
        KEY,
    )


def ranked(steps, length=30):
    """Correlations of steps of episodes of this length."""
    episode = np.arange(steps.rows.max() + 1) // length
    return single_steps.rank_correlations(steps, episode, KEY, num_replicates=20)


def changed(penalty, function):
    """The penalty with its value changed."""

    def apply(*arguments):
        return function(penalty.apply(*arguments))

    return Penalty(apply=apply, needs_members=False)


def test_the_true_error_is_ranked_perfectly_and_its_negative_inversely():
    rule = known.true_error()
    penalties = {
        "true": rule,
        "cubed": changed(rule, lambda value: value**3),
        "negative": changed(rule, jnp.negative),
        "constant": changed(rule, lambda value: 0.0 * value),
    }
    steps = judged(penalties, slope=0.2)
    np.testing.assert_allclose(steps.penalties["true"], steps.error, rtol=1e-4, atol=1e-6)
    correlations = ranked(steps)
    assert correlations["true"] == pytest.approx((1.0, 1.0, 1.0), abs=1e-3)
    assert correlations["cubed"] == pytest.approx((1.0, 1.0, 1.0), abs=1e-3)
    assert correlations["negative"] == pytest.approx((-1.0, -1.0, -1.0), abs=1e-3)
    assert np.isnan(correlations["constant"]).all()


def test_the_error_is_in_deviations_of_the_changes():
    params = known.params(bias=0.3)
    scaled = params._replace(statistics=params.statistics._replace(delta_std=jnp.array([0.5, 1.0])))
    steps = single_steps.one_step(known.model(), scaled, transitions(), {}, KEY)
    expected = np.sqrt((0.6**2 + 0.3**2 + 0.0) / 3)  # the reward has no error
    np.testing.assert_allclose(steps.error, expected, rtol=1e-4)


def test_members_that_agree_say_nothing_of_a_shared_error():
    correlations = ranked(judged(PENALTIES, slope=0.2, members=3))
    assert set(correlations) == set(PENALTIES)
    assert all(np.isnan(rank.value) for rank in correlations.values())


def test_penalties_of_members_are_skipped_where_the_model_predicts_none():
    whole = known.model()

    def step(*arguments):
        state, prediction = whole.step(*arguments)
        return state, prediction._replace(members=None)

    rule = known.true_error()
    steps = judged(PENALTIES | {"true": rule}, whole._replace(step=step), slope=0.1)
    assert set(steps.skipped) == set(PENALTIES)
    assert list(steps.penalties) == ["true"]


def test_steps_whose_outcome_is_unknown_are_left_out():
    batch = transitions(terminal=True)
    ends = np.asarray(batch.discount) == 0
    following = np.where(ends[:, None], batch.observation, batch.next_observation)
    steps = judged({}, batch=batch._replace(next_observation=following))
    assert len(steps.error) == np.sum(~ends)
    np.testing.assert_array_equal(steps.rows, np.flatnonzero(~ends))
    assert len(judged({}, batch=batch).error) == len(ends)
