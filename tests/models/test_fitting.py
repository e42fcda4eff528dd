"""Fitting of explicit models: resamples, held-out scores, snapshots, elites, and what may depend on what."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from explicit_examples import ACTION, NOISE, STATE, density, ensemble, linear, spec, statistics, transition

from offline_mbrl.data import memory
from offline_mbrl.models import explicit, fitting
from offline_mbrl.training import fit, sharding
from offline_mbrl.types import UsageError

MEMBERS = 3
CONFIG = fitting.Config(
    num_updates=1_201, batch_size=64, refresh_every=100, num_elites=2, learning_rate=5e-3, max_held_out=500
)


def learner(config=CONFIG, **settings):
    model = explicit.make(density((16,)), spec(), num_members=MEMBERS)
    return model, fitting.make(model, config, num_members=MEMBERS, **settings)


@functools.cache
def fitted():
    """A fit of two seeds, and the state at each block's end."""
    dataset, known, _ = linear()
    states = []
    result = fit.fit(
        learner()[1], dataset, key=jax.random.key(0), num_updates=CONFIG.num_updates, seeds=[0, 1], statistics=known,
        block_updates=100, hooks=[lambda progress: states.append(jax.device_get(progress.state.learner))])  # fmt: skip
    return result, states


# --- what members see ---


def resample(member, size, seed=0):
    position = jnp.tile(jnp.arange(size)[:, None], (1, member + 1))
    return np.asarray(jax.jit(fitting.resampled, static_argnums=(1, 2))(position, size, seed))[:, member]


def test_a_row_is_in_a_members_resample_as_often_as_a_poisson_of_one_says():
    size = 5_000
    counts = np.bincount(np.bincount(resample(0, size), minlength=size), minlength=6)[:6]
    expected = size * scipy.stats.poisson.pmf(np.arange(6), 1.0)
    assert scipy.stats.chisquare(counts[:5], expected[:5] * counts[:5].sum() / expected[:5].sum()).pvalue > 1e-3


def test_a_resample_is_drawn_once_and_is_each_members_own():
    first = resample(1, 1_000)
    np.testing.assert_array_equal(first, resample(1, 1_000))
    for other in (resample(0, 1_000), resample(1, 1_000, seed=1)):
        assert np.mean(first == other) < 0.05


def test_minibatches_come_from_the_resample_only_and_without_it_from_every_row():
    size = 300
    observation = np.tile(np.arange(size)[:, None], (1, STATE)).astype(np.float32)
    dataset = memory.Dataset.from_arrays({
        "observation": observation, "next_observation": observation + 0.5, "reward": np.arange(size),
        "action": np.zeros((size, ACTION)), "is_terminal": np.zeros(size, bool), "is_truncated": np.ones(size, bool),
    })  # fmt: skip
    for bootstrap in (True, False):
        sample = learner(dataclasses.replace(CONFIG, bootstrap=bootstrap, batch_size=4_000))[1].sample
        batch = jax.jit(sample)(dataset, jax.random.key(3))
        assert batch.reward.shape == (4_000, MEMBERS)
        np.testing.assert_array_equal(batch.next_observation, batch.observation + 0.5)
        np.testing.assert_array_equal(batch.observation[..., 0], batch.reward)
        for member in range(MEMBERS):
            seen = set(np.unique(batch.reward[:, member]).astype(int))
            assert seen == (set(resample(member, size)) if bootstrap else set(range(size)))


# --- one update ---


def test_a_members_update_does_not_depend_on_the_other_members_data():
    dataset, known, _ = linear()
    _, one = learner(dataclasses.replace(CONFIG, max_grad_norm=0.1))
    state = one.init(jax.random.key(0), (), known, ())
    batch = jax.jit(one.sample)(dataset, jax.random.key(1))
    other = batch._replace(reward=batch.reward.at[:, 1].multiply(1e3))
    step = jax.jit(one.step)
    (here, _), (there, _) = (step(state, some, jax.random.key(2)) for some in (batch, other))
    changed = jax.tree.map(
        lambda a, b: np.abs(a - b).reshape(MEMBERS, -1).max(axis=1),
        here.params["network"]["members"], there.params["network"]["members"])  # fmt: skip
    changed = np.max(jax.tree.leaves(changed), axis=0)
    assert changed[0] == changed[2] == 0
    assert changed[1] > 1e-4


