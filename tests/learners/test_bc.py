"""Behavior cloning: its likelihood, and convergence to the data's frequencies or their density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.data.memory import Dataset
from offline_mbrl.learners import bc
from offline_mbrl.networks import optimizers, residual
from offline_mbrl.training import fit
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, UsageError


def test_the_loss_starts_at_the_logarithm_of_the_number_of_actions():
    np.testing.assert_allclose(
        bc.negative_log_likelihood(jnp.zeros(5), jnp.int32(2)), np.log(5), rtol=1e-6
    )


def test_it_converges_to_the_frequencies_of_the_datas_actions():
    generator = np.random.default_rng(0)
    action = generator.choice(3, size=3_000, p=[0.6, 0.3, 0.1])
    data = Dataset.from_arrays(
        {
            "observation": np.ones((3_000, 2), np.float32),
            "action": action,
            "reward": np.zeros(3_000),
            "is_terminal": np.ones(3_000, bool),
        }
    )
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((2,), jnp.float32), DiscreteActions(3))
    learner = bc.make(bc.Config(batch_size=256), spec)
    state = fit.fit(
        learner, data, key=jax.random.key(0), num_updates=2_000, block_updates=1_000
    ).state
    probabilities = jnp.exp(
        jax.vmap(learner.policy.log_prob, (None, None, 0))(
            state.learner.params, jnp.ones(2), jnp.arange(3)
        )
    )
    np.testing.assert_allclose(probabilities, np.bincount(action) / 3_000, atol=0.03)


def test_it_clones_actions_that_only_the_older_of_two_stacked_frames_tells():
    generator = np.random.default_rng(0)
    bright = generator.integers(0, 2, 400)
    frames = np.broadcast_to(255 * bright[:, None, None, None], (400, 8, 8, 1)).astype(np.uint8)
    action = np.concatenate([bright[:1], bright[:-1]])
    data = Dataset.from_arrays(
        {
            "observation": frames,
            "action": action,
            "reward": np.zeros(400),
            "is_last": np.arange(400) == 399,
            "is_terminal": np.zeros(400, bool),
        }
    )
    spec = EnvironmentSpec(
        jax.ShapeDtypeStruct((8, 8, 2), jnp.uint8), DiscreteActions(2), frame_stack=2
    )
    sizes = residual.ResNetConfig(4, 0, 0, 0, head_channels=8, head_layers=(8,))
    fast = optimizers.OptimizerConfig(learning_rate=1e-2, warmup_updates=1)
    learner = bc.make(bc.Config(batch_size=32, resnet=sizes, optimizer=fast), spec)
    state = fit.fit(learner, data, key=jax.random.key(0), num_updates=200, block_updates=200).state
    frames = {value: jnp.full((8, 8, 1), value, jnp.uint8) for value in (0, 255)}
    pairs = [(a, b) for a in frames.values() for b in frames.values()]
    stacks = jnp.stack([jnp.concatenate(pair, axis=-1) for pair in pairs])
    modes = jax.jit(jax.vmap(learner.policy.mode, (None, 0)))(state.learner.params, stacks)
    np.testing.assert_array_equal(modes, [0, 0, 1, 1])


# --- continuous actions ---

PLANE = EnvironmentSpec(
    jax.ShapeDtypeStruct((1,), jnp.float32), BoundedActions((-1.0,) * 2, (1.0,) * 2)
)


def cloned(action, observation=None, **settings):
    """A policy and its parameters, trained on these actions."""
    size = len(action)
    data = Dataset.from_arrays(
        {
            "observation": np.ones((size, 1), np.float32) if observation is None else observation,
            "action": action,
            "reward": np.zeros(size),
            "is_terminal": np.ones(size, bool),
        }
    )
    config = bc.ContinuousConfig(layers=(16,), learning_rate=1e-2, **settings)
    learner = bc.make(bc.Config(batch_size=128, continuous=config), PLANE)
    state = fit.fit(learner, data, key=jax.random.key(0), num_updates=600, block_updates=600).state
    return learner.policy, state.learner.params


def densities(policy, params, observation, actions):
    log_prob = jax.jit(jax.vmap(policy.log_prob, (None, None, 0)))
    return log_prob(
        params, jnp.asarray(observation, jnp.float32), jnp.asarray(actions, jnp.float32)
    )


def test_a_squashed_gaussian_recovers_the_mean_and_deviation_that_made_the_data():
    mean, std = np.array([0.5, -0.3]), np.array([0.4, 0.1])
    u = np.random.default_rng(0).normal(size=(4_000, 2)) * std + mean
    policy, params = cloned(np.tanh(u).astype(np.float32))
    np.testing.assert_allclose(policy.mode(params, jnp.ones(1)), np.tanh(mean), atol=0.03)
    grid = np.tanh(mean + std * np.array([[0.0, 0.0], [1.0, -1.0], [-1.5, 0.5]]))
    z = (np.arctanh(grid) - mean) / std
    expected = np.sum(
        -0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi) - np.log1p(-(grid**2)), axis=1
    )
    np.testing.assert_allclose(densities(policy, params, [1.0], grid), expected, atol=0.25)


def test_a_mixture_recovers_two_modes_with_their_weights():
    generator = np.random.default_rng(0)
    right = generator.random(4_000) < 0.7
    action = np.where(right, 0.5, -0.5)[:, None] + 0.1 * generator.normal(size=(4_000, 2))
    policy, params = cloned(action.astype(np.float32), head="mixture", num_components=2)
    np.testing.assert_allclose(policy.mode(params, jnp.ones(1)), [0.5, 0.5], atol=0.05)
    peak = 1 / (2 * np.pi * 0.1**2)
    found = densities(policy, params, [1.0], [[0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]])
    np.testing.assert_allclose(found[:2], np.log([0.7 * peak, 0.3 * peak]), atol=0.3)
    assert found[2] < -5.0


def test_actions_at_the_bounds_are_cloned_with_finite_densities():
    generator = np.random.default_rng(0)
    action = np.clip(generator.normal(size=(400, 2)) * 3, -1, 1).astype(np.float32)
    policy, params = cloned(action)
    assert np.all(np.isfinite(densities(policy, params, [1.0], [[1.0, -1.0], [1.0, 0.0]])))


def test_the_cloned_density_depends_on_the_observation():
    generator = np.random.default_rng(0)
    observation = generator.choice([-1.0, 1.0], (1_000, 1)).astype(np.float32)
    action = np.clip(0.5 * observation + 0.05 * generator.normal(size=(1_000, 2)), -1, 1).astype(
        np.float32
    )
    policy, params = cloned(action, observation)
    for side in (-1.0, 1.0):
        np.testing.assert_allclose(
            policy.mode(params, jnp.array([side])), [0.5 * side] * 2, atol=0.05
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "flow"}, "continuous.head must be one of squashed_gaussian, mixture, got flow"),
        ({"head": "mixture", "num_components": 0}, "continuous.num_components must be at least 1"),
        ({"log_std_bounds": (1.0, 1.0)}, "continuous.log_std_bounds must be increasing"),
        ({"num_components": 3}, "read only with head mixture"),
    ],
)
def test_settings_that_make_no_density_are_refused(settings, message):
    with pytest.raises(UsageError, match=f"bc: .*{message}"):
        bc.make(bc.Config(continuous=bc.ContinuousConfig(**settings)), PLANE)


DISCRETE = EnvironmentSpec(jax.ShapeDtypeStruct((2,), jnp.float32), DiscreteActions(3))


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (
            PLANE,
            {"optimizer": optimizers.OptimizerConfig(learning_rate=10.0)},
            "optimizer.learning_rate is 10.0, but it is read only with discrete actions",
        ),
        (PLANE, {"encoder_layers": (8,)}, "read only with discrete actions: leave it at"),
        (
            DISCRETE,
            {"continuous": bc.ContinuousConfig(layers=(8,))},
            "continuous.layers is .*, but it is read only with continuous actions",
        ),
        (DISCRETE, {"resnet": residual.ResNetConfig(channels=8)}, "read only with torso resnet"),
    ],
)
def test_settings_that_these_actions_do_not_read_are_refused(spec, changes, message):
    with pytest.raises(UsageError, match=message):
        bc.make(bc.Config(**changes), spec)
