"""The exact one-step operator: its closed form, and the searches that it equals."""

import functools

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from offline_mbrl.models import muzero
from offline_mbrl.planning import one_step
from offline_mbrl.types import DiscreteActions, EnvironmentSpec, LatentModel, LatentPrediction

GAMMA = 0.9


def random_model(num_actions, seed=0):
    """A latent model whose heads are not zero, so that everything differs."""
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((5,), jnp.float32), DiscreteActions(num_actions))
    model = muzero.make(muzero.ModelConfig(encoder_layers=(16, 8), dynamics_layers=(8,), prediction_layers=(8,)), spec)
    params = model.init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return model, jax.tree.unflatten(
        tree, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def plan_all(model, params, embeddings, num_actions):
    planner = one_step.exact(model, num_actions=num_actions, gamma=GAMMA)
    keys = jax.random.split(jax.random.key(0), len(embeddings))
    return jax.jit(jax.vmap(planner, (None, 0, 0)))(params, embeddings, keys)


def recurrent_fn(model):
    """The model as mctx wants it: batched, reward and value of the embedding that the action leads to."""

    def recurrent(params, key, action, embedding):
        del key
        following = jax.vmap(model.dynamics, (None, 0, 0))(params, embedding, action)
        heads = jax.vmap(model.predict, (None, 0))(params, following)
        output = mctx.RecurrentFnOutput(
            reward=jax.vmap(model.scalar)(heads.reward_logits), value=jax.vmap(model.scalar)(heads.value_logits),
            discount=jnp.full(action.shape, GAMMA), prior_logits=heads.policy_logits)  # fmt: skip
        return output, following

    return recurrent


def root_of(model, params, embeddings):
    heads = jax.vmap(model.predict, (None, 0))(params, embeddings)
    value = jax.vmap(model.scalar)(heads.value_logits)
    return mctx.RootFnOutput(prior_logits=heads.policy_logits, value=value, embedding=embeddings)


def visit_every_child_once(model, params, embeddings, num_actions, **settings):
    search = functools.partial(
        mctx.gumbel_muzero_policy, recurrent_fn=recurrent_fn(model), num_simulations=num_actions, max_depth=1,
        max_num_considered_actions=num_actions, **settings)  # fmt: skip
    root = root_of(model, params, embeddings)
    return jax.jit(lambda params, root: search(params, jax.random.key(0), root))(params, root)


@pytest.mark.parametrize("num_actions", [2, 3, 6, 18])
def test_it_equals_gumbel_muzero_that_visits_every_child_once(num_actions):
    model, params = random_model(num_actions)
    embeddings = jax.random.normal(jax.random.key(3), (32, 8))
    transform = functools.partial(
        mctx.qtransform_completed_by_mix_value, value_scale=1.0, maxvisit_init=0.0, rescale_values=False)  # fmt: skip
    searched = visit_every_child_once(model, params, embeddings, num_actions, qtransform=transform)
    plan = plan_all(model, params, embeddings, num_actions)
    np.testing.assert_allclose(plan.weights, searched.action_weights, atol=1e-5)


@pytest.mark.parametrize("num_actions", [2, 3, 6, 18])
def test_it_equals_prior_times_exponential_of_the_searched_values_at_temperature_one(num_actions):
    model, params = random_model(num_actions)
    embeddings = jax.random.normal(jax.random.key(3), (16, 8))
    qvalues = visit_every_child_once(model, params, embeddings, num_actions).search_tree.summary().qvalues
    prior = jax.vmap(model.predict, (None, 0))(params, embeddings).policy_logits
    plan = plan_all(model, params, embeddings, num_actions)
    np.testing.assert_allclose(plan.qvalues, qvalues, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(plan.weights, jax.nn.softmax(prior + qvalues), atol=1e-5)


def table_model(qvalues, value, prior):
    """A model of one state: the embedding is the action that led there, -1 at the root."""
    rewards = jnp.asarray(qvalues, jnp.float32)

    def predict(params, embedding):
        del params
        at_root = embedding < 0
        reward = jnp.where(at_root, 0.0, rewards[embedding])
        return LatentPrediction(jnp.asarray(prior, jnp.float32), reward[None], jnp.where(at_root, value, 0.0)[None])

    return LatentModel(
        init=lambda key: (), represent=lambda params, observation: jnp.int32(-1), predict=predict,
        dynamics=lambda params, embedding, action: action, scalar=lambda logits: logits[0])  # fmt: skip


def test_the_weights_are_the_prior_tilted_by_the_exponential_advantage():
    qvalues, value, prior = np.array([0.3, -0.2, 1.1]), 0.4, np.log([0.2, 0.5, 0.3])
    plan = one_step.exact(table_model(qvalues, value, prior), num_actions=3, gamma=GAMMA)(
        (), jnp.int32(-1), jax.random.key(0)
    )
    unnormalized = np.exp(prior) * np.exp(qvalues - value)
    np.testing.assert_allclose(plan.weights, unnormalized / unnormalized.sum(), rtol=1e-6)
    np.testing.assert_allclose(plan.qvalues, qvalues, rtol=1e-6)
    np.testing.assert_allclose(plan.value, value, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_advantages_stay_finite(scale):
    model = table_model(np.array([0.0, 1.0]) * scale, 0.0, np.zeros(2))
    plan = one_step.exact(model, num_actions=2, gamma=GAMMA)((), jnp.int32(-1), jax.random.key(0))
    np.testing.assert_allclose(plan.weights, [0.0, 1.0] if scale > 0 else [1.0, 0.0], atol=1e-6)


def test_the_chosen_action_follows_the_weights():
    model = table_model(np.array([0.0, 1.0, 2.0]), 0.0, np.zeros(3))
    planner = one_step.exact(model, num_actions=3, gamma=GAMMA)
    plans = jax.vmap(lambda key: planner((), jnp.int32(-1), key))(jax.random.split(jax.random.key(0), 20_000))
    frequency = np.bincount(plans.action, minlength=3) / 20_000
    np.testing.assert_allclose(frequency, plans.weights[0], atol=0.015)
