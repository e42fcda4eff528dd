"""Policies at the door of evaluation: a pure function becomes one, and bad ones are refused."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import (
    Action,
    Actor,
    Array,
    BoundedActions,
    EnvironmentSpec,
    Key,
    Observation,
    Params,
    Policy,
    PyTree,
    UsageError,
)

NUM_CHECKED = 256  # observations at which a policy is asked for an action
SLACK = 1e-3  # beyond a bound, for rounding


def as_policy(
    function: Callable[[Params, Observation, Key], Action],
    *,
    mode: Callable[[Params, Observation], Action] | None = None,
    log_prob: Callable[[Params, Observation, Action], Array] | None = None,
) -> Policy:
    """A policy from any pure function `(params, observation, key) -> action`.

    Args:
      function: samples an action for one observation; params may be `()`, the key may go unused.
      mode: `(params, observation) -> action`; without it, asking for the greedy action is an error.
      log_prob: `(params, observation, action) -> []`; importance sampling and doubly robust
        estimates need it.

    Raises:
      UsageError: the function does not take three positional arguments.
    """
    _check_arguments(function)

    def no_mode(params: Params, observation: Observation) -> Action:
        del params, observation
        raise UsageError(
            "this policy was made from a function that samples and has no greedy action: use "
            "`sample`, or give as_policy(..., mode=function of params and observation)"
        )

    return Policy(sample=function, mode=mode or no_mode, log_prob=log_prob)


def is_actor(policy: Policy | Actor) -> bool:
    """Whether this is an `Actor`, which may carry something from step to step."""
    return isinstance(policy, Actor)


def as_actor(policy: Policy | Actor) -> Actor:
    """The same behavior as an `Actor`.

    A `Policy` becomes an actor whose carry is `()`; its actions are those of `sample` with the same
    keys, and of `mode`. An `Actor` is returned as it is, with `act` in the place of a missing
    `act_greedily`.

    Raises:
      UsageError: it is neither of the two.
    """
    if isinstance(policy, Actor):
        return policy._replace(act_greedily=policy.act_greedily or policy.act)
    _check_policy(policy)

    def init(params: Params, observation: Observation, key: Key) -> PyTree:
        del params, observation, key
        return ()

    def act(
        params: Params, carry: PyTree, observation: Observation, key: Key
    ) -> tuple[Action, PyTree]:
        return policy.sample(params, observation, key), carry

    def act_greedily(
        params: Params, carry: PyTree, observation: Observation, key: Key
    ) -> tuple[Action, PyTree]:
        del key
        return policy.mode(params, observation), carry

    return Actor(init=init, act=act, act_greedily=act_greedily)


def require_memoryless(policy: Policy | Actor | None, caller: str) -> Policy:
    """The policy, for callers that ask for single actions or probabilities.

    Raises:
      UsageError: it is an `Actor`, or there is none; the message names `caller`.
    """
    if isinstance(policy, Actor):
        raise UsageError(
            f"{caller} needs a policy whose action depends on one observation alone, but this one "
            "carries a state from step to step: evaluate it in a simulator, or by rollouts in a "
            "model"
        )
    _check_policy(policy)
    assert policy is not None  # refused above
    return policy


def clipped(policy: Policy, low: float = -1.0, high: float = 1.0) -> Policy:
    """The policy with its actions clipped to [low, high], as simulators clip them.

    Rollouts in models clip by themselves (`bounds`); estimators of values and ratios take actions
    as they come. `log_prob` stays that of the unclipped action.

    Args:
      policy: with continuous actions.
      low: smallest entry of an action.
      high: largest entry.
    """

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        return jnp.clip(policy.sample(params, observation, key), low, high)

    def mode(params: Params, observation: Observation) -> Action:
        return jnp.clip(policy.mode(params, observation), low, high)

    return policy._replace(sample=sample, mode=mode)


def action_of(
    policy: Policy | Actor, params: Params, observation: Observation
) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the policy's action for one observation; nothing is computed.

    Args:
      policy: with memory or without.
      params: of one policy; arrays or shapes, also traced.
      observation: one, likewise.

    Raises:
      UsageError: the policy fails on an observation of this shape, or returns no single array; or
        an actor changes the structure, shapes or dtypes of its carry.
    """
    actor = as_actor(policy)

    def first_step(params: Params, observation: Observation, key: Key) -> tuple[PyTree, Any]:
        carry = actor.init(params, observation, key)
        return carry, actor.act(params, carry, observation, key)

    try:
        before, step = jax.eval_shape(first_step, params, observation, jax.random.key(0))
        action, after = step
    except UsageError:
        raise
    except Exception as error:  # whatever a user's function raises
        shapes = jax.tree.map(lambda leaf: tuple(np.shape(leaf)), observation)
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"the policy cannot act on one observation of shape {shapes}: {reason} (policies take "
            "one observation, not a batch)"
        ) from error
    if not hasattr(action, "shape"):
        raise UsageError(
            f"the policy must return one array as its action, got {type(action).__name__}"
        )
    if _shapes(before) != _shapes(after):
        raise UsageError(
            "the actor's carry must keep its structure, shapes and dtypes, but `init` gives "
            f"{before} and `act` gives {after}"
        )
    return action


