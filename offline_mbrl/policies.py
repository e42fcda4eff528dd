"""Policies at the door of evaluation: any pure function becomes one, and what cannot be evaluated is said in words."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import Array, BoundedActions, EnvironmentSpec, Policy, PyTree, UsageError

NUM_CHECKED = 256  # observations at which a policy is asked for an action
SLACK = 1e-3  # beyond a bound, for rounding


def as_policy(
    function: Callable[[PyTree, PyTree, Array], Array], *, mode: Callable[[PyTree, PyTree], Array] | None = None,
    log_prob: Callable[[PyTree, PyTree, Array], Array] | None = None,
) -> Policy:  # fmt: skip
    """A policy from any pure function `(params, observation, key) -> action`.

    Args:
      function: samples an action for one observation; params may be `()`, the key may go unused.
      mode: `(params, observation) -> action`; without it, whoever asks for the greedy action is told so.
      log_prob: `(params, observation, action) -> []`; importance sampling and doubly robust estimates need it.

    Raises:
      UsageError: the function does not take three positional arguments.
    """
    _check_arguments(function)

    def no_mode(params: PyTree, observation: PyTree) -> Array:
        del params, observation
        raise UsageError("this policy was made from a function that samples and has no greedy action: use `sample`, or "
                         "give as_policy(..., mode=function of params and observation)")  # fmt: skip

    return Policy(function, mode or no_mode, log_prob)


def clipped(policy: Policy, low: float = -1.0, high: float = 1.0) -> Policy:
    """The policy whose actions a simulator really takes: `sample` and `mode` within the bounds of continuous actions.

    Rollouts in models clip by themselves (`bounds`); estimators of values and ratios take actions as they come. Its
    `log_prob` stays that of the unclipped action.
    """

    def sample(params: PyTree, observation: PyTree, key: Array) -> Array:
        return jnp.clip(policy.sample(params, observation, key), low, high)

    def mode(params: PyTree, observation: PyTree) -> Array:
        return jnp.clip(policy.mode(params, observation), low, high)

    return policy._replace(sample=sample, mode=mode)


def action_of(policy: Policy, params: PyTree, observation: PyTree) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the policy's action for one observation; nothing is computed.

    Raises:
      UsageError: the policy fails on an observation of this shape, or returns no single array.
    """
    if not hasattr(policy, "sample"):
        raise UsageError(f"a policy is needed, got {type(policy).__name__}: make one of a function with as_policy(...)")
    try:
        action = jax.eval_shape(lambda *inputs: policy.sample(*inputs), params, observation, jax.random.key(0))
    except UsageError:
        raise
    except Exception as error:  # whatever a user's function raises
        shapes = jax.tree.map(lambda leaf: tuple(np.shape(leaf)), observation)
        first = str(error).strip().partition("\n")[0]
        raise UsageError(f"the policy cannot act on one observation of shape {shapes}: {first} (policies take one "
                         "observation, not a batch)") from error  # fmt: skip
    if not hasattr(action, "shape"):
        raise UsageError(f"the policy must return one array as its action, got {type(action).__name__}")
    return action


def check_action(action: jax.ShapeDtypeStruct, spec: EnvironmentSpec) -> None:
    """Refuses an action of another shape or kind than the environment's.

    Raises:
      UsageError: with both shapes.
    """
    continuous = isinstance(spec.action, BoundedActions)
    wanted = (spec.action.size,) if isinstance(spec.action, BoundedActions) else ()
    if action.shape != wanted:
        raise UsageError(f"the policy's action has shape {action.shape}, but this environment's has {wanted}")
    if jnp.issubdtype(action.dtype, jnp.floating) != continuous:
        kind = "floating numbers" if continuous else "an integer"
        raise UsageError(f"the policy's action is of {action.dtype}, but this environment takes {kind}")


def check_fits(policy: Policy, params: PyTree, spec: EnvironmentSpec, observation: PyTree) -> None:
    """Refuses a policy that does not act on this observation with the environment's actions; nothing is computed.

    Args:
      policy: its `sample` is looked at.
      params: of one policy; arrays or shapes, also traced.
      spec: the environment's.
      observation: one, likewise.

    Raises:
      UsageError: with both shapes.
    """
    check_action(action_of(policy, params, observation), spec)


