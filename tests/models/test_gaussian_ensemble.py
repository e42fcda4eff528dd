"""The released Gaussian ensembles: numbers of their formulas, options, and learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explicit_examples import (
    ACTION,
    NOISE,
    STATE,
    D,
    jitted,
    linear,
    scattered,
    spec,
    statistics,
    transition,
    with_part,
)

from offline_mbrl.models import gaussian_ensemble
from offline_mbrl.models.densities.density import soft_bounds
from offline_mbrl.training import fit
from offline_mbrl.types import Context, UsageError

SMALL = {"hidden_layers": (8, 8), "decay": (1e-2, 2e-2, 3e-2), "num_members": 2}


def config(preset="mopo", **changes):
    chosen = gaussian_ensemble.Config(**gaussian_ensemble.PRESETS[preset])
    small = dataclasses.replace(chosen, **SMALL, fit=dataclasses.replace(chosen.fit, num_elites=1))
    return dataclasses.replace(small, **({} if chosen.decay else {"decay": ()}) | changes)


def one_member(chosen, seed=0):
    density = gaussian_ensemble.density(chosen, STATE, ACTION)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), density.init(jax.random.key(seed))
    )
    return density, params, density.shared()


# --- formulas ---


def test_soft_bounds_give_the_known_numbers_in_the_known_order():
    raw = jnp.array([-20.0, -10.0, -5.0, 0.0, 0.5, 5.0, 20.0])
    expected = [-9.999955, -9.306867, -4.997336, -0.474004, -0.193092, 0.488980, 0.500028]
    np.testing.assert_allclose(soft_bounds(raw, -10.0, 0.5), expected, atol=1e-5)


def test_the_scaled_likelihood_gives_the_known_numbers():
    mean = jnp.array([[0.0, 1.0], [2.0, 1.0]])
    log_variance = jnp.log(jnp.array([[1.0, 4.0], [0.25, 1.0]]))
    nll = gaussian_ensemble.scaled_nll(jnp.array([[1.0, 0.0]]), mean, log_variance)
    losses = jnp.mean(nll, axis=1)
    np.testing.assert_allclose(losses, [1.318147, 1.806853], atol=1e-5)
    np.testing.assert_allclose(np.sum(losses), 3.125, atol=1e-5)


def test_the_loss_is_twice_the_negative_log_likelihood_without_its_constant():
    density, params, shared = one_member(config())
    x = jnp.arange(STATE + ACTION) / 3.0
    y = jnp.arange(D) / 2.0
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
    squares = [np.sum(np.square(kernel)) for kernel in kernels]
    expected = sum(0.5 * rate * square for rate, square in zip(chosen.decay, squares, strict=True))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for i, rate in enumerate(chosen.decay):
        layer = gradient["all"][f"layer_{i}"]
        np.testing.assert_allclose(layer["kernel"], rate * kernels[i], rtol=1e-5)
        np.testing.assert_array_equal(layer["bias"], 0.0)


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
    def loss(raw, low, high):
        log_variance = soft_bounds(raw, low, high)
        return gaussian_ensemble.scaled_nll(jnp.array(1.0), jnp.array(0.0), log_variance)

    gradient = jax.grad(loss, argnums=(0, 1, 2))(raw, -10.0, 0.5)
    assert np.all(np.isfinite(gradient))
    if raw:
        assert abs(gradient[1 if raw < 0 else 2]) > 0.1  # the bound that it rests on moves


INITIAL_STDS = {  # a normal cut at two sigma has 0.88 of its deviation
    "mopo": 0.88 / (2 * np.sqrt(STATE + ACTION)),
    "cbop": 1 / np.sqrt(3 * (STATE + ACTION)),
}


@pytest.mark.parametrize("preset", INITIAL_STDS)
def test_initial_weights_have_the_deviations_of_their_sources(preset):
    chosen = config(preset, hidden_layers=(2_000, 8))
    params = gaussian_ensemble.density(chosen, STATE, ACTION).init(jax.random.key(0))
    layer = next(iter(params.values()))["layer_0"]
    np.testing.assert_allclose(np.std(layer["kernel"]), INITIAL_STDS[preset], rtol=0.03)
    np.testing.assert_allclose(layer["bias"], 0.1 if preset == "cbop" else 0.0)


def test_a_reward_with_its_own_network_shares_nothing_with_the_state():
    density, params, shared = one_member(config("cbop"))
    assert set(params) == {"state", "reward"}
    x = jnp.ones(STATE + ACTION)
    y = jnp.ones(D)

    def log_prob(params):
        entries = density.log_prob(params, shared, x, y)
        return {"reward": entries[-1], "state": jnp.sum(entries[:-1])}

    gradients = jax.jit(jax.jacrev(log_prob))(params)
    crossed = (gradients["reward"]["state"], gradients["state"]["reward"])
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(crossed))
    own = (gradients["reward"]["reward"], gradients["state"]["state"])
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(own))


@pytest.mark.parametrize("preset", gaussian_ensemble.PRESETS)
def test_samples_have_the_moments_of_the_density(preset):
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
    network = params.network
    density = gaussian_ensemble.density(chosen, STATE, ACTION)
    penalty = density.penalty(network["members"], network["shared"])
    # Raw targets: their own units.
    log_prob = jax.jit(jax.vmap(jax.vmap(lambda *row: model.log_prob(params, *row))))
    rows = (batch.observation, batch.action, batch.next_observation, batch.reward)
    nll = -log_prob(*rows)  # [E, B, E, D]
    own = sum(np.mean(2 * nll[e, :, e]) - np.log(2 * np.pi) for e in range(2))
    np.testing.assert_allclose(metrics["loss/penalty"], penalty, rtol=1e-5)
    np.testing.assert_allclose(total, own + penalty, rtol=1e-4)


@pytest.mark.parametrize("preset", ["mopo", "cbop"])
def test_targets_are_raw_or_standardized_as_the_preset_says(preset):
    model = jitted(gaussian_ensemble.make(config(preset), spec()))
    params = model.init(jax.random.key(0), statistics())
    # Mean 0 and raw log variance 0.
    members = jax.tree.map(jnp.zeros_like, params.network["members"])
    params = with_part(params, "members", members)
    row = transition()
    scales = params.statistics
    _, prediction = model.step(params, row.observation, row.action, jax.random.key(0))
    std = np.exp(0.5 * float(soft_bounds(jnp.zeros(()), -10.0, 0.5)))
    scale = np.ones(D)
    shift = np.zeros(D)
    if preset == "cbop":
        scale = np.append(scales.delta_std, scales.reward_std)
        shift = np.append(scales.delta_mean, scales.reward_mean)
    np.testing.assert_allclose(prediction.members.std[0], scale * std, rtol=1e-5)
    expected = np.append(row.observation, 0.0) + shift
    np.testing.assert_allclose(prediction.members.mean[0], expected, rtol=1e-4, atol=1e-5)


@functools.cache
def fitted():
    """A stage's fit: (learner, state, context)."""
    dataset, training_statistics, _ = linear()
    chosen = config(hidden_layers=(32,), decay=(1e-5, 1e-5), num_members=3)
    settings = dataclasses.replace(
        chosen.fit, learning_rate=5e-3, refresh_every=100, num_elites=2, patience=0
    )
    stage = gaussian_ensemble.stage(dataclasses.replace(chosen, fit=settings), spec())
    context = Context(statistics=training_statistics)
    result = fit.fit(
        stage.learner,
        dataset,
        key=jax.random.key(0),
        num_updates=1_001,
        context=context,
        block_updates=500,
    )
    return stage.learner, result.state.learner, context


