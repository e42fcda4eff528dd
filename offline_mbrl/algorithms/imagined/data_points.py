"""A stage that hands on points of the data, for penalties by the distance to them."""

from typing import NamedTuple

import jax.numpy as jnp

from offline_mbrl.data import memory
from offline_mbrl.rollouts import pessimism
from offline_mbrl.rollouts.pessimism import Penalty
from offline_mbrl.types import Array, Context, Key, Learner, Metrics, Stage, Transition

NAME = "points"


class Points(NamedTuple):
    """Observations beside their actions, in units of the data."""

    values: Array  # [num_points, n + A]


def stage(num_points: int) -> Stage:
    """One update, which draws the points with replacement.

    Args:
      num_points: how many; every step of a rollout is compared with all of them.
    """

    def init(key: Key, example: Transition, context: Context) -> Points:
        del key, context
        return Points(values=jnp.zeros_like(_points(example)))

    def step(
        state: Points, context: Context, batch: Transition, key: Key
    ) -> tuple[Points, Metrics]:
        metrics = validate(state, context, batch, key)
        return Points(values=_points(batch)), metrics

    def validate(state: Points, context: Context, batch: Transition, key: Key) -> Metrics:
        del context, key
        moved = jnp.mean(jnp.square(_points(batch) - state.values))
        return {"loss/total": moved}

    learner = Learner(
        sample=memory.Transitions(num_points),
        init=init,
        step=step,
        validate=validate,
        policy=None,
        policy_params=lambda state, context: state.values,
    )
    return Stage(learner=learner, num_updates=1)


def distance(context: Context) -> Penalty:
    """The distance to the nearest point that the stage handed on, in deviations of the data.

    Args:
      context: with the stages "model" and "points" upstream.
    """
    statistics = context.upstream["model"].statistics
    scale = jnp.append(statistics.observation_std, statistics.action_std)
    return pessimism.nearest_data(context.upstream[NAME], scale)


def _points(batch: Transition) -> Array:
    return jnp.concatenate([batch.observation, batch.action], axis=-1)
