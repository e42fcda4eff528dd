"""Explicit models: units, members and constants, whatever the density."""

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
)

from offline_mbrl.models import autoregressive, coordinates, explicit
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, UsageError

UNITS = (coordinates.unit_variance, coordinates.standardized, coordinates.raw)
CONTINUATION = explicit.learned_continuation(spec(), hidden_layers=(4,))


def arguments(of):
    return of.observation, of.action, of.next_observation, of.reward


@pytest.mark.parametrize("units", UNITS)
def test_an_outcome_of_the_targets_of_a_transition_is_that_transition(units):
    known, of = explicit.transition_statistics(statistics()), transition()
    y = coordinates.targets(units, known, of.observation, of.next_observation, of.reward)
    following, reward = coordinates.outcome(units, known, of.observation, y)
    np.testing.assert_allclose(following, of.next_observation, atol=1e-5)
    np.testing.assert_allclose(reward, of.reward, atol=1e-5)


def test_targets_are_the_change_and_the_reward_in_their_units():
    known, of = explicit.transition_statistics(statistics()), transition()
    change, reward = of.next_observation - of.observation, of.reward
    unit, standardized, raw = (
        coordinates.targets(units, known, of.observation, of.next_observation, reward) for units in UNITS
    )
    np.testing.assert_allclose(unit[:-1], change / known["delta_std"], rtol=1e-5)
    np.testing.assert_allclose(standardized[:-1], (change - known["delta_mean"]) / known["delta_std"], rtol=1e-5)
    np.testing.assert_allclose(raw, np.append(change, reward), rtol=1e-6)
    for y in (unit, standardized):
        np.testing.assert_allclose(y[-1], (reward - known["reward_mean"]) / known["reward_std"], rtol=1e-5)


def test_inputs_are_standardized_observation_and_action():
    known, of = explicit.transition_statistics(statistics()), transition()
    x = coordinates.inputs(known, of.observation, of.action)
    np.testing.assert_allclose(x[:STATE] * known["observation_std"] + known["observation_mean"], of.observation, 1e-5)
    np.testing.assert_allclose(x[STATE:] * known["action_std"] + known["action_mean"], of.action, rtol=1e-5)


@pytest.mark.parametrize("units", UNITS)
def test_an_ensemble_of_one_is_the_density_but_for_the_change_of_units(units):
    model, params = ensemble(1, units=units)
    known, of = params["statistics"], transition()
    x = coordinates.inputs(known, of.observation, of.action)
    y = coordinates.targets(units, known, of.observation, of.next_observation, of.reward)
    alone = jax.tree.map(lambda leaf: leaf[0], params["network"]["members"])
    expected = jax.jit(density().log_prob)(alone, {}, x, y) - jnp.log(units(known)[1])
    np.testing.assert_allclose(model.log_prob(params, *arguments(of))[0], expected, rtol=1e-5)


@pytest.mark.parametrize("units", UNITS)
def test_the_density_in_raw_units_integrates_to_one(units):
    model = jitted(explicit.make(density(state_size=1, action_size=1), spec(1, 1), num_members=2, units=units))
    params = scattered(model.init(jax.random.key(0), statistics(state_size=1, action_size=1)))
    of, grid = transition(state_size=1, action_size=1), jnp.linspace(-30, 30, 2_001)
    at = lambda value: model.log_prob(params, of.observation, of.action, value[None], value)  # noqa: E731
    density_at = jnp.exp(jax.jit(jax.vmap(at))(grid))  # [grid, E, D]: each entry is independent of the other
    np.testing.assert_allclose(np.trapezoid(density_at, grid, axis=0), 1.0, atol=1e-3)


def test_what_members_say_is_the_gaussian_that_log_prob_evaluates():
    model, params = ensemble()
    of = transition()
    means, stds = model.step(params, of.observation, of.action, jax.random.key(0))[1].members
    truth = np.append(of.next_observation, of.reward)
    expected = scipy.stats.norm.logpdf(truth[None], means, stds)
    np.testing.assert_allclose(model.log_prob(params, *arguments(of)), expected, rtol=1e-4, atol=1e-4)
    again = jax.jit(explicit.conditionals(density()))(params, of)
    np.testing.assert_allclose(again[0], means, rtol=1e-6)