def test_held_out_errors_end_near_the_variance_of_the_noise_and_the_best_are_the_elites():
    learner, state, context = fitted()
    optimum = np.mean(np.square(NOISE))
    assert np.all(state.best_score < 1.15 * optimum)
    assert np.all(state.best_score > 0.8 * optimum)
    elites = learner.policy_params(state, context).elites
    np.testing.assert_array_equal(elites, np.argsort(state.best_score)[:2])


def test_learned_bounds_move_and_are_no_part_of_a_snapshot():
    learner, state, context = fitted()
    shared = state.params["shared"]
    assert np.all(shared["highest"] < 0.5)
    assert np.all(shared["lowest"] > -10.0)
    params = learner.policy_params(state, context)
    jax.tree.map(np.testing.assert_array_equal, params.network["shared"], shared)
    assert set(state.best) == {"members"}


def test_a_stage_splits_and_stops_as_the_preset_says():
    dataset = linear()[0]
    whole = dataset._replace(starts=np.concatenate([dataset.starts, dataset.held_out]), held_out=())
    stage = gaussian_ensemble.stage(config(), spec())
    assert len(stage.prepare(whole).held_out) == 1_000
    assert len(stage.hooks) == 1
    assert stage.num_updates == gaussian_ensemble.FIT.num_updates
    assert gaussian_ensemble.stage(config("unifloral"), spec()).hooks == ()


# --- options ---