def test_gradients_are_clipped_for_each_member():
    gradient = {"members": {"w": jnp.array([[3.0, 4.0], [0.3, 0.4]])}, "shared": {"bound": jnp.array([100.0])}}
    transform = fitting.clip_members(1.0)
    clipped, _ = transform.update(gradient, transform.init(gradient))
    np.testing.assert_allclose(clipped["members"]["w"], [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)
    np.testing.assert_array_equal(clipped["shared"]["bound"], [100.0])


@pytest.mark.parametrize("decoupled", [True, False])
def test_only_matrices_decay_and_the_rate_falls_to_its_fraction(decoupled):
    config = fitting.Config(
        num_updates=10, learning_rate=0.1, weight_decay=0.5, decoupled=decoupled, final_learning_rate=0.02
    )
    network = {"members": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))}, "shared": {"b": jnp.ones(3)}}
    transform = fitting.optimizer(config)
    state, zero = transform.init(network), jax.tree.map(jnp.zeros_like, network)
    rates = []
    for _ in range(12):
        updates, state = transform.update(zero, state, network)
        for leaf in (updates["members"]["bias"], updates["shared"]["b"]):
            np.testing.assert_array_equal(leaf, 0.0)
        # Decoupled: rate * decay * weight. Coupled: Adam's first steps have size one whatever the gradient's.
        rates.append(-float(updates["members"]["kernel"][0, 0, 0]) / (0.5 if decoupled else 1.0))
    np.testing.assert_allclose(rates[:2], [0.1, 0.1 - 0.098 / 10], rtol=1e-4)
    np.testing.assert_allclose(rates[-1], 0.002, rtol=1e-4)


def test_nothing_but_the_network_is_learned():
    result, _ = fitted()
    before = explicit.transition_statistics(linear()[1])
    for name, value in result.state.learner.params["statistics"].items():
        np.testing.assert_array_equal(value, np.stack([before[name]] * 2))


# --- judging ---


def test_scores_are_those_of_the_definition():
    model, params = ensemble()
    of = transition(lead=(21,))
    nll = -np.sum(jax.jit(lambda params, of: fitting.log_probs(model, params, of))(params, of), axis=2)
    score = jax.jit(lambda params, of: fitting.median_nll().evaluate(model, params, of))
    np.testing.assert_allclose(score(params, of), np.median(nll, axis=0) / (STATE + 1), rtol=1e-5)
    step = jax.vmap(model.step, (None, 0, 0, None))
    means = step(params, of.observation, of.action, jax.random.key(9))[1].members[0]
    truth = np.concatenate([of.next_observation, of.reward[:, None]], axis=1)
    error = np.mean((np.asarray(means) - truth[:, None]) ** 2, axis=(0, 2))
    score = jax.jit(lambda params, of: fitting.squared_error().evaluate(model, params, of))
    np.testing.assert_allclose(score(params, of), error, rtol=1e-5)


def test_an_improvement_is_more_than_its_threshold():
    best = jnp.array([jnp.inf, 1.0, 1.0, 1.0])
    by_error = fitting.squared_error(0.01).improved(jnp.array([5.0, 0.995, 0.985, 1.0]), best)
    np.testing.assert_array_equal(by_error, [True, False, True, False])
    by_nll = fitting.median_nll(0.1).improved(jnp.array([5.0, 0.95, 0.85, -3.0]), best)
    np.testing.assert_array_equal(by_nll, [True, False, True, True])


