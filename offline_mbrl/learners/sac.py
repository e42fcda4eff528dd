"""Soft actor-critic with N critics (arXiv:1801.01290, arXiv:1812.05905), offline or online.

Two critics are the paper's; more are SAC-N (arXiv:2110.01548). The update is `actor_critic`'s: all
losses are taken at the parameters before it; the target critics then follow the updated ones.

Differences: the log standard deviation is clipped to [-5, 2] (as in SAC policies released for
off-policy evaluation; the authors' lower bound is -20). Observations enter in raw units, whatever
the statistics say: a policy then needs no data to act, and simulated states are of moderate size.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts import networks as parts
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent, Method, Networks, Temperature
from offline_mbrl.settings import Scope, above, at_least, between, increasing, read_if, sizes
from offline_mbrl.types import (
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    PyTree,
    Transition,
    action_size,
)


def _learns_temperature(scope: Scope) -> bool:
    return scope.config.fixed_temperature is None


if_learned = read_if(_learns_temperature, "a learned temperature")


def _is_whole_run(scope: Scope) -> bool:
    return scope.root is scope.config


if_whole_run = read_if(_is_whole_run, "a run of this learner alone; give the run's own num_updates")


@dataclass(frozen=True)
class Config:
    """The second paper's table 1 unless said otherwise."""

    num_updates: Annotated[int, at_least(1), if_whole_run] = 1_000_000
    batch_size: Annotated[int, at_least(1)] = 256  # transitions per update
    gamma: Annotated[float, between(0, 1)] = 0.99  # discount factor
    tau: Annotated[float, between(0, 1)] = 0.005  # of the new critic in the target, each update
    actor_layers: Annotated[tuple[int, ...], sizes()] = (256, 256)  # ReLU
    critic_layers: Annotated[tuple[int, ...], sizes()] = (256, 256)  # ReLU
    num_critics: Annotated[int, at_least(1)] = 2  # N; targets and the actor take the least
    actor_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam
    # Of the actor's rate; the cosine falls to 0 at the end of the run (OfflineRL-Kit).
    actor_schedule: Literal["constant", "cosine"] = "constant"
    critic_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam
    temperature_learning_rate: Annotated[float, at_least(0), if_learned] = 3e-4  # Adam
    initial_temperature: Annotated[float, above(0), if_learned] = 1.0  # weight of entropy
    max_temperature: Annotated[float | None, above(0), if_learned] = None  # 1: OfflineRL-Kit
    # Instead of a learned one; 0 leaves entropy out.
    fixed_temperature: Annotated[float | None, at_least(0)] = None
    # Nats; None: minus the size of an action.
    target_entropy: Annotated[float | None, if_learned] = None
    # Clipped, before tanh.
    log_std_bounds: Annotated[tuple[float, float], increasing()] = (-5.0, 2.0)


# --- the equations, one transition ---


def target(
    transition: Transition,
    next_q: Array,
    next_log_prob: Array,
    *,
    gamma: float,
    temperature: Array,
) -> Array:
    """What all critics regress to, `[]`.

    `r + gamma discount (min_i Q_i(s', a') - temperature log pi(a'|s'))`.

    Args:
      transition: of the data.
      next_q: `[N]` target critics at the next observation and a fresh action `a'` there.
      next_log_prob: `[]` of that action.
      gamma: discount factor.
      temperature: `[]`.

    Source: arXiv:1812.05905, equations 3 and 5, with the minimum of its section 6.
    """
    chex.assert_rank([transition.reward, transition.discount, next_q, next_log_prob], [0, 0, 1, 0])
    value = jnp.min(next_q) - temperature * next_log_prob
    return transition.reward + gamma * transition.discount * value


