"""Critics' targets from rollouts of a policy in a model: the backup of value expansion.

From the next state of the data and one action of the policy there, K particles roll out, each in a
member of the ensemble; a weighting makes one value of their returns (`targets.value_expansion`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts.actor_critic import Agent, Backup, Networks
from offline_mbrl.networks import distributions
from offline_mbrl.rollouts import expand, shares
from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.targets import value_expansion
from offline_mbrl.targets.value_expansion import Posterior, Weighting
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    DynamicsModel,
    Key,
    Metrics,
    ModelParams,
    Observation,
    Params,
    Transition,
)


class Depths(NamedTuple):
    """How returns of different depths are computed."""

    horizon: int  # H, the deepest
    num_particles: int  # K
    gamma: float
    adjust: Adjust  # of predictions
    dtype: Any  # of the critics at depths of 1 and more


class Targets(NamedTuple):
    """What critics regress to, and what is reported of it."""

    value: Array  # [B]
    metrics: Metrics


def backup(
    model: DynamicsModel, networks: Networks, depths: Depths, *, combine: Weighting, psi: float
) -> Backup:
    """`Targets` of a batch, in the model `context.upstream["model"]`.

    `r + gamma discount (mean - psi std - temperature log pi(a'|s'))`, the posterior's mean and
    standard deviation at the next state `s'` and the policy's action `a'`.

    Args:
      model: the ensemble.
      networks: actor and critics.
      depths: of the rollouts.
      combine: what becomes of their returns.
      psi: weight of the posterior's deviation.
    """
    spread = shares.by_particle(depths.num_particles)

    def target(transition: Transition, bound: Array, log_prob: Array, temperature: Array) -> Array:
        value = bound - temperature * log_prob
        return transition.reward + depths.gamma * transition.discount * value

    def targets(agent: Agent, context: Context, batch: Transition, key: Key) -> Targets:
        key_action, key_members, key_rollouts = jax.random.split(key, 3)
        start = batch.next_observation
        action, log_prob = actor_critic.sample_actions(agent.policy, start, key_action)
        params = members_of_update(context.upstream["model"], depths.num_particles, key_members)
        run = spread.apply(model, _rollout(model, networks, depths, agent.state.target_critic))
        keys = jax.random.split(key_rollouts, action.shape[0])
        expansion = run(params, agent.state.actor, start, keys, action)
        returns = jnp.moveaxis(expansion.returns, 0, 2)  # [B, H + 1, K, M]
        ended = jnp.any(expansion.ended, axis=0)  # [B, H + 1]
        posterior = jax.vmap(combine)(returns, 1.0 - ended)
        bound = value_expansion.lower_bound(posterior, psi)
        value = jax.vmap(target, (0, 0, 0, None))(batch, bound, log_prob, agent.temperature)
        return Targets(value=value, metrics=report(returns, ended, posterior, bound))

    return targets


def _rollout(
    model: DynamicsModel, networks: Networks, depths: Depths, critic: Params
) -> shares.Run:
    def values(dtype: Any) -> expand.Values:
        """The critics at one state and action, computed in a dtype."""
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), critic)

        def apply(observation: Observation, action: Action) -> Array:
            inputs = observation[None].astype(dtype), action[None].astype(dtype)
            return networks.critics(cast, *inputs)[:, 0]

        return apply

    return expand.expand(
        model,
        distributions.as_policy(networks.policy, has_density=False),
        values(jnp.float32),
        gamma=depths.gamma,
        horizon=depths.horizon,
        deep_values=values(depths.dtype),
        adjust=depths.adjust,
    )


def members_of_update(params: ModelParams, num_particles: int, key: Key) -> ModelParams:
    """Elites for K particles: all of them, or K at random where there are more.

    Args:
      params: of the ensemble.
      num_particles: K.
      key: consumed.
    """
    if num_particles >= params.elites.shape[0]:
        return params
    return params._replace(elites=jax.random.permutation(key, params.elites)[:num_particles])


def regression(agent: Agent, batch: Transition, targets: Targets) -> Array:
    """`actor_critic.squared_regression` to the targets' values, `[]`."""
    return actor_critic.squared_regression(agent, batch, targets.value)


def report(returns: Array, ended: Array, posterior: Posterior, bound: Array) -> Metrics:
    """Figures of a batch of targets, by name.

    Args:
      returns: `[B, H + 1, K, M]`.
      ended: `[B, H + 1]` bool, for any particle.
      posterior: fields `[B, ...]`.
      bound: `[B]`.
    """
    means, variances = jax.vmap(value_expansion.moments)(returns)
    deviations = jnp.mean(jnp.sqrt(variances), axis=0)
    horizons = jax.vmap(value_expansion.expected_horizon)(posterior)
    metrics = {
        "expected_horizon": jnp.mean(horizons),
        **{f"expected_horizon_{q}": jnp.percentile(horizons, q) for q in (10, 50, 90)},
        "mean": jnp.mean(posterior.mean),
        "std": jnp.mean(jnp.sqrt(posterior.variance)),
        **{f"std_at_{h}": deviation for h, deviation in enumerate(deviations)},
        "ended": jnp.mean(jnp.any(ended, axis=1)),
        "bound_minus_least": jnp.mean(bound - jnp.min(means, axis=1)),
    }
    return {f"expansion/{name}": value for name, value in metrics.items()}
