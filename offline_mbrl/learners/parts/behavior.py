"""Models of the data's actions, and how far a policy is from them.

An autoencoder is fitted beside the policy, in the actor's parameters; a clone is fitted by an
earlier stage. Neither gets a gradient of the policy's losses.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.learners.parts import divergences
from offline_mbrl.learners.parts.actor_critic import Agent
from offline_mbrl.learners.parts.candidates import Penalty
from offline_mbrl.learners.parts.networks import Network
from offline_mbrl.networks import conditional_vae, torsos
from offline_mbrl.networks.conditional_vae import ConditionalVAE
from offline_mbrl.networks.distributions import SquashedNormal
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    Key,
    Metrics,
    Observation,
    Params,
    Transition,
)

AUTOENCODER = "behavior"  # among the actor's parameters


class Behavior(NamedTuple):
    """What a policy is held to."""

    init: Callable[[Key], dict[str, Params]]  # parameters of the actor beside its policy's
    # (agent, batch, key) -> (loss [], metrics) of those parameters
    loss: Callable[[Agent, Transition, Key], tuple[Array, Metrics]]
    # (agent, context, observations [B, ...], key) -> [B]: of the policy from the data's actions
    divergence: Penalty


def vae_loss(
    vae: ConditionalVAE, params: Params, conditions: Observation, actions: Action, key: Key
) -> tuple[Array, Metrics]:
    """The mean loss of an autoencoder of actions, given what they are conditioned on.

    Args:
      vae: the functions.
      params: the autoencoder's.
      conditions: `[B, ...]` observations.
      actions: `[B, A]`.
      key: consumed.

    Returns:
      (loss `[]`, metrics).
    """

    def single(condition: Observation, action: Action, key: Key) -> conditional_vae.Loss:
        return conditional_vae.loss(vae, params, torsos.flat(condition), action, key)

    losses = jax.vmap(single)(conditions, actions, jax.random.split(key, actions.shape[0]))
    metrics = {
        "vae/reconstruction": jnp.mean(losses.reconstruction),
        "vae/divergence": jnp.mean(losses.divergence),
    }
    return jnp.mean(losses.total), metrics


def autoencoded(vae: ConditionalVAE, kernel: divergences.Kernel, num_samples: int) -> Behavior:
    """An autoencoder; samples of it and of the policy are compared by their discrepancy.

    Args:
      vae: the functions.
      kernel: of two samples.
      num_samples: of either, at each observation.
    """

    def init(key: Key) -> dict[str, Params]:
        return {AUTOENCODER: vae.init(key)}

    def loss(agent: Agent, batch: Transition, key: Key) -> tuple[Array, Metrics]:
        params = agent.state.actor[AUTOENCODER]
        return vae_loss(vae, params, batch.observation, batch.action, key)

    def divergence(agent: Agent, context: Context, observations: Observation, key: Key) -> Array:
        del context
        fixed = jax.lax.stop_gradient(agent.state.actor[AUTOENCODER])

        def single(observation: Observation, key: Key) -> Array:
            key_policy, key_behavior = jax.random.split(key)

            def generate(key: Key) -> Array:
                return conditional_vae.generate(vae, fixed, torsos.flat(observation), key)

            policy = agent.policy(observation)
            x = divergences.samples_before_tanh(policy, key_policy, num_samples)
            y = jax.vmap(generate)(jax.random.split(key_behavior, num_samples))
            return divergences.mmd(x, y, kernel)

        return jax.vmap(single)(observations, _row_keys(observations, key))

    return Behavior(init=init, loss=loss, divergence=divergence)


def cloned(
    clone: Network, stage: str, divergence: Callable[[SquashedNormal, SquashedNormal, Key], Array]
) -> Behavior:
    """A density that an earlier stage has fitted.

    Args:
      clone: (params, observation) to a distribution.
      stage: whose outputs are the clone's parameters.
      divergence: of the policy's distribution from the clone's.
    """

    def init(key: Key) -> dict[str, Params]:
        del key
        return {}

    def loss(agent: Agent, batch: Transition, key: Key) -> tuple[Array, Metrics]:
        del agent, batch, key  # fitted already
        return jnp.zeros(()), {}

    def over_batch(agent: Agent, context: Context, observations: Observation, key: Key) -> Array:
        def single(observation: Observation, key: Key) -> Array:
            fitted = clone.apply(context.upstream[stage], observation)
            return divergence(agent.policy(observation), fitted, key)

        return jax.vmap(single)(observations, _row_keys(observations, key))

    return Behavior(init=init, loss=loss, divergence=over_batch)


def _row_keys(observations: Observation, key: Key) -> Key:
    return jax.random.split(key, jax.tree.leaves(observations)[0].shape[0])
