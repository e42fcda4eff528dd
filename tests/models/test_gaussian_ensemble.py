"""The released Gaussian ensembles: numbers of their formulas, options, and learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explicit_examples import ACTION, NOISE, STATE, D, jitted, linear, scattered, spec, statistics, transition

from offline_mbrl.models import gaussian_ensemble
from offline_mbrl.models.density import soft_bounds
from offline_mbrl.training import fit
from offline_mbrl.types import UsageError

SMALL = {"hidden_layers": (8, 8), "decay": (1e-2, 2e-2, 3e-2), "num_members": 2}


def config(preset="mopo", **changes):
    chosen = gaussian_ensemble.Config(**gaussian_ensemble.PRESETS[preset])
    small = dataclasses.replace(chosen, **SMALL, fit=dataclasses.replace(chosen.fit, num_elites=1))
    return dataclasses.replace(small, **({} if chosen.decay else {"decay": ()}) | changes)


def one_member(chosen, seed=0):
    density = gaussian_ensemble.density(chosen, STATE, ACTION)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), density.init(jax.random.key(seed)))
    return density, params, density.shared()


# --- formulas ---


def test_soft_bounds_give_the_known_numbers_in_the_known_order():
    raw = jnp.array([-20.0, -10.0, -5.0, 0.0, 0.5, 5.0, 20.0])
    expected = [-9.999955, -9.306867, -4.997336, -0.474004, -0.193092, 0.488980, 0.500028]
    np.testing.assert_allclose(soft_bounds(raw, -10.0, 0.5), expected, atol=1e-5)


def test_the_scaled_likelihood_gives_the_known_numbers():
    mean = jnp.array([[0.0, 1.0], [2.0, 1.0]])
    log_variance = jnp.log(jnp.array([[1.0, 4.0], [0.25, 1.0]]))
    each = jnp.mean(gaussian_ensemble.scaled_nll(jnp.array([[1.0, 0.0]]), mean, log_variance), axis=1)
    np.testing.assert_allclose(each, [1.318147, 1.806853], atol=1e-5)
    np.testing.assert_allclose(np.sum(each), 3.125, atol=1e-5)


def test_the_loss_is_twice_the_negative_log_likelihood_without_its_constant():
    density, params, shared = one_member(config())
    x, y = jnp.arange(STATE + ACTION) / 3.0, jnp.arange(D) / 2.0
    loss = jax.jit(density.loss)(params, shared, x, y, jnp.ones(D), jax.random.key(0))
    log_prob = jax.jit(density.log_prob)(params, shared, x, y)
    np.testing.assert_allclose(loss, -2 * np.mean(log_prob) - np.log(2 * np.pi), rtol=1e-5)


def test_decay_is_half_its_rate_times_the_squared_weights_of_all_members_and_spares_biases():
    chosen = config(bounds_coef=0.0)
    density = gaussian_ensemble.density(chosen, STATE, ACTION)
    params = jax.vmap(density.init)(jax.random.split(jax.random.key(0), 2))
    params = jax.tree.map(lambda leaf: leaf + 1.0, params)
    value, gradient = jax.jit(jax.value_and_grad(density.penalty))(params, density.shared())
    kernels = [params["all"][f"layer_{i}"]["kernel"] for i in range(3)]
    expected = sum(0.5 * rate * np.sum(np.square(w)) for rate, w in zip(chosen.decay, kernels, strict=True))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for i, rate in enumerate(chosen.decay):
        np.testing.assert_allclose(gradient["all"][f"layer_{i}"]["kernel"], rate * kernels[i], rtol=1e-5)
        np.testing.assert_array_equal(gradient["all"][f"layer_{i}"]["bias"], 0.0)


def test_the_room_between_learned_bounds_costs_its_coefficient():
    density, params, shared = one_member(config(decay=()))
    np.testing.assert_allclose(density.penalty(params, shared), 0.01 * D * 10.5, rtol=1e-6)
    gradient = jax.grad(density.penalty, argnums=1)(params, shared)
    np.testing.assert_allclose(gradient["highest"], 0.01, rtol=1e-6)
    np.testing.assert_allclose(gradient["lowest"], -0.01, rtol=1e-6)
    fixed, params, nothing = one_member(config("mbrl_lib"))
    assert nothing == {}
    np.testing.assert_array_equal(fixed.penalty(params, nothing), 0.0)


@pytest.mark.parametrize("raw", [-1e3, 0.0, 1e3])
def test_gradients_through_the_bounds_are_finite(raw):
    loss = lambda raw, low, high: gaussian_ensemble.scaled_nll(  # noqa: E731
        jnp.array(1.0), jnp.array(0.0), soft_bounds(raw, low, high)
    )
    gradient = jax.grad(loss, argnums=(0, 1, 2))(raw, -10.0, 0.5)
    assert np.all(np.isfinite(gradient))
    if raw:
        assert abs(gradient[1 if raw < 0 else 2]) > 0.1  # the bound that it rests on moves


def test_initial_weights_have_the_deviations_of_their_sources():
    for preset, width in (("mopo", 0.88 / (2 * np.sqrt(STATE + ACTION))), ("cbop", 1 / np.sqrt(3 * (STATE + ACTION)))):
        chosen = config(preset, hidden_layers=(2_000, 8))
        layer = gaussian_ensemble.density(chosen, STATE, ACTION).init(jax.random.key(0))
        kernel = next(iter(layer.values()))["layer_0"]["kernel"]
        np.testing.assert_allclose(np.std(kernel), width, rtol=0.03)  # a normal cut at two sigma has 0.88 of it
        bias = next(iter(layer.values()))["layer_0"]["bias"]
        np.testing.assert_allclose(bias, 0.1 if preset == "cbop" else 0.0)


def test_a_reward_with_its_own_network_shares_nothing_with_the_state():
    density, params, shared = one_member(config("cbop"))
    assert set(params) == {"state", "reward"}
    x, y = jnp.ones(STATE + ACTION), jnp.ones(D)
    reward = jax.jit(jax.grad(lambda params: density.log_prob(params, shared, x, y)[-1]))(params)
    states = jax.jit(jax.grad(lambda params: jnp.sum(density.log_prob(params, shared, x, y)[:-1])))(params)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves((reward["state"], states["reward"])))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves((reward["reward"], states["state"])))


@pytest.mark.parametrize("preset", gaussian_ensemble.PRESETS)
def test_samples_have_the_moments_that_the_density_says(preset):
    density, params, shared = one_member(config(preset))
    x = jnp.arange(STATE + ACTION) / 5.0
    mean, std = jax.jit(density.moments)(params, shared, x, jnp.zeros(D))
    draw = jax.jit(jax.vmap(density.sample, (None, None, None, 0)))
    drawn = draw(params, shared, x, jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(jax.jit(density.mode)(params, shared, x), mean)
    if config(preset).deterministic:
        np.testing.assert_array_equal(drawn, np.tile(mean, (20_000, 1)))
        np.testing.assert_array_equal(std, 0.0)
        return
    np.testing.assert_allclose((np.mean(drawn, axis=0) - mean) / std, 0.0, atol=0.03)
    np.testing.assert_allclose(np.std(drawn, axis=0) / std, 1.0, atol=0.03)


# --- the ensemble ---


def test_the_ensembles_loss_adds_its_members_and_the_penalty_once():
    chosen = config()
    model = jitted(gaussian_ensemble.make(chosen, spec()))
    params = scattered(model.init(jax.random.key(0), statistics()))
    batch = transition(lead=(2, 6))
    total, metrics = model.loss(params, batch, jax.random.key(0))
    network = params["network"]
    penalty = gaussian_ensemble.density(chosen, STATE, ACTION).penalty(network["members"], network["shared"])
    nll = jax.jit(jax.vmap(jax.vmap(lambda *one: -model.log_prob(params, *one))))  # raw targets: their own units
    nll = nll(batch.observation, batch.action, batch.next_observation, batch.reward)  # [E, B, E, D]
    own = sum(np.mean(2 * nll[e, :, e]) - np.log(2 * np.pi) for e in range(2))
    np.testing.assert_allclose(metrics["loss/penalty"], penalty, rtol=1e-5)
    np.testing.assert_allclose(total, own + penalty, rtol=1e-4)


def test_targets_are_raw_or_standardized_as_the_preset_says():
    for preset, factor in (("mopo", 1.0), ("cbop", None)):
        model = jitted(gaussian_ensemble.make(config(preset), spec()))
        params = model.init(jax.random.key(0), statistics())
        network = jax.tree.map(jnp.zeros_like, params["network"]["members"])  # mean 0, raw log variance 0
        params["network"]["members"] = network
        of, known = transition(), params["statistics"]
        means, stds = model.step(params, of.observation, of.action, jax.random.key(0))[1].members
        log_variance = float(soft_bounds(jnp.zeros(()), -10.0, 0.5))
        scale = np.append(known["delta_std"], known["reward_std"]) if factor is None else np.ones(D)
        shift = np.append(known["delta_mean"], known["reward_mean"]) if factor is None else np.zeros(D)
        np.testing.assert_allclose(stds[0], scale * np.exp(0.5 * log_variance), rtol=1e-5)
        np.testing.assert_allclose(means[0], np.append(of.observation, 0.0) + shift, rtol=1e-4, atol=1e-5)


@functools.cache
def fitted():
    dataset, known, _ = linear()
    chosen = config(hidden_layers=(32,), decay=(1e-5, 1e-5), num_members=3)
    chosen = dataclasses.replace(
        chosen, fit=dataclasses.replace(chosen.fit, learning_rate=5e-3, refresh_every=100, num_elites=2))  # fmt: skip
    learner = gaussian_ensemble.learner(chosen, gaussian_ensemble.make(chosen, spec()))
    result = fit.fit(learner, dataset, key=jax.random.key(0), num_updates=1_001, statistics=known, block_updates=500)
    return learner, result.state.learner


def test_held_out_errors_end_near_the_variance_of_the_noise_and_the_best_are_the_elites():
    learner, state = fitted()
    optimum = np.mean(np.square(NOISE))
    assert np.all(state.best_score < 1.15 * optimum)
    assert np.all(state.best_score > 0.8 * optimum)
    np.testing.assert_array_equal(learner.policy_params(state)["elites"], np.argsort(state.best_score)[:2])


def test_learned_bounds_move_and_are_no_part_of_a_snapshot():
    learner, state = fitted()
    params = learner.policy_params(state)
    shared = state.params["network"]["shared"]
    assert np.all(shared["highest"] < 0.5)
    assert np.all(shared["lowest"] > -10.0)
    jax.tree.map(np.testing.assert_array_equal, params["network"]["shared"], shared)
    assert set(state.best) == {"members"}


# --- options ---


FOUR, DECAY = (200,) * 4, (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
PUBLISHED = {
    # members, hidden layers, activation, initial weights, initial biases, decay of each layer, targets, what is kept
    "mopo": (7, FOUR, "swish", "half_normal", 0.0, DECAY, "raw", "best"),
    "offlinerl_kit": (7, FOUR, "swish", "half_normal", 0.0, DECAY, "raw", "best"),
    "mbrl_lib": (7, FOUR, "swish", "half_normal", 0.0, (), "raw", "best"),
    "cbop": (30, FOUR, "relu", "uniform", 0.1, (), "standardized", "best"),
    "unifloral": (7, FOUR, "relu", "lecun", 0.0, (), "raw", "last"),
    "morel": (4, (512, 512), "relu", "uniform", 0.0, (), "standardized", "last"),
}
PUBLISHED_FITS = {
    # batch, resamples, elites, held out at most, patience, decay by the optimizer and whether it is AdamW's
    "mopo": (256, True, 5, 1_000, 6, 0.0, True),
    "offlinerl_kit": (256, True, 5, 1_000, 5, 0.0, True),
    "mbrl_lib": (256, True, 5, 0, 5, 1e-5, False),
    "cbop": (1_024, False, 20, 10_000, 5, 0.0, True),
    "unifloral": (256, False, 5, 0, 0, 2.5e-5, True),
    "morel": (256, False, 0, 1_000, 0, 0.0, True),
}


def test_presets_are_the_published_ensembles():
    made = {name: gaussian_ensemble.Config(**preset) for name, preset in gaussian_ensemble.PRESETS.items()}
    assert {
        name: (one.num_members, one.hidden_layers, one.activation, one.init, one.bias, one.decay, one.targets, one.keep)
        for name, one in made.items()
    } == PUBLISHED
    fits = {name: one.fit for name, one in made.items()}
    assert {
        name: (of.batch_size, of.bootstrap, of.num_elites, of.max_held_out, of.patience, of.weight_decay, of.decoupled)
        for name, of in fits.items()
    } == PUBLISHED_FITS
    assert all((of.learning_rate, of.final_learning_rate, of.max_grad_norm) == (1e-3, 1.0, 0.0) for of in fits.values())
    assert all(of.held_out_fraction == 0.2 for of in fits.values())
    assert {name for name, one in made.items() if not one.learned_bounds or one.deterministic} == {"mbrl_lib", "morel"}
    assert {name for name, one in made.items() if one.separate_reward} == {"cbop", "morel"}
    assert all((one.lowest_log_variance, one.highest_log_variance) == (-10.0, 0.5) for one in made.values())
    assert all(one.bounds_coef == 0.01 for one in made.values())
    assert {name: of.eps for name, of in fits.items() if of.eps != 1e-8} == {"unifloral": 1e-5}


def test_a_deterministic_member_is_trained_on_the_squared_error():
    density, params, shared = one_member(config("morel"))
    x, y, weight = jnp.arange(STATE + ACTION) / 3.0, jnp.arange(D) / 2.0, jnp.arange(D, dtype=float)
    loss = jax.jit(density.loss)(params, shared, x, y, weight, jax.random.key(0))
    error = np.square(np.asarray(density.mode(params, shared, x)) - y)
    np.testing.assert_allclose(loss, np.mean(weight * error), rtol=1e-5)
    assert shared == {}
    assert density.penalty(params, shared) == 0


@pytest.mark.parametrize("keep", ["best", "last"])
def test_members_are_handed_on_as_they_were_at_their_best_or_last_evaluation(keep):
    dataset, known, _ = linear()
    chosen = config(keep=keep)
    one = gaussian_ensemble.learner(chosen, gaussian_ensemble.make(chosen, spec()))
    state = jax.jit(lambda key: one.init(key, (), known, ()))(jax.random.key(0))
    refresh, handed_on = jax.jit(one.refresh), []
    for bias in (0.0, 50.0):  # the second is worse
        members = jax.tree.map(lambda leaf: leaf + bias, state.params["network"]["members"])  # noqa: B023
        params = state.params | {"network": state.params["network"] | {"members": members}}
        state = refresh(state._replace(params=params, count=jnp.asarray(1)), dataset, jax.random.key(0))
        handed_on.append(one.policy_params(state)["network"]["members"]["all"]["layer_0"]["bias"])
    assert np.any(handed_on[0] != handed_on[1]) == (keep == "last")
    np.testing.assert_array_equal(state.stale, 0 if keep == "last" else 1)


@pytest.mark.parametrize(
    "wrong", [{"activation": "tanh"}, {"targets": "delta"}, {"init": "zeros"}, {"decay": (1.0,)}, {"keep": "first"},
              {"lowest_log_variance": 1.0}])  # fmt: skip
def test_options_that_do_not_fit_are_refused(wrong):
    with pytest.raises(UsageError, match="gaussian_ensemble"):
        gaussian_ensemble.make(config(**wrong), spec())
