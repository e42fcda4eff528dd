"""Fitting of explicit models: resamples, held-out scores, snapshots, elites."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from explicit_examples import (
    ACTION,
    NOISE,
    STATE,
    density,
    ensemble,
    linear,
    spec,
    statistics,
    transition,
)

from offline_mbrl.data import memory
from offline_mbrl.models import explicit, fitting, members, scores
from offline_mbrl.training import fit, sharding
from offline_mbrl.types import Context, UsageError

MEMBERS = 3
CONFIG = fitting.Config(
    num_updates=1_201,
    batch_size=64,
    refresh_every=100,
    num_elites=2,
    learning_rate=5e-3,
    max_held_out=500,
)
KEY = jax.random.key(0)


def learner(config=CONFIG, **settings):
    model = explicit.make(density((16,)), spec(), num_members=MEMBERS)
    return model, fitting.make(model, config, num_members=MEMBERS, **settings)


def linear_context():
    return Context(statistics=linear()[1])


@functools.cache
def fitted():
    """A fit of two seeds, and the state at each block's end."""
    states = []
    result = fit.fit(
        learner()[1],
        linear()[0],
        key=KEY,
        num_updates=CONFIG.num_updates,
        seeds=[0, 1],
        context=linear_context(),
        block_updates=100,
        hooks=[lambda progress: states.append(jax.device_get(progress.state.learner))],
    )
    return result, states


# --- what members see ---


def resample(member, size, seed=0):
    position = jnp.tile(jnp.arange(size)[:, None], (1, member + 1))
    return np.asarray(jax.jit(members.resampled, static_argnums=(1, 2))(position, size, seed))[
        :, member
    ]


def test_a_row_is_in_a_members_resample_as_often_as_a_poisson_of_one_says():
    size = 5_000
    counts = np.bincount(np.bincount(resample(0, size), minlength=size), minlength=6)[:6]
    expected = size * scipy.stats.poisson.pmf(np.arange(6), 1.0)
    assert (
        scipy.stats.chisquare(
            counts[:5], expected[:5] * counts[:5].sum() / expected[:5].sum()
        ).pvalue
        > 1e-3
    )


def test_a_resample_is_drawn_once_and_is_each_members_own():
    first = resample(1, 1_000)
    np.testing.assert_array_equal(first, resample(1, 1_000))
    for other in (resample(0, 1_000), resample(1, 1_000, seed=1)):
        assert np.mean(first == other) < 0.05


def test_minibatches_come_from_the_resample_only_and_without_it_from_every_row():
    size = 300
    observation = np.tile(np.arange(size)[:, None], (1, STATE)).astype(np.float32)
    dataset = memory.Dataset.from_arrays(
        {
            "observation": observation,
            "next_observation": observation + 0.5,
            "reward": np.arange(size),
            "action": np.zeros((size, ACTION)),
            "is_terminal": np.zeros(size, bool),
            "is_truncated": np.ones(size, bool),
        }
    )
    for bootstrap in (True, False):
        config = dataclasses.replace(CONFIG, bootstrap=bootstrap, batch_size=4_000)
        batch = jax.jit(learner(config)[1].sample)(dataset, (), jax.random.key(3))
        assert batch.reward.shape == (4_000, MEMBERS)
        np.testing.assert_array_equal(batch.next_observation, batch.observation + 0.5)
        np.testing.assert_array_equal(batch.observation[..., 0], batch.reward)
        for member in range(MEMBERS):
            drawn = set(np.unique(batch.reward[:, member]).astype(int))
            assert drawn == (set(resample(member, size)) if bootstrap else set(range(size)))


# --- one update ---