def test_samples_follow_the_mixture_of_the_elites():
    model, params = ensemble()
    params |= {"elites": jnp.array([0, 2])}
    of = transition()
    said = many_steps(model, params, of, 4_000)
    means, stds = (part[0] for part in said.members)
    drawn = np.concatenate([said.observation, said.reward[:, None]], axis=1)
    for entry in range(D):
        cdf = lambda at, i=entry: np.mean(  # noqa: E731
            [scipy.stats.norm.cdf(at, means[e, i], stds[e, i]) for e in (0, 2)], axis=0
        )
        assert scipy.stats.kstest(drawn[:, entry], cdf).pvalue > 1e-3


def test_the_members_of_a_step_are_drawn_anew_for_every_key_and_only_among_the_elites():
    model, params = ensemble()
    params["network"]["members"] = jax.tree.map(jnp.zeros_like, params["network"]["members"])
    bias = params["network"]["members"]["layer_1"]["bias"]  # log deviations at the floor, means that name the member
    bias = bias.reshape(3, D, 2).at[..., 0].set(10.0 * jnp.arange(3)[:, None]).at[..., 1].set(-20.0)
    params["network"]["members"]["layer_1"]["bias"] = bias.reshape(3, -1)
    params |= {"elites": jnp.array([0, 2])}
    of = transition()
    said = many_steps(model, params, of, 4_000, seed=1)
    known = params["statistics"]
    member = np.rint((said.reward - known["reward_mean"]) / known["reward_std"] / 10).astype(int)
    change = (np.asarray(said.observation) - np.asarray(of.observation))[:, 0]
    np.testing.assert_array_equal(member, np.rint(change / known["delta_std"][0] / 10))  # one gives state and reward
    counts = np.bincount(member, minlength=3)
    assert counts[1] == 0
    assert scipy.stats.binomtest(counts[0], 4_000).pvalue > 1e-3


@pytest.mark.parametrize("continuation", [None, CONTINUATION])
def test_a_step_of_a_member_alone_equals_one_of_all_with_that_one_as_elite(continuation):
    model, params = ensemble(continuation=continuation)
    of, key = transition(), jax.random.key(5)
    for e in range(3):
        alone = model.member(params, e)
        together = model.step(params | {"elites": jnp.array([e])}, of.observation, of.action, key)[1]
        single = model.step(alone, of.observation, of.action, key)[1]
        np.testing.assert_allclose(single.observation, together.observation, rtol=1e-5)
        np.testing.assert_allclose(single.reward, together.reward, rtol=1e-5)
        assert single.discount == together.discount
        np.testing.assert_allclose(single.members[0][0], together.members[0][e], rtol=1e-5)
        np.testing.assert_allclose(
            model.log_prob(alone, *arguments(of))[0], model.log_prob(params, *arguments(of))[e], rtol=1e-5
        )


def test_the_mean_step_is_the_mean_of_the_elites_and_needs_no_key():
    model, params = ensemble(draw=explicit.MEAN)
    params |= {"elites": jnp.array([0, 2])}
    of = transition()
    state, said = model.step(params, of.observation, of.action, jax.random.key(0))
    means = said.members[0]
    np.testing.assert_allclose(np.append(said.observation, said.reward), (means[0] + means[2]) / 2, rtol=1e-5)
    again = model.step(params, of.observation, of.action, jax.random.key(1))[1]
    np.testing.assert_array_equal(said.observation, again.observation)
    np.testing.assert_array_equal(state, said.observation)


