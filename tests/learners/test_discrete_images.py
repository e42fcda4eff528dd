"""Offline Q-learning on images: the network of Atari's frames, and what its clone reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offline_mbrl.learners.discrete import configs, losses, q_learning
from offline_mbrl.types import Context, DiscreteActions, EnvironmentSpec, Transition

KEY = jax.random.key(0)
IMAGES = EnvironmentSpec(
    observation=jax.ShapeDtypeStruct((36, 36, 4), jnp.uint8),
    action=DiscreteActions(4),
    frame_stack=4,
)


def batch() -> Transition:
    """Two transitions."""
    generator = np.random.default_rng(0)

    def images() -> jax.Array:
        return jnp.asarray(generator.integers(256, size=(2, 36, 36, 4)), jnp.uint8)

    return Transition(
        observation=images(),
        action=jnp.array([1, 3]),
        reward=jnp.array([0.5, -1.0]),
        discount=jnp.array([1.0, 0.0]),
        next_observation=images(),
    )


@pytest.mark.parametrize("kind", [configs.FilteredConfig, configs.QuantileConfig])
def test_images_go_through_shared_convolutions(kind):
    made = q_learning.make(kind(num_heads=2) if kind is configs.QuantileConfig else kind(), IMAGES)
    assert made.sample.frame_stack == 4
    state = jax.jit(made.init)(KEY, (), Context())
    after, metrics = jax.jit(made.step)(state, Context(), batch(), KEY)
    assert np.isfinite(metrics["loss/total"])
    assert optax.global_norm(jax.tree.map(jnp.subtract, after.params, state.params)["torso"]) > 0
    assert ("clone" in state.params) == (kind is configs.FilteredConfig)


def test_on_images_the_clone_shapes_the_features_of_the_values():
    """As in the release; on vectors it is a network of its own."""
    module = q_learning.network(configs.FilteredConfig(), IMAGES, 1)
    image = batch().observation[0]

    @jax.jit
    def gradient_of_cloning(key):
        def loss(params):
            logits = module.apply({"params": params}, image).logits
            return losses.imitation_loss(logits, jnp.int32(1), logit_penalty=0.01)

        return jax.grad(loss)(module.init(key, image)["params"])

    slopes = gradient_of_cloning(KEY)
    assert optax.global_norm(slopes["torso"]) > 0
    assert optax.global_norm(slopes["q"]) == 0


@pytest.mark.parametrize(("padding", "size"), [("SAME", 7744), ("VALID", 3136)])
def test_frames_of_atari_have_the_published_number_of_features(padding, size):
    spec = EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((84, 84, 4), jnp.uint8), action=DiscreteActions(4)
    )
    made = q_learning.make(configs.Config(padding=padding), spec)
    state = jax.eval_shape(made.init, KEY, (), Context())
    assert state.params["q"]["layer_0"]["kernel"].shape == (size, 512)
