"""The fit of a model of windows: what it learns on a linear-Gaussian system, and its average."""

import functools

import gaussian_windows as examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.data import memory, normalize
from offline_mbrl.data.memory import Dataset
from offline_mbrl.models.diffusion import denoisers, fitting, window_models
from offline_mbrl.models.diffusion.window_models import WindowNetwork
from offline_mbrl.models.diffusion.windows import Layout
from offline_mbrl.networks import denoiser, torsos
from offline_mbrl.training.fit import fit
from offline_mbrl.types import Context, UsageError

KEY = jax.random.key(0)
LENGTH = 3
LAYOUT = Layout(observation_size=1, action_size=1)
CONFIG = fitting.Config(num_updates=1_000, batch_size=128, learning_rate=5e-3, average_decay=0.98)


@pytest.fixture(scope="module")
def dataset():
    """200 episodes of the behavior policy."""
    rng = np.random.default_rng(0)
    state, action = examples.simulate(examples.BEHAVIOR, rng, 200)
    is_last = np.tile(np.arange(state.shape[1]) == state.shape[1] - 1, (200, 1))
    return Dataset.from_arrays(
        {
            "observation": np.float32(state).reshape(-1, 1),
            "action": np.float32(np.pad(action, ((0, 0), (0, 1)))).reshape(-1, 1),
            "reward": np.zeros(state.size, np.float32),
            "is_last": is_last.ravel(),
            "is_terminal": np.zeros(state.size, bool),
        }
    )


@pytest.fixture(scope="module")
def context(dataset):
    """Its statistics."""
    return Context(statistics=normalize.full_statistics(dataset))


def model():
    module = denoiser.ResidualMLP(denoiser.MLPConfig(width=32, num_blocks=1))
    example = jnp.zeros((LENGTH, LAYOUT.size)), jnp.zeros(())
    network = WindowNetwork(
        init=lambda key: torsos.init(module, key, *example),
        apply=functools.partial(torsos.apply, module),
    )
    return window_models.make(
        network,
        LAYOUT,
        LENGTH,
        form=denoisers.preconditioned(),
        draw_level=denoisers.log_normal(),
    )


@pytest.fixture(scope="module")
def fitted(dataset, context):
    """The learner and its state after training."""
    learner = fitting.make(model(), CONFIG)
    result = fit(learner, dataset, key=KEY, num_updates=CONFIG.num_updates, context=context)
    return learner, result.state.learner


def least_loss():
    """The loss of the perfect denoiser: the variance of clean points over `c_out^2`."""
    values = np.linalg.eigvalsh(examples.law(examples.BEHAVIOR, LENGTH).covariance)
    noise = np.exp(-1.2 + 1.2 * np.random.default_rng(0).normal(size=100_000))[:, None]
    variance = values[None] * noise**2 / (values[None] + noise**2)
    return np.mean(variance * (1.0 + noise**2) / noise**2)


def test_the_loss_falls_to_that_of_the_perfect_denoiser(fitted, dataset, context):
    learner, state = fitted
    batch = memory.Windows(4_096, LENGTH)(dataset, None, jax.random.key(1))
    losses = [
        float(jax.jit(learner.validate)(state, context, batch, key)["loss/denoising"])
        for key in jax.random.split(KEY, 4)
    ]
    stderr = np.std(losses, ddof=1) / 2.0
    # Networks of a finite size that saw 1000 batches are a little above it, never below it.
    assert -0.01 - 4.0 * stderr < np.mean(losses) / least_loss() - 1.0 < 0.04


def test_parameters_that_are_handed_on_are_the_average(fitted, context):
    learner, state = fitted
    params = learner.policy_params(state, context)
    for leaf, average in zip(
        jax.tree.leaves(params.network), jax.tree.leaves(state.average), strict=True
    ):
        np.testing.assert_array_equal(leaf, average)
    np.testing.assert_allclose(params.scale.std, examples.STD, rtol=0.1)
    assert int(state.count) == CONFIG.num_updates


def test_one_step_moves_the_average_by_its_decay(dataset, context):
    learner = fitting.make(model(), CONFIG)
    batch = learner.sample(dataset, None, KEY)
    before = jax.jit(learner.init)(KEY, batch, context)
    before = before._replace(average=jax.tree.map(lambda leaf: leaf + 1.0, before.average))
    after, metrics = jax.jit(learner.step)(before, context, batch, KEY)
    assert np.isfinite(metrics["loss/denoising"])

    def expected(old, new):
        return 0.98 * old + 0.02 * new

    jax.tree.map(
        lambda average, mixed: np.testing.assert_allclose(average, mixed, atol=1e-6),
        after.average,
        jax.tree.map(expected, before.average, after.params),
    )


def test_settings_out_of_range_are_refused():
    with pytest.raises(UsageError, match="diffusion: average_decay must be at most 1"):
        fitting.make(model(), fitting.Config(average_decay=1.5))
