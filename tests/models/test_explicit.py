"""Explicit models: units, members and constants, whatever the density."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from explicit_examples import (
    ACTION,
    STATE,
    D,
    density,
    ensemble,
    jitted,
    many_steps,
    scattered,
    spec,
    statistics,
    transition,
    with_part,
)

from offline_mbrl.models import autoregressive, coupled, explicit
from offline_mbrl.models.densities import coordinates
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, UsageError

UNITS = (coordinates.unit_variance, coordinates.standardized, coordinates.raw)
CONTINUATION = explicit.learned_continuation(spec(), hidden_layers=(4,))


def arguments(row):
    return row.observation, row.action, row.next_observation, row.reward


@pytest.mark.parametrize("units", UNITS)
def test_an_outcome_of_the_targets_of_a_transition_is_that_transition(units):
    scales = explicit.require_statistics(statistics())
    row = transition()
    y = coordinates.targets(units, scales, row.observation, row.next_observation, row.reward)
    following, reward = coordinates.outcome(units, scales, row.observation, y)
    np.testing.assert_allclose(following, row.next_observation, atol=1e-5)
    np.testing.assert_allclose(reward, row.reward, atol=1e-5)


def test_targets_are_the_change_and_the_reward_in_their_units():
    scales = explicit.require_statistics(statistics())
    row = transition()
    change = row.next_observation - row.observation
    reward = row.reward
    unit, standardized, raw = (
        coordinates.targets(units, scales, row.observation, row.next_observation, reward)
        for units in UNITS
    )
    np.testing.assert_allclose(unit[:-1], change / scales.delta_std, rtol=1e-5)
    expected = (change - scales.delta_mean) / scales.delta_std
    np.testing.assert_allclose(standardized[:-1], expected, rtol=1e-5)
    np.testing.assert_allclose(raw, np.append(change, reward), rtol=1e-6)
    for y in (unit, standardized):
        expected = (reward - scales.reward_mean) / scales.reward_std
        np.testing.assert_allclose(y[-1], expected, rtol=1e-5)


def test_inputs_are_standardized_observation_and_action():
    scales = explicit.require_statistics(statistics())
    row = transition()
    x = coordinates.inputs(scales, row.observation, row.action)
    observation = x[:STATE] * scales.observation_std + scales.observation_mean
    np.testing.assert_allclose(observation, row.observation, rtol=1e-5)
    action = x[STATE:] * scales.action_std + scales.action_mean
    np.testing.assert_allclose(action, row.action, rtol=1e-5)


@pytest.mark.parametrize("units", UNITS)
def test_an_ensemble_of_one_is_the_density_but_for_the_change_of_units(units):
    model, params = ensemble(1, units=units)
    scales = params.statistics
    row = transition()
    x = coordinates.inputs(scales, row.observation, row.action)
    y = coordinates.targets(units, scales, row.observation, row.next_observation, row.reward)
    alone = jax.tree.map(lambda leaf: leaf[0], params.network["members"])
    expected = jax.jit(density().log_prob)(alone, {}, x, y) - jnp.log(units(scales)[1])
    np.testing.assert_allclose(model.log_prob(params, *arguments(row))[0], expected, rtol=1e-5)


@pytest.mark.parametrize("units", UNITS)
def test_the_density_in_raw_units_integrates_to_one(units):
    small = density(state_size=1, action_size=1)
    model = jitted(explicit.make(small, spec(1, 1), num_members=2, units=units))
    params = scattered(model.init(jax.random.key(0), statistics(state_size=1, action_size=1)))
    row = transition(state_size=1, action_size=1)
    grid = jnp.linspace(-30, 30, 2_001)

    def log_prob(value):
        return model.log_prob(params, row.observation, row.action, value[None], value)

    density_at = jnp.exp(jax.jit(jax.vmap(log_prob))(grid))  # [grid, E, D], entries independent
    np.testing.assert_allclose(np.trapezoid(density_at, grid, axis=0), 1.0, atol=1e-3)


def test_what_members_predict_is_the_gaussian_that_log_prob_evaluates():
    model, params = ensemble()
    row = transition()
    _, prediction = model.step(params, row.observation, row.action, jax.random.key(0))
    members = prediction.members
    outcome = np.append(row.next_observation, row.reward)
    expected = scipy.stats.norm.logpdf(outcome[None], members.mean, members.std)
    log_prob = model.log_prob(params, *arguments(row))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-4)
    conditionals = jax.jit(explicit.conditionals(density()))(params, row)
    np.testing.assert_allclose(conditionals.mean, members.mean, rtol=1e-6)
    np.testing.assert_allclose(conditionals.std, members.std, rtol=1e-6)


def test_members_are_predicted_by_all_and_steps_sampled_from_the_elites():
    model, params = ensemble()
    row = transition()
    params = params._replace(elites=jnp.array([1]))
    _, prediction = model.step(params, row.observation, row.action, jax.random.key(0))
    assert prediction.members.mean.shape == prediction.members.std.shape == (3, D)


def test_samples_follow_the_mixture_of_the_elites():
    model, params = ensemble()
    params = params._replace(elites=jnp.array([0, 2]))
    row = transition()
    predicted = many_steps(model, params, row, 4_000)
    means, stds = (moment[0] for moment in predicted.members)
    drawn = np.concatenate([predicted.observation, predicted.reward[:, None]], axis=1)

    def cumulative(at, entry):
        members = [scipy.stats.norm.cdf(at, means[e, entry], stds[e, entry]) for e in (0, 2)]
        return np.mean(members, axis=0)

    for entry in range(D):
        test = scipy.stats.kstest(drawn[:, entry], functools.partial(cumulative, entry=entry))
        assert test.pvalue > 1e-3


def test_the_members_of_a_step_are_drawn_anew_for_every_key_and_only_among_the_elites():
    model, params = ensemble()
    members = jax.tree.map(jnp.zeros_like, params.network["members"])
    # Log deviations at the floor, means that name the member.
    bias = members["layer_1"]["bias"].reshape(3, D, 2)
    bias = bias.at[..., 0].set(10.0 * jnp.arange(3)[:, None]).at[..., 1].set(-20.0)
    members["layer_1"]["bias"] = bias.reshape(3, -1)
    params = with_part(params, "members", members)._replace(elites=jnp.array([0, 2]))
    row = transition()
    predicted = many_steps(model, params, row, 4_000, seed=1)
    scales = params.statistics
    reward = (predicted.reward - scales.reward_mean) / scales.reward_std
    member = np.rint(reward / 10).astype(int)
    change = (np.asarray(predicted.observation) - np.asarray(row.observation))[:, 0]
    # The same member gives state and reward.
    np.testing.assert_array_equal(member, np.rint(change / scales.delta_std[0] / 10))
    counts = np.bincount(member, minlength=3)
    assert counts[1] == 0
    assert scipy.stats.binomtest(counts[0], 4_000).pvalue > 1e-3


@pytest.mark.parametrize("continuation", [None, CONTINUATION])
def test_a_step_of_a_member_alone_equals_one_of_all_with_that_one_as_elite(continuation):
    model, params = ensemble(continuation=continuation)
    row = transition()
    key = jax.random.key(5)
    for e in range(3):
        alone = model.member(params, e)
        only_elite = params._replace(elites=jnp.array([e]))
        _, together = model.step(only_elite, row.observation, row.action, key)
        _, single = model.step(alone, row.observation, row.action, key)
        np.testing.assert_allclose(single.observation, together.observation, rtol=1e-5)
        np.testing.assert_allclose(single.reward, together.reward, rtol=1e-5)
        assert single.discount == together.discount
        np.testing.assert_allclose(single.members.mean[0], together.members.mean[e], rtol=1e-5)
        log_prob = model.log_prob(params, *arguments(row))[e]
        np.testing.assert_allclose(model.log_prob(alone, *arguments(row))[0], log_prob, rtol=1e-5)


def test_the_mean_step_is_the_mean_of_the_elites_and_needs_no_key():
    model, params = ensemble(draw=explicit.MEAN)
    params = params._replace(elites=jnp.array([0, 2]))
    row = transition()
    state, predicted = model.step(params, row.observation, row.action, jax.random.key(0))
    means = predicted.members.mean
    outcome = np.append(predicted.observation, predicted.reward)
    np.testing.assert_allclose(outcome, (means[0] + means[2]) / 2, rtol=1e-5)
    again = model.step(params, row.observation, row.action, jax.random.key(1))[1]
    np.testing.assert_array_equal(predicted.observation, again.observation)
    np.testing.assert_array_equal(state, predicted.observation)


def test_an_entry_that_never_varied_is_copied_with_its_change_and_counts_in_no_likelihood():
    model, params = ensemble(constant=(1, D - 1))
    scales = params.statistics
    row = transition()
    _, predicted = model.step(params, row.observation, row.action, jax.random.key(0))
    expected = row.observation[1] + scales.delta_mean[1]
    np.testing.assert_allclose(predicted.observation[1], expected, rtol=1e-6)
    np.testing.assert_allclose(predicted.reward, scales.reward_mean, rtol=1e-6)
    np.testing.assert_array_equal(predicted.members.std[:, np.array([1, D - 1])], 0.0)
    log_prob = model.log_prob(params, *arguments(row))
    np.testing.assert_array_equal(log_prob[:, np.array([1, D - 1])], 0.0)
    assert np.all(log_prob[:, np.array([0, 2])] != 0)
    elsewhere = row._replace(
        next_observation=row.next_observation.at[1].add(7.0), reward=row.reward + 3
    )
    np.testing.assert_array_equal(model.log_prob(params, *arguments(elsewhere)), log_prob)


def test_a_constant_entry_pulls_at_the_network_no_harder_than_noise_of_deviation_one():
    model, params = ensemble(1, constant=(1,))
    batch = transition(lead=(1, 512))
    # It predicts deviation 1 and mean 0.
    exact = jax.tree.map(jnp.zeros_like, params.network["members"])
    bias = exact["layer_1"]["bias"].reshape(1, D, 2).at[..., 1].set(0.3)
    exact["layer_1"]["bias"] = bias.reshape(1, -1)

    def loss(members):
        return model.loss(with_part(params, "members", members), batch, jax.random.key(0))[0]

    bias = jax.jit(jax.grad(loss))(exact)["layer_1"]["bias"].reshape(D, 2)
    assert np.all(np.abs(bias[1]) < 0.1)
    assert np.any(np.abs(bias[2]) > 0.1)


def batch_log_prob(model, params, batch):
    """`[E, B, E, D]` of a batch `[E, B]`."""
    log_prob = jax.vmap(jax.vmap(lambda *row: model.log_prob(params, *row)))
    return jax.jit(log_prob)(*arguments(batch))


def test_the_loss_is_the_sum_over_members_of_the_means_over_their_batches():
    model, params = ensemble()
    batch = transition(lead=(3, 5))
    total, metrics = model.loss(params, batch, jax.random.key(0))
    nll = -batch_log_prob(model, params, batch)  # [E, B, E, D]
    scale = np.asarray(coordinates.unit_variance(params.statistics)[1])
    own = np.stack([nll[e, :, e] for e in range(3)]) - np.log(scale)
    np.testing.assert_allclose(total, own.mean(axis=(1, 2)).sum(), rtol=1e-5)
    np.testing.assert_allclose(total, metrics["loss/total"])


def unknown_outcomes(row, where):
    """The same with terminal steps of unknown outcome at `where` [E, B]."""
    copies = jnp.where(where[..., None], row.observation, row.next_observation)
    return row._replace(discount=jnp.where(where, 0.0, row.discount), next_observation=copies)


CONDITIONAL = {  # densities whose reward is conditional on the change, or not
    "feedforward": density(),
    "masked": autoregressive.masked(autoregressive.MaskedConfig(16, 1), STATE, ACTION),
    "coupled": coupled.make(coupled.CoupledConfig((8,), (8,)), STATE, ACTION),
}


@pytest.mark.parametrize("chosen", CONDITIONAL.values(), ids=CONDITIONAL)
def test_an_unknown_outcome_teaches_its_reward_and_no_change(chosen):
    model = jitted(explicit.make(chosen, spec(), num_members=2))
    params = scattered(model.init(jax.random.key(0), statistics()))
    where = jnp.arange(6)[None] % 3 == jnp.arange(2)[:, None]
    row = transition(lead=(2, 6))
    batch = unknown_outcomes(row, where)
    total, _ = model.loss(params, batch, jax.random.key(0))
    nll = -batch_log_prob(model, params, batch)  # [E, B, E, D]
    scale = np.asarray(coordinates.unit_variance(params.statistics)[1])
    own = np.stack([nll[e, :, e] for e in range(2)]) - np.log(scale)
    own[..., :-1] *= ~np.asarray(where)[..., None]
    np.testing.assert_allclose(total, own.mean(axis=(1, 2)).sum(), rtol=1e-5)
    stays = batch._replace(discount=row.discount)  # the same observations where the episode goes on
    assert abs(model.loss(params, stays, jax.random.key(0))[0] - total) > 1e-3


def test_a_learned_continuation_does_not_see_a_change_that_is_only_unknown():
    model, params = ensemble(1, continuation=CONTINUATION)
    batch = unknown_outcomes(transition(lead=(1, 6)), jnp.ones((1, 6), bool))
    head = jax.tree.map(jnp.zeros_like, params.network["continuation"])
    # 0 for a change of exactly 0
    change = STATE + ACTION + jnp.arange(STATE)
    head["layer_0"]["kernel"] = head["layer_0"]["kernel"].at[:, change, 0].set(1e3)
    head["layer_0"]["bias"] = head["layer_0"]["bias"].at[:, 0].set(-1e-3)
    head["layer_1"]["kernel"] = head["layer_1"]["kernel"].at[:, 0].set(1.0)
    params = with_part(params, "continuation", head)
    assert np.all(params.statistics.delta_mean != 0)
    _, metrics = model.loss(params, batch, jax.random.key(0))
    assert metrics["loss/continuation"] > 10  # the head sees a change that the density predicts


def test_the_mixture_of_members_is_the_mean_of_their_densities():
    log_prob = jax.random.normal(jax.random.key(0), (3, D))
    densities = np.exp(np.sum(log_prob, axis=1))
    np.testing.assert_allclose(
        explicit.mixture_log_prob(log_prob), np.log(densities.mean()), rtol=1e-5
    )
    of_elites = explicit.mixture_log_prob(log_prob, jnp.array([0, 2]))
    np.testing.assert_allclose(of_elites, np.log(densities[[0, 2]].mean()), rtol=1e-5)


def falls(observation, action, following):
    return following[0] < observation[0]


def test_a_known_rule_ends_the_episode_on_what_was_predicted():
    model, params = ensemble(terminate=falls)
    row = transition()
    predicted = many_steps(model, params, row, 50)
    fell = predicted.observation[:, 0] < row.observation[0]
    np.testing.assert_array_equal(predicted.discount == 0, fell)
    assert 0 < predicted.discount.mean() < 1


def test_a_learned_continuation_ends_with_the_mean_probability_of_the_elites():
    model, params = ensemble(continuation=CONTINUATION)
    heads = jax.tree.map(jnp.zeros_like, params.network["continuation"])
    heads["layer_1"]["bias"] = jnp.log(jnp.array([[1.0], [1.0], [4.0]]))  # with 0.5, 0.5 and 0.8
    params = with_part(params, "continuation", heads)
    row = transition()
    for elites, expected in (([0, 2], 0.65), ([2, 2], 0.8)):
        predicted = many_steps(model, params._replace(elites=jnp.array(elites)), row, 4_000)
        assert set(np.unique(predicted.discount)) == {0.0, 1.0}
        np.testing.assert_allclose(predicted.discount.mean(), expected, atol=0.03)
    batch = transition(lead=(3, 6))._replace(discount=jnp.ones((3, 6)).at[:, 0].set(0.0))
    expected = -sum(5 * np.log(p) + np.log(1 - p) for p in (0.5, 0.5, 0.8)) / 6
    _, metrics = model.loss(params, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["loss/continuation"], expected, rtol=1e-5)


def test_carried_state_is_the_observation_alone():
    model, params = ensemble()
    row = transition()
    np.testing.assert_array_equal(
        model.reset(params, row.observation, jax.random.key(0)), row.observation
    )


BOUNDED = BoundedActions((-1.0,), (1.0,))
VECTOR = jax.ShapeDtypeStruct((2,), jnp.float32)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (EnvironmentSpec(jax.ShapeDtypeStruct((2, 2), jnp.float32), BOUNDED), "flat"),
        (EnvironmentSpec({"x": VECTOR}, BOUNDED), "flat"),
        (EnvironmentSpec(VECTOR, DiscreteActions(3)), "continuous"),
    ],
)
def test_a_spec_without_vectors_is_refused(bad, word):
    with pytest.raises(UsageError, match=word):
        explicit.make(density(), bad)


def test_no_member_and_no_statistics_are_refused():
    with pytest.raises(UsageError, match="num_members=0"):
        explicit.make(density(), spec(), num_members=0)
    for missing in ((), statistics()._replace(transitions=())):
        with pytest.raises(UsageError, match=r"normalize\.full_statistics"):
            explicit.make(density(), spec()).init(jax.random.key(0), missing)


def test_sizes_come_from_the_spec():
    assert explicit.sizes(spec()) == (STATE, ACTION)