def test_held_out_transitions_are_spread_over_all_of_them_and_at_most_so_many():
    dataset, _, _ = linear()
    everything = fitting.held_out(dataset, 10**6)
    np.testing.assert_array_equal(everything.reward, dataset.reward[dataset.held_out])
    some = fitting.held_out(dataset, 500)
    assert 250 < len(some.reward) <= 500
    np.testing.assert_array_equal(some.reward, dataset.reward[dataset.held_out][:: len(everything.reward) // 400][:400])


def scripted(scores):
    """A score that gives the next of `scores` by the number of updates done; a parameter of each member counts them."""
    table = jnp.asarray(scores)

    def evaluate(model, params, held_out):
        del model, held_out
        count = params["network"]["members"]["layer_1"]["bias"][0, 0].astype(jnp.int32)
        return table[count]

    return fitting.Score(evaluate, lambda score, best: score < best)


def judged(scores, num_elites=2):
    """States after each refresh, where the weights of a member after update t are all t."""
    dataset, known, _ = linear()
    config = dataclasses.replace(CONFIG, num_elites=num_elites)
    _, one = learner(config, score=scripted([[-9.0] * MEMBERS, *scores]))
    refresh = jax.jit(one.refresh)
    state = jax.jit(lambda key: one.init(key, (), known, ()))(jax.random.key(0))
    states = []
    for count in range(len(scores) + 1):
        members = jax.tree.map(lambda leaf: jnp.full_like(leaf, count), state.params["network"]["members"])  # noqa: B023
        params = state.params | {"network": state.params["network"] | {"members": members}}
        state = refresh(state._replace(params=params, count=jnp.asarray(count)), dataset, jax.random.key(0))
        states.append(state)
    return one, states


def test_each_member_keeps_its_best_weights_and_the_best_members_are_the_elites():
    scores = [[3.0, 5.0, 1.0], [2.0, 6.0, 2.0], [4.0, 4.0, 3.0], [5.0, 4.5, 0.5], [6.0, 6.0, 6.0]]
    one, states = judged(scores)
    best_at = np.array([2, 3, 4])
    np.testing.assert_array_equal(states[-1].best_score, [2.0, 4.0, 0.5])
    params = one.policy_params(states[-1])
    for leaf in jax.tree.leaves(params["network"]["members"]):
        np.testing.assert_array_equal(leaf.reshape(MEMBERS, -1)[:, 0], best_at)
    np.testing.assert_array_equal(params["elites"], [2, 0])
    np.testing.assert_array_equal(states[-1].stale, len(scores) - best_at)
    for before, after in itertools.pairwise(states):
        assert np.all(after.best_score <= before.best_score)


def test_before_any_update_nothing_is_judged_and_a_run_too_short_hands_on_what_it_has():
    one, states = judged([[1.0] * MEMBERS])
    np.testing.assert_array_equal(states[0].best_score, jnp.inf)
    np.testing.assert_array_equal(states[0].stale, 0)
    state = states[0]
    moved = jax.tree.map(lambda leaf: leaf + 7, state.params["network"])
    params = one.policy_params(state._replace(params=state.params | {"network": moved}))
    np.testing.assert_array_equal(params["network"]["members"]["layer_0"]["bias"], 7.0)
    np.testing.assert_array_equal(params["elites"], [0, 1])


def test_a_run_stops_when_no_member_of_any_living_seed_improves():
    hook = fitting.stop_when_stale(3)
    progress = lambda stale, alive: SimpleNamespace(  # noqa: E731
        state=SimpleNamespace(learner=SimpleNamespace(stale=jnp.array(stale)), alive=jnp.array(alive))
    )
    assert hook(progress([[3, 5], [4, 3]], [True, True]))
    assert hook(progress([[3, 5], [4, 2]], [True, True])) is None  # one member still improves
    assert hook(progress([[3, 5], [0, 0]], [True, False]))  # the other seed is frozen
    assert hook(progress([4, 2], True)) is None
    assert hook(progress([4, 3], True))


# --- learning ---


def test_held_out_scores_never_get_worse_and_end_near_the_noise():
    result, states = fitted()
    scores = np.stack([state.best_score for state in states])
    assert scores.shape[1:] == (2, MEMBERS)
    assert np.all(np.diff(scores[1:], axis=0) <= 0)
    optimum = np.mean(np.log(NOISE)) + 0.5 * np.log(2 * np.pi) + 0.5 * 0.85  # median of z^2 averaged over four entries
    assert np.all(np.abs(result.state.learner.best_score - optimum) < 0.15)


def test_every_member_learns_the_linear_system():
    result, _ = fitted()
    a, b, w = linear()[2]
    params = fit.policy_params(learner()[1], result.state)
    model, of = learner()[0], transition(seed=4, lead=(200,))
    of = of._replace(action=jnp.clip(of.action, -1, 1))
    step = jax.jit(jax.vmap(model.step, (None, 0, 0, None)))
    means, stds = step(jax.tree.map(lambda leaf: leaf[1], params), of.observation, of.action, jax.random.key(0))[
        1
    ].members
    truth = np.concatenate([of.observation + of.observation @ a.T + of.action @ b.T, (of.observation @ w)[:, None]], 1)
    error = np.sqrt(np.mean((np.asarray(means) - truth[:, None]) ** 2, axis=0))
    assert np.all(error < 0.8 * NOISE)
    np.testing.assert_allclose(np.median(stds, axis=0), np.tile(NOISE, (MEMBERS, 1)), rtol=0.25)


def test_seeds_learn_different_models_and_name_their_elites():
    result, _ = fitted()
    params = fit.policy_params(learner()[1], result.state)
    kernels = params["network"]["members"]["layer_0"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    order = np.argsort(result.state.learner.best_score, axis=1)
    np.testing.assert_array_equal(params["elites"], order[:, :2])


# --- bad input ---


def test_what_is_missing_is_named():
    dataset, known, _ = linear()
    _, one = learner()
    with pytest.raises(UsageError, match=r"transition_statistics"):
        one.init(jax.random.key(0), (), statistics()._replace(transitions=()), ())
    state = one.init(jax.random.key(0), (), known, ())
    with pytest.raises(UsageError, match=r"splits\.hold_out"):
        one.refresh(state, dataset._replace(held_out=()), jax.random.key(0))
    with pytest.raises(UsageError, match="stream"):
        one.step(state, transition(lead=(4,)), jax.random.key(0))


@pytest.mark.parametrize(
    "wrong", [{"num_elites": 4}, {"num_elites": -1}, {"refresh_every": 0}, {"batch_size": 0}, {"patience": -1},
              {"max_held_out": -1}])  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match="fitting"):
        learner(dataclasses.replace(CONFIG, **wrong))


def test_batches_split_over_devices_as_on_one():
    dataset, known, _ = linear()
    _, one = learner()
    run = functools.partial(
        fit.fit, one, dataset, key=jax.random.key(0), num_updates=3, statistics=known, block_updates=3)  # fmt: skip
    single, split = (run(mesh=mesh).state.learner.params["network"] for mesh in (None, sharding.mesh()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), single, split)
