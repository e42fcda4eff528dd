"""The latent model: sizes, zero heads, and the factored action layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.learners import bc
from offline_mbrl.models import muzero
from offline_mbrl.networks import optimizers, residual
from offline_mbrl.types import Context, DiscreteActions, EnvironmentSpec, UsageError

CATCH = EnvironmentSpec(jax.ShapeDtypeStruct((10, 5), jnp.float32), DiscreteActions(3))


ATARI = jax.ShapeDtypeStruct((84, 84, 4), jnp.uint8)
SMALL = muzero.ModelConfig(
    resnet=residual.ResNetConfig(4, 1, 1, 1, head_channels=4, head_layers=(8,))
)
PIXELS = EnvironmentSpec(jax.ShapeDtypeStruct((20, 20, 2), jnp.uint8), DiscreteActions(3))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_catch_has_the_published_parameter_counts_with_twenty_bins():
    params = muzero.make(muzero.ModelConfig(num_bins=20), CATCH).init(jax.random.key(0))
    assert {name: count(part) for name, part in params.items()} == {
        "representation": 9_504,
        "dynamics": 2_208,
        "prediction": 2_475,
    }


@pytest.mark.parametrize(("bins", "value"), [(21, 0.0), (20, 1.246)])
def test_heads_start_at_zero_uniform_policy_and_the_mean_of_the_support(bins, value):
    model = muzero.make(muzero.ModelConfig(num_bins=bins), CATCH)
    params = model.init(jax.random.key(0))
    heads = model.predict(params, model.represent(params, jnp.ones((10, 5))))
    assert all(np.all(np.asarray(logits) == 0) for logits in heads)
    np.testing.assert_allclose(model.scalar(heads.value_logits), value, atol=1e-3)


def test_the_dynamics_equal_dense_layers_on_the_embedding_beside_a_one_hot_action():
    model = muzero.make(muzero.ModelConfig(), CATCH)
    params = model.init(jax.random.key(0))
    layers = params["dynamics"]
    embedding = jax.random.normal(jax.random.key(1), (32,))
    kernel = np.concatenate([layers["layer_0"]["kernel"], layers["action"]["kernel"]])
    for action in range(3):
        joined = np.concatenate([embedding, np.eye(3)[action]])
        hidden = np.maximum(joined @ kernel + layers["layer_0"]["bias"], 0)
        expected = hidden @ np.asarray(layers["layer_1"]["kernel"]) + layers["layer_1"]["bias"]
        np.testing.assert_allclose(
            model.dynamics(params, embedding, jnp.int32(action)), expected, rtol=1e-4, atol=1e-5
        )


def test_hidden_kernels_are_cut_normals_of_the_inverse_square_root_of_their_inputs():
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((400,), jnp.float32), DiscreteActions(3))
    kernel = muzero.make(muzero.ModelConfig(), spec).init(jax.random.key(0))["representation"][
        "layer_0"
    ]["kernel"]
    assert float(jnp.max(jnp.abs(kernel))) <= 2 / 20 + 1e-6
    np.testing.assert_allclose(
        jnp.std(kernel), 0.88 / 20, rtol=0.03
    )  # a normal cut at two sigma keeps 0.88 of it


@pytest.mark.parametrize("image", [False, True])
def test_behavior_cloning_has_the_same_encoder_trunk_and_policy_head(image):
    spec = EnvironmentSpec(ATARI, DiscreteActions(3)) if image else CATCH
    latent = jax.eval_shape(muzero.make(muzero.ModelConfig(), spec).init, jax.random.key(0))
    cloning = jax.eval_shape(
        lambda key: bc.make(bc.Config(), spec).init(key, None, Context()).params, jax.random.key(0)
    )

    def shapes(tree):
        return jax.tree.map(jnp.shape, tree)

    assert shapes(cloning["representation"]) == shapes(latent["representation"])
    assert shapes(cloning["trunk"]) == shapes(latent["prediction"]["trunk"])
    assert shapes(cloning["policy"]) == shapes(latent["prediction"]["policy"])
    assert set(cloning) == {"representation", "trunk", "policy"}


def test_layers_that_disagree_on_the_embedding_size_are_refused():
    with pytest.raises(UsageError, match="embedding size"):
        muzero.make(muzero.ModelConfig(dynamics_layers=(32, 16)), CATCH)


def test_a_dict_of_observations_is_one_vector_with_keys_in_alphabetical_order():
    parts = {
        "velocity": jax.ShapeDtypeStruct((2,), jnp.float32),
        "position": jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    model = muzero.make(muzero.ModelConfig(), EnvironmentSpec(parts, DiscreteActions(2)))
    flat = muzero.make(
        muzero.ModelConfig(),
        EnvironmentSpec(jax.ShapeDtypeStruct((5,), jnp.float32), DiscreteActions(2)),
    )
    params = model.init(jax.random.key(0))
    whole = model.represent(
        params, {"velocity": jnp.array([4.0, 5.0]), "position": jnp.array([1.0, 2.0, 3.0])}
    )
    np.testing.assert_array_equal(
        whole, flat.represent(params, jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    )


@pytest.mark.parametrize(
    "setting",
    [{"encoder_layers": ()}, {"dynamics_layers": ()}, {"prediction_layers": ()}, {"num_bins": 1}],
)
def test_sizes_that_make_no_model_are_refused(setting):
    with pytest.raises(UsageError, match="at least"):
        muzero.make(muzero.ModelConfig(**setting), CATCH)


# --- images ---


@functools.cache
def small():
    model = muzero.make(SMALL, PIXELS)
    return model, jax.jit(model.init)(jax.random.key(0))


@pytest.mark.parametrize(("size", "total"), [(3, 3_021_493), (6, 3_023_608), (18, 3_032_068)])
def test_atari_has_the_published_parameter_counts_with_601_bins(size, total):
    model = muzero.make(
        muzero.ModelConfig(num_bins=601), EnvironmentSpec(ATARI, DiscreteActions(size))
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert count(params) == total
    assert count(params["representation"]) == 685_504
    assert count(params["dynamics"]) == 184_960 + 576 * size
    assert jax.eval_shape(model.represent, params, ATARI).shape == (6, 6, 64)


def test_of_images_too_heads_start_at_zero_and_embeddings_keep_their_shape():
    model, params = small()
    frames = np.random.default_rng(0).integers(0, 256, (20, 20, 2), dtype=np.uint8)
    embedding = jax.jit(model.represent)(params, frames)
    following = jax.jit(model.dynamics)(params, embedding, jnp.int32(2))
    assert embedding.shape == following.shape == (2, 2, 4)
    assert not np.allclose(embedding, following)
    for state in (embedding, following):
        heads = jax.jit(model.predict)(params, state)
        assert all(np.all(np.asarray(logits) == 0) for logits in heads)
        np.testing.assert_allclose(model.scalar(heads.value_logits), 0.0, atol=1e-3)


def test_the_reward_is_read_from_the_embedding_and_not_through_the_shared_trunk():
    model, params = small()
    embedding = jax.random.normal(jax.random.key(1), (2, 2, 4))
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, params["prediction"])
    doubled = shifted | {"trunk": jax.tree.map(lambda leaf: 2 * leaf, shifted["trunk"])}
    outputs = jax.jit(lambda prediction: model.predict({"prediction": prediction}, embedding))
    before, after = outputs(shifted), outputs(doubled)
    np.testing.assert_array_equal(before.reward_logits, after.reward_logits)
    assert not np.allclose(before.policy_logits, after.policy_logits)
    assert not np.allclose(before.value_logits, after.value_logits)


def test_weights_decay_on_kernels_alone():
    params = jax.eval_shape(muzero.make(SMALL, PIXELS).init, jax.random.key(0))
    decayed = jax.tree_util.tree_leaves_with_path(optimizers.kernels(params))
    assert {path[-1].key for path, yes in decayed if yes} == {"kernel"}
    assert {path[-1].key for path, yes in decayed if not yes} == {"bias", "scale"}
