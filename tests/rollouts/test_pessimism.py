"""Penalties against figures by hand, and what rollouts make of them."""

import explicit_examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear

from offline_mbrl.models import explicit
from offline_mbrl.rollouts import pessimism, shares, unroll
from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.rollouts.pessimism import PENALTIES
from offline_mbrl.types import MemberPredictions, Prediction, UsageError

KEY = jax.random.key(0)
STATE = jnp.zeros(2)
ACTION = jnp.zeros(1)
# Next observations (2 entries), then a reward, of three members.
MEANS = jnp.array([[0.0, 0.0, 7.0], [3.0, 4.0, -2.0], [0.0, 8.0, 1.0]])
STDS = jnp.array([[0.1, 0.2, 0.2], [0.3, 0.4, 0.0], [0.5, 0.0, 1.2]])
EXPECTED = {
    "max_aleatoric": 1.3,  # the reward's deviation counts
    "max_centroid_disagreement": 4.123106,  # the reward's mean does not
    "max_pairwise_disagreement": 8.0,
    "ensemble_std": 2.516611,
    "mixture_variance": 12.85,
    "mixture_std": 2.534758,
}


def prediction(means=MEANS, stds=STDS):
    members = MemberPredictions(mean=jnp.asarray(means), std=jnp.asarray(stds))
    return Prediction(
        observation=jnp.ones(2), reward=jnp.array(1.5), discount=jnp.ones(()), members=members
    )


def penalty_of(penalty, params=None, **fields):
    return penalty.apply(params, STATE, ACTION, prediction(**fields))


def test_every_penalty_has_a_figure_by_hand():
    assert set(EXPECTED) == set(PENALTIES)


@pytest.mark.parametrize("name", EXPECTED)
def test_penalties_have_the_figures_computed_by_hand(name):
    np.testing.assert_allclose(penalty_of(PENALTIES[name]), EXPECTED[name], rtol=1e-5)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_order_of_the_members_changes_nothing(name):
    order = np.array([2, 0, 1])
    shuffled = penalty_of(PENALTIES[name], means=MEANS[order], stds=STDS[order])
    np.testing.assert_allclose(shuffled, EXPECTED[name], rtol=1e-5)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_order_changes_nothing_in_deviations_of_the_data_either(name):
    params = linear.params(size=2, actions=1)
    statistics = params.statistics._replace(
        observation_std=jnp.array([1.0, 4.0]), reward_std=jnp.array(0.5)
    )
    params = params._replace(statistics=statistics)
    penalty = pessimism.standardized(PENALTIES[name])
    order = np.array([2, 0, 1])
    shuffled = penalty_of(penalty, params, means=MEANS[order], stds=STDS[order])
    np.testing.assert_allclose(shuffled, penalty_of(penalty, params), rtol=1e-5)
    alike = {"means": jnp.tile(MEANS[1], (3, 1)), "stds": jnp.zeros((3, 3))}
    assert penalty_of(penalty, params, **alike) == 0


@pytest.mark.parametrize(("entry", "variance"), [(0, 2.116667), (1, 10.733333)])
def test_the_mixtures_variance_is_a_sum_over_entries(entry, variance):
    columns = np.array([entry, 2])
    alone = {"means": MEANS[:, columns], "stds": STDS[:, columns]}
    np.testing.assert_allclose(penalty_of(pessimism.mixture_variance, **alone), variance, rtol=1e-5)


@pytest.mark.parametrize("name", EXPECTED)
def test_identical_deterministic_members_are_trusted_wholly(name):
    """Exactly: the mean of equal floats may differ from them by rounding."""
    means = np.tile(np.random.default_rng(0).normal(size=3).astype(np.float32) * 100, (7, 1))
    assert penalty_of(PENALTIES[name], means=means, stds=np.zeros((7, 3), np.float32)) == 0