FOUR = (200,) * 4
DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
PUBLISHED = {
    # members, hidden layers, activation, initial weights, initial biases, decay of each layer,
    # targets, what is kept
    "mopo": (7, FOUR, "swish", "half_normal", 0.0, DECAY, "raw", "best"),
    "offlinerl_kit": (7, FOUR, "swish", "half_normal", 0.0, DECAY, "raw", "best"),
    "mbrl_lib": (7, FOUR, "swish", "half_normal", 0.0, (), "raw", "best"),
    "cbop": (30, FOUR, "relu", "uniform", 0.1, (), "standardized", "best"),
    "unifloral": (7, FOUR, "relu", "lecun", 0.0, (), "raw", "last"),
    "morel": (4, (512, 512), "relu", "uniform", 0.0, (), "standardized", "last"),
}
PUBLISHED_FITS = {
    # batch, resamples, elites, held out at most, patience, decay by the optimizer and whether it is
    # AdamW's
    "mopo": (256, True, 5, 1_000, 6, 0.0, True),
    "offlinerl_kit": (256, True, 5, 1_000, 5, 0.0, True),
    "mbrl_lib": (256, True, 5, 0, 5, 1e-5, False),
    "cbop": (1_024, False, 20, 10_000, 5, 0.0, True),
    "unifloral": (256, False, 5, 0, 0, 2.5e-5, True),
    "morel": (256, False, 0, 1_000, 0, 0.0, True),
}


def fields(record, *names):
    return tuple(getattr(record, name) for name in names)


ENSEMBLE_FIELDS = (
    "num_members",
    "hidden_layers",
    "activation",
    "init",
    "bias",
    "decay",
    "targets",
    "keep",
)
FIT_FIELDS = (
    "batch_size",
    "bootstrap",
    "num_elites",
    "max_held_out",
    "patience",
    "weight_decay",
    "decoupled",
)


@pytest.mark.parametrize("preset", gaussian_ensemble.PRESETS)
def test_presets_are_the_published_ensembles(preset):
    chosen = gaussian_ensemble.Config(**gaussian_ensemble.PRESETS[preset])
    assert fields(chosen, *ENSEMBLE_FIELDS) == PUBLISHED[preset]
    assert fields(chosen.fit, *FIT_FIELDS) == PUBLISHED_FITS[preset]
    rates = fields(chosen.fit, "learning_rate", "final_learning_rate", "max_grad_norm")
    assert rates == (1e-3, 1.0, 0.0)
    assert chosen.fit.held_out_fraction == 0.2
    assert chosen.fit.patience_unit == "epochs"
    assert chosen.fit.eps == (1e-5 if preset == "unifloral" else 1e-8)
    has_fixed_bounds = not chosen.learned_bounds or chosen.deterministic
    assert has_fixed_bounds == (preset in ("mbrl_lib", "morel"))
    assert chosen.separate_reward == (preset in ("cbop", "morel"))
    assert fields(chosen, "lowest_log_variance", "highest_log_variance") == (-10.0, 0.5)
    assert chosen.bounds_coef == 0.01


def test_a_deterministic_member_is_trained_on_the_squared_error():
    density, params, shared = one_member(config("morel"))
    x = jnp.arange(STATE + ACTION) / 3.0
    y = jnp.arange(D) / 2.0
    weight = jnp.arange(D, dtype=float)
    loss = jax.jit(density.loss)(params, shared, x, y, weight, jax.random.key(0))
    error = np.square(np.asarray(density.mode(params, shared, x)) - y)
    np.testing.assert_allclose(loss, np.mean(weight * error), rtol=1e-5)
    assert shared == {}
    assert density.penalty(params, shared) == 0


@pytest.mark.parametrize("keep", ["best", "last"])
def test_members_are_handed_on_as_they_were_at_their_best_or_last_evaluation(keep):
    dataset, training_statistics, _ = linear()
    context = Context(statistics=training_statistics)
    chosen = config(keep=keep)
    learner = gaussian_ensemble.learner(chosen, gaussian_ensemble.make(chosen, spec()))
    state = jax.jit(lambda key: learner.init(key, (), context))(jax.random.key(0))
    refresh = jax.jit(learner.refresh)
    handed_on = []
    for shift in (0.0, 50.0):  # the second is worse
        members = jax.tree.map(lambda leaf, shift=shift: leaf + shift, state.params["members"])
        params = state.params | {"members": members}
        moved = state._replace(params=params, count=jnp.asarray(1))
        state, _, _ = refresh(moved, context, dataset, (), jnp.asarray(1), jax.random.key(0))
        network = learner.policy_params(state, context).network
        handed_on.append(network["members"]["all"]["layer_0"]["bias"])
    assert np.any(handed_on[0] != handed_on[1]) == (keep == "last")
    np.testing.assert_array_equal(state.stale, 0 if keep == "last" else 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"activation": "tanh"},
        {"targets": "delta"},
        {"init": "zeros"},
        {"decay": (1.0,)},
        {"keep": "first"},
        {"lowest_log_variance": 1.0},
        {"hidden_layers": ()},
        {"num_members": 0},
    ],
)
def test_options_that_do_not_fit_are_refused(wrong):
    with pytest.raises(UsageError, match="gaussian_ensemble"):
        gaussian_ensemble.make(config(**wrong), spec())