def test_a_members_update_does_not_depend_on_the_other_members_data():
    context = linear_context()
    _, tested = learner(dataclasses.replace(CONFIG, max_grad_norm=0.1))
    state = tested.init(KEY, (), context)
    batch = jax.jit(tested.sample)(linear()[0], (), jax.random.key(1))
    other = batch._replace(reward=batch.reward.at[:, 1].multiply(1e3))
    step = jax.jit(tested.step)
    after, _ = step(state, context, batch, jax.random.key(2))
    after_other, _ = step(state, context, other, jax.random.key(2))
    changes = jax.tree.map(
        lambda a, b: np.abs(a - b).reshape(MEMBERS, -1).max(axis=1),
        after.params["members"],
        after_other.params["members"],
    )
    change = np.max(jax.tree.leaves(changes), axis=0)
    assert change[0] == change[2] == 0
    assert change[1] > 1e-4


def test_gradients_are_clipped_for_each_member():
    gradient = {
        "members": {"w": jnp.array([[3.0, 4.0], [0.3, 0.4]])},
        "shared": {"bound": jnp.array([100.0])},
    }
    transform = members.clip_gradients(1.0)
    clipped, _ = transform.update(gradient, transform.init(gradient))
    np.testing.assert_allclose(clipped["members"]["w"], [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)
    np.testing.assert_array_equal(clipped["shared"]["bound"], [100.0])


@pytest.mark.parametrize("decoupled", [True, False])
def test_only_matrices_decay_and_the_rate_falls_to_its_fraction(decoupled):
    config = fitting.Config(
        num_updates=10,
        learning_rate=0.1,
        weight_decay=0.5,
        decoupled=decoupled,
        final_learning_rate=0.02,
    )
    network = {
        "members": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))},
        "shared": {"b": jnp.ones(3)},
    }
    transform = fitting.optimizer(config)
    state = transform.init(network)
    zero = jax.tree.map(jnp.zeros_like, network)
    rates = []
    for _ in range(12):
        updates, state = transform.update(zero, state, network)
        for leaf in (updates["members"]["bias"], updates["shared"]["b"]):
            np.testing.assert_array_equal(leaf, 0.0)
        # Decoupled: rate * decay * weight. Coupled: Adam's first steps have size one, whatever the
        # gradient's.
        rates.append(-float(updates["members"]["kernel"][0, 0, 0]) / (0.5 if decoupled else 1.0))
    np.testing.assert_allclose(rates[:2], [0.1, 0.1 - 0.098 / 10], rtol=1e-4)
    np.testing.assert_allclose(rates[-1], 0.002, rtol=1e-4)


def test_the_state_holds_the_network_alone_and_the_statistics_come_from_the_context():
    result, _ = fitted()
    assert set(result.state.learner.params) == {"members", "shared"}
    params = fit.policy_params(learner()[1], result.state, linear_context())
    expected = linear()[1].transitions
    for name, value in params.statistics._asdict().items():
        np.testing.assert_array_equal(value, np.stack([getattr(expected, name)] * 2))


def test_held_out_losses_are_those_of_the_model_as_it_is_trained():
    dataset = linear()[0]
    model, tested = learner()
    state = linear_state(tested)
    batch = jax.jit(tested.sample)(dataset._replace(starts=dataset.held_out), None, KEY)
    metrics = jax.jit(tested.validate)(state, linear_context(), batch, KEY)
    params = fitting.current_params(state, linear_context())
    expected, _ = model.loss(params, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch), KEY)
    np.testing.assert_allclose(metrics["loss/total"], expected, rtol=1e-5)


def linear_state(tested):
    return jax.jit(lambda key: tested.init(key, (), linear_context()))(KEY)


# --- judging ---


def test_scores_are_those_of_the_definition():
    model, params = ensemble()
    rows = transition(lead=(21,))
    log_probs = jax.jit(lambda params, rows: scores.log_probs(model, params, rows))(params, rows)
    nll = -np.sum(log_probs, axis=2)
    median = jax.jit(lambda params, rows: scores.median_nll().evaluate(model, params, rows))
    expected = np.median(nll, axis=0) / (STATE + 1)
    np.testing.assert_allclose(median(params, rows), expected, rtol=1e-5)
    step = jax.vmap(model.step, (None, 0, 0, None))
    _, prediction = step(params, rows.observation, rows.action, jax.random.key(9))
    outcome = np.concatenate([rows.next_observation, rows.reward[:, None]], axis=1)
    error = np.mean((np.asarray(prediction.members.mean) - outcome[:, None]) ** 2, axis=(0, 2))
    squared = jax.jit(lambda params, rows: scores.squared_error().evaluate(model, params, rows))
    np.testing.assert_allclose(squared(params, rows), error, rtol=1e-5)


