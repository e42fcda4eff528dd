"""The latent model: sizes, zero heads, and the factored action layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.learners import bc
from offline_mbrl.models import muzero
from offline_mbrl.types import DiscreteActions, EnvironmentSpec, UsageError

CATCH = EnvironmentSpec(jax.ShapeDtypeStruct((10, 5), jnp.float32), DiscreteActions(3))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_catch_has_the_published_parameter_counts_with_twenty_bins():
    params = muzero.make(muzero.ModelConfig(num_bins=20), CATCH).init(jax.random.key(0))
    assert {name: count(part) for name, part in params.items()} == {
        "representation": 9_504, "dynamics": 2_208, "prediction": 2_475}  # fmt: skip


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
        np.testing.assert_allclose(model.dynamics(params, embedding, jnp.int32(action)), expected, rtol=1e-4, atol=1e-5)


def test_hidden_kernels_are_cut_normals_of_the_inverse_square_root_of_their_inputs():
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((400,), jnp.float32), DiscreteActions(3))
    kernel = muzero.make(muzero.ModelConfig(), spec).init(jax.random.key(0))["representation"]["layer_0"]["kernel"]
    assert float(jnp.max(jnp.abs(kernel))) <= 2 / 20 + 1e-6
    np.testing.assert_allclose(jnp.std(kernel), 0.88 / 20, rtol=0.03)  # a normal cut at two sigma keeps 0.88 of it


def test_behavior_cloning_has_the_same_encoder_trunk_and_policy_head():
    latent = muzero.make(muzero.ModelConfig(), CATCH).init(jax.random.key(0))
    cloning = bc.make(bc.Config(), CATCH).init(jax.random.key(0), None, (), ()).params
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    assert shapes(cloning["representation"]) == shapes(latent["representation"])
    assert shapes(cloning["trunk"]) == shapes(latent["prediction"]["trunk"])
    assert shapes(cloning["policy"]) == shapes(latent["prediction"]["policy"])
    assert set(cloning) == {"representation", "trunk", "policy"}


def test_layers_that_disagree_on_the_embedding_size_are_refused():
    with pytest.raises(UsageError, match="embedding size"):
        muzero.make(muzero.ModelConfig(dynamics_layers=(32, 16)), CATCH)


def test_a_dict_of_observations_is_one_vector_with_keys_in_alphabetical_order():
    parts = {"velocity": jax.ShapeDtypeStruct((2,), jnp.float32), "position": jax.ShapeDtypeStruct((3,), jnp.float32)}
    model = muzero.make(muzero.ModelConfig(), EnvironmentSpec(parts, DiscreteActions(2)))
    flat = muzero.make(
        muzero.ModelConfig(), EnvironmentSpec(jax.ShapeDtypeStruct((5,), jnp.float32), DiscreteActions(2))
    )
    params = model.init(jax.random.key(0))
    whole = model.represent(params, {"velocity": jnp.array([4.0, 5.0]), "position": jnp.array([1.0, 2.0, 3.0])})
    np.testing.assert_array_equal(whole, flat.represent(params, jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])))


@pytest.mark.parametrize(
    "setting", [{"encoder_layers": ()}, {"dynamics_layers": ()}, {"prediction_layers": ()}, {"num_bins": 1}]
)
def test_sizes_that_make_no_model_are_refused(setting):
    with pytest.raises(UsageError, match="at least"):
        muzero.make(muzero.ModelConfig(**setting), CATCH)
