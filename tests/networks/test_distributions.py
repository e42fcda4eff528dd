"""distrax without TensorFlow, policies made of distributions, and densities of continuous actions."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from offline_mbrl.networks import distributions

ALONE = """
import sys
from offline_mbrl.networks import distributions
distributions.categorical([0.0, 1.0])
assert "distrax" in sys.modules
assert "tensorflow" not in sys.modules, "distrax loaded TensorFlow"
import tensorflow_datasets  # what was hidden for a moment can be imported afterwards
import importlib.util
assert importlib.util.find_spec("tensorflow") is not None
"""

BESIDE = """
import sys
import tensorflow
from offline_mbrl.networks import distributions
distributions.categorical([0.0, 1.0])
assert sys.modules["tensorflow"] is tensorflow
import tensorflow as again
assert again is tensorflow and int(again.constant(3)) == 3
"""


def test_distrax_loads_beside_a_tensorflow_that_is_already_there():
    subprocess.run([sys.executable, "-W", "ignore", "-c", BESIDE], check=True)


def test_distrax_does_not_load_tensorflow_and_hides_it_only_for_a_moment():
    subprocess.run([sys.executable, "-W", "ignore", "-c", ALONE], check=True)


def test_a_policy_of_a_distribution_samples_its_probabilities_and_takes_its_mode():
    policy = distributions.as_policy(lambda params, observation: distributions.categorical(params * observation))
    params, observation = jnp.array([0.0, 1.0, 2.0]), jnp.float32(1.0)
    expected = jax.nn.softmax(params)
    samples = jax.vmap(lambda key: policy.sample(params, observation, key))(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(np.bincount(samples, minlength=3) / 20_000, expected, atol=0.015)
    assert int(policy.mode(params, observation)) == 2
    np.testing.assert_allclose(policy.log_prob(params, observation, jnp.int32(1)), jnp.log(expected[1]), rtol=1e-5)


# --- tanh-squashed normals ---

SQUASHED = distributions.squashed_normal(jnp.array([0.3, -1.0, 2.5]), jnp.array([-1.0, 0.5, -4.0]))


def test_the_density_of_a_squashed_sample_is_that_of_the_normal_over_the_slope_of_tanh():
    action, log_prob = jax.jit(lambda key: SQUASHED.sample_and_log_prob(seed=key))(jax.random.key(0))
    np.testing.assert_allclose(action, SQUASHED.sample(seed=jax.random.key(0)), rtol=1e-6)
    exact = np.asarray(action, np.float64)
    normal = stats.norm.logpdf(np.arctanh(exact), SQUASHED.mean, np.exp(SQUASHED.log_std))
    expected = np.sum(normal - np.log1p(-np.square(exact)))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
    np.testing.assert_allclose(SQUASHED.log_prob(action), expected, rtol=1e-4)


def test_a_squashed_density_integrates_to_one_and_its_samples_follow_it():
    one = distributions.squashed_normal(jnp.array([0.4]), jnp.array([-0.3]))
    edges = jnp.linspace(-1.0, 1.0, 4_001)
    middles = 0.5 * (edges[1:] + edges[:-1])
    mass = jnp.exp(jax.jit(jax.vmap(one.log_prob))(middles[:, None])) * jnp.diff(edges)
    np.testing.assert_allclose(jnp.sum(mass), 1.0, atol=1e-4)
    samples = jax.jit(jax.vmap(lambda key: one.sample(seed=key)[0]))(jax.random.split(jax.random.key(0), 4_000))
    cumulative = np.append(0.0, np.cumsum(mass))
    assert stats.kstest(samples, lambda x: np.interp(x, edges, cumulative)).pvalue > 0.01


def test_squashed_densities_and_their_gradients_are_finite_at_the_bounds_and_constant_next_to_them():
    def log_prob(mean, log_std, action):
        return distributions.squashed_normal(mean, log_std).log_prob(action)

    value, gradient = jax.jit(jax.value_and_grad(log_prob, (0, 1)))(SQUASHED.mean, SQUASHED.log_std, jnp.ones(3))
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient)
    edge, inside = (SQUASHED.log_prob(jnp.full(3, 1.0 - k * distributions.EDGE)) for k in (1, 2))
    np.testing.assert_allclose(value, edge, rtol=1e-6)
    assert abs(float(value - inside)) > 1.0


def test_the_density_of_a_sample_next_to_a_bound_is_still_exact():
    far, key = distributions.squashed_normal(jnp.array([12.0]), jnp.array([-5.0])), jax.random.key(0)
    action, log_prob = far.sample_and_log_prob(seed=key)
    assert action[0] > 1.0 - 1e-6  # where single precision cannot tell u from the action
    u = 12.0 + np.exp(-5.0) * np.asarray(jax.random.normal(key, (1,)), np.float64)
    slope = np.log(4.0) - 2.0 * u  # log(1 - tanh(u)^2) that far out
    np.testing.assert_allclose(log_prob, np.sum(stats.norm.logpdf(u, 12.0, np.exp(-5.0)) - slope), rtol=1e-3)


def test_the_greedy_squashed_action_is_its_median():
    np.testing.assert_allclose(SQUASHED.mode(), np.tanh(SQUASHED.mean), rtol=1e-6)
    samples = jax.jit(jax.vmap(lambda key: SQUASHED.sample(seed=key)))(jax.random.split(jax.random.key(1), 4_000))
    np.testing.assert_allclose(np.mean(np.asarray(samples) > np.asarray(SQUASHED.mode()), axis=0), 0.5, atol=0.03)


# --- mixtures of normals ---

MIXTURE = distributions.normal_mixture(
    jnp.log(jnp.array([0.7, 0.3])), jnp.array([[-0.4], [0.9]]), jnp.array([[0.1], [0.4]])
)


def test_a_mixtures_density_is_the_weighted_sum_of_its_components():
    x = np.linspace(-2.0, 3.0, 2_001)
    expected = 0.7 * stats.norm.pdf(x, -0.4, 0.1) + 0.3 * stats.norm.pdf(x, 0.9, 0.4)
    density = jnp.exp(jax.jit(jax.vmap(MIXTURE.log_prob))(jnp.asarray(x, jnp.float32)[:, None]))
    np.testing.assert_allclose(density, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.trapezoid(density, x), 1.0, atol=1e-4)


def test_a_mixture_of_one_component_is_a_product_of_normals():
    one = distributions.normal_mixture(jnp.array([3.0]), jnp.array([[0.1, -0.2]]), jnp.array([[0.5, 2.0]]))
    action = jnp.array([0.3, 0.8])
    expected = np.sum(stats.norm.logpdf(action, [0.1, -0.2], [0.5, 2.0]))
    np.testing.assert_allclose(one.log_prob(action), expected, rtol=1e-5)


def test_actions_of_a_mixture_follow_it_and_stop_at_the_bounds():
    samples = jax.jit(jax.vmap(lambda key: MIXTURE.sample(seed=key)[0]))(jax.random.split(jax.random.key(0), 4_000))
    assert float(jnp.max(jnp.abs(samples))) == 1.0
    beyond = 0.3 * stats.norm.sf(1.0, 0.9, 0.4)
    np.testing.assert_allclose(jnp.mean(samples == 1.0), beyond, atol=0.015)
    inside = lambda x: 0.7 * stats.norm.cdf(x, -0.4, 0.1) + 0.3 * stats.norm.cdf(x, 0.9, 0.4)  # noqa: E731
    np.testing.assert_allclose(jnp.mean(samples < 0.5), inside(0.5), atol=0.03)
    np.testing.assert_allclose(MIXTURE.mode(), [-0.4], rtol=1e-6)
    assert MIXTURE._replace(mean=2.0 * MIXTURE.mean, logits=MIXTURE.logits[::-1]).mode() == 1.0