def gradient_of(penalty, means, stds):
    """With respect to means and deviations."""

    def value(moments):
        return penalty_of(penalty, means=moments[0], stds=moments[1])

    return jax.grad(value)((jnp.asarray(means), jnp.asarray(stds)))


@pytest.mark.parametrize("name", EXPECTED)
def test_gradients_are_those_of_differences_although_members_agree_with_themselves(name):
    """Every pairwise norm has the members with themselves among its pairs, at 0."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(2, *MEANS.shape)).astype(np.float32)
    gradient = gradient_of(PENALTIES[name], MEANS, STDS)
    step = 1e-2
    ends = [
        penalty_of(
            PENALTIES[name],
            means=MEANS + sign * step * direction[0],
            stds=STDS + sign * step * direction[1],
        )
        for sign in (1, -1)
    ]
    slope = sum(jnp.vdot(*pair) for pair in zip(gradient, direction, strict=True))
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_gradient_is_zero_where_members_agree_wholly(name):
    """A norm has no slope at 0; 0 is the one of its subgradients that favors no direction."""
    means = np.tile(np.array([3.0, -1.0, 2.0], np.float32), (3, 1))
    gradient = gradient_of(PENALTIES[name], means, np.zeros((3, 3), np.float32))
    for part in gradient:
        np.testing.assert_array_equal(part, 0)


def test_members_far_from_the_origin_disagree_as_much():
    far = penalty_of(pessimism.mixture_variance, means=MEANS + 4_096.0)
    np.testing.assert_allclose(far, EXPECTED["mixture_variance"], rtol=1e-5)


def test_standardized_penalties_are_in_deviations_of_the_data():
    params = linear.params(size=2, actions=1)
    statistics = params.statistics._replace(
        observation_std=jnp.array([1.0, 4.0]), reward_std=jnp.array(0.5)
    )
    penalty = pessimism.standardized(pessimism.max_pairwise_disagreement)
    scaled = penalty_of(penalty, params._replace(statistics=statistics))
    np.testing.assert_allclose(scaled, np.hypot(3, 1), rtol=1e-5)
    noise = pessimism.standardized(pessimism.max_aleatoric)
    expected = np.hypot(0.5, 2.4)
    scaled = penalty_of(noise, params._replace(statistics=statistics))
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)


def test_a_model_without_members_is_refused_in_words():
    alone = prediction()._replace(members=None)
    with pytest.raises(UsageError, match="compares members"):
        pessimism.ensemble_std.apply(None, STATE, ACTION, alone)


# --- without members ---


def test_the_nearest_point_of_the_data_is_measured_in_units_of_its_entries():
    points = jnp.array([[0.0, 3.0, 0.0], [4.0, 0.0, 0.5]])
    penalty = pessimism.nearest_data(points, jnp.array([1.0, 3.0, 0.1]))
    assert not penalty.needs_members
    np.testing.assert_allclose(penalty_of(penalty), 1.0, rtol=1e-6)
    at_a_point = penalty.apply(None, points[1, :2], points[1, 2:], prediction())
    assert at_a_point == 0

    def distance(observation):
        return penalty.apply(None, observation, points[1, 2:], prediction())

    np.testing.assert_array_equal(jax.grad(distance)(points[1, :2]), 0)
    beside = points[1, :2] + jnp.array([0.0, 1.5])
    np.testing.assert_allclose(jax.grad(distance)(beside), [0, 1 / 3], rtol=1e-5)


def test_the_mean_surprise_of_a_gaussian_model_is_its_entropy():
    model, params = explicit_examples.ensemble(1)
    penalty = pessimism.own_likelihood(model)
    assert not penalty.needs_members
    row = explicit_examples.transition()
    predictions = explicit_examples.many_steps(model, params, row, 4_000)
    over_steps = jax.vmap(penalty.apply, (None, None, None, 0))
    surprises = over_steps(params, row.observation, row.action, predictions)
    std = predictions.members.std[0, 0]
    entropy = jnp.sum(0.5 * jnp.log(2 * jnp.pi * jnp.e * std**2))
    error = jnp.std(surprises) / np.sqrt(surprises.size)
    assert abs(jnp.mean(surprises) - entropy) < 4 * error


def test_the_surprise_is_that_of_the_elites_mixture():
    model, params = explicit_examples.ensemble(3)
    elites = jnp.array([2, 0])
    row = explicit_examples.transition()
    own = Prediction(row.next_observation, row.reward, row.discount)
    penalty = pessimism.own_likelihood(model)
    surprise = penalty.apply(params._replace(elites=elites), row.observation, row.action, own)
    log_prob = model.log_prob(params, *row[:2], row.next_observation, row.reward)
    np.testing.assert_allclose(surprise, -explicit.mixture_log_prob(log_prob, elites), rtol=1e-5)


def test_the_order_of_the_members_changes_no_surprise():
    model, params = explicit_examples.ensemble(3)
    row = explicit_examples.transition()
    own = Prediction(row.next_observation, row.reward, row.discount)
    penalty = pessimism.own_likelihood(model)
    order = jnp.array([2, 0, 1])
    members = jax.tree.map(lambda leaf: leaf[order], params.network["members"])
    shuffled = explicit_examples.with_part(params, "members", members)
    surprises = [penalty.apply(p, row.observation, row.action, own) for p in (params, shuffled)]
    np.testing.assert_allclose(surprises[0], surprises[1], rtol=1e-5)
    apart = penalty.apply(params._replace(elites=order[:1]), row.observation, row.action, own)
    assert abs(apart - surprises[0]) > 1e-3  # members differ


# --- rewards and ends ---


def after(adjust):
    assert isinstance(adjust, Adjust)
    return adjust.apply(None, STATE, ACTION, prediction(), KEY)


def test_a_penalty_is_subtracted_from_the_reward_alone():
    changed = after(pessimism.subtract(pessimism.max_aleatoric, 2.0))
    np.testing.assert_allclose(changed.reward, 1.5 - 2.6, rtol=1e-5)
    np.testing.assert_array_equal(changed.observation, prediction().observation)
    assert changed.discount == 1


@pytest.mark.parametrize(("threshold", "halts"), [(7.9, True), (8.0, False)])
def test_an_episode_halts_above_the_threshold_with_the_reward_of_that(threshold, halts):
    adjust = pessimism.halt(pessimism.max_pairwise_disagreement, threshold, -30.0)
    changed = after(adjust)
    assert (changed.reward, changed.discount) == ((-30.0, 0.0) if halts else (1.5, 1.0))


def test_a_halted_rollout_keeps_the_halting_step_and_none_after_it():
    model = linear.model()
    halt = pessimism.halt(pessimism.max_aleatoric, 0.0, -9.0)
    run = unroll.unroll(model, linear.policy(), horizon=3, adjust=halt)
    trajectory = run(linear.params(2), linear.policy_params(), jnp.ones(3), KEY)
    np.testing.assert_array_equal(trajectory.mask, [1, 0, 0])
    np.testing.assert_array_equal(trajectory.reward, [-9, 0, 0])
    np.testing.assert_array_equal(trajectory.discount, 0)


def test_penalties_that_compare_members_are_refused_where_members_are_alone():
    starts = jnp.ones((4, 3))
    model = linear.model()
    points = jnp.zeros((1, 5))

    def lengths(penalty):
        adjust = pessimism.subtract(penalty, 1.0)
        run = unroll.unroll(
            model,
            linear.policy(),
            horizon=2,
            adjust=adjust,
            measure=pessimism.measure(penalty),
        )
        spread = shares.by_member.apply(model, run)
        paths = spread(linear.params(2), linear.policy_params(), starts, jax.random.split(KEY, 4))
        return paths.extras["penalty"]

    with pytest.raises(UsageError, match="compares members"):
        lengths(pessimism.max_aleatoric)
    assert lengths(pessimism.nearest_data(points, jnp.ones(5))).shape == (4, 2)
