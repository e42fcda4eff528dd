"""Imagined rows that a stage makes once, before the policy is learned, and hands on.

They are constants of the policy's learner, `context.upstream[NAME]`: each seed has those of its own
model, nothing is imagined again, and checkpoints of the policy do not hold them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from offline_mbrl.data import memory, ring
from offline_mbrl.rollouts import imagination
from offline_mbrl.rollouts.imagination import Imagine
from offline_mbrl.types import (
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Metrics,
    Params,
    PyTree,
    Stage,
    Trajectory,
    Transition,
    action_size,
)

NAME = "imagination"


def stage(
    imagine: Imagine,
    policy_params: Callable[[Context], Params],
    spec: EnvironmentSpec,
    *,
    num_rows: int,
    num_starts: int,
    horizon: int,
    prepare: Callable[[Any], Any],
) -> Stage:
    """Rolls out until there are rows enough; an update is one rollout of `num_starts` starts.

    Args:
      imagine: rolls out.
      policy_params: (context) -> parameters of the rollouts' policy.
      spec: of vectors.
      num_rows: how many, where every step of every rollout happens; rounded up to whole updates.
      num_starts: of an update, observations of the data's transitions.
      horizon: steps of a rollout.
      prepare: (dataset on the host) -> that whose observations are the starts.

    Returns:
      A stage that hands on a `ring.Ring`.
    """
    rows_an_update = num_starts * horizon
    num_updates = -(-num_rows // rows_an_update)

    def init(key: Key, example: Transition, context: Context) -> ring.Ring:
        del key, context
        row = Transition(
            observation=example.observation[0],
            action=jnp.zeros(action_size(spec, NAME)),
            reward=jnp.zeros(()),
            discount=jnp.zeros(()),
            next_observation=example.observation[0],
        )
        return ring.empty(row, num_updates * rows_an_update)

    def roll_out(context: Context, batch: Transition, key: Key) -> Trajectory:
        params = policy_params(context)
        return imagine(context, params, batch.observation, jnp.int32(0), key)

    def step(
        state: ring.Ring, context: Context, batch: Transition, key: Key
    ) -> tuple[ring.Ring, Metrics]:
        trajectory = roll_out(context, batch, key)
        after = ring.store(state, *imagination.transitions(trajectory))
        return after, {**_loss(trajectory), **imagination.figures(trajectory, after)}

    def validate(state: ring.Ring, context: Context, batch: Transition, key: Key) -> Metrics:
        del state
        return _loss(roll_out(context, batch, key))

    learner = Learner(
        sample=memory.Transitions(num_starts),
        init=init,
        step=step,
        validate=validate,
        policy=None,
        policy_params=lambda state, context: state,
    )
    return Stage(learner=learner, num_updates=num_updates, prepare=prepare)


def _loss(trajectory: Trajectory) -> Metrics:
    """The share of the steps that did not happen."""
    return {"loss/total": 1.0 - jnp.mean(trajectory.mask)}


def beside(learner: Learner, imagined_fraction: float) -> Learner:
    """The learner on real rows and on those that the stage handed on.

    Of a batch of B rows `int(B imagined_fraction + 0.1)` are imagined, as in ROMI's released code.
    Batches are those of `imagination.with_imagination`; held-out losses see real rows alone.

    Args:
      learner: of batches of transitions.
      imagined_fraction: of a batch.
    """

    def with_rows(context: Context, batch: Transition, key: Key) -> Transition:
        batch_size = batch.reward.shape[0]
        num_real = batch_size - int(batch_size * imagined_fraction + 0.1)
        real = imagination.marked(batch)
        return imagination.mixed(real, context.upstream[NAME], num_real, key)

    def step(state: PyTree, context: Context, batch: Transition, key: Key) -> Any:
        rows = with_rows(context, batch, jax.random.fold_in(key, 1))
        return learner.step(state, context, rows, key)

    return learner._replace(step=step)