def actor_loss(q: Array, log_prob: Array, *, temperature: Array) -> Array:
    """`temperature log pi(a|s) - min_i Q_i(s, a)`, `[]`, at the policy's own action.

    Args:
      q: `[N]` critics at that action.
      log_prob: `[]` of it.
      temperature: `[]`.

    Source: arXiv:1812.05905, equation 7.
    """
    chex.assert_rank([q, log_prob], [1, 0])
    return temperature * log_prob - jnp.min(q)


# --- the parts of an update ---


def soft_backup(gamma: float) -> actor_critic.Backup:
    """`target` at a fresh action of the policy, by the target critics; `[B]`."""

    def backup(agent: Agent, context: Context, batch: Transition, key: Key) -> Array:
        del context
        action, log_prob = actor_critic.sample_actions(agent.policy, batch.next_observation, key)
        next_q = agent.target_critics(batch.next_observation, action)

        def per_transition(transition: Transition, q: Array, log_prob: Array) -> Array:
            return target(transition, q, log_prob, gamma=gamma, temperature=agent.temperature)

        return jax.vmap(per_transition, (0, 1, 0))(batch, next_q, log_prob)

    return backup


def soft_objective(agent: Agent, context: Context, batch: Transition, key: Key) -> ActorLoss:
    """The mean of `actor_loss` over a batch."""
    del context
    action, log_prob = actor_critic.sample_actions(agent.policy, batch.observation, key)
    q = agent.critics(batch.observation, action)

    def per_transition(q: Array, log_prob: Array) -> Array:
        return actor_loss(q, log_prob, temperature=agent.temperature)

    return ActorLoss(
        loss=jnp.mean(jax.vmap(per_transition, (1, 0))(q, log_prob)), log_prob=log_prob
    )


# --- assembly ---


def networks(config: Config, spec: EnvironmentSpec) -> Networks:
    """Actor and critics of these sizes.

    Raises:
      UsageError: the actions are discrete.
    """

    def clip(log_std: Array) -> Array:
        return jnp.clip(log_std, *config.log_std_bounds)

    actor = parts.squashed_normal_actor(spec, "sac", config.actor_layers, clip)
    critics = parts.critics(spec, "sac", config.critic_layers, config.num_critics)
    return Networks(
        init_actor=actor.init,
        policy=actor.apply,
        init_critics=critics.init,
        critics=critics.apply,
    )


def temperature(config: Config, spec: EnvironmentSpec) -> Temperature:
    """The weight of entropy that a config asks for."""
    if config.fixed_temperature is not None:
        return Temperature(initial=config.fixed_temperature)
    target_entropy = config.target_entropy
    if target_entropy is None:
        target_entropy = -float(action_size(spec, "sac"))
    optimizer = optax.adam(config.temperature_learning_rate)
    if config.max_temperature is not None:
        optimizer = optax.chain(optimizer, at_most(math.log(config.max_temperature)))
    return Temperature(
        initial=config.initial_temperature, target_entropy=target_entropy, optimizer=optimizer
    )


def at_most(maximum: float) -> optax.GradientTransformation:
    """Cuts updates short that would take a parameter above `maximum`."""

    def cut(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda update, x: jnp.minimum(update, maximum - x), updates, params)

    return optax.stateless(cut)


def actor_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam at the rate of a config's schedule."""
    rate = config.actor_learning_rate
    if config.actor_schedule == "cosine":
        return optax.adam(optax.cosine_decay_schedule(rate, config.num_updates))
    return optax.adam(rate)


def method(config: Config, spec: EnvironmentSpec) -> Method:
    """The method, whose parts others replace.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "sac", spec)
    return Method(
        networks=networks(config, spec),
        backup=soft_backup(config.gamma),
        actor_objective=soft_objective,
        actor_optimizer=actor_optimizer(config),
        critic_optimizer=optax.adam(config.critic_learning_rate),
        follow=actor_critic.polyak(config.tau),
        temperature=temperature(config, spec),
    )


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    return actor_critic.make(method(config, spec), memory.Transitions(config.batch_size))
