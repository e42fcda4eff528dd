"""Advantages of the data's actions, `[K + 1]` of one trajectory: what a cloning term follows.

All are computed from the target parameters. They differ in where the step after the action is taken
from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from offline_mbrl.planning import outcomes
from offline_mbrl.types import Array, LatentModel, Params, Plan, PyTree, Trajectory, UsageError

# (target params, embeddings [T + 1], trajectory, plan [K + 1], values [T + 1]) -> [K + 1]
Advantage = Callable[[Params, PyTree, Trajectory, Plan, Array], Array]


def planned(
    params: Params, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array
) -> Array:
    """`model` where the plan holds it already: an exact one-step lookahead's own q-value."""
    del params, embeddings, values
    actions = trajectory.action[: plan.value.shape[0]]
    return jnp.take_along_axis(plan.qvalues, actions[:, None], axis=1)[:, 0] - plan.value


def model(latent: LatentModel, gamma: float) -> Advantage:
    """`r(s, a) + gamma v(g(s, a)) - v(s)`, all from the model (ROSMO as published)."""

    def advantage(
        params: Params, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array
    ) -> Array:
        del values
        size = plan.value.shape[0]
        current = jax.tree.map(lambda leaf: leaf[:size], embeddings)
        step = jax.vmap(latent.dynamics, (None, 0, 0))
        following = step(params, current, trajectory.action[:size])
        outcome = outcomes.evaluate(latent, params, following)
        return outcome.reward + gamma * outcome.value - plan.value

    return advantage


def encoded_next(latent: LatentModel, gamma: float) -> Advantage:
    """`r(h(o')) + gamma v(h(o')) - v(h(o))` on encoded frames (ROSMO as released)."""

    def advantage(
        params: Params, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array
    ) -> Array:
        del trajectory
        size = plan.value.shape[0]
        following = jax.tree.map(lambda leaf: leaf[1 : size + 1], embeddings)
        reward = outcomes.evaluate(latent, params, following).reward
        return reward + gamma * values[1 : size + 1] - plan.value

    return advantage


def data_td(gamma: float) -> Advantage:
    """`r + gamma v(s') - v(s)` with the logged reward and the real next observation."""

    def advantage(
        params: Params, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array
    ) -> Array:
        del params, embeddings
        size = plan.value.shape[0]
        discount = gamma * trajectory.discount[:size]
        return trajectory.reward[:size] + discount * values[1 : size + 1] - plan.value

    return advantage


def make(name: str, latent: LatentModel, gamma: float) -> Advantage:
    """An advantage by name.

    Args:
      name: `model`, `encoded_next` or `data_td`.
      latent: the model that is asked.
      gamma: discount factor per step.

    Raises:
      UsageError: another name.
    """
    choices = {
        "model": model(latent, gamma),
        "encoded_next": encoded_next(latent, gamma),
        "data_td": data_td(gamma),
    }
    if name not in choices:
        raise UsageError(f"behavior_advantage {name!r} is unknown: {', '.join(choices)}")
    return choices[name]
