"""distrax without TensorFlow, and policies made of distributions."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

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
