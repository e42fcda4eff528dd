"""A policy in a dynamics model: one start to a whole trajectory, or to its discounted return alone; vmap for many.

Both are one `lax.scan` over the same step. Rules, which the tests hold:

* the action is sampled, then clipped to `bounds`, as simulators do;
* the model goes on from the observation that `adjust` returns: where that is another one, it is reset to it;
* the reward of the transition that terminates counts; after it nothing happens: mask 0, reward 0, the state stays
  (the model of `policy_eval`, Google Research, drops that reward: it masks before it adds);
* where anything is not finite (the action, the model's prediction or what `adjust` made of it) the step did not
  happen: mask 0, reward 0, the state stays, and `diverged` is 1 from there on. Discount is 1 there, as after a
  truncation; it is 0 after a terminal.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.rollouts import adjust as adjustments
from offline_mbrl.types import Array, DynamicsModel, Metrics, Policy, Prediction, PyTree, Trajectory

Bounds = tuple[float, float] | None
Measure = Callable[[PyTree, PyTree, Array, Prediction], Metrics]  # (params, observation, action, prediction) -> [] each
Rollout = Callable[[PyTree, PyTree, PyTree, Array], Trajectory]  # (model_params, policy_params, observation, key)


class Return(NamedTuple):
    """What is left of a rollout when nothing is stacked."""

    value: Array  # []   sum of gamma^t times the discounts before t times the reward of step t
    length: Array  # []   steps that happened
    continuation: Array  # []   product of all discounts: 0 after a terminal
    diverged: Array  # []   1 when it ended in something that is not finite
    largest_reward: Array  # []   of the absolute rewards
    measured: Metrics  # [] each, means over the steps that happened


class _State(NamedTuple):
    """Between two steps."""

    model_state: PyTree
    observation: PyTree
    alive: Array  # [] bool
    diverged: Array  # [] bool


class _Moment(NamedTuple):
    """What happened in one step; scalars but for the action."""

    action: Array
    reward: Array
    discount: Array
    mask: Array
    diverged: Array
    measured: Metrics


def nothing(params: PyTree, observation: PyTree, action: Array, prediction: Prediction) -> Metrics:
    """The measure that measures nothing."""
    del params, observation, action, prediction
    return {}


def unroll(
    model: DynamicsModel, policy: Policy, *, horizon: int, adjust: adjustments.Adjust = adjustments.identity,
    measure: Measure = nothing, bounds: Bounds = (-1.0, 1.0),
) -> Rollout:  # fmt: skip
    """Rollouts of `horizon` steps, everything kept.

    Args:
      model: steps from one observation to the next.
      policy: its `sample` acts.
      horizon: T, steps.
      adjust: what becomes of each prediction; see `rollouts.adjust`.
      measure: scalars of each step, taken from the prediction as the model made it.
      bounds: of continuous actions; None leaves them as they are.

    Returns:
      `(model_params, policy_params, observation, key) -> Trajectory` with `extras` `{"diverged": [T]}` and the
      measures `[T]` (0 where nothing happened).
    """
    step = _stepper(model, policy, adjust, measure, bounds)

    def rollout(model_params: PyTree, policy_params: PyTree, observation: PyTree, key: Array) -> Trajectory:
        key_reset, key_steps = jax.random.split(key)

        def body(state: _State, t: Array) -> tuple[_State, tuple[_Moment, PyTree]]:
            state, moment = step(model_params, policy_params, state, jax.random.fold_in(key_steps, t))
            return state, (moment, state.observation)

        state = _start(model, model_params, observation, key_reset)
        _, (moments, following) = jax.lax.scan(body, state, jnp.arange(horizon))
        return Trajectory(
            observation=jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), observation, following),
            action=moments.action, reward=moments.reward, discount=moments.discount, mask=moments.mask,
            extras={"diverged": moments.diverged, **moments.measured})  # fmt: skip

    return rollout


def returns(
    model: DynamicsModel, policy: Policy, *, gamma: float, horizon: int,
    adjust: adjustments.Adjust = adjustments.identity, measure: Measure = nothing, bounds: Bounds = (-1.0, 1.0),
) -> Callable[[PyTree, PyTree, PyTree, Array], Return]:  # fmt: skip
    """Like `unroll`, same keys and same steps, but only the discounted return is carried: memory does not grow with T.

    Returns:
      `(model_params, policy_params, observation, key) -> Return`.
    """
    step = _stepper(model, policy, adjust, measure, bounds)

    def rollout(model_params: PyTree, policy_params: PyTree, observation: PyTree, key: Array) -> Return:
        key_reset, key_steps = jax.random.split(key)

        def body(carry: tuple[_State, Return, Array], t: Array) -> tuple[tuple[_State, Return, Array], None]:
            state, sums, weight = carry
            state, moment = step(model_params, policy_params, state, jax.random.fold_in(key_steps, t))
            sums = Return(
                sums.value + weight * moment.reward, sums.length + moment.mask, sums.continuation * moment.discount,
                moment.diverged, jnp.maximum(sums.largest_reward, jnp.abs(moment.reward)),
                jax.tree.map(jnp.add, sums.measured, moment.measured))  # fmt: skip
            return (state, sums, weight * gamma * moment.discount), None

        state = _start(model, model_params, observation, key_reset)
        zero, one = jnp.zeros(()), jnp.ones(())
        measured = jax.eval_shape(step, model_params, policy_params, state, key)[1].measured
        sums = Return(zero, zero, one, zero, zero, jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), measured))
        (_, sums, _), _ = jax.lax.scan(body, (state, sums, one), jnp.arange(horizon))
        return sums._replace(measured=jax.tree.map(lambda total: total / jnp.maximum(sums.length, 1), sums.measured))

    return rollout


def discounted_return(trajectory: Trajectory, gamma: float) -> Array:
    """`sum_t gamma^t (product of the discounts before t) r_t` of one trajectory, `[]`."""
    before = jnp.concatenate([jnp.ones(1), jnp.cumprod(gamma * trajectory.discount)[:-1]])
    return jnp.sum(before * trajectory.reward)


# --- one step ---


def _start(model: DynamicsModel, params: PyTree, observation: PyTree, key: Array) -> _State:
    return _State(model.reset(params, observation, key), observation, jnp.array(True), jnp.array(False))


def _stepper(
    model: DynamicsModel, policy: Policy, adjust: adjustments.Adjust, measure: Measure, bounds: Bounds
) -> Callable[[PyTree, PyTree, _State, Array], tuple[_State, _Moment]]:
    """The step that `unroll` and `returns` scan over."""

    def step(model_params: PyTree, policy_params: PyTree, state: _State, key: Array) -> tuple[_State, _Moment]:
        key_action, key_dynamics, key_adjust, key_reset = jax.random.split(key, 4)
        action = clipped(policy.sample(policy_params, state.observation, key_action), bounds)
        model_state, said = model.step(model_params, state.model_state, action, key_dynamics)
        prediction = adjust(model_params, state.observation, action, said, key_adjust)
        if _another(said.observation, prediction.observation):
            model_state = model.reset(model_params, prediction.observation, key_reset)
        finite = _finite((action, said._replace(members=()), prediction._replace(members=())))
        happened = state.alive & finite
        diverged = state.diverged | (state.alive & ~finite)
        # Of a step that happened the model's discount; after the end 0 where it was a terminal, else 1.
        discount = jnp.where(happened, prediction.discount, jnp.where(diverged, 1.0, 0.0))
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(happened, a, b), new, old)  # noqa: E731
        measured = measure(model_params, state.observation, action, said)
        moment = _Moment(
            action=jnp.where(happened, action, jnp.zeros_like(action)),
            reward=jnp.where(happened, prediction.reward, 0.0), discount=discount,
            mask=happened.astype(jnp.float32), diverged=diverged.astype(jnp.float32),
            measured={name: jnp.where(happened, value, 0) for name, value in measured.items()})  # fmt: skip
        after = _State(
            keep(model_state, state.model_state), keep(prediction.observation, state.observation),
            happened & (discount != 0), diverged)  # fmt: skip
        return after, moment

    return step


def clipped(action: Array, bounds: Bounds) -> Array:
    """A continuous action within the bounds; a discrete one, or without bounds, as it is."""
    if bounds is None or not jnp.issubdtype(action.dtype, jnp.floating):
        return action
    return jnp.clip(action, *bounds)


def _another(said: PyTree, adjusted: PyTree) -> bool:
    """Whether an adjustment made a new observation; one that only handed it on returns the very same arrays."""
    return any(a is not b for a, b in zip(jax.tree.leaves(said), jax.tree.leaves(adjusted), strict=True))


def _finite(tree: PyTree) -> Array:
    """Whether every floating number of a tree is finite, `[]`."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()