def test_an_entry_that_never_varied_is_copied_with_its_change_and_counts_in_no_likelihood():
    model, params = ensemble(constant=(1, D - 1))
    known, of = params["statistics"], transition()
    _, said = model.step(params, of.observation, of.action, jax.random.key(0))
    np.testing.assert_allclose(said.observation[1], of.observation[1] + known["delta_mean"][1], rtol=1e-6)
    np.testing.assert_allclose(said.reward, known["reward_mean"], rtol=1e-6)
    np.testing.assert_array_equal(said.members[1][:, np.array([1, D - 1])], 0.0)
    log_prob = model.log_prob(params, *arguments(of))
    np.testing.assert_array_equal(log_prob[:, np.array([1, D - 1])], 0.0)
    assert np.all(log_prob[:, np.array([0, 2])] != 0)
    elsewhere = of._replace(next_observation=of.next_observation.at[1].add(7.0), reward=of.reward + 3)
    np.testing.assert_array_equal(model.log_prob(params, *arguments(elsewhere)), log_prob)


def test_a_constant_entry_pulls_at_the_network_no_harder_than_noise_of_deviation_one():
    model, params = ensemble(1, constant=(1,))
    batch = transition(lead=(1, 512))
    exact = jax.tree.map(jnp.zeros_like, params["network"]["members"])  # predicts deviation 1 and mean 0
    exact["layer_1"]["bias"] = exact["layer_1"]["bias"].reshape(1, D, 2).at[..., 1].set(0.3).reshape(1, -1)
    params["network"]["members"] = exact
    gradient = jax.grad(lambda network: model.loss(params | {"network": network}, batch, jax.random.key(0))[0])
    bias = jax.jit(gradient)(params["network"])["members"]["layer_1"]["bias"].reshape(D, 2)
    assert np.all(np.abs(bias[1]) < 0.1)
    assert np.any(np.abs(bias[2]) > 0.1)


def test_the_loss_is_the_sum_over_members_of_the_means_over_their_batches():
    model, params = ensemble()
    batch = transition(lead=(3, 5))
    total, metrics = model.loss(params, batch, jax.random.key(0))
    nll = jax.jit(jax.vmap(jax.vmap(lambda *one: -model.log_prob(params, *one))))(*arguments(batch))  # [E, B, E, D]
    scale = np.asarray(coordinates.unit_variance(params["statistics"])[1])
    own = np.stack([nll[e, :, e] for e in range(3)]) - np.log(scale)
    np.testing.assert_allclose(total, own.mean(axis=(1, 2)).sum(), rtol=1e-5)
    np.testing.assert_allclose(total, metrics["loss/total"])


def unknown_outcomes(of, where):
    """The same with terminal steps of unknown outcome at `where` [E, B]."""
    copies = jnp.where(where[..., None], of.observation, of.next_observation)
    return of._replace(discount=jnp.where(where, 0.0, of.discount), next_observation=copies)


@pytest.mark.parametrize("made", [density(), autoregressive.masked(autoregressive.MaskedConfig(16, 1), STATE, ACTION)],
                         ids=["feedforward", "masked"])  # fmt: skip
def test_an_unknown_outcome_teaches_its_reward_and_no_change(made):
    model = jitted(explicit.make(made, spec(), num_members=2))
    params = scattered(model.init(jax.random.key(0), statistics()))
    where = jnp.arange(6)[None] % 3 == jnp.arange(2)[:, None]
    of = transition(lead=(2, 6))
    batch = unknown_outcomes(of, where)
    total, _ = model.loss(params, batch, jax.random.key(0))
    nll = jax.jit(jax.vmap(jax.vmap(lambda *one: -model.log_prob(params, *one))))(*arguments(batch))  # [E, B, E, D]
    own = np.stack([nll[e, :, e] for e in range(2)]) - np.log(coordinates.unit_variance(params["statistics"])[1])
    own[..., :-1] *= ~np.asarray(where)[..., None]
    np.testing.assert_allclose(total, own.mean(axis=(1, 2)).sum(), rtol=1e-5)
    stays = batch._replace(discount=of.discount)  # the same observations where the episode goes on
    assert abs(model.loss(params, stays, jax.random.key(0))[0] - total) > 1e-3


