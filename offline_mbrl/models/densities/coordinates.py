"""Between raw units and those of explicit models' densities.

Inputs are standardized, changes and rewards scaled.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from offline_mbrl.data.normalize import TransitionStatistics
from offline_mbrl.types import (
    Action,
    Array,
    MemberPredictions,
    Observation,
    Transition,
)

# --- units of the targets ---

# statistics -> shift [D], scale [D]; target = ((change, reward) - shift) / scale
Units = Callable[[TransitionStatistics], tuple[Array, Array]]


def unit_variance(statistics: TransitionStatistics) -> tuple[Array, Array]:
    """Changes over their deviation, unshifted; standardized reward."""
    shift = jnp.append(jnp.zeros_like(statistics.delta_mean), statistics.reward_mean)
    return shift, jnp.append(statistics.delta_std, statistics.reward_std)


def standardized(statistics: TransitionStatistics) -> tuple[Array, Array]:
    """Changes and reward with mean 0 and deviation 1 (CBOP)."""
    shift = jnp.append(statistics.delta_mean, statistics.reward_mean)
    return shift, jnp.append(statistics.delta_std, statistics.reward_std)


def raw(statistics: TransitionStatistics) -> tuple[Array, Array]:
    """Changes and reward as they are (MBPO, MOPO)."""
    shape = statistics.varies.shape
    return jnp.zeros(shape), jnp.ones(shape)


# --- between raw units and the density's ---


def inputs(statistics: TransitionStatistics, observation: Observation, action: Action) -> Array:
    """What a density is conditioned on: standardized observation `[n]` and action, one vector x."""
    return jnp.concatenate(
        [
            (observation - statistics.observation_mean) / statistics.observation_std,
            (action - statistics.action_mean) / statistics.action_std,
        ]
    )


def targets(
    units: Units,
    statistics: TransitionStatistics,
    observation: Observation,
    next_observation: Observation,
    reward: Array,
) -> Array:
    """What a density describes: change and reward in its units, `[D]`; 0 where the data never
    varied.

    Args:
      units: of the targets.
      statistics: of the data.
      observation: `[n]`.
      next_observation: `[n]`.
      reward: `[]`.
    """
    shift, scale = units(statistics)
    y = (jnp.append(next_observation - observation, reward) - shift) / scale
    return jnp.where(statistics.varies, y, 0.0)


def of_transition(
    units: Units, statistics: TransitionStatistics, transition: Transition
) -> tuple[Array, Array]:
    """`inputs` and `targets` of one transition."""
    x = inputs(statistics, transition.observation, transition.action)
    y = targets(
        units,
        statistics,
        transition.observation,
        transition.next_observation,
        transition.reward,
    )
    return x, y


def observed_mask(transition: Transition) -> Array:
    """Which entries of (change, reward) one transition really holds, `[D]` bool.

    Of a terminal step that leads to a copy of its observation, the reward alone
    (`data.normalize.unknown_outcomes`).
    """
    is_copy = jnp.all(transition.next_observation == transition.observation)
    is_outcome = ~(is_copy & (transition.discount == 0))
    return jnp.append(jnp.broadcast_to(is_outcome, transition.observation.shape), True)


def outcome(
    units: Units, statistics: TransitionStatistics, observation: Observation, y: Array
) -> tuple[Observation, Array]:
    """The next observation `[n]` and the reward of a target y `[D]`; a constant change is copied.

    Args:
      units: of the targets.
      statistics: of the data.
      observation: `[n]`.
      y: `[D]`.
    """
    shift, scale = units(statistics)
    constant = jnp.append(statistics.delta_mean, statistics.reward_mean)
    change = jnp.where(statistics.varies, y * scale + shift, constant)
    return observation + change[:-1], change[-1]


def in_raw_units(
    units: Units,
    statistics: TransitionStatistics,
    observation: Observation,
    means: Array,
    stds: Array,
) -> MemberPredictions:
    """Moments of targets as those of the next observation and the reward.

    Args:
      units: of the targets.
      statistics: of the data.
      observation: `[n]`, the one before.
      means: `[E, D]` of the targets.
      stds: `[E, D]`.
    """
    outcomes = jax.vmap(outcome, (None, None, None, 0))
    states, rewards = outcomes(units, statistics, observation, means)
    raw_stds = jnp.where(statistics.varies[None], stds * units(statistics)[1][None], 0.0)
    return MemberPredictions(mean=jnp.concatenate([states, rewards[:, None]], axis=1), std=raw_stds)
