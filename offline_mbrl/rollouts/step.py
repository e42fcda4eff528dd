"""One step of a policy in a dynamics model, which every rollout scans over.

See `unroll` for its rules.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.types import (
    Action,
    Actor,
    Array,
    DynamicsModel,
    Key,
    Metrics,
    ModelParams,
    ModelState,
    Observation,
    Params,
    Prediction,
    PyTree,
    UsageError,
)

Bounds = tuple[float, float] | None


class Measure(NamedTuple):
    """Scalars of each step, computed from the prediction as the model made it."""

    # (model params, observation, action, prediction) -> scalars by name
    apply: Callable[[ModelParams, Observation, Action, Prediction], Metrics]
    # Whether it compares members: it is refused where a member is rolled out alone.
    needs_members: bool = False


def _measure_nothing(
    params: ModelParams, observation: Observation, action: Action, prediction: Prediction
) -> Metrics:
    del params, observation, action, prediction
    return {}


no_measure = Measure(apply=_measure_nothing)


class State(NamedTuple):
    """Between two steps."""

    model_state: ModelState
    observation: Observation
    carry: PyTree  # of the actor
    alive: Array  # [] bool
    diverged: Array  # [] bool


class Moment(NamedTuple):
    """What happened in one step; scalars but for the action."""

    action: Action
    reward: Array
    discount: Array
    mask: Array
    diverged: Array
    measured: Metrics


class Setting(NamedTuple):
    """What stays the same from step to step, apart from parameters."""

    model: DynamicsModel
    actor: Actor
    adjust: Adjust
    measure: Measure
    bounds: Bounds


class Inputs(NamedTuple):
    """Arguments of a rollout that every step reads."""

    model_params: ModelParams
    policy_params: Params
    first_action: Action | None
    key_steps: Key


# --- one step ---


def start(setting: Setting, inputs: Inputs, observation: Observation, key: Key) -> State:
    """The state before the first step.

    Args:
      setting: model and actor.
      inputs: their parameters.
      observation: the first one.
      key: consumed.
    """
    key_carry = jax.random.fold_in(key, 1)
    return State(
        model_state=setting.model.reset(inputs.model_params, observation, key),
        observation=observation,
        carry=setting.actor.init(inputs.policy_params, observation, key_carry),
        alive=jnp.array(True),
        diverged=jnp.array(False),
    )


def take_step(setting: Setting, inputs: Inputs, state: State, t: Array) -> tuple[State, Moment]:
    """The step that `unroll` and `returns` scan over."""
    return advance(setting, inputs, state, act(setting, inputs, state, t), t)


def _keys(inputs: Inputs, t: Array | int) -> Key:
    """`[4]` keys of step t: of the action, the dynamics, the adjustment and the reset."""
    return jax.random.split(jax.random.fold_in(inputs.key_steps, t), 4)


def advance(
    setting: Setting, inputs: Inputs, state: State, choice: tuple[Action, PyTree], t: Array
) -> tuple[State, Moment]:
    """The step once its action is chosen.

    Args:
      setting: model and adjustments.
      inputs: their parameters.
      state: before the step.
      choice: the action and the actor's carry, from `act`.
      t: [] int32, the step.
    """
    _, key_dynamics, key_adjust, key_reset = _keys(inputs, t)
    action, carry = choice
    params = inputs.model_params
    model_state, predicted = setting.model.step(params, state.model_state, action, key_dynamics)
    _require_members(setting, predicted)
    adjusted = setting.adjust.apply(params, state.observation, action, predicted, key_adjust)
    if setting.adjust.changes_observation:
        model_state = setting.model.reset(params, adjusted.observation, key_reset)
    finite = _finite((action, predicted._replace(members=None), adjusted._replace(members=None)))
    happened = state.alive & finite
    diverged = state.diverged | (state.alive & ~finite)
    # Where the step happened the model's discount; after the end 0 after a terminal, else 1.
    discount = jnp.where(happened, adjusted.discount, jnp.where(diverged, 1.0, 0.0))
    measured = setting.measure.apply(params, state.observation, action, predicted)
    moment = Moment(
        action=jnp.where(happened, action, jnp.zeros_like(action)),
        reward=jnp.where(happened, adjusted.reward, 0.0),
        discount=discount,
        mask=happened.astype(jnp.float32),
        diverged=diverged.astype(jnp.float32),
        measured={name: jnp.where(happened, value, 0) for name, value in measured.items()},
    )
    moved = (model_state, adjusted.observation, carry)
    stayed = (state.model_state, state.observation, state.carry)
    model_state, observation, carry = jax.tree.map(
        lambda new, old: jnp.where(happened, new, old), moved, stayed
    )
    after = State(
        model_state=model_state,
        observation=observation,
        carry=carry,
        alive=happened & (discount != 0),
        diverged=diverged,
    )
    return after, moment


def act(setting: Setting, inputs: Inputs, state: State, t: Array | int) -> tuple[Action, PyTree]:
    """The clipped action of step t, the given one at step 0, and the actor's carry.

    Args:
      setting: the actor and its bounds.
      inputs: its parameters.
      state: before the step.
      t: the step.
    """
    key = _keys(inputs, t)[0]
    action, carry = setting.actor.act(inputs.policy_params, state.carry, state.observation, key)
    if inputs.first_action is not None:
        action = jnp.where(t == 0, jnp.asarray(inputs.first_action, action.dtype), action)
    return clipped(action, setting.bounds), carry


def _require_members(setting: Setting, prediction: Prediction) -> None:
    parts = {"an adjustment": setting.adjust, "a measure": setting.measure}
    for name, part in parts.items():
        if not part.needs_members:
            continue
        if prediction.members is None:
            raise UsageError(f"rollouts: {name} compares members, but the model predicts none")
        if prediction.members.mean.shape[0] < 2:
            raise UsageError(
                f"rollouts: {name} compares members, but here a single member is rolled out alone: "
                "spread the rollouts by `shares.jointly`, over an ensemble of at least two"
            )


def clipped(action: Action, bounds: Bounds) -> Action:
    """A continuous action within the bounds; a discrete one, or without bounds, as it is."""
    if bounds is None or not jnp.issubdtype(action.dtype, jnp.floating):
        return action
    return jnp.clip(action, *bounds)


def _finite(tree: PyTree) -> Array:
    """Whether every floating number of a tree is finite, `[]`."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()
