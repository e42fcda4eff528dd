"""Between raw units and those of explicit models' densities: standardized inputs, scaled changes and rewards."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, PyTree, Transition

# --- units of the targets: statistics -> shift [D], scale [D]; target = ((change, reward) - shift) / scale ---

Units = Callable[[PyTree], tuple[Array, Array]]


def unit_variance(statistics: PyTree) -> tuple[Array, Array]:
    """Changes over their deviation, unshifted; standardized reward."""
    shift = jnp.append(jnp.zeros_like(statistics["delta_mean"]), statistics["reward_mean"])
    return shift, jnp.append(statistics["delta_std"], statistics["reward_std"])


def standardized(statistics: PyTree) -> tuple[Array, Array]:
    """Changes and reward with mean 0 and deviation 1 (CBOP)."""
    shift = jnp.append(statistics["delta_mean"], statistics["reward_mean"])
    return shift, jnp.append(statistics["delta_std"], statistics["reward_std"])


def raw(statistics: PyTree) -> tuple[Array, Array]:
    """Changes and reward as they are (MBPO, MOPO)."""
    size = statistics["varies"].shape
    return jnp.zeros(size), jnp.ones(size)


# --- between raw units and the density's ---


def inputs(statistics: PyTree, observation: Array, action: Array) -> Array:
    """What a density is conditioned on: standardized observation `[n]` and action, one vector x."""
    return jnp.concatenate([
        (observation - statistics["observation_mean"]) / statistics["observation_std"],
        (action - statistics["action_mean"]) / statistics["action_std"],
    ])  # fmt: skip


def targets(units: Units, statistics: PyTree, observation: Array, next_observation: Array, reward: Array) -> Array:
    """What a density describes: change and reward in its units, `[D]`; 0 where the data never varied."""
    shift, scale = units(statistics)
    y = (jnp.append(next_observation - observation, reward) - shift) / scale
    return jnp.where(statistics["varies"], y, 0.0)


def of_transition(units: Units, statistics: PyTree, transition: Transition) -> tuple[Array, Array]:
    """`inputs` and `targets` of one transition."""
    observation, following = transition.observation, transition.next_observation
    x = inputs(statistics, observation, transition.action)
    return x, targets(units, statistics, observation, following, transition.reward)


def known_entries(transition: Transition) -> Array:
    """Which entries of (change, reward) one transition really tells, `[D]` bool.

    Of a terminal step that leads to a copy of its observation, the reward alone (`data.normalize.unknown_outcomes`).
    """
    repeated = jnp.all(transition.next_observation == transition.observation)
    led_somewhere = ~(repeated & (transition.discount == 0))
    return jnp.append(jnp.broadcast_to(led_somewhere, transition.observation.shape), True)


def outcome(units: Units, statistics: PyTree, observation: Array, y: Array) -> tuple[Array, Array]:
    """The next observation `[n]` and the reward of a target y `[D]`; a constant change is copied."""
    shift, scale = units(statistics)
    constant = jnp.append(statistics["delta_mean"], statistics["reward_mean"])
    change = jnp.where(statistics["varies"], y * scale + shift, constant)
    return observation + change[:-1], change[-1]


def in_raw_units(
    units: Units, statistics: PyTree, observation: Array, means: Array, stds: Array
) -> tuple[Array, Array]:
    """Means and deviations `[E, D]` of targets as those of the next observation and the reward."""
    state, reward = jax.vmap(outcome, (None, None, None, 0))(units, statistics, observation, means)
    stds = jnp.where(statistics["varies"][None], stds * units(statistics)[1][None], 0.0)
    return jnp.concatenate([state, reward[:, None]], axis=1), stds
