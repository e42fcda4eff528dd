"""Actions over a batch: K candidates for each observation, and weighted cloning of the data's."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from offline_mbrl.learners import actor_critic
from offline_mbrl.learners.actor_critic import ActorLoss
from offline_mbrl.types import Action, Array, Key, Observation, Transition


def sample(
    policy: Callable[[Observation], Any], observations: Observation, key: Key, num_samples: int
) -> Action:
    """K actions `[B, K, A]` of the policy at each observation.

    Args:
      policy: one observation to a distribution.
      observations: `[B, ...]`.
      key: consumed.
      num_samples: K.
    """
    keys = jax.random.split(key, (jax.tree.leaves(observations)[0].shape[0], num_samples))

    def draw(observation: Observation, keys: Key) -> Action:
        distribution = policy(observation)
        return jax.vmap(lambda key: distribution.sample(seed=key))(keys)

    return jax.vmap(draw)(observations, keys)


def sample_with_density(
    policy: Callable[[Observation], Any], observations: Observation, key: Key, num_samples: int
) -> tuple[Action, Array]:
    """K actions of the policy at each observation.

    Args:
      policy: one observation to a distribution with `sample_and_log_prob`.
      observations: `[B, ...]`.
      key: consumed.
      num_samples: K.

    Returns:
      Actions `[B, K, A]` and their log probabilities `[B, K]`.
    """
    keys = jax.random.split(key, num_samples)

    def draw(key: Key) -> tuple[Action, Array]:
        return actor_critic.sample_actions(policy, observations, key)

    return jax.vmap(draw, out_axes=1)(keys)


def evaluate(
    critics: Callable[[Observation, Action], Array], observations: Observation, actions: Action
) -> Array:
    """Critics `[N, B, K]` at K actions for each observation.

    Args:
      critics: `(observations [B, ...], actions [B, A])` to `[N, B]`.
      observations: `[B, ...]`.
      actions: `[B, K, A]`.
    """
    return jax.vmap(critics, (None, 1), 2)(observations, actions)


def cloning_loss(
    policy: Callable[[Observation], Any], batch: Transition, weight: Array
) -> ActorLoss:
    """The mean of `-weight log pi(a|s)` at the data's actions, for an actor to descend.

    Args:
      policy: one observation to a distribution.
      batch: `[B]` transitions.
      weight: `[B]`; no gradient goes through it.
    """
    log_prob = jax.vmap(lambda step: policy(step.observation).log_prob(step.action))(batch)
    chex.assert_equal_shape([log_prob, weight])
    loss = -jnp.mean(jax.lax.stop_gradient(weight) * log_prob)
    return ActorLoss(loss=loss, metrics={"weight": jnp.mean(weight)})