def test_an_improvement_is_more_than_its_threshold():
    best = jnp.array([jnp.inf, 1.0, 1.0, 1.0])
    by_error = scores.squared_error(0.01).improved(jnp.array([5.0, 0.995, 0.985, 1.0]), best)
    np.testing.assert_array_equal(by_error, [True, False, True, False])
    by_nll = scores.median_nll(0.1).improved(jnp.array([5.0, 0.95, 0.85, -3.0]), best)
    np.testing.assert_array_equal(by_nll, [True, False, True, True])


def test_held_out_transitions_are_spread_over_all_of_them_and_at_most_so_many():
    dataset, _, _ = linear()
    everything = fitting.held_out(dataset, 10**6)
    np.testing.assert_array_equal(everything.reward, dataset.reward[dataset.held_out])
    some = fitting.held_out(dataset, 500)
    assert 250 < len(some.reward) <= 500
    every = len(everything.reward) // 400
    np.testing.assert_array_equal(some.reward, dataset.reward[dataset.held_out][::every][:400])


def scripted(table):
    """A score that gives the rows of a table by the number of updates done.

    A parameter of each member counts them.
    """
    rows = jnp.asarray(table)

    def evaluate(model, params, transitions):
        count = params.network["members"]["layer_1"]["bias"][0, 0].astype(jnp.int32)
        return rows[count]

    def improved(score, best):
        return score < best

    return scores.Score(evaluate=evaluate, improved=improved)


def judged(table, num_elites=2, **settings):
    """States after each refresh, where the weights of a member after update t are all t."""
    config = dataclasses.replace(CONFIG, num_elites=num_elites, **settings)
    _, tested = learner(config, score=scripted([[-9.0] * MEMBERS, *table]))
    refresh = jax.jit(tested.refresh)
    state = linear_state(tested)
    states = []
    for count in range(len(table) + 1):
        state = refreshed(refresh, state, count)[0]
        states.append(state)
    return tested, states


def refreshed(refresh, state, count):
    """(state, cache, metrics) of a refresh where all weights of members are `count`."""
    own = jax.tree.map(lambda leaf: jnp.full_like(leaf, count), state.params["members"])
    state = state._replace(params=state.params | {"members": own}, count=jnp.asarray(count))
    return refresh(state, linear_context(), linear()[0], (), jnp.asarray(count), KEY)


def test_each_member_keeps_its_best_weights_and_the_best_members_are_the_elites():
    table = [
        [3.0, 5.0, 1.0],
        [2.0, 6.0, 2.0],
        [4.0, 4.0, 3.0],
        [5.0, 4.5, 0.5],
        [6.0, 6.0, 6.0],
    ]
    tested, states = judged(table)
    best_at = np.array([2, 3, 4])
    np.testing.assert_array_equal(states[-1].best_score, [2.0, 4.0, 0.5])
    params = tested.policy_params(states[-1], linear_context())
    for leaf in jax.tree.leaves(params.network["members"]):
        np.testing.assert_array_equal(leaf.reshape(MEMBERS, -1)[:, 0], best_at)
    np.testing.assert_array_equal(params.elites, [2, 0])
    np.testing.assert_array_equal(states[-1].stale, len(table) - best_at)
    for before, after in itertools.pairwise(states):
        assert np.all(after.best_score <= before.best_score)


