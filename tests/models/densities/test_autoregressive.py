"""Autoregressive densities: what each conditional sees, training, order, and computation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from autoregressive_examples import (
    DENSITIES,
    MASKED,
    ORDER,
    ORDERS,
    SHARED,
    D,
    X,
    masked,
    matching_width,
    num_parameters,
    plain_sample,
    products,
    random_params,
    shared,
)

from offline_mbrl.models import autoregressive, feedforward
from offline_mbrl.models.densities.density import gaussian_log_prob
from offline_mbrl.networks import torsos
from offline_mbrl.types import UsageError

KEY = jax.random.key(4)
x, y = jax.random.normal(jax.random.key(2), (X,)), jax.random.normal(jax.random.key(3), (D,))
GAUSSIAN = [name for name in DENSITIES if "mixtures" not in name]


@pytest.mark.parametrize("name", DENSITIES)
def test_a_conditional_sees_the_entries_before_it_and_exactly_no_other(name):
    density, order = DENSITIES[name], np.asarray(ORDERS[name])
    jacobians = jax.jit(jax.jacfwd(density.moments, argnums=3))(random_params(density), {}, x, y)
    for jacobian in jacobians:
        in_turn = np.asarray(jacobian)[np.ix_(order, order)]
        assert np.all(np.triu(in_turn) == 0)
        assert np.all(in_turn[np.tril_indices(D, -1)] != 0)


# --- sampling ---


@pytest.mark.parametrize("name", GAUSSIAN)
def test_sampling_equals_one_whole_evaluation_per_entry(name):
    density = DENSITIES[name]
    params = random_params(density, scale=0.3)
    plain = jax.jit(lambda noise: plain_sample(density, params, x, noise, ORDERS[name]))
    noise = jax.random.normal(KEY, (D,))
    np.testing.assert_allclose(
        jax.jit(density.sample)(params, {}, x, KEY), plain(noise), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        jax.jit(density.mode)(params, {}, x), plain(0 * noise), rtol=1e-4, atol=1e-5
    )


def test_drawing_from_a_masked_network_multiplies_no_more_than_one_pass():
    size = autoregressive.MaskedConfig(hidden_size=72)
    density = autoregressive.masked(size, 17, 6)
    params = jax.eval_shape(density.init, KEY)
    state, target = (
        jax.ShapeDtypeStruct((23,), jnp.float32),
        jax.ShapeDtypeStruct((18,), jnp.float32),
    )
    one_pass = products(density.log_prob, params, {}, state, target)
    assert products(density.sample, params, {}, state, KEY) == one_pass
    assert one_pass < 0.75 * (
        72 * (23 + 18) + 2 * 72 * (72 + 23) + 36 * (72 + 23 + 18)
    )  # of whole matrices


# --- training ---


@pytest.mark.parametrize("name", GAUSSIAN)
def test_training_conditions_on_the_data_and_not_on_own_samples(name):
    density, order = DENSITIES[name], ORDERS[name]
    params = random_params(density)
    moments, nll = jax.jit(density.moments), 0.0
    for i, at in enumerate(order):
        later = jnp.array(order[i:])
        mean, std = moments(
            params, {}, x, y.at[later].set(1e3)
        )  # the data's own before, nonsense from here on
        nll -= gaussian_log_prob(y[at], mean[at], jnp.log(std[at])) / D
    losses = jax.vmap(density.loss, (*[None] * 5, 0))(
        params, {}, x, y, jnp.ones(D), jax.random.split(KEY, 3)
    )
    np.testing.assert_allclose(losses, np.full(3, nll), rtol=1e-5)
    np.testing.assert_allclose(-jnp.mean(density.log_prob(params, {}, x, y)), nll, rtol=1e-5)


def test_some_entries_an_example_train_as_all_do_on_average():
    some, full = shared(dims_per_example=2), shared()
    params = random_params(full)
    draws = jax.jit(jax.vmap(some.loss, (*[None] * 5, 0)))(
        params, {}, x, y, jnp.ones(D), jax.random.split(KEY, 4_000)
    )
    error = np.std(draws) / np.sqrt(len(draws))
    assert error > 1e-4
    assert abs(np.mean(draws) - full.loss(params, {}, x, y, jnp.ones(D), KEY)) < 3 * error
    entries = -np.asarray(full.log_prob(params, {}, x, y))
    pairs = [np.mean(entries[[i, (i + 2) % D]]) for i in range(D)]
    assert all(
        np.min(np.abs(draw - pairs)) < 1e-4 for draw in np.unique(draws)
    )  # two of them, never one twice


def test_the_shared_network_is_a_plain_one_on_x_prefix_and_one_hot():
    density = shared()
    params = random_params(density)
    kernel = jnp.concatenate([params[part]["kernel"] for part in ("input", "prefix", "dimension")])
    layers = {
        "layer_0": {"kernel": kernel, "bias": params["input"]["bias"]},
        **{name: params[name] for name in ("layer_1", "layer_2")},
    }
    network = torsos.MLP((*SHARED["hidden_layers"], 2), activation=jax.nn.silu)
    means = [
        torsos.apply(network, layers, jnp.concatenate([x, y.at[i:].set(0.0), jnp.eye(D)[i]]))[0]
        for i in range(D)
    ]
    np.testing.assert_allclose(density.moments(params, {}, x, y)[0], means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [shared, masked])
def test_without_prefix_weights_the_entries_are_independent(make):
    density = make()
    params = random_params(density)
    cut = {
        name: jax.tree.map(lambda leaf, zero=name in ("prefix", "skip"): leaf * (not zero), part)
        for name, part in params.items()
    }
    jacobian = jax.jit(jax.jacfwd(density.log_prob, argnums=3))(cut, {}, x, y)
    assert np.all(np.asarray(jacobian)[~np.eye(D, dtype=bool)] == 0)
    assert np.all(np.diag(jacobian) != 0)
    np.testing.assert_allclose(
        density.mode(cut, {}, x), density.moments(cut, {}, x, y)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shift", [-50.0, 50.0])
@pytest.mark.parametrize("make", [shared, masked])
def test_the_last_layer_is_linear(make, shift):
    density = make()
    params = random_params(density)
    mean = density.moments(params, {}, x, y)[0]
    if make is shared:
        params["layer_2"]["bias"] += jnp.array([shift, 0.0])
    else:
        params["input"]["bias"] = params["input"]["bias"].at[-2 * D :: 2].add(shift)
    np.testing.assert_allclose(
        density.moments(params, {}, x, y)[0] - mean, np.full(D, shift), rtol=1e-4
    )


# --- order ---


@pytest.mark.parametrize("make", [shared, masked])
@pytest.mark.parametrize("reward_first", [False, True])
def test_an_order_changes_nothing_but_the_order(make, reward_first):
    natural, other = make(), make(order=ORDER, reward_first=reward_first)
    params = random_params(natural)
    order = np.array([4, *ORDER] if reward_first else [*ORDER, 4])
    for function in ("log_prob", "moments"):
        given = jax.tree.leaves(getattr(other, function)(params, {}, x, y))
        expected = jax.tree.leaves(getattr(natural, function)(params, {}, x, y[order]))
        for one, another in zip(given, expected, strict=True):
            np.testing.assert_allclose(one[order], another, rtol=1e-5)
    weight = jnp.arange(1.0, D + 1)
    losses = (
        other.loss(params, {}, x, y, weight, KEY),
        natural.loss(params, {}, x, y[order], weight[order], KEY),
    )
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(
        other.sample(params, {}, x, KEY)[order], natural.sample(params, {}, x, KEY), rtol=1e-5
    )
    np.testing.assert_allclose(
        other.mode(params, {}, x)[order], natural.mode(params, {}, x), rtol=1e-5
    )


def test_permuted_data_permuted_weights_and_the_order_that_undoes_it_have_the_same_likelihood():
    """Observation and change are of the same entries.

    So x is permuted as y is, and so are the rows that read it.
    """
    size = 4  # X = 4 + 1
    order = np.array(ORDER)
    config = autoregressive.MaskedConfig(**MASKED)
    natural = autoregressive.masked(config, size, 1)
    renamed = autoregressive.masked(
        autoregressive.MaskedConfig(**MASKED, order=tuple(np.argsort(order))), size, 1
    )
    params, inputs = random_params(natural), jax.random.normal(KEY, (5,))
    rows = np.append(order, 4)
    moved = params | {"input": params["input"] | {"kernel": params["input"]["kernel"][rows]}}
    np.testing.assert_allclose(
        renamed.log_prob(moved, {}, inputs[rows], y[rows]),
        natural.log_prob(params, {}, inputs, y)[rows],
        rtol=1e-4,
        atol=1e-5,
    )


# --- sizes and settings ---


def test_counterparts_have_about_as_many_parameters():
    like = feedforward.make(feedforward.Config(), 17, 6)
    assert num_parameters(like) == 23 * 256 + 2 * 256**2 + 256 * 36 + 3 * 256 + 36
    one = autoregressive.shared(autoregressive.SharedConfig(), 17, 6)
    assert num_parameters(one) == 59 * 256 + 2 * 256**2 + 256 * 2 + 3 * 256 + 2
    makes = [
        lambda width: autoregressive.shared(
            autoregressive.SharedConfig(hidden_layers=(width,) * 3), 17, 6
        ),
        lambda width: autoregressive.masked(autoregressive.MaskedConfig(hidden_size=width), 17, 6),
    ]
    for make, within in zip(makes, (0.005, 0.05), strict=True):
        width = matching_width(make, num_parameters(like))
        wrong = [
            abs(num_parameters(make(width + by)) / num_parameters(like) - 1) for by in (0, -20, 20)
        ]
        assert wrong[0] == min(wrong) < within


def test_masked_weights_that_are_never_read_are_a_tenth_and_start_at_zero():
    density = autoregressive.masked(autoregressive.MaskedConfig(hidden_size=180), 17, 6)
    params = jax.jit(density.init)(KEY)
    unread = sum(
        np.sum(np.asarray(part["kernel"]) == 0)
        for name in ("block_0", "block_1", "output")
        for part in params[name].values()
    )
    assert 0.05 < unread / num_parameters(density) < 0.12


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (shared, {"hidden_layers": ()}, "at least one size"),
        (shared, {"dims_per_example": 6}, "choose 1 to 5"),
        (masked, {"hidden_size": 0}, "at least 1"),
        *itertools.product(
            [shared, masked], [{"order": (0, 1)}, {"order": (0, 1, 2, 2)}], ["each of 0 .. 3 once"]
        ),
    ],
)
def test_settings_that_make_no_density_are_refused(make, settings, message):
    with pytest.raises(UsageError, match=message):
        make(**settings)
