"""What learned estimators share: networks of observation and action, and the policy's actions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import policies
from offline_mbrl.networks import torsos
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    DiscreteActions,
    EnvironmentSpec,
    Key,
    Observation,
    Params,
    Policy,
    PyTree,
    UsageError,
)

TARGET = "target"  # the evaluated policy's parameters in `Context.upstream`
RESAMPLE = "resample"  # there, optional: the key of a resample that several fits share


class Scales(NamedTuple):
    """What inputs and rewards are standardized by; float32."""

    observation_mean: Array  # [n] of the flat observation
    observation_std: Array  # [n]
    reward_mean: Array  # []   0 where the data have true terminals
    reward_std: Array  # []
    low: Array  # []   smallest (1 - gamma) Q that is possible
    high: Array  # []   largest


class FittedParams(NamedTuple):
    """What the functions of a fitted estimator take: `learner.policy_params(state, context)`."""

    network: Params
    scales: Scales
    policy: Params  # of the evaluated policy


# (params, scales, observation, action) -> outputs
Critic = Callable[[Params, Scales, Observation, Action], Array]


def scales(statistics: PyTree, caller: str) -> Scales:
    """What inputs and rewards are standardized by, from the data's statistics.

    `reward_mean` is 0 where the data have true terminals, after which no mean reward arrives
    (as in `policy_eval` of google-research). `low` and `high` are the range of `(1 - gamma) Q`:
    that of the data's rewards, and 0 where the data have terminals.

    Args:
      statistics: `normalize.full_statistics(dataset)`.
      caller: the estimator's name, for the message.

    Raises:
      UsageError: the statistics lack those of the transitions.
    """
    measured: Any = getattr(statistics, "transitions", None)
    if not hasattr(measured, "reward_std"):
        raise UsageError(
            f"{caller} needs the statistics of the transitions: pass "
            "context=Context(statistics=normalize.full_statistics(dataset), ...) to fit"
        )
    terminates = jnp.asarray(measured.terminates)
    reward_mean = _float(measured.reward_mean)
    low = _float(measured.reward_min)
    high = _float(measured.reward_max)
    return Scales(
        observation_mean=_float(measured.observation_mean),
        observation_std=_float(measured.observation_std),
        reward_mean=jnp.where(terminates, 0.0, reward_mean),
        reward_std=_float(measured.reward_std),
        low=jnp.where(terminates, jnp.minimum(low, 0.0), low),
        high=jnp.where(terminates, jnp.maximum(high, 0.0), high),
    )


def standardized_reward(scales: Scales, reward: Array) -> Array:
    """Rewards with mean 0 and standard deviation 1, elementwise."""
    return (reward - scales.reward_mean) / scales.reward_std


def return_range(scales: Scales, gamma: float) -> Array:
    """`[]` distance between the smallest and the largest return that is possible."""
    return (scales.high - scales.low) / (1.0 - gamma)


def discount_factor(gamma: float | None, spec: EnvironmentSpec, caller: str) -> float:
    """The discount factor of an estimator: its own, or the spec's where that is None.

    Args:
      gamma: the estimator's setting.
      spec: of the data.
      caller: the estimator's name, for the message.

    Raises:
      UsageError: there is none, or it is not inside [0, 1).
    """
    gamma = spec.gamma if gamma is None else gamma
    if gamma is None:
        raise UsageError(
            f"{caller}: this spec has no discount factor; pass gamma=, for example gamma=0.99"
        )
    if not 0 <= gamma < 1:
        raise UsageError(
            f"{caller}: gamma must be inside [0, 1), got {gamma}: values are scaled by 1 - gamma"
        )
    return gamma


def inputs(
    scales: Scales, observation: Observation, action: Action, spec: EnvironmentSpec
) -> Array:
    """The standardized flat observation and the action as one vector.

    Args:
      scales: of the data.
      observation: one.
      action: one; discrete actions become one-hot.
      spec: of both.

    Returns:
      `[n + m]`.
    """
    flat = (torsos.flat(observation) - scales.observation_mean) / scales.observation_std
    return jnp.concatenate([flat, action_vector(action, spec)])


def action_vector(action: Action, spec: EnvironmentSpec) -> Array:
    """The action as a vector `[m]`; discrete actions are one-hot."""
    if isinstance(spec.action, DiscreteActions):
        return jax.nn.one_hot(action, spec.action.num_actions)
    return jnp.ravel(action)


def num_inputs(spec: EnvironmentSpec) -> int:
    """The length of `inputs`."""
    if isinstance(spec.action, DiscreteActions):
        action_size = spec.action.num_actions
    else:
        action_size = spec.action.size
    return action_size + sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(spec.observation))


def critic(network: nn.Module, spec: EnvironmentSpec) -> tuple[Callable[[Key], Params], Critic]:
    """The functions of a network of observation and action.

    Args:
      network: takes `inputs`.
      spec: of observations and actions.

    Returns:
      (init: key -> params, apply: (params, scales, observation, action) -> outputs).
    """

    def init(key: Key) -> Params:
        return torsos.init(network, key, jnp.zeros(num_inputs(spec)))

    def apply(params: Params, scales: Scales, observation: Observation, action: Action) -> Array:
        return torsos.apply(network, params, inputs(scales, observation, action, spec))

    return init, apply


def evaluated_policy_params(
    context: Context, caller: str, policy: Policy, spec: EnvironmentSpec
) -> Params:
    """The parameters of the policy to evaluate, `context.upstream["target"]`, after a check.

    Args:
      context: as `fit` has it.
      caller: the estimator's name, for the message.
      policy: the one to evaluate.
      spec: the environment's.

    Raises:
      UsageError: there are no such parameters, or with them the policy does not fit the spec.
    """
    upstream = context.upstream
    if not hasattr(upstream, "keys") or TARGET not in upstream:
        raise UsageError(
            f"{caller} evaluates a policy whose parameters are missing: pass "
            "context=Context(statistics=..., upstream={'target': params}) to fit "
            "(stacked over seeds where there are any)"
        )
    policies.check_fits(policy, upstream[TARGET], spec, spec.observation)
    return upstream[TARGET]


def resample_key(context: Context, key: Key) -> Key:
    """The key of a fit's resample: `context.upstream["resample"]` where it is there, or this."""
    return context.upstream.get(RESAMPLE, key)