def test_before_any_update_nothing_is_judged_and_a_run_too_short_hands_on_what_it_has():
    tested, states = judged([[1.0] * MEMBERS])
    state = states[0]
    np.testing.assert_array_equal(state.best_score, jnp.inf)
    np.testing.assert_array_equal(state.stale, 0)
    moved = state._replace(params=jax.tree.map(lambda leaf: leaf + 7, state.params))
    params = tested.policy_params(moved, linear_context())
    np.testing.assert_array_equal(params.network["members"]["layer_0"]["bias"], 7.0)
    np.testing.assert_array_equal(params.elites, [0, 1])


def test_a_refresh_reports_mean_and_least_score_and_leaves_the_cache_alone():
    _, tested = learner(score=scripted([[1.0, 2.0, 6.0]]))
    _, cache, metrics = refreshed(jax.jit(tested.refresh), linear_state(tested), 0)
    assert cache == ()
    assert metrics == {
        "held_out/score_mean": 3.0,
        "held_out/score_min": 1.0,
        "held_out/evaluations_without_improvement": 0,
    }


# --- learning ---


def test_held_out_scores_never_get_worse_and_end_near_the_noise():
    result, states = fitted()
    best = np.stack([state.best_score for state in states])
    assert best.shape[1:] == (2, MEMBERS)
    assert np.all(np.diff(best[1:], axis=0) <= 0)
    # 0.85: median of z^2 averaged over four entries
    optimum = np.mean(np.log(NOISE)) + 0.5 * np.log(2 * np.pi) + 0.5 * 0.85
    assert np.all(np.abs(result.state.learner.best_score - optimum) < 0.15)


def test_every_member_learns_the_linear_system():
    result, _ = fitted()
    a, b, w = linear()[2]
    model, tested = learner()
    params = fit.policy_params(tested, result.state, linear_context())
    params = jax.tree.map(lambda leaf: leaf[1], params)
    rows = transition(seed=4, lead=(200,))
    rows = rows._replace(action=jnp.clip(rows.action, -1, 1))
    step = jax.jit(jax.vmap(model.step, (None, 0, 0, None)))
    _, prediction = step(params, rows.observation, rows.action, KEY)
    following = rows.observation + rows.observation @ a.T + rows.action @ b.T
    outcome = np.concatenate([following, (rows.observation @ w)[:, None]], axis=1)
    difference = np.asarray(prediction.members.mean) - outcome[:, None]
    assert np.all(np.sqrt(np.mean(difference**2, axis=0)) < 0.8 * NOISE)
    stds = np.median(prediction.members.std, axis=0)
    np.testing.assert_allclose(stds, np.tile(NOISE, (MEMBERS, 1)), rtol=0.25)


def test_seeds_learn_different_models_and_name_their_elites():
    result, _ = fitted()
    params = fit.policy_params(learner()[1], result.state, linear_context())
    kernels = params.network["members"]["layer_0"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    order = np.argsort(result.state.learner.best_score, axis=1)
    np.testing.assert_array_equal(params.elites, order[:, :2])


# --- bad input ---


def test_what_is_missing_is_named():
    dataset = linear()[0]
    _, tested = learner()
    without = Context(statistics=statistics()._replace(transitions=()))
    with pytest.raises(UsageError, match=r"full_statistics"):
        tested.init(KEY, (), without)
    state = linear_state(tested)
    unsplit = dataset._replace(held_out=())
    with pytest.raises(UsageError, match=r"splits\.hold_out"):
        tested.refresh(state, linear_context(), unsplit, (), jnp.zeros((), int), KEY)
    with pytest.raises(UsageError, match="stream"):
        tested.step(state, linear_context(), transition(lead=(4,)), KEY)


def test_batches_split_over_devices_as_on_one():
    run = functools.partial(
        fit.fit,
        learner()[1],
        linear()[0],
        key=KEY,
        num_updates=3,
        context=linear_context(),
        block_updates=3,
    )
    single = run(mesh=None).state.learner.params
    split = run(mesh=sharding.mesh()).state.learner.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), single, split)
