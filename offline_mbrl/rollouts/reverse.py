"""Backward rollouts as forward ones: paths that end in a state of the data.

A model and a policy of data with time reversed (`data.reverse`) are rolled out by `unroll` like any
other: from a state of the data to what may have come before. `forwards` reads the path in the order
of time, so that it is experience like the data's: its last transition arrives where the rollout
began (arXiv:2110.00188, section 3).
"""

import jax
import jax.numpy as jnp

from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.rollouts.imagination import Imagine
from offline_mbrl.rollouts.step import Measure
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    Key,
    Metrics,
    ModelParams,
    Observation,
    Params,
    Prediction,
    Termination,
    Trajectory,
)

CONTINUES = "continues"  # the measure of `continuation`


def forwards(trajectory: Trajectory) -> Trajectory:
    """One backward path in the order of time, what happened first.

    With n steps that happened, its step k is the backward step n - 1 - k from its end to its
    start, so that observation n is the first one of the rollout, and stays from there on. Discounts
    go with their steps; after the end it is that of the last step.

    Args:
      trajectory: `[T]` of a reverse model; the steps that happened come first, as in every rollout.
    """
    horizon = trajectory.mask.shape[0]
    length = jnp.sum(trajectory.mask > 0)
    step = jnp.arange(horizon)
    happened = step < length
    backward_step = jnp.maximum(length - 1 - step, 0)  # after the end that of the last step
    position = jnp.maximum(length - jnp.arange(horizon + 1), 0)

    def of_step(leaf: Array) -> Array:
        is_step = happened.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(is_step, leaf[backward_step], leaf)

    return Trajectory(
        observation=jax.tree.map(lambda leaf: leaf[position], trajectory.observation),
        action=of_step(trajectory.action),
        reward=of_step(trajectory.reward),
        discount=trajectory.discount[backward_step],
        mask=happened.astype(jnp.float32),
        extras=jax.tree.map(of_step, trajectory.extras),
    )


def reversed_in_time(imagine: Imagine) -> Imagine:
    """Imagination whose paths lead to its starts.

    Args:
      imagine: of a model and a policy of reversed data, for example `imagination.by_rollout`.
    """

    def imagine_forwards(
        context: Context, policy_params: Params, observation: Observation, update: Array, key: Key
    ) -> Trajectory:
        return jax.vmap(forwards)(imagine(context, policy_params, observation, update, key))

    return imagine_forwards


# --- terminals ---


def of_reverse(terminated: Termination) -> Termination:
    """A task's rule for transitions of reversed data, whose `next_observation` came before."""

    def rule(observation: Observation, action: Action, next_observation: Observation) -> Array:
        return terminated(next_observation, action, observation)

    return rule


def _go_on(
    params: ModelParams, observation: Observation, action: Action, prediction: Prediction, key: Key
) -> Prediction:
    del params, observation, action, key
    return prediction._replace(discount=jnp.ones_like(prediction.discount))


# A rollout ends at a terminal, here too, so that of a terminal state a single step is imagined, as
# ROMI's released code does. With this adjustment it goes on to what led there.
go_on = Adjust(apply=_go_on, changes_observation=False)


def _continues(
    params: ModelParams, observation: Observation, action: Action, prediction: Prediction
) -> Metrics:
    del params, observation, action
    return {CONTINUES: prediction.discount}


# What the model says of each step, which `go_on` hides.
continuation = Measure(apply=_continues)


def ending_in_terminals(imagine: Imagine) -> Imagine:
    """Backward imagination that goes on from terminals, with what its first steps say of them.

    Only the last transition of a path can end in a terminal: nothing comes after one. So the
    discount of a backward rollout's first step is the model's, and 1 elsewhere.

    Args:
      imagine: backward, with the adjustment `go_on` and the measure `continuation`.
    """

    def imagine_on(
        context: Context, policy_params: Params, observation: Observation, update: Array, key: Key
    ) -> Trajectory:
        trajectory = imagine(context, policy_params, observation, update, key)
        extras = dict(trajectory.extras)
        first = extras.pop(CONTINUES)[:, :1]
        is_step = trajectory.mask[:, :1] > 0
        discount = jnp.where(is_step, first, trajectory.discount[:, :1])
        return trajectory._replace(
            discount=jnp.concatenate([discount, trajectory.discount[:, 1:]], axis=1),
            extras=extras,
        )

    return imagine_on
