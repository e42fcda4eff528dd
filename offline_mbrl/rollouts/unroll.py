"""A policy in a dynamics model: from one start to a whole trajectory, or to its discounted return
alone; vmap for many.

Both are one `lax.scan` over the same step. Rules, which the tests hold:

* the action is sampled, then clipped to `bounds`, as simulators do; the first one may be given;
* an actor's carry is part of the scan's state, initialized at the start;
* the model is reset to the adjusted observation where `adjust` says that it changes observations;
* the reward of the transition that terminates counts; after it nothing happens: mask 0, reward 0,
  the state stays (the model of `policy_eval`, Google Research, drops that reward: it masks before
  it adds);
* where anything is not finite (the action, the model's prediction or the adjusted one) the step did
  not happen: mask 0, reward 0, the state stays, and `diverged` is 1 from there on. Discount is 1
  there, as after a truncation; it is 0 after a terminal.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from offline_mbrl import policies
from offline_mbrl.rollouts.adjust import Adjust, identity
from offline_mbrl.rollouts.step import (
    Bounds,
    Inputs,
    Measure,
    Moment,
    Setting,
    State,
    clipped,
    no_measure,
    start,
    take_step,
)
from offline_mbrl.types import (
    Action,
    Actor,
    Array,
    DynamicsModel,
    Key,
    Metrics,
    ModelParams,
    Observation,
    Params,
    Policy,
    Trajectory,
)


class Rollout(Protocol):
    """Rolls out one start."""

    def __call__(
        self,
        model_params: ModelParams,
        policy_params: Params,
        observation: Observation,
        key: Key,
        first_action: Action | None = None,
    ) -> Trajectory:
        """One trajectory.

        Args:
          model_params: of the model.
          policy_params: of the policy.
          observation: the first one.
          key: consumed.
          first_action: takes the place of the policy's first action; an actor acts all the same,
            so its carry is that of the action which it would have taken.
        """
        ...


class ReturnRollout(Protocol):
    """Rolls out one start and keeps its return alone."""

    def __call__(
        self,
        model_params: ModelParams,
        policy_params: Params,
        observation: Observation,
        key: Key,
        first_action: Action | None = None,
    ) -> "Return":
        """One return; the arguments are those of `Rollout`."""
        ...


class Return(NamedTuple):
    """What is left of a rollout when nothing is stacked."""

    value: Array  # []   sum of gamma^t times the discounts before t times the reward of step t
    undiscounted: Array  # []   the same with a gamma of 1
    length: Array  # []   steps that happened
    continuation: Array  # []   product of all discounts: 0 after a terminal
    diverged: Array  # []   1 when it ended in something that is not finite
    largest_reward: Array  # []   of the absolute rewards
    measured: Metrics  # scalars by name, means over the steps that happened


def unroll(
    model: DynamicsModel,
    policy: Policy | Actor,
    *,
    horizon: int,
    adjust: Adjust = identity,
    measure: Measure = no_measure,
    bounds: Bounds = (-1.0, 1.0),
) -> Rollout:
    """Rollouts of `horizon` steps, everything kept.

    Args:
      model: steps from one observation to the next.
      policy: its `sample`, or an actor's `act`, chooses actions.
      horizon: T, steps.
      adjust: what becomes of each prediction; see `rollouts.adjust`.
      measure: scalars of each step.
      bounds: of continuous actions; None leaves them as they are.

    Returns:
      A rollout whose trajectory has `extras` `{"diverged": [T]}` and the measures `[T]` (0 where
      nothing happened).

    Raises:
      UsageError: when called, `adjust` or `measure` compares members and there is a single one.
    """
    setting = Setting(model, policies.as_actor(policy), adjust, measure, bounds)

    def rollout(
        model_params: ModelParams,
        policy_params: Params,
        observation: Observation,
        key: Key,
        first_action: Action | None = None,
    ) -> Trajectory:
        key_reset, key_steps = jax.random.split(key)
        inputs = Inputs(model_params, policy_params, first_action, key_steps)

        def body(state: State, t: Array) -> tuple[State, tuple[Moment, Observation]]:
            state, moment = take_step(setting, inputs, state, t)
            return state, (moment, state.observation)

        state = start(setting, inputs, observation, key_reset)
        _, (moments, later) = jax.lax.scan(body, state, jnp.arange(horizon))
        return Trajectory(
            observation=jax.tree.map(_prepended, observation, later),
            action=moments.action,
            reward=moments.reward,
            discount=moments.discount,
            mask=moments.mask,
            extras={"diverged": moments.diverged, **moments.measured},
        )

    return rollout


def returns(
    model: DynamicsModel,
    policy: Policy | Actor,
    *,
    gamma: float,
    horizon: int,
    adjust: Adjust = identity,
    measure: Measure = no_measure,
    bounds: Bounds = (-1.0, 1.0),
) -> ReturnRollout:
    """Like `unroll`, same keys and same steps, but only the discounted return is carried: memory
    does not grow with the horizon.

    Args:
      model: steps from one observation to the next.
      policy: its `sample`, or an actor's `act`, chooses actions.
      gamma: discount factor.
      horizon: steps.
      adjust: what becomes of each prediction.
      measure: scalars of each step; their means are kept.
      bounds: of continuous actions; None leaves them as they are.

    Raises:
      UsageError: as `unroll`.
    """
    setting = Setting(model, policies.as_actor(policy), adjust, measure, bounds)

    def rollout(
        model_params: ModelParams,
        policy_params: Params,
        observation: Observation,
        key: Key,
        first_action: Action | None = None,
    ) -> Return:
        key_reset, key_steps = jax.random.split(key)
        inputs = Inputs(model_params, policy_params, first_action, key_steps)

        def body(
            carry: tuple[State, Return, Array], t: Array
        ) -> tuple[tuple[State, Return, Array], None]:
            state, sums, weight = carry
            state, moment = take_step(setting, inputs, state, t)
            return (state, _added(sums, moment, weight), weight * gamma * moment.discount), None

        state = start(setting, inputs, observation, key_reset)
        first = jnp.zeros((), jnp.int32)
        _, moment = jax.eval_shape(lambda state: take_step(setting, inputs, state, first), state)
        initial = (state, _no_return(moment.measured), jnp.ones(()))
        (_, sums, _), _ = jax.lax.scan(body, initial, jnp.arange(horizon))
        steps = jnp.maximum(sums.length, 1)
        return sums._replace(measured=jax.tree.map(lambda total: total / steps, sums.measured))

    return rollout


def discounted_return(trajectory: Trajectory, gamma: float) -> Array:
    """`sum_t gamma^t (product of the discounts before t) r_t` of one trajectory, `[]`."""
    earlier = jnp.cumprod(gamma * trajectory.discount)[:-1]
    return jnp.sum(jnp.concatenate([jnp.ones(1), earlier]) * trajectory.reward)


def last_action(
    policy: Policy,
    policy_params: Params,
    trajectory: Trajectory,
    key: Key,
    *,
    bounds: Bounds = (-1.0, 1.0),
) -> Action:
    """The policy's action at the last observation of one trajectory, which `unroll` does not take.

    Value expansion bootstraps from it; with `trajectory.action` it gives every next action.

    Args:
      policy: without memory.
      policy_params: its parameters.
      trajectory: one, `[T + 1]` observations.
      key: consumed.
      bounds: as in `unroll`.

    Raises:
      UsageError: the policy is an actor.
    """
    policy = policies.require_memoryless(policy, "unroll.last_action")
    observation = jax.tree.map(lambda leaf: leaf[-1], trajectory.observation)
    return clipped(policy.sample(policy_params, observation, key), bounds)


# --- parts ---


def _prepended(first: Array, rest: Array) -> Array:
    return jnp.concatenate([first[None], rest])


def _no_return(measured: Metrics) -> Return:
    """Sums over no step; `measured` gives the dtypes."""
    zero = jnp.zeros(())
    return Return(
        value=zero,
        undiscounted=zero,
        length=zero,
        continuation=jnp.ones(()),
        diverged=zero,
        largest_reward=zero,
        measured=jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), measured),
    )


def _added(sums: Return, moment: Moment, weight: Array) -> Return:
    """`sums` with one more step, whose reward counts `weight`."""
    return Return(
        value=sums.value + weight * moment.reward,
        undiscounted=sums.undiscounted + sums.continuation * moment.reward,
        length=sums.length + moment.mask,
        continuation=sums.continuation * moment.discount,
        diverged=moment.diverged,
        largest_reward=jnp.maximum(sums.largest_reward, jnp.abs(moment.reward)),
        measured=jax.tree.map(jnp.add, sums.measured, moment.measured),
    )