def check_action(action: jax.ShapeDtypeStruct, spec: EnvironmentSpec) -> None:
    """Refuses an action of another shape or kind than the environment's.

    Raises:
      UsageError: with both shapes.
    """
    continuous = isinstance(spec.action, BoundedActions)
    expected = (spec.action.size,) if isinstance(spec.action, BoundedActions) else ()
    if action.shape != expected:
        raise UsageError(
            f"the policy's action has shape {action.shape}, but this environment's has {expected}"
        )
    if jnp.issubdtype(action.dtype, jnp.floating) != continuous:
        kind = "floating numbers" if continuous else "an integer"
        raise UsageError(
            f"the policy's action is of {action.dtype}, but this environment takes {kind}"
        )


def check_fits(
    policy: Policy | Actor, params: Params, spec: EnvironmentSpec, observation: Observation
) -> None:
    """Refuses a policy that does not act on this observation with the environment's actions.

    Nothing is computed.

    Args:
      policy: its `sample`, or an actor's `act`, is traced.
      params: of one policy; arrays or shapes, also traced.
      spec: the environment's.
      observation: one, likewise.

    Raises:
      UsageError: with both shapes.
    """
    check_action(action_of(policy, params, observation), spec)


def check(
    policy: Policy | Actor,
    params: Params,
    spec: EnvironmentSpec,
    observations: Observation,
    key: Key,
    *,
    actions: Any = None,
    tolerated: float = 0.05,
) -> None:
    """All checks of a policy before it is evaluated; runs it on some of the data's observations.

    Args:
      policy: its sampled actions are checked, and that its `log_prob` is one number. An actor is
        asked for the first action of an episode.
      params: of one policy.
      spec: the environment's.
      observations: `[N, ...]` of the data.
      key: of the policy's noise.
      actions: `[M, A]` or `[M]` of the data; the policy's must then lie within their range.
      tolerated: largest share of actions outside [-1, 1], or outside the data's range. A normal
        policy's tails are outside, where simulators clip them (see `clipped`); a policy in the
        simulator's own units has far more there.

    Raises:
      UsageError: wrong shapes or kinds, actions that are not finite, or too many outside.
    """
    rows = _some(observations)
    first = jax.tree.map(lambda leaf: leaf[0], rows)
    check_fits(policy, params, spec, first)
    if isinstance(policy, Policy):
        check_log_prob(policy, params, first, action_of(policy, params, first))
    actor = as_actor(policy)

    def first_action(observation: Observation, key: Key) -> Action:
        carry = actor.init(params, observation, key)
        return actor.act(params, carry, observation, key)[0]

    keys = jax.random.split(key, jax.tree.leaves(rows)[0].shape[0])
    sampled = np.asarray(jax.vmap(first_action)(rows, keys))
    if isinstance(spec.action, BoundedActions):
        _check_range(sampled, tolerated)
    else:
        _check_discrete(sampled, spec.action.num_actions)
    if actions is not None:
        _check_data(sampled, np.asarray(actions), tolerated)


