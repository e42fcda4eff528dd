"""The operator that improves a proposal: closed forms, and the operators that it contains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planning_examples import GAMMA, KEY, random_embeddings, random_model

from offline_mbrl.planning import improve, one_step
from offline_mbrl.targets import weights as crr_weights
from offline_mbrl.types import UsageError

PRIOR = jnp.log(jnp.array([0.5, 0.3, 0.2]))
VALUES = jnp.array([1.0, 2.0, 0.0])


def moments(weights, samples):
    mean = improve.average(weights, samples)
    return mean, improve.average(weights, (samples - mean) ** 2)


def test_a_normal_proposal_and_a_linear_value_give_the_shifted_normal():
    """N(mu, sigma^2) and Q = g a: N(mu + sigma^2 g / eta, sigma^2)."""
    mu, sigma, g, eta = 0.4, 0.7, 1.5, 2.0
    samples = mu + sigma * jax.random.normal(KEY, (400_000,))
    mean, variance = moments(improve.weights(g * samples, temperature=eta), samples)
    np.testing.assert_allclose(mean, mu + sigma**2 * g / eta, atol=0.01)
    np.testing.assert_allclose(variance, sigma**2, atol=0.01)


def test_a_proposal_that_is_not_the_prior_is_corrected_by_the_ratio():
    """Samples of N(0, 1) for the prior N(0.5, 0.8^2): the same limit as its own samples."""
    samples = jax.random.normal(KEY, (400_000,))
    log_prior = jax.scipy.stats.norm.logpdf(samples, 0.5, 0.8)
    ratio = log_prior - jax.scipy.stats.norm.logpdf(samples)
    mean, variance = moments(improve.weights(samples, temperature=1.0, log_ratio=ratio), samples)
    np.testing.assert_allclose(mean, 0.5 + 0.8**2, atol=0.02)
    np.testing.assert_allclose(variance, 0.8**2, atol=0.02)


@pytest.mark.parametrize(
    ("size", "expected", "repeats"), [(8, 0.768, 40_000), (20, 0.890, 20_000), (100, 0.974, 4_000)]
)
def test_few_samples_stay_behind_the_improved_mean(size, expected, repeats):
    samples = jax.random.normal(KEY, (repeats, size))
    weigh = jax.vmap(functools.partial(improve.weights, temperature=1.0))
    means = jnp.sum(weigh(samples) * samples, axis=1)
    error = float(jnp.std(means)) / repeats**0.5
    np.testing.assert_allclose(jnp.mean(means), expected, atol=4 * error + 0.0005)


@pytest.mark.parametrize(
    ("eta", "expected"),
    [(1.492501, (0.420656, 0.493245, 0.086100)), (1.0, (0.359956, 0.587076, 0.052968))],
)
def test_the_step_of_mpo_is_the_prior_times_the_exponential_of_the_value(eta, expected):
    ours = improve.weights(VALUES, temperature=eta, log_ratio=PRIOR)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    if eta > 1.0:  # the temperature at which the divergence is 0.1
        divergence = jnp.sum(ours * (jnp.log(ours) - PRIOR))
        np.testing.assert_allclose(divergence, 0.1, atol=1e-5)


@pytest.mark.parametrize(
    ("flattened", "expected"),
    [(jnp.zeros(3), (0.666667, 0.2, 0.133333)), (PRIOR / 2, (0.587018, 0.227351, 0.185631))],
)
def test_the_prior_of_sampled_muzero_is_the_ratio_alone(flattened, expected):
    """Samples 0, 0, 1, 2 of the proposal: counts over proposal times policy."""
    samples = jnp.array([0, 0, 1, 2])
    ratio = (PRIOR - jax.nn.log_softmax(flattened))[samples]
    ours = improve.weights(jnp.zeros(4), temperature=1.0, log_ratio=ratio)
    per_action = jnp.zeros(3).at[samples].add(ours)
    np.testing.assert_allclose(per_action, expected, atol=1e-5)


def test_kappa_of_mbop_is_an_inverse_temperature():
    ours = improve.exponential(1 / 0.5)(jnp.array([0.0, 2.0, 4.0]))
    np.testing.assert_allclose(ours, (0.090031, 0.244728, 0.665241), atol=1e-5)
    action = improve.average(ours, jnp.array([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(action, 0.575210, atol=1e-5)


def test_crr_weighs_the_actions_of_a_state_alike_without_the_sum():
    """Its baseline is the same for all of them, so that it cancels."""
    q = jax.random.normal(KEY, (6,))
    theirs = crr_weights.exponential(q - jnp.mean(q), temperature=0.7, maximum=1e9)
    ours = improve.weights(q, temperature=0.7)
    np.testing.assert_allclose(ours, theirs / jnp.sum(theirs), rtol=1e-5)


def test_exact_lookahead_is_a_uniform_proposal_of_all_actions():
    model, params = random_model(3)
    embeddings = random_embeddings(4)

    @jax.jit
    def planned():
        plan = one_step.exact(model, num_actions=3, gamma=GAMMA)(params, embeddings, KEY)
        return plan, jax.vmap(model.predict, (None, 0))(params, embeddings).policy_logits

    plan, logits = planned()
    weigh = jax.vmap(lambda q, prior: improve.weights(q, temperature=1.0, log_ratio=prior))
    np.testing.assert_allclose(weigh(plan.qvalues, logits), plan.weights, rtol=1e-5)


# --- properties ---


def test_order_and_a_constant_do_not_matter_and_the_weights_sum_to_one():
    values = jax.random.normal(KEY, (9,))
    weigh = functools.partial(improve.weights, temperature=0.3)
    np.testing.assert_allclose(weigh(values[::-1]), weigh(values)[::-1], rtol=1e-5)
    np.testing.assert_allclose(weigh(values + 50.0), weigh(values), rtol=1e-4)
    np.testing.assert_allclose(jnp.sum(weigh(1e30 * values)), 1.0, rtol=1e-5)


def test_temperatures_go_from_the_best_action_to_the_proposal():
    np.testing.assert_allclose(improve.exponential(1e-3)(VALUES), (0.0, 1.0, 0.0), atol=1e-6)
    np.testing.assert_allclose(improve.exponential(1e6)(VALUES), jnp.full(3, 1 / 3), rtol=1e-4)


@pytest.mark.parametrize(
    "weigh",
    [improve.exponential(1.0), improve.relative(improve.exponential(1.0)), improve.best(2)],
    ids=["exponential", "relative", "best"],
)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_value_that_is_not_finite_weighs_nothing(weigh, bad):
    """Among negative values too, where a replacement by zero would win."""
    values = jnp.array([-5.0, bad, -3.0, -4.0])
    np.testing.assert_allclose(
        weigh(values)[jnp.array([0, 2, 3])], weigh(values[jnp.array([0, 2, 3])]), rtol=1e-6
    )
    assert float(weigh(values)[1]) == 0.0
    none = weigh(jnp.full(4, bad))
    np.testing.assert_allclose(jnp.sum(none), 1.0, rtol=1e-6)


def test_relative_weights_know_no_unit():
    weigh = improve.relative(improve.exponential(1.0))
    values = jax.random.normal(KEY, (20,))
    np.testing.assert_allclose(weigh(1e3 * values + 7.0), weigh(values), rtol=1e-3)
    standardized = improve.standardized(values)
    np.testing.assert_allclose((jnp.mean(standardized), jnp.std(standardized)), (0, 1), atol=1e-5)
    np.testing.assert_allclose(weigh(jnp.full(4, 0.1)), jnp.full(4, 0.25), rtol=1e-5)


def test_the_best_share_their_weight():
    np.testing.assert_allclose(improve.best(2)(jnp.array([1.0, 3.0, 2.0, 0.0])), (0, 0.5, 0.5, 0))


def test_settings_that_make_no_weights_are_refused():
    with pytest.raises(UsageError, match="temperature is 0"):
        improve.exponential(0.0)
    with pytest.raises(UsageError, match="num_best is 0"):
        improve.best(0)
