"""Kinds of critics of a policy: values with a squared error, and categorical distributions.

Both take the next action from outside, so that any policy can be evaluated by them.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts import networks as parts
from offline_mbrl.learners.parts.actor_critic import Agent
from offline_mbrl.networks import ensemble
from offline_mbrl.targets import categorical
from offline_mbrl.types import Action, Array, Key, Observation, Params, Transition

# --- equations, one transition ---


def target(transition: Transition, next_q: Array, *, gamma: float) -> Array:
    """What critics with a squared error regress to, `[]`: `r + gamma discount min_i Q_i(s', a')`.

    Args:
      transition: of the data.
      next_q: `[N]` target critics at an action `a'` of the policy.
      gamma: discount factor.

    Source: arXiv:2006.15134, equation 1.
    """
    chex.assert_rank([transition.reward, transition.discount, next_q], [0, 0, 1])
    return transition.reward + gamma * transition.discount * jnp.min(next_q)


def categorical_target(
    transition: Transition, next_logits: Array, support: Array, *, gamma: float
) -> Array:
    """What categorical critics are fitted to, `[M]`: the backup of every atom, projected.

    Args:
      transition: of the data.
      next_logits: `[N, M]` target critics at an action of the policy; that of least mean counts.
      support: `[M]` atoms.
      gamma: discount factor.

    Source: arXiv:1707.06887, algorithm 1, with an action of the policy.
    """
    chex.assert_rank([transition.reward, transition.discount, next_logits], [0, 0, 2])
    probabilities = jax.nn.softmax(next_logits)
    least = probabilities[jnp.argmin(probabilities @ support)]
    positions = transition.reward + gamma * transition.discount * support
    return categorical.project(least, positions, support)


def categorical_loss(logits: Array, target: Array) -> Array:
    """The sum of the critics' cross entropies with a target, `[]`.

    Args:
      logits: `[N, M]` critics at the data's action.
      target: `[M]` probabilities.
    """
    chex.assert_rank([logits, target], [2, 1])
    return jnp.sum(jax.vmap(optax.softmax_cross_entropy, (0, None))(logits, target))


# --- kinds ---


class Critic(NamedTuple):
    """A kind of critic, and how it learns."""

    init: Callable[[Key], Params]
    # (params, observations [B, ...], actions [B, A]) -> [N, B]
    q: Callable[[Params, Observation, Action], Array]
    # (agent, batch, next actions [B, A]) -> what the regression reads
    backup: Callable[[Agent, Transition, Action], Array]
    regression: actor_critic.Regression


def squared(critics: ensemble.Ensemble, *, gamma: float) -> Critic:
    """Values, fitted by their squared error.

    Args:
      critics: of `networks.critics`.
      gamma: discount factor.
    """

    def backup(agent: Agent, batch: Transition, actions: Action) -> Array:
        next_q = agent.target_critics(batch.next_observation, actions)
        return jax.vmap(lambda step, q: target(step, q, gamma=gamma), (0, 1))(batch, next_q)

    return Critic(
        init=critics.init,
        q=critics.apply,
        backup=backup,
        regression=actor_critic.squared_regression,
    )


def distributional(
    network: parts.Network, num_critics: int, support: Array, *, gamma: float
) -> Critic:
    """Distributions on a fixed support, fitted by cross entropy; a value is their mean.

    Args:
      network: of `networks.critic`, with an output for each atom.
      num_critics: N.
      support: `[M]` atoms, increasing and evenly spaced.
      gamma: discount factor.
    """
    apply = jax.vmap(network.apply, (None, 0, 0))
    logits = ensemble.make(network.init, apply, num_critics)  # -> [N, B, M]

    def q(params: Params, observations: Observation, actions: Action) -> Array:
        return jax.nn.softmax(logits.apply(params, observations, actions)) @ support

    def backup(agent: Agent, batch: Transition, actions: Action) -> Array:
        next_logits = logits.apply(agent.state.target_critic, batch.next_observation, actions)

        def per_transition(step: Transition, next_logits: Array) -> Array:
            return categorical_target(step, next_logits, support, gamma=gamma)

        return jax.vmap(per_transition, (0, 1))(batch, next_logits)

    def regression(agent: Agent, batch: Transition, targets: Array) -> Array:
        here = logits.apply(agent.state.critic, batch.observation, batch.action)
        return jnp.mean(jax.vmap(categorical_loss, (1, 0))(here, targets))

    return Critic(init=logits.init, q=q, backup=backup, regression=regression)
