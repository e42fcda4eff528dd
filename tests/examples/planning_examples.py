"""What the tests of planners share: random models, tables, an MDP, and mctx used by hand."""

import jax
import jax.numpy as jnp
import mctx
import numpy as np

from offline_mbrl.models import muzero
from offline_mbrl.types import DiscreteActions, EnvironmentSpec, LatentModel, LatentPrediction

GAMMA = 0.9
KEY = jax.random.key(0)
TINY = muzero.ModelConfig(encoder_layers=(16, 8), dynamics_layers=(8,), prediction_layers=(8,))


def untrained_model(num_actions, config=TINY):
    """A latent model as training starts: all heads are zero."""
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((5,), jnp.float32), DiscreteActions(num_actions))
    model = muzero.make(config, spec)
    return model, model.init(KEY)


def random_model(num_actions, seed=0, scale=0.3, config=TINY):
    """A latent model whose heads are not zero, so that everything differs."""
    model, params = untrained_model(num_actions, config)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return model, jax.tree.unflatten(
        tree, [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def random_embeddings(count, config=TINY):
    return jax.random.normal(jax.random.key(3), (count, config.encoder_layers[-1]))


def bandit(qvalues, value, prior):
    """A model of one state: the embedding is the action that led there, -1 at the root."""
    rewards = jnp.asarray(qvalues, jnp.float32)

    def predict(params, embedding):
        del params
        at_root = embedding < 0
        reward = jnp.where(at_root, 0.0, rewards[embedding])
        return LatentPrediction(
            jnp.asarray(prior, jnp.float32), reward[None], jnp.where(at_root, value, 0.0)[None]
        )

    return LatentModel(
        init=lambda key: (),
        represent=lambda params, observation: jnp.int32(-1),
        predict=predict,
        dynamics=lambda params, embedding, action: action,
        scalar=lambda logits: logits[0],
    )


def bandit_roots(count):
    return jnp.full(count, -1, jnp.int32)


def mdp_model(following, reward, prior):
    """A perfect model of a deterministic MDP with values of 0, and priors `[states, actions]`.

    The embedding is a one-hot state beside the reward that led there.
    """
    num_states = len(following)
    following, reward, prior = (
        jnp.asarray(following),
        jnp.asarray(reward, jnp.float32),
        jnp.asarray(prior, jnp.float32),
    )

    def dynamics(params, embedding, action):
        del params
        chosen = jnp.argmax(embedding["state"]), action
        return {"state": jax.nn.one_hot(following[chosen], num_states), "reward": reward[chosen]}

    def predict(params, embedding):
        del params
        return LatentPrediction(embedding["state"] @ prior, embedding["reward"][None], jnp.zeros(1))

    return LatentModel(
        init=lambda key: (),
        represent=lambda params, observation: observation,
        dynamics=dynamics,
        predict=predict,
        scalar=lambda logits: logits[0],
    )


def mdp_roots(num_states):
    return {"state": jnp.eye(num_states), "reward": jnp.zeros(num_states)}


def recurrent_by_hand(model, gamma=GAMMA):
    """The model as mctx wants it, written without the planners' own parts."""

    def recurrent(params, key, action, embedding):
        del key
        following = jax.vmap(model.dynamics, (None, 0, 0))(params, embedding, action)
        heads = jax.vmap(model.predict, (None, 0))(params, following)
        output = mctx.RecurrentFnOutput(
            reward=jax.vmap(model.scalar)(heads.reward_logits),
            value=jax.vmap(model.scalar)(heads.value_logits),
            discount=jnp.full(action.shape, gamma),
            prior_logits=heads.policy_logits,
        )
        return output, following

    return recurrent


def root_by_hand(model, params, embeddings):
    heads = jax.vmap(model.predict, (None, 0))(params, embeddings)
    value = jax.vmap(model.scalar)(heads.value_logits)
    return mctx.RootFnOutput(prior_logits=heads.policy_logits, value=value, embedding=embeddings)


def mctx_by_hand(policy, model, **settings):
    """`(params, embeddings, key) -> mctx.PolicyOutput` of one of mctx's policies."""

    def search(params, embeddings, key):
        return policy(
            params,
            key,
            root_by_hand(model, params, embeddings),
            recurrent_by_hand(model),
            **settings,
        )

    return search


def scattered(plan, num_actions):
    """The weights of the candidates added up per action, `[B, A]` in numpy."""
    target = np.zeros((len(plan.value), num_actions))
    for root, (actions, weights) in enumerate(
        zip(np.asarray(plan.actions), np.asarray(plan.weights), strict=True)
    ):
        np.add.at(target[root], actions, weights)
    return target
