"""Acting by a moving average of parameters: what wraps a learner returns a learner.

The last parameters of a run still move with the last batches; their average over many updates moves
less (Polyak and Juditsky, 1992, doi:10.1137/0330046). Learning itself is as it was.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, Context, Key, Learner, Metrics, Params, PyTree


class State(NamedTuple):
    """The learner's own state, and the average of what it would act with."""

    learner: PyTree
    average: Params
    step: Array  # [] int32 updates that are averaged


def acting_by_average(learner: Learner, decay: float) -> Learner:
    """The learner, which acts with `average <- average + (1 - decay) (params - average)`.

    While there are fewer updates than `1 / (1 - decay)` the average is their plain mean, so that it
    holds nothing of the initial parameters.

    Args:
      learner: its `policy_params` are floating arrays that change with its state alone.
      decay: in (0, 1), an update.
    """

    def init(key: Key, example: PyTree, context: Context) -> State:
        state = learner.init(key, example, context)
        return State(
            learner=state,
            average=learner.policy_params(state, context),
            step=jnp.zeros((), jnp.int32),
        )

    def step(state: State, context: Context, batch: PyTree, key: Key) -> tuple[State, Metrics]:
        after, metrics = learner.step(state.learner, context, batch, key)
        count = state.step + 1
        rate = jnp.maximum(1.0 - decay, 1.0 / count)
        average = jax.tree.map(
            lambda mean, new: mean + rate * (new - mean),
            state.average,
            learner.policy_params(after, context),
        )
        return State(learner=after, average=average, step=count), metrics

    def policy_params(state: State, context: Context) -> Params:
        del context
        return state.average

    averaged = learner._replace(init=init, step=step, policy_params=policy_params)
    if learner.validate is None:
        return averaged
    measure = learner.validate

    def validate(state: State, context: Context, batch: PyTree, key: Key) -> Metrics:
        return measure(state.learner, context, batch, key)

    return averaged._replace(validate=validate)
