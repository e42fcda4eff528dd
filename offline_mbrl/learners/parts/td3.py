"""TD3 (arXiv:1802.09477) as offline methods build on it: parts, no learner of its own.

A deterministic actor climbs its critics; these regress to the least target critic at the target
actor's action with clipped noise. The actor and all targets move at every second update.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts import networks as parts
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent, Method, Networks
from offline_mbrl.settings import at_least, between, sizes
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Observation,
    Transition,
)


@dataclass(frozen=True)
class Config:
    """The settings of TD3+BC's paper (table 3)."""

    num_updates: Annotated[int, at_least(1)] = 1_000_000
    batch_size: Annotated[int, at_least(1)] = 256  # transitions per update
    gamma: Annotated[float, between(0, 1)] = 0.99  # discount factor
    tau: Annotated[float, between(0, 1)] = 0.005  # of the new networks in the targets
    actor_period: Annotated[int, at_least(1)] = 2  # updates for each of the actor and the targets
    target_noise: Annotated[float, at_least(0)] = 0.2  # deviation, added to the next action
    noise_bound: Annotated[float, at_least(0)] = 0.5  # of that noise
    actor_layers: Annotated[tuple[int, ...], sizes()] = (256, 256)
    critic_layers: Annotated[tuple[int, ...], sizes()] = (256, 256)
    num_critics: Annotated[int, at_least(1)] = 2  # the least is the target
    activation: Literal["relu", "gelu"] = "relu"
    normalize_actor_layers: bool = False  # after each activation
    normalize_critic_layers: bool = False
    actor_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam
    critic_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam


# --- the equations, one transition ---


def smoothed(action: Action, noise: Array, *, bound: float) -> Action:
    """`clip(a + clip(noise, -bound, bound), -1, 1)`, `[A]`.

    Args:
      action: `[A]` of the target actor.
      noise: `[A]` normal, scaled.
      bound: of the noise.

    Source: arXiv:1802.09477, algorithm 1.
    """
    chex.assert_equal_shape([action, noise])
    return jnp.clip(action + jnp.clip(noise, -bound, bound), -1.0, 1.0)


def target(
    transition: Transition, next_q: Array, *, gamma: float, penalty: Array | float = 0.0
) -> Array:
    """What all critics regress to, `[]`: `r + gamma discount (min_i Q_i(s', a') - penalty)`.

    Args:
      transition: of the data.
      next_q: `[N]` target critics at the next observation and the smoothed action there.
      gamma: discount factor.
      penalty: `[]` of that action.

    Source: arXiv:1802.09477, algorithm 1; the penalty is ReBRAC's (arXiv:2305.09836).
    """
    chex.assert_rank([transition.reward, transition.discount, next_q, penalty], [0, 0, 1, 0])
    return transition.reward + gamma * transition.discount * (jnp.min(next_q) - penalty)


def value_scale(q: Array, *, alpha: float) -> Array:
    """`alpha / mean |Q|` over a batch, `[]`; no gradient goes through it.

    Args:
      q: `[B]` values of the actor's actions.
      alpha: the mean magnitude of scaled values.

    Source: arXiv:2106.06860, section 4.
    """
    chex.assert_rank(q, 1)
    return alpha / jax.lax.stop_gradient(jnp.maximum(jnp.mean(jnp.abs(q)), 1e-8))


# --- the parts of an update ---

# (transition, its smoothed next action [A]) -> []
Penalty = Callable[[Transition, Action], Array]


def no_penalty(transition: Transition, next_action: Action) -> Array:
    """0: every next action is as good."""
    del transition, next_action
    return jnp.zeros(())


def smoothed_backup(config: Config, penalty: Penalty = no_penalty) -> actor_critic.Backup:
    """`target` at the smoothed action of the target actor, by the target critics; `[B]`.

    Args:
      config: the noise and the discount factor.
      penalty: of a next action.
    """

    def backup(agent: Agent, context: Context, batch: Transition, key: Key) -> Array:
        del context
        keys = jax.random.split(key, batch.reward.shape[0])

        def next_action(observation: Observation, key: Key) -> Action:
            action = agent.target_policy(observation).mode()
            noise = config.target_noise * jax.random.normal(key, action.shape)
            return smoothed(action, noise, bound=config.noise_bound)

        actions = jax.vmap(next_action)(batch.next_observation, keys)
        next_q = agent.target_critics(batch.next_observation, actions)

        def per_transition(transition: Transition, q: Array, action: Action) -> Array:
            cost = penalty(transition, action)
            return target(transition, q, gamma=config.gamma, penalty=cost)

        return jax.vmap(per_transition, (0, 1, 0))(batch, next_q, actions)

    return backup


# (agent, observations [B, ...], actions [B, A]) -> [B]: what the actor climbs
Value = Callable[[Agent, Observation, Action], Array]
# ([A], [A]) -> []: how far the actor's action is from the data's
Distance = Callable[[Action, Action], Array]


def scaled_objective(
    alpha: float, *, value: Value, distance: Distance
) -> actor_critic.ActorObjective:
    """The mean of `distance(pi(s), a) - value_scale value(s, pi(s))` over a batch.

    Args:
      alpha: the mean magnitude of scaled values.
      value: of the critics.
      distance: with its weight.
    """

    def objective(agent: Agent, context: Context, batch: Transition, key: Key) -> ActorLoss:
        del context, key  # deterministic
        actions = jax.vmap(lambda observation: agent.policy(observation).mode())(batch.observation)
        q = value(agent, batch.observation, actions)
        scale = value_scale(q, alpha=alpha)
        distances = jax.vmap(distance)(actions, batch.action)
        return ActorLoss(
            loss=jnp.mean(distances - scale * q),
            metrics={"value_scale": scale, "distance": jnp.mean(distances)},
        )

    return objective


# --- assembly ---


def networks(config: Config, spec: EnvironmentSpec, caller: str) -> Networks:
    """A deterministic actor and critics of these sizes.

    Args:
      config: sizes and options.
      spec: of the problem.
      caller: the learner, for messages.

    Raises:
      UsageError: the actions are discrete.
    """
    activation = parts.ACTIVATIONS[config.activation]
    actor = parts.deterministic_actor(
        spec,
        caller,
        config.actor_layers,
        activation=activation,
        normalize_layers=config.normalize_actor_layers,
    )
    critics = parts.critics(
        spec,
        caller,
        config.critic_layers,
        config.num_critics,
        activation=activation,
        normalize_layers=config.normalize_critic_layers,
    )
    return Networks(
        init_actor=actor.init,
        policy=actor.apply,
        init_critics=critics.init,
        critics=critics.apply,
    )


def method(
    config: Config,
    nets: Networks,
    *,
    backup: actor_critic.Backup,
    objective: actor_critic.ActorObjective,
) -> Method:
    """TD3's update: the actor and all targets move at every `actor_period`-th one.

    Args:
      config: its rates and periods.
      nets: of `networks`.
      backup: of the critics.
      objective: of the actor.
    """
    follow = actor_critic.polyak(config.tau, period=config.actor_period)
    return Method(
        networks=nets,
        backup=backup,
        actor_objective=objective,
        actor_optimizer=optax.adam(config.actor_learning_rate),
        critic_optimizer=optax.adam(config.critic_learning_rate),
        follow=follow,
        follow_actor=follow,
        actor_period=config.actor_period,
    )
