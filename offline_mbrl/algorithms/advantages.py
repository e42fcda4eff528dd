"""Advantages of the data's actions, `[K + 1]` of one trajectory: which of them a cloning term follows, and how far.

All are computed from the target parameters. They differ in where the step after the action is taken from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from offline_mbrl.planning import outcomes
from offline_mbrl.types import Array, LatentModel, Plan, PyTree, Trajectory, UsageError

# (target params, embeddings [T + 1], trajectory, plan [K + 1], values [T + 1]) -> [K + 1]
Advantage = Callable[[PyTree, PyTree, Trajectory, Plan, Array], Array]


def planned(params: PyTree, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array) -> Array:
    """`model` where the plan holds it already: an exact one-step lookahead's own value of the data's action."""
    del params, embeddings, values
    actions = trajectory.action[: plan.value.shape[0]]
    return jnp.take_along_axis(plan.qvalues, actions[:, None], axis=1)[:, 0] - plan.value


def model(latent: LatentModel, gamma: float) -> Advantage:
    """`r(s, a) + gamma v(g(s, a)) - v(s)`, all from the model (ROSMO as published)."""

    def advantage(params: PyTree, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array) -> Array:
        del values
        size = plan.value.shape[0]
        here = jax.tree.map(lambda leaf: leaf[:size], embeddings)
        following = jax.vmap(latent.dynamics, (None, 0, 0))(params, here, trajectory.action[:size])
        outcome = outcomes.evaluate(latent, params, following)
        return outcome.reward + gamma * outcome.value - plan.value

    return advantage


def encoded_next(latent: LatentModel, gamma: float) -> Advantage:
    """`r(h(o')) + gamma v(h(o')) - v(h(o))` on encoded frames (ROSMO as released)."""

    def advantage(params: PyTree, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array) -> Array:
        del trajectory
        size = plan.value.shape[0]
        following = jax.tree.map(lambda leaf: leaf[1 : size + 1], embeddings)
        reward = outcomes.evaluate(latent, params, following).reward
        return reward + gamma * values[1 : size + 1] - plan.value

    return advantage


def data_td(gamma: float) -> Advantage:
    """`r + gamma v(s') - v(s)` with the logged reward and the real next observation; the model is not asked."""

    def advantage(params: PyTree, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array) -> Array:
        del params, embeddings
        size = plan.value.shape[0]
        return trajectory.reward[:size] + gamma * trajectory.discount[:size] * values[1 : size + 1] - plan.value

    return advantage


def make(name: str, latent: LatentModel, gamma: float) -> Advantage:
    """An advantage by name: `model`, `encoded_next` or `data_td`.

    Raises:
      UsageError: the name is another one.
    """
    choices = {"model": model(latent, gamma), "encoded_next": encoded_next(latent, gamma), "data_td": data_td(gamma)}
    if name not in choices:
        raise UsageError(f"behavior_advantage {name!r} is unknown: {', '.join(choices)}")
    return choices[name]
