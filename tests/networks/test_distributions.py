"""distrax with and without TensorFlow, what replaces it, and densities of continuous actions."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import running
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


# --- without distrax ---

REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise {error}
sys.meta_path.insert(0, Refuse())
"""
FALLBACK = """
from offline_mbrl.networks import distributions
assert isinstance(distributions.categorical([0.0, 1.0]), distributions.Categorical)
assert "distrax" not in sys.modules
"""
TRAIN = """
from offline_mbrl import cli
assert cli.main(sys.argv[1:]) == 0
assert not {"distrax", "tensorflow_probability"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("package", "error"),
    [
        ("distrax", "ModuleNotFoundError('distrax')"),
        ("tensorflow_probability", "AttributeError('jax has no attribute such as this')"),
    ],
)
def test_a_distrax_that_does_not_load_is_replaced(package, error):
    program = REFUSE.format(package=package, error=error) + FALLBACK
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


@pytest.mark.parametrize(("algorithm", "dataset"), [("bc", running.DATASET), ("sac", "own.hdf5")])
def test_training_and_evaluating_do_without_distrax(place, algorithm, dataset):
    if dataset == "own.hdf5":
        running.write_hdf5(dataset, actions=running.continuous())
    refuse = REFUSE.format(package="distrax", error="ModuleNotFoundError('distrax')")
    arguments = ["train", algorithm, "--dataset", dataset, *running.TINY, "--run-dir", "run"]
    if dataset == "own.hdf5":
        arguments += ["--episodes", "0"]  # no simulator belongs to it
    subprocess.run([sys.executable, "-c", refuse + TRAIN, *arguments], check=True)
    with open("run/evaluation.json") as file:
        assert ("evaluation" in json.load(file)) == (algorithm == "bc")


@pytest.fixture(scope="module")
def distrax():
    return distributions._distrax()  # without TensorFlow


LOGITS = jnp.array([0.5, -2.0, 3.0, 0.0])


def test_the_replacement_of_a_categorical_is_distraxs_to_rounding(distrax):
    ours = distributions.Categorical(logits=LOGITS)
    theirs = distrax.Categorical(logits=LOGITS)
    keys = jax.random.split(jax.random.key(0), 500)
    actions = jax.vmap(lambda key: ours.sample(seed=key))(keys)
    expected = jax.vmap(lambda key: theirs.sample(seed=key))(keys)
    np.testing.assert_array_equal(actions, expected)
    assert actions.dtype == expected.dtype
    again, log_prob = jax.vmap(lambda key: ours.sample_and_log_prob(seed=key))(keys)
    np.testing.assert_array_equal(again, actions)
    np.testing.assert_allclose(log_prob, jax.vmap(theirs.log_prob)(actions), rtol=1e-6)
    assert ours.mode() == theirs.mode()
    assert ours.mode().dtype == theirs.mode().dtype


def test_the_replacement_of_a_categorical_has_distraxs_gradient(distrax):
    def loss(logits, make):
        return make(logits=logits).log_prob(jnp.int32(1))

    ours = jax.grad(loss)(LOGITS, distributions.Categorical)
    np.testing.assert_allclose(ours, jax.grad(loss)(LOGITS, distrax.Categorical), atol=1e-7)


# --- policies ---


def test_a_policy_of_a_distribution_samples_its_probabilities_and_takes_its_mode():
    def distribution(params, observation):
        return distributions.categorical(params * observation)

    policy = distributions.as_policy(distribution)
    params = jnp.array([0.0, 1.0, 2.0])
    observation = jnp.float32(1.0)
    expected = jax.nn.softmax(params)
    keys = jax.random.split(jax.random.key(0), 20_000)
    samples = jax.vmap(lambda key: policy.sample(params, observation, key))(keys)
    np.testing.assert_allclose(np.bincount(samples, minlength=3) / 20_000, expected, atol=0.015)
    assert int(policy.mode(params, observation)) == 2
    np.testing.assert_allclose(
        policy.log_prob(params, observation, jnp.int32(1)), jnp.log(expected[1]), rtol=1e-5
    )


# --- tanh-squashed normals ---

SQUASHED = distributions.SquashedNormal(jnp.array([0.3, -1.0, 2.5]), jnp.array([-1.0, 0.5, -4.0]))


def test_the_density_of_a_squashed_sample_is_that_of_the_normal_over_the_slope_of_tanh():
    action, log_prob = jax.jit(lambda key: SQUASHED.sample_and_log_prob(seed=key))(
        jax.random.key(0)
    )
    np.testing.assert_allclose(action, SQUASHED.sample(seed=jax.random.key(0)), rtol=1e-6)
    exact = np.asarray(action, np.float64)
    normal = stats.norm.logpdf(np.arctanh(exact), SQUASHED.mean, np.exp(SQUASHED.log_std))
    expected = np.sum(normal - np.log1p(-np.square(exact)))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
    np.testing.assert_allclose(SQUASHED.log_prob(action), expected, rtol=1e-4)


def test_a_sample_of_a_squashed_normal_and_its_density_at_a_given_noise(monkeypatch):
    squashed = distributions.SquashedNormal(jnp.array([0.3]), jnp.log(jnp.array([0.5])))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.full(shape, -0.7))
    action, log_prob = squashed.sample_and_log_prob(seed=jax.random.key(0))
    np.testing.assert_allclose(action, [-0.0499584], rtol=1e-5)
    np.testing.assert_allclose(log_prob, -0.468292, rtol=1e-5)
    np.testing.assert_allclose(squashed.log_prob(action), -0.468292, rtol=1e-5)


def test_a_squashed_density_integrates_to_one_and_its_samples_follow_it():
    squashed = distributions.SquashedNormal(jnp.array([0.4]), jnp.array([-0.3]))
    edges = jnp.linspace(-1.0, 1.0, 4_001)
    middles = 0.5 * (edges[1:] + edges[:-1])
    mass = jnp.exp(jax.jit(jax.vmap(squashed.log_prob))(middles[:, None])) * jnp.diff(edges)
    np.testing.assert_allclose(jnp.sum(mass), 1.0, atol=1e-4)
    samples = jax.jit(jax.vmap(lambda key: squashed.sample(seed=key)[0]))(
        jax.random.split(jax.random.key(0), 4_000)
    )
    cumulative = np.append(0.0, np.cumsum(mass))
    assert stats.kstest(samples, lambda x: np.interp(x, edges, cumulative)).pvalue > 0.01


def test_squashed_densities_and_gradients_are_finite_at_the_bounds_and_constant_next_to_them():
    def log_prob(mean, log_std, action):
        return distributions.SquashedNormal(mean, log_std).log_prob(action)

    value, gradient = jax.jit(jax.value_and_grad(log_prob, (0, 1)))(
        SQUASHED.mean, SQUASHED.log_std, jnp.ones(3)
    )
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient)
    edge, inside = (SQUASHED.log_prob(jnp.full(3, 1.0 - k * distributions.EDGE)) for k in (1, 2))
    np.testing.assert_allclose(value, edge, rtol=1e-6)
    assert abs(float(value - inside)) > 1.0


def test_the_density_of_a_sample_next_to_a_bound_is_still_exact():
    far = distributions.SquashedNormal(jnp.array([12.0]), jnp.array([-5.0]))
    key = jax.random.key(0)
    action, log_prob = far.sample_and_log_prob(seed=key)
    assert action[0] > 1.0 - 1e-6  # where single precision cannot tell u from the action
    u = 12.0 + np.exp(-5.0) * np.asarray(jax.random.normal(key, (1,)), np.float64)
    slope = np.log(4.0) - 2.0 * u  # log(1 - tanh(u)^2) that far out
    np.testing.assert_allclose(
        log_prob, np.sum(stats.norm.logpdf(u, 12.0, np.exp(-5.0)) - slope), rtol=1e-3
    )


def test_the_greedy_squashed_action_is_its_median():
    np.testing.assert_allclose(SQUASHED.mode(), np.tanh(SQUASHED.mean), rtol=1e-6)
    samples = jax.jit(jax.vmap(lambda key: SQUASHED.sample(seed=key)))(
        jax.random.split(jax.random.key(1), 4_000)
    )
    np.testing.assert_allclose(
        np.mean(np.asarray(samples) > np.asarray(SQUASHED.mode()), axis=0), 0.5, atol=0.03
    )


# --- mixtures of normals ---

MIXTURE = distributions.NormalMixture(
    jnp.log(jnp.array([0.7, 0.3])), jnp.array([[-0.4], [0.9]]), jnp.array([[0.1], [0.4]])
)


def test_a_mixtures_density_is_the_weighted_sum_of_its_components():
    x = np.linspace(-2.0, 3.0, 2_001)
    expected = 0.7 * stats.norm.pdf(x, -0.4, 0.1) + 0.3 * stats.norm.pdf(x, 0.9, 0.4)
    density = jnp.exp(jax.jit(jax.vmap(MIXTURE.log_prob))(jnp.asarray(x, jnp.float32)[:, None]))
    np.testing.assert_allclose(density, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.trapezoid(density, x), 1.0, atol=1e-4)


def test_a_mixture_of_one_component_is_a_product_of_normals():
    single = distributions.NormalMixture(
        jnp.array([3.0]), jnp.array([[0.1, -0.2]]), jnp.array([[0.5, 2.0]])
    )
    action = jnp.array([0.3, 0.8])
    expected = np.sum(stats.norm.logpdf(action, [0.1, -0.2], [0.5, 2.0]))
    np.testing.assert_allclose(single.log_prob(action), expected, rtol=1e-5)


def test_actions_of_a_mixture_follow_it_and_stop_at_the_bounds():
    samples = jax.jit(jax.vmap(lambda key: MIXTURE.sample(seed=key)[0]))(
        jax.random.split(jax.random.key(0), 4_000)
    )
    assert float(jnp.max(jnp.abs(samples))) == 1.0
    beyond = 0.3 * stats.norm.sf(1.0, 0.9, 0.4)
    np.testing.assert_allclose(jnp.mean(samples == 1.0), beyond, atol=0.015)
    inside = 0.7 * stats.norm.cdf(0.5, -0.4, 0.1) + 0.3 * stats.norm.cdf(0.5, 0.9, 0.4)
    np.testing.assert_allclose(jnp.mean(samples < 0.5), inside, atol=0.03)
    np.testing.assert_allclose(MIXTURE.mode(), [-0.4], rtol=1e-6)
    assert MIXTURE._replace(mean=2.0 * MIXTURE.mean, logits=MIXTURE.logits[::-1]).mode() == 1.0
