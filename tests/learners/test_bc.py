"""Behavior cloning: its likelihood, and convergence to the data's frequencies."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl import fit
from offline_mbrl.data.memory import Dataset
from offline_mbrl.learners import bc
from offline_mbrl.networks import optimizers, residual
from offline_mbrl.types import DiscreteActions, EnvironmentSpec


def test_the_loss_starts_at_the_logarithm_of_the_number_of_actions():
    np.testing.assert_allclose(bc.negative_log_likelihood(jnp.zeros(5), jnp.int32(2)), np.log(5), rtol=1e-6)


def test_it_converges_to_the_frequencies_of_the_datas_actions():
    generator = np.random.default_rng(0)
    action = generator.choice(3, size=3_000, p=[0.6, 0.3, 0.1])
    data = Dataset.from_arrays({
        "observation": np.ones((3_000, 2), np.float32), "action": action, "reward": np.zeros(3_000),
        "is_terminal": np.ones(3_000, bool)})  # fmt: skip
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((2,), jnp.float32), DiscreteActions(3))
    learner = bc.make(bc.Config(batch_size=256), spec)
    state = fit.fit(learner, data, key=jax.random.key(0), num_updates=2_000, block_updates=1_000).state
    probabilities = jnp.exp(jax.vmap(learner.policy.log_prob, (None, None, 0))(
        state.learner.params, jnp.ones(2), jnp.arange(3)))  # fmt: skip
    np.testing.assert_allclose(probabilities, np.bincount(action) / 3_000, atol=0.03)


def test_it_clones_actions_that_only_the_older_of_two_stacked_frames_tells():
    generator = np.random.default_rng(0)
    bright = generator.integers(0, 2, 400)
    frames = np.broadcast_to(255 * bright[:, None, None, None], (400, 8, 8, 1)).astype(np.uint8)
    action = np.concatenate([bright[:1], bright[:-1]])
    data = Dataset.from_arrays({
        "observation": frames, "action": action, "reward": np.zeros(400), "is_last": np.arange(400) == 399,
        "is_terminal": np.zeros(400, bool)})  # fmt: skip
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((8, 8, 2), jnp.uint8), DiscreteActions(2), frame_stack=2)
    sizes = residual.ResNetConfig(4, 0, 0, 0, head_channels=8, head_layers=(8,))
    fast = optimizers.OptimizerConfig(learning_rate=1e-2, warmup_updates=1)
    learner = bc.make(bc.Config(batch_size=32, resnet=sizes, optimizer=fast), spec)
    state = fit.fit(learner, data, key=jax.random.key(0), num_updates=200, block_updates=200).state
    frame = lambda value: jnp.full((8, 8, 1), value, jnp.uint8)  # noqa: E731
    stacks = jnp.stack([jnp.concatenate([frame(255 * a), frame(255 * b)], -1) for a in (0, 1) for b in (0, 1)])
    modes = jax.jit(jax.vmap(learner.policy.mode, (None, 0)))(state.learner.params, stacks)
    np.testing.assert_array_equal(modes, [0, 0, 1, 1])