def check(
    policy: Policy, params: PyTree, spec: EnvironmentSpec, observations: PyTree, key: Array, *, actions: Any = None,
    tolerated: float = 0.05,
) -> None:  # fmt: skip
    """Everything that can be told about a policy before it is evaluated; runs it on some of the data's observations.

    Args:
      policy: its `sample` is checked, and that its `log_prob` is one number.
      params: of one policy.
      spec: the environment's.
      observations: `[N, ...]` of the data.
      key: of the policy's noise.
      actions: `[M, A]` or `[M]` of the data; given, the policy's must lie within their range.
      tolerated: largest share of actions outside [-1, 1], or outside the data's range. A normal policy's tails are
        outside, where simulators clip them (see `clipped`); a policy in the simulator's own units has far more there.

    Raises:
      UsageError: wrong shapes or kinds, actions that are not finite, or too many outside.
    """
    rows = _some(observations)
    first = jax.tree.map(lambda leaf: leaf[0], rows)
    check_fits(policy, params, spec, first)
    check_log_prob(policy, params, first, action_of(policy, params, first))
    keys = jax.random.split(key, jax.tree.leaves(rows)[0].shape[0])
    found = np.asarray(jax.vmap(policy.sample, (None, 0, 0))(params, rows, keys))
    if isinstance(spec.action, BoundedActions):
        _check_range(found, tolerated)
    else:
        _check_discrete(found, spec.action.num_actions)
    if actions is not None:
        _check_data(found, np.asarray(actions), tolerated)


def check_log_prob(policy: Policy, params: PyTree, observation: PyTree, action: Any) -> None:
    """Refuses a `log_prob` that is not one number for one observation and action; nothing is computed.

    Raises:
      UsageError: it fails on them, or gives another shape; a policy without one passes.
    """
    if policy.log_prob is None:
        return
    try:
        found = jax.eval_shape(policy.log_prob, params, observation, action)
    except UsageError:
        raise
    except Exception as error:  # whatever a user's function raises
        first = str(error).strip().partition("\n")[0]
        shapes = tuple(jax.tree.map(lambda leaf: tuple(np.shape(leaf)), (observation, action)))
        raise UsageError(f"the policy's log_prob fails on one observation and action of shapes {shapes}: {first}") \
            from error  # fmt: skip
    if np.shape(found):
        raise UsageError(f"the policy's log_prob has shape {np.shape(found)} for one action, but it must be a single "
                         "number: sum it over the action's entries")  # fmt: skip


# --- parts ---


def _check_arguments(function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins and some compiled functions have none
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise UsageError("a policy is a function (params, observation, key) -> action of one observation, but this one "
                         f"takes {signature}") from None  # fmt: skip


def _some(observations: PyTree) -> PyTree:
    """At most 256 observations, spread evenly over the data."""
    size = len(jax.tree.leaves(observations)[0])
    rows = np.linspace(0, size - 1, min(size, NUM_CHECKED)).astype(int)
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[rows]), observations)


def _check_range(found: np.ndarray, tolerated: float) -> None:
    if not np.isfinite(found).all():
        share = np.mean(~np.isfinite(found).all(-1))
        raise UsageError(f"{share:.0%} of the policy's actions are not finite; look at its parameters")
    share = np.mean((np.abs(found) > 1 + SLACK).any(-1))
    if share > tolerated:
        raise UsageError(f"{share:.0%} of the policy's actions are outside [-1, 1] (they go from {found.min():.3g} to "
                         f"{found.max():.3g}): actions are in units in which the simulator's bounds are -1 and 1; "
                         "rescale or clip them")  # fmt: skip


def _check_discrete(found: np.ndarray, num_actions: int) -> None:
    if found.min() < 0 or found.max() >= num_actions:
        raise UsageError(f"the policy's actions go from {found.min()} to {found.max()}, but there are 0 .. "
                         f"{num_actions - 1}")  # fmt: skip


def _check_data(found: np.ndarray, actions: np.ndarray, tolerated: float) -> None:
    found, actions = (array.reshape(len(array), -1) for array in (found, actions))
    if found.shape[1] != actions.shape[1]:
        raise UsageError(f"the policy's actions have {found.shape[1]} entries, but the data's have {actions.shape[1]}")
    low, high = actions.min(0), actions.max(0)
    outside = (found < low - SLACK) | (found > high + SLACK)
    share = outside.any(-1).mean()
    if share > tolerated:
        entry = int(outside.mean(0).argmax())
        raise UsageError(
            f"{share:.0%} of the policy's actions are outside the data's: there, entry {entry} is between "
            f"{low[entry]:.3g} and {high[entry]:.3g}; the policy's goes from {found[:, entry].min():.3g} to "
            f"{found[:, entry].max():.3g}. Data cannot tell what such actions do")  # fmt: skip
