"""The latent family's optimizer: schedule, decay on kernels alone, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.models import muzero
from offline_mbrl.networks import optimizers
from offline_mbrl.types import DiscreteActions, EnvironmentSpec

CONFIG = optimizers.OptimizerConfig()


@pytest.mark.parametrize(
    ("update", "rate"),
    [(0, 0.0), (500, 3.5e-4), (1_000, 7e-4), (100_999, 7e-4), (101_000, 7e-5), (200_000, 7e-5)],
)
def test_the_learning_rate_warms_up_then_falls_in_steps(update, rate):
    np.testing.assert_allclose(optimizers.schedule(CONFIG)(update), rate, rtol=1e-5, atol=1e-12)


def test_weight_decay_covers_exactly_the_kernels():
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((5,), jnp.float32), DiscreteActions(3))
    params = muzero.make(muzero.ModelConfig(), spec).init(jax.random.key(0))
    decayed = optimizers.kernels(params)
    for path, flag in jax.tree_util.tree_leaves_with_path(decayed):
        assert flag == (path[-1].key == "kernel")
    assert sum(jax.tree.leaves(decayed)) == 10  # 3 encoder, 2 + action rows, trunk, 3 heads
    optimizer = optimizers.make(optimizers.OptimizerConfig(warmup_updates=1, learning_rate=1.0))
    params = jax.tree.map(jnp.ones_like, params)
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    _, state = optimizer.update(zero, state, params)
    updates, _ = optimizer.update(zero, state, params)  # past the warm-up
    expected = jax.tree.map(lambda leaf, flag: jnp.full_like(leaf, -1e-4 * flag), params, decayed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), updates, expected)


def test_gradients_are_clipped_by_their_global_norm():
    optimizer = optimizers.make(
        optimizers.OptimizerConfig(warmup_updates=1, weight_decay=0.0, max_grad_norm=1.0)
    )
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"bias": jnp.ones(2)}}
    small = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1.0 / np.sqrt(6)), params)  # norm 1
    large = jax.tree.map(lambda leaf: 100.0 * leaf, small)
    states = [
        optimizer.update(gradient, optimizer.init(params), params)[1] for gradient in (small, large)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *states)