def check_starts(scales: Scales, initial_observations: Observation) -> int:
    """The number of initial observations `[N, ...]`.

    Raises:
      UsageError: there are none, or they are not of the size of the data's.
    """
    leaves = jax.tree.leaves(initial_observations)
    leading = {jnp.shape(leaf)[:1] for leaf in leaves}
    expected = scales.observation_mean.size
    size = sum(math.prod(jnp.shape(leaf)[1:]) for leaf in leaves)
    if len(leading) != 1 or leading == {()} or size != expected:
        raise UsageError(
            f"initial observations are [N, ...] with {expected} numbers each, got shapes "
            f"{[jnp.shape(leaf) for leaf in leaves]}"
        )
    ((count,),) = leading
    if not count:
        raise UsageError("initial observations are empty: at least one is needed")
    return count


def actions(policy: Policy, params: Params, observations: Observation, key: Key) -> Action:
    """One action of the policy at each of the observations, `[B, ...]` both."""
    size = jax.tree.leaves(observations)[0].shape[0]
    keys = jax.random.split(key, size)
    return jax.vmap(policy.sample, (None, 0, 0))(params, observations, keys)


def adam(
    learning_rate: float, weight_decay: float, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Adam with a weight decay that is not multiplied by the learning rate.

    Args:
      learning_rate: of Adam.
      weight_decay: subtracted per update, times the parameters.
      b1: decay of the first moment.
      b2: decay of the second.
    """
    return optax.chain(
        optax.scale_by_adam(b1, b2),
        optax.scale(-learning_rate),
        optax.add_decayed_weights(-weight_decay),
    )


def _float(value: PyTree) -> Array:
    return jnp.asarray(value, jnp.float32)