def test_a_learned_continuation_does_not_see_a_change_that_is_only_unknown():
    model, params = ensemble(1, continuation=CONTINUATION)
    batch = unknown_outcomes(transition(lead=(1, 6)), jnp.ones((1, 6), bool))
    head = jax.tree.map(jnp.zeros_like, params["network"]["continuation"])
    of_change = STATE + ACTION + jnp.arange(STATE)
    head["layer_0"]["kernel"] = head["layer_0"]["kernel"].at[:, of_change, 0].set(1e3)  # 0 for a change of exactly 0
    head["layer_0"]["bias"] = head["layer_0"]["bias"].at[:, 0].set(-1e-3)
    head["layer_1"]["kernel"] = head["layer_1"]["kernel"].at[:, 0].set(1.0)
    params["network"]["continuation"] = head
    known = params["statistics"]
    assert np.all(known["delta_mean"] != 0)
    found = model.loss(params, batch, jax.random.key(0))[1]["loss/continuation"]
    assert found > 10  # the head takes what the density says for a change, and goes on


def test_the_mixture_of_members_is_the_mean_of_their_densities():
    log_prob = jax.random.normal(jax.random.key(0), (3, D))
    densities = np.exp(np.sum(log_prob, axis=1))
    np.testing.assert_allclose(explicit.mixture_log_prob(log_prob), np.log(densities.mean()), rtol=1e-5)
    of_elites = explicit.mixture_log_prob(log_prob, jnp.array([0, 2]))
    np.testing.assert_allclose(of_elites, np.log(densities[[0, 2]].mean()), rtol=1e-5)


def test_a_known_rule_ends_the_episode_on_what_was_predicted():
    low = lambda observation, action, following: following[0] < observation[0]  # noqa: E731
    model, params = ensemble(terminate=low)
    of = transition()
    said = many_steps(model, params, of, 50)
    np.testing.assert_array_equal(said.discount == 0, said.observation[:, 0] < of.observation[0])
    assert 0 < said.discount.mean() < 1


def test_a_learned_continuation_ends_with_the_mean_probability_of_the_elites():
    model, params = ensemble(continuation=CONTINUATION)
    heads = jax.tree.map(jnp.zeros_like, params["network"]["continuation"])
    heads["layer_1"]["bias"] = jnp.log(jnp.array([[1.0], [1.0], [4.0]]))  # goes on with 0.5, 0.5 and 0.8
    params["network"]["continuation"] = heads
    of = transition()
    for elites, expected in (([0, 2], 0.65), ([2, 2], 0.8)):
        said = many_steps(model, params | {"elites": jnp.array(elites)}, of, 4_000)
        assert set(np.unique(said.discount)) == {0.0, 1.0}
        np.testing.assert_allclose(said.discount.mean(), expected, atol=0.03)
    batch = transition(lead=(3, 6))._replace(discount=jnp.ones((3, 6)).at[:, 0].set(0.0))
    expected = -sum(5 * np.log(p) + np.log(1 - p) for p in (0.5, 0.5, 0.8)) / 6
    found = model.loss(params, batch, jax.random.key(0))[1]["loss/continuation"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_carried_state_is_the_observation_alone():
    model, params = ensemble()
    of = transition()
    np.testing.assert_array_equal(model.reset(params, of.observation, jax.random.key(0)), of.observation)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (EnvironmentSpec(jax.ShapeDtypeStruct((2, 2), jnp.float32), BoundedActions((-1.0,), (1.0,))), "flat"),
        (EnvironmentSpec({"x": jax.ShapeDtypeStruct((2,), jnp.float32)}, BoundedActions((-1.0,), (1.0,))), "flat"),
        (EnvironmentSpec(jax.ShapeDtypeStruct((2,), jnp.float32), DiscreteActions(3)), "continuous"),
    ],
)
def test_a_spec_without_vectors_is_refused(bad, word):
    with pytest.raises(UsageError, match=word):
        explicit.make(density(), bad)


def test_no_member_and_no_statistics_are_refused():
    with pytest.raises(UsageError, match="num_members=0"):
        explicit.make(density(), spec(), num_members=0)
    for known in ((), statistics()._replace(transitions=())):
        with pytest.raises(UsageError, match="statistics"):
            explicit.make(density(), spec()).init(jax.random.key(0), known)


def test_sizes_come_from_the_spec():
    assert explicit.sizes(spec()) == (STATE, ACTION)