def check_log_prob(
    policy: Policy, params: Params, observation: Observation, action: Action | jax.ShapeDtypeStruct
) -> None:
    """Refuses a `log_prob` that is not one number for one observation and action.

    Nothing is computed.

    Args:
      policy: one without a `log_prob` passes.
      params: of one policy.
      observation: one.
      action: one.

    Raises:
      UsageError: it fails on them, or gives another shape.
    """
    if policy.log_prob is None:
        return
    try:
        log_prob = jax.eval_shape(policy.log_prob, params, observation, action)
    except UsageError:
        raise
    except Exception as error:  # whatever a user's function raises
        reason = str(error).strip().partition("\n")[0]
        shapes = tuple(jax.tree.map(lambda leaf: tuple(np.shape(leaf)), (observation, action)))
        raise UsageError(
            "the policy's log_prob fails on one observation and action of shapes "
            f"{shapes}: {reason}"
        ) from error
    if np.shape(log_prob):
        raise UsageError(
            f"the policy's log_prob has shape {np.shape(log_prob)} for one action, but it must be "
            "a single number: sum it over the action's entries"
        )


# --- parts ---


def _check_policy(policy: Any) -> None:
    if not hasattr(policy, "sample"):
        raise UsageError(
            f"a policy is needed, got {type(policy).__name__}: make one of a function with "
            "as_policy(...)"
        )


def _shapes(tree: PyTree) -> tuple[Any, list[tuple[tuple[int, ...], Any]]]:
    """What a carry has to keep: its structure, and every leaf's shape and dtype."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _check_arguments(function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins and some compiled functions have none
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise UsageError(
            "a policy is a function (params, observation, key) -> action of one observation, but "
            f"this one takes {signature}"
        ) from None


def _some(observations: Observation) -> Observation:
    """At most 256 observations, spread evenly over the data."""
    size = len(jax.tree.leaves(observations)[0])
    rows = np.linspace(0, size - 1, min(size, NUM_CHECKED)).astype(int)
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[rows]), observations)


def _check_range(sampled: np.ndarray, tolerated: float) -> None:
    if not np.isfinite(sampled).all():
        share = np.mean(~np.isfinite(sampled).all(-1))
        raise UsageError(
            f"{share:.0%} of the policy's actions are not finite; look at its parameters"
        )
    share = np.mean((np.abs(sampled) > 1 + SLACK).any(-1))
    if share > tolerated:
        raise UsageError(
            f"{share:.0%} of the policy's actions are outside [-1, 1] (they go from "
            f"{sampled.min():.3g} to {sampled.max():.3g}): actions are in units in which the "
            "simulator's bounds are -1 and 1; rescale or clip them"
        )


def _check_discrete(sampled: np.ndarray, num_actions: int) -> None:
    if sampled.min() < 0 or sampled.max() >= num_actions:
        raise UsageError(
            f"the policy's actions go from {sampled.min()} to {sampled.max()}, but there are 0 .. "
            f"{num_actions - 1}"
        )


def _check_data(sampled: np.ndarray, actions: np.ndarray, tolerated: float) -> None:
    sampled = sampled.reshape(len(sampled), -1)
    actions = actions.reshape(len(actions), -1)
    if sampled.shape[1] != actions.shape[1]:
        raise UsageError(
            f"the policy's actions have {sampled.shape[1]} entries, but the data's have "
            f"{actions.shape[1]}"
        )
    low = actions.min(0)
    high = actions.max(0)
    outside = (sampled < low - SLACK) | (sampled > high + SLACK)
    share = outside.any(-1).mean()
    if share > tolerated:
        entry = int(outside.mean(0).argmax())
        raise UsageError(
            f"{share:.0%} of the policy's actions are outside the data's: there, entry {entry} is "
            f"between {low[entry]:.3g} and {high[entry]:.3g}; the policy's goes from "
            f"{sampled[:, entry].min():.3g} to {sampled[:, entry].max():.3g}. Data cannot tell "
            "what such actions do"
        )
