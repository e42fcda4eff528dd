"""Candidate actions: K for each observation of a batch, the best of them, and weighted cloning."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent, Networks, State
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    Key,
    Learner,
    Observation,
    Params,
    Policy,
    Transition,
)

GREEDY_SEED = 0  # of the candidates among which a greedy action is chosen


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
    batch_size, num_actions, _ = actions.shape
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_actions, axis=0), observations)
    # Rows of one matrix: a mapped axis of actions would cost transposes of every layer's outputs.
    q = critics(repeated, actions.reshape(batch_size * num_actions, -1))
    return q.reshape(-1, batch_size, num_actions)


# --- the best of K ---


def mixed(q: Array, *, minimum_weight: float) -> Array:
    """`minimum_weight min_i Q_i + (1 - minimum_weight) max_i Q_i` over critics `[N]`, `[]`.

    Source: arXiv:1812.02900, equation 13.
    """
    chex.assert_rank(q, 1)
    return minimum_weight * jnp.min(q) + (1.0 - minimum_weight) * jnp.max(q)


def best_target(
    transition: Transition,
    next_q: Array,
    *,
    gamma: float,
    minimum_weight: float = 1.0,
    penalty: Array | float = 0.0,
) -> Array:
    """`r + gamma discount (max_k mixed(Q(s', a_k)) - penalty)`, `[]`.

    Args:
      transition: of the data.
      next_q: `[N, K]` target critics at K actions of the next observation.
      gamma: discount factor.
      minimum_weight: of the least critic.
      penalty: `[]` of the policy at the next observation.

    Source: arXiv:1812.02900, equation 13; the penalty is BRAC's (arXiv:1911.11361, equation 4).
    """
    chex.assert_rank([transition.reward, transition.discount, next_q, penalty], [0, 0, 2, 0])
    values = jax.vmap(lambda q: mixed(q, minimum_weight=minimum_weight), 1)(next_q)
    return transition.reward + gamma * transition.discount * (jnp.max(values) - penalty)


# (agent, context, observations [B, ...], key) -> [B]: what the policy costs there
Penalty = Callable[[Agent, Context, Observation, Key], Array]


def no_penalty(agent: Agent, context: Context, observations: Observation, key: Key) -> Array:
    """0 everywhere, `[B]`."""
    del agent, context, key
    return jnp.zeros(jax.tree.leaves(observations)[0].shape[0])


def best_backup(
    gamma: float,
    num_actions: int,
    *,
    minimum_weight: float = 1.0,
    penalty: Penalty = no_penalty,
) -> actor_critic.Backup:
    """`best_target` over K actions of the target policy, `[B]`.

    Args:
      gamma: discount factor.
      num_actions: K.
      minimum_weight: of the least critic.
      penalty: of the policy at next observations.
    """

    def backup(agent: Agent, context: Context, batch: Transition, key: Key) -> Array:
        actions = sample(agent.target_policy, batch.next_observation, key, num_actions)
        q = evaluate(agent.target_critics, batch.next_observation, actions)
        cost = penalty(agent, context, batch.next_observation, jax.random.fold_in(key, 1))

        def per_transition(transition: Transition, next_q: Array, cost: Array) -> Array:
            return best_target(
                transition, next_q, gamma=gamma, minimum_weight=minimum_weight, penalty=cost
            )

        return jax.vmap(per_transition, (0, 1, 0))(batch, q, cost)

    return backup


def best_of(
    draw: Callable[[Params, Observation, Key], Action],
    value: Callable[[Params, Observation, Action], Array],
    num_actions: int,
) -> Policy:
    """The policy that acts by the best of K actions.

    `sample` draws them afresh. `mode` draws them by the key of `GREEDY_SEED`, the same for all
    observations, so that the greedy action is a function of the observation.

    Args:
      draw: `(params, observation, key) -> [A]`.
      value: `(params, observation, actions [K, A]) -> [K]`.
      num_actions: K.
    """

    def choose(params: Params, observation: Observation, key: Key) -> Action:
        keys = jax.random.split(key, num_actions)
        actions = jax.vmap(draw, (None, None, 0))(params, observation, keys)
        return actions[jnp.argmax(value(params, observation, actions))]

    def mode(params: Params, observation: Observation) -> Action:
        return choose(params, observation, jax.random.key(GREEDY_SEED))

    return Policy(sample=choose, mode=mode)


def whole_actor(params: Params) -> Params:
    """All parameters of the actor."""
    return params


def acting_by_best(
    learner: Learner,
    networks: Networks,
    num_actions: int,
    *,
    select: Callable[[Params], Params] = whole_actor,
) -> Learner:
    """The learner that acts by the best of K actions of its policy, by the first critic.

    Its policy's parameters are those that draw actions and those of that critic; it has no density.

    Args:
      learner: of `actor_critic.make`, with these networks.
      networks: whose critics' parameters have a leading axis [N].
      num_actions: K.
      select: the actor's parameters to those that its policy reads.
    """

    def draw(params: Params, observation: Observation, key: Key) -> Action:
        return networks.policy(params["actor"], observation).sample(seed=key)

    def value(params: Params, observation: Observation, actions: Action) -> Array:
        repeated = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_actions), observation)
        return networks.critics(params["critic"], repeated, actions)[0]

    def policy_params(state: State, context: Context) -> Params:
        del context
        first = jax.tree.map(lambda leaf: leaf[:1], state.critic)
        return {"actor": select(state.actor), "critic": first}

    policy = best_of(draw, value, num_actions)
    return learner._replace(policy=policy, policy_params=policy_params)


# --- cloning ---


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
