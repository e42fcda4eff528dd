"""The coupled density against the Gaussian that it is: conditionals, samples, a fit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from autoregressive_examples import jitted, plain_sample, random_params
from explicit_examples import spec, statistics, transition, with_part

from offline_mbrl.models import coupled, feedforward, kinds
from offline_mbrl.models.coupled import CoupledConfig
from offline_mbrl.models.densities.conditionals import ConditionalConfig
from offline_mbrl.models.densities.density import gaussian_log_prob
from offline_mbrl.types import UsageError

STATE, ACTION = 3, 2
X, D = STATE + ACTION, STATE + 1
# Bounds so far away that raw log deviations are log deviations.
UNBOUNDED = ConditionalConfig(log_std_min=-20.0, log_std_max=20.0)
CONFIG = CoupledConfig(hidden_layers=(8,), reward_layers=(8,), conditional=UNBOUNDED)
ORDER = (2, 0, 1)
KEY = jax.random.key(0)
x = jax.random.normal(jax.random.key(1), (X,))
ys = jax.random.normal(jax.random.key(2), (20, D))


@functools.cache
def small(**settings):
    return jitted(coupled.make(dataclasses.replace(CONFIG, **settings), STATE, ACTION))


def without_reward_network(params):
    """The same where the reward is coupled to the state linearly, so that all is one Gaussian."""
    return params | {"last": jax.tree.map(jnp.zeros_like, params["last"])}


# --- one Gaussian ---

MEAN = np.array([0.5, -1.0, 2.0, 0.3])
LOG_STD = np.array([-0.5, 0.2, -1.0, 0.1])
COUPLING = np.array([[0, 0, 0, 0], [0.7, 0, 0, 0], [-0.4, 1.2, 0, 0], [0.3, -0.9, 0.5, 0]])


def chosen_params():
    """Parameters that say MEAN, LOG_STD and COUPLING, times 1 + x_0."""
    packed = np.concatenate([MEAN, LOG_STD, COUPLING[np.tril_indices(D, -1)]])
    zero = without_reward_network(jax.tree.map(jnp.zeros_like, small().init(KEY)))
    zero["trunk"]["layer_1"]["bias"] = jnp.asarray(packed, jnp.float32)
    zero["skip"]["kernel"] = zero["skip"]["kernel"].at[0].set(packed)
    return zero


@pytest.mark.parametrize("first", [0.0, 0.6, -1.5])
def test_it_is_the_gaussian_of_covariance_l_s_l_at_every_input(first):
    factor = np.linalg.inv(np.eye(D) - (1 + first) * COUPLING)
    np.testing.assert_allclose(np.triu(factor), np.eye(D), atol=1e-12)  # unit lower triangular
    covariance = factor @ np.diag(np.exp(2 * (1 + first) * LOG_STD)) @ factor.T
    expected = scipy.stats.multivariate_normal((1 + first) * MEAN, covariance).logpdf(ys)
    log_prob = jax.vmap(small().log_prob, (None, None, None, 0))
    actual = jnp.sum(log_prob(chosen_params(), {}, x.at[0].set(first), ys), axis=1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("order", [(), ORDER])
def test_conditionals_are_those_of_the_joint_covariance(order):
    """`mean_i = mu_i + S_ib S_bb^-1 (y_b - mu_b)` with the covariance S and the entries b before
    i, and the variance that they leave.
    """
    density = small(order=order)
    params = without_reward_network(random_params(density))
    mean = np.asarray(density.mode(params, {}, x), np.float64)
    jacobian = jax.jacfwd(lambda y: density.moments(params, {}, x, y)[0])(ys[0])
    std = np.asarray(density.moments(params, {}, x, ys[0])[1])
    factor = np.linalg.inv(np.eye(D) - np.asarray(jacobian, np.float64))
    covariance = factor @ np.diag(std.astype(np.float64) ** 2) @ factor.T
    turns = [*(order or range(STATE)), STATE]
    for y in ys[:3]:
        means, stds = density.moments(params, {}, x, y)
        for i, at in enumerate(turns):
            before = turns[:i]
            weights = np.linalg.solve(covariance[np.ix_(before, before)], covariance[before, at])
            given = mean[at] + weights @ (np.asarray(y)[before] - mean[before])
            left = covariance[at, at] - weights @ covariance[before, at]
            np.testing.assert_allclose([means[at], stds[at] ** 2], [given, left], rtol=1e-3)


def test_samples_have_the_mean_and_the_covariance():
    density, params = small(), chosen_params()
    keys = jax.random.split(KEY, 100_000)
    drawn = jax.jit(jax.vmap(lambda key: density.sample(params, {}, jnp.zeros(X), key)))(keys)
    factor = np.linalg.inv(np.eye(D) - COUPLING)
    covariance = factor @ np.diag(np.exp(2 * LOG_STD)) @ factor.T
    np.testing.assert_allclose(np.mean(drawn, axis=0), MEAN, atol=0.02)
    np.testing.assert_allclose(np.cov(np.asarray(drawn).T), covariance, atol=0.05)
    assert np.max(np.abs(covariance - np.diag(np.diag(covariance)))) > 1


# --- with the reward's own network ---


@pytest.mark.parametrize("order", [(), ORDER])
def test_the_density_is_the_product_of_its_conditionals_and_the_loss_their_mean(order):
    density = small(order=order)
    params, y = random_params(density), ys[0]
    turns = np.array([*(order or range(STATE)), STATE])
    log_prob = density.log_prob(params, {}, x, y)
    mean, std = density.moments(params, {}, x, y)
    np.testing.assert_allclose(log_prob, gaussian_log_prob(y, mean, jnp.log(std)), rtol=1e-5)
    loss = density.loss(params, {}, x, y, jnp.ones(D), KEY)
    np.testing.assert_allclose(loss, -np.mean(log_prob), rtol=1e-5)
    jacobians = jax.jacfwd(density.moments, argnums=3)(params, {}, x, y)
    means, stds = (np.asarray(jacobian)[np.ix_(turns, turns)] for jacobian in jacobians)
    assert np.all(np.triu(means) == 0)
    assert np.all(means[np.tril_indices(D, -1)] != 0)
    assert np.all(stds[:-1] == 0)  # only the reward's deviation knows what happened
    assert np.all(stds[-1, :-1] != 0)


def test_it_integrates_to_one():
    wide = ConditionalConfig(log_std_min=-1.5, log_std_max=0.5)
    density = coupled.make(dataclasses.replace(CONFIG, conditional=wide), 1, 0)
    params = random_params(density)
    grid = np.linspace(-15, 15, 401, dtype=np.float32)
    points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    rows = jax.vmap(lambda y: jnp.sum(density.log_prob(params, {}, jnp.ones(1), y)))
    total = np.sum(np.exp(jax.jit(rows)(points))) * (grid[1] - grid[0]) ** 2
    np.testing.assert_allclose(total, 1, atol=2e-3)


@pytest.mark.parametrize("order", [(), ORDER])
def test_sampling_equals_one_whole_evaluation_per_entry(order):
    density = small(order=order)
    params = random_params(density)
    turns = [*(order or range(STATE)), STATE]
    noise = jax.random.normal(KEY, (D,))
    for actual, drawn in (
        (density.sample(params, {}, x, KEY), noise),
        (density.mode(params, {}, x), 0 * noise),
    ):
        expected = plain_sample(density, params, x, drawn, turns)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


# --- at first ---


def test_at_first_it_is_the_feedforward_density_of_the_same_weights():
    density = small()
    params = density.init(KEY)
    like = feedforward.make(feedforward.Config((8,), UNBOUNDED), STATE, ACTION)
    interleaved = np.arange(2 * D).reshape(2, D).T.ravel()  # its means and deviations alternate
    last = jax.tree.map(lambda leaf: leaf[..., interleaved], params["trunk"]["layer_1"])
    plain = params["trunk"] | {"layer_1": last}
    for y in ys[:3]:
        expected = like.log_prob(plain, {}, x, y)
        np.testing.assert_allclose(density.log_prob(params, {}, x, y), expected, rtol=1e-5)
    jacobian = np.asarray(jax.jacfwd(density.log_prob, argnums=3)(params, {}, x, ys[0]))
    assert np.all(jacobian[~np.eye(D, dtype=bool)] == 0)
    assert np.all(np.diag(jacobian) != 0)


def test_everything_that_is_zero_at_first_is_trained():
    density = small()
    params = density.init(KEY)
    gradient = jax.grad(density.loss)(params, {}, x, ys[0], jnp.ones(D), KEY)
    assert np.all(np.asarray(gradient["trunk"]["layer_1"]["kernel"]) != 0)
    assert np.all(np.asarray(gradient["skip"]["kernel"]) != 0)
    assert np.all(np.asarray(gradient["last"]["layer_1"]["kernel"]) != 0)


# --- a fit against entropies ---

SIX = 6
SQUARE = 0.5  # how the reward bends with the first entry
REWARD_STD = 0.1
LEARNERS = {
    "coupled": coupled.make(CoupledConfig((16,), (32,)), SIX, 1),
    "feedforward": feedforward.make(feedforward.Config((16,)), SIX, 1),
}


@functools.cache
def system():
    """(matrix of x, covariance of the change's noise, the reward's weights)."""
    rng = np.random.default_rng(0)
    factor = np.tril(rng.normal(size=(SIX, SIX)), -1) + np.diag(rng.uniform(0.3, 0.7, SIX))
    covariance = factor @ factor.T
    scale = np.sqrt(np.diag(covariance))
    matrix = 0.5 * rng.normal(size=(SIX, SIX + 1))
    return matrix, covariance / np.outer(scale, scale), rng.normal(size=SIX) / 2


def rows(key, num):
    """x, and y: a change `A x + e` with correlated e, a reward that squares the first of it."""
    matrix, covariance, weights = system()
    key_x, key_change, key_reward = jax.random.split(key, 3)
    inputs = jax.random.normal(key_x, (num, SIX + 1))
    factor = jnp.asarray(np.linalg.cholesky(covariance), jnp.float32)
    noise = jax.random.normal(key_change, (num, SIX)) @ factor.T
    change = inputs @ jnp.asarray(matrix.T, jnp.float32) + noise
    mean = change @ jnp.asarray(weights, jnp.float32) + SQUARE * noise[:, 0] ** 2
    reward = mean + REWARD_STD * jax.random.normal(key_reward, (num,))
    return inputs, jnp.concatenate([change, reward[:, None]], axis=1)


@functools.cache
def learned(name, num_updates=1_000, batch_size=128):
    """The density, and its negative log-likelihoods `[D]` of new rows after a short fit."""
    density = LEARNERS[name]
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, num_updates))
    losses = jax.vmap(density.loss, (None, None, 0, 0, None, None))

    def update(state, key):
        inputs, y = rows(key, batch_size)

        def loss(params):
            return jnp.mean(losses(params, {}, inputs, y, jnp.ones(SIX + 1), key))

        updates, opt_state = optimizer.update(jax.grad(loss)(state[0]), state[1])
        return (optax.apply_updates(state[0], updates), opt_state), None

    def run(key):
        params = density.init(key)
        keys = jax.random.split(key, num_updates)
        (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), keys)
        log_probs = jax.vmap(density.log_prob, (None, None, 0, 0))
        return params, -jnp.mean(log_probs(params, {}, *rows(jax.random.key(1), 50_000)), axis=0)

    params, nll = jax.jit(run)(KEY)
    return density, params, np.asarray(nll)


def entropy(covariance):
    """Of a Gaussian, nats per entry."""
    return np.linalg.slogdet(2 * np.pi * np.e * covariance)[1] / (2 * len(covariance))


def test_it_reaches_the_entropy_of_correlated_noise_which_independent_entries_cannot():
    covariance = system()[1]
    floor = entropy(covariance)
    independent = entropy(np.diag(np.diag(covariance)))
    np.testing.assert_allclose(independent, 0.5 * np.log(2 * np.pi * np.e), rtol=1e-9)
    assert floor < independent - 0.5
    coupled_nll, feedforward_nll = (learned(name)[-1][:-1].mean() for name in LEARNERS)
    np.testing.assert_allclose(coupled_nll, floor, atol=0.02)
    np.testing.assert_allclose(feedforward_nll, independent, atol=0.02)


def test_a_reward_that_bends_with_the_next_state_comes_near_its_own_noise():
    """Of the square of a normal, a line explains nothing: without the reward's network the error's
    variance would be `2 SQUARE^2 + REWARD_STD^2`.
    """
    floor = entropy(np.diag([REWARD_STD**2]))
    line = entropy(np.diag([2 * SQUARE**2 + REWARD_STD**2]))
    assert learned("coupled")[-1][-1] < floor + 0.1 * (line - floor)


def test_the_covariance_that_was_fitted_is_the_systems():
    density, params, _ = learned("coupled")
    covariance = system()[1]
    keys = jax.random.split(KEY, 50_000)
    inputs = jnp.full(SIX + 1, 0.3)
    drawn = jax.jit(jax.vmap(lambda key: density.sample(params, {}, inputs, key)))(keys)
    np.testing.assert_allclose(np.cov(np.asarray(drawn)[:, :-1].T), covariance, atol=0.1)


# --- members ---


def test_members_that_agree_have_no_spread_and_a_shift_of_one_moves_what_follows_it():
    """Means are conditional on the outcome: a member whose first mean lies `d` higher takes the
    same outcome for `d` lower, and expects `c d` less of an entry that is coupled by c.
    """
    config = dataclasses.replace(CONFIG, num_members=2)
    model = kinds.make(config, spec(STATE, ACTION))
    params = model.init(KEY, statistics(state_size=STATE, action_size=ACTION))
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), chosen_params())
    shift = 0.25
    apart = jax.tree.map(jnp.copy, both)
    apart["trunk"]["layer_1"]["bias"] = both["trunk"]["layer_1"]["bias"].at[1, 0].add(shift)
    row = transition(state_size=STATE, action_size=ACTION)
    observation = params.statistics.observation_mean  # x = 0
    step = jax.jit(model.step)
    spreads = []
    for members in (both, apart):
        own = with_part(params, "members", members)
        action = params.statistics.action_mean + 0 * row.action
        means = np.asarray(step(own, observation, action, KEY)[1].members.mean)
        spreads.append(means[1] - means[0])
    scale = np.append(params.statistics.delta_std, params.statistics.reward_std)
    np.testing.assert_array_equal(spreads[0], 0.0)
    expected = shift * scale * (np.eye(D)[0] - COUPLING[:, 0])
    np.testing.assert_allclose(spreads[1], expected, rtol=1e-3, atol=1e-4)


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_layers": ()}, "coupled: hidden_layers must be one or more sizes"),
        ({"reward_layers": (0,)}, "coupled: reward_layers must be"),
        ({"order": (0, 1)}, "each of 0 .. 2 once"),
        ({"conditional": ConditionalConfig(num_components=3)}, "num_components is 3"),
        ({"conditional": ConditionalConfig(log_std_min=(0.0, 0.0))}, "2 values"),
    ],
)
def test_settings_that_make_no_density_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        small(**settings)
