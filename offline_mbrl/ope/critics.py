"""What learned estimators share: functions of an observation and an action, and the actions of the target policy."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import policies
from offline_mbrl.networks import torsos
from offline_mbrl.types import Array, DiscreteActions, EnvironmentSpec, Policy, PyTree, UsageError

Critic = Callable[[PyTree, PyTree, PyTree, Array], Array]  # (params, scales, observation, action) -> outputs


def scales(statistics: PyTree, who: str) -> dict[str, Array]:
    """What inputs and rewards are standardized by, from the data's statistics, as arrays to keep in a state.

    `reward_mean` is 0 where the data have true terminals, after which no mean reward arrives (reference). `low` and
    `high` are the range of `(1 - gamma) Q`: the data's rewards, and 0 where the data have terminals.

    Raises:
      UsageError: the statistics say nothing of transitions.
    """
    figures: Any = getattr(statistics, "transitions", ())
    if not hasattr(figures, "reward_std"):
        raise UsageError(f"{who} needs the statistics of the transitions: pass statistics=normalize.statistics(dataset)"
                         "._replace(transitions=normalize.transition_statistics(dataset)) to fit")  # fmt: skip
    as_float = lambda value: jnp.asarray(value, jnp.float32)  # noqa: E731
    lasts, low, high = jnp.asarray(figures.terminates), as_float(figures.reward_min), as_float(figures.reward_max)
    return {
        "observation_mean": as_float(figures.observation_mean), "observation_std": as_float(figures.observation_std),
        "reward_mean": jnp.where(lasts, 0.0, as_float(figures.reward_mean)), "reward_std": as_float(figures.reward_std),
        "low": jnp.where(lasts, jnp.minimum(low, 0.0), low), "high": jnp.where(lasts, jnp.maximum(high, 0.0), high),
    }  # fmt: skip


def discount_factor(gamma: float | None, spec: EnvironmentSpec, who: str) -> float:
    """The config's gamma, or the spec's where it is None.

    Raises:
      UsageError: it is not inside [0, 1).
    """
    value = spec.gamma if gamma is None else gamma
    if not 0 <= value < 1:
        raise UsageError(f"{who}: gamma must be inside [0, 1), got {value}: values are scaled by 1 - gamma")
    return value


def inputs(scales: PyTree, observation: PyTree, action: Array, spec: EnvironmentSpec) -> Array:
    """The standardized flat observation and the action as one vector `[n + m]`; discrete actions are one-hot."""
    flat = (torsos.flat(observation) - scales["observation_mean"]) / scales["observation_std"]
    if isinstance(spec.action, DiscreteActions):
        return jnp.concatenate([flat, jax.nn.one_hot(action, spec.action.num_actions)])
    return jnp.concatenate([flat, jnp.ravel(action)])


def num_inputs(spec: EnvironmentSpec) -> int:
    """The length of `inputs`."""
    action = spec.action.num_actions if isinstance(spec.action, DiscreteActions) else spec.action.size
    return action + sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(spec.observation))


def critic(network: nn.Module, spec: EnvironmentSpec) -> tuple[Callable[[Array], PyTree], Critic]:
    """(init: key -> params, apply: (params, scales, observation, action) -> outputs) of a network on `inputs`."""

    def init(key: Array) -> PyTree:
        return torsos.init(network, key, jnp.zeros(num_inputs(spec)))

    def apply(params: PyTree, scales: PyTree, observation: PyTree, action: Array) -> Array:
        return torsos.apply(network, params, inputs(scales, observation, action, spec))

    return init, apply


def target_params(given: Any, who: str, policy: Policy, spec: EnvironmentSpec) -> PyTree:
    """The parameters of the policy to evaluate.

    Args:
      given: what `fit` was given.
      who: asks.
      policy: to evaluate.
      spec: the environment's.

    Raises:
      UsageError: `given` has no entry "target", or with its parameters the policy does not fit the spec.
    """
    if not isinstance(given, dict) or "target" not in given:
        raise UsageError(f"{who} evaluates a policy whose parameters are missing: pass given={{'target': params}} to "
                         "fit (stacked over seeds when there are any)")  # fmt: skip
    policies.check_fits(policy, given["target"], spec, spec.observation)
    return given["target"]


def check_starts(scales: PyTree, initial_observations: PyTree) -> int:
    """How many initial observations `[N, ...]` there are.

    Raises:
      UsageError: none, or they are not of the size of the data's.
    """
    leaves = jax.tree.leaves(initial_observations)
    sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
    wanted, found = scales["observation_mean"].size, sum(math.prod(jnp.shape(leaf)[1:]) for leaf in leaves)
    if len(sizes) != 1 or sizes == {()} or found != wanted:
        raise UsageError(f"initial observations are [N, ...] with {wanted} numbers each, got shapes "
                         f"{[jnp.shape(leaf) for leaf in leaves]}")  # fmt: skip
    (size,) = sizes.pop()
    if not size:
        raise UsageError("initial observations are empty: at least one is needed")
    return size


def actions(policy: Policy, params: PyTree, observations: PyTree, key: Array) -> Array:
    """One fresh action of the policy at each of the observations `[B, ...]`."""
    size = jax.tree.leaves(observations)[0].shape[0]
    return jax.vmap(policy.sample, (None, 0, 0))(params, observations, jax.random.split(key, size))


def adam(learning_rate: float, weight_decay: float, b1: float = 0.9, b2: float = 0.999) -> optax.GradientTransformation:
    """Adam, and a decay that is not multiplied by the learning rate."""
    return optax.chain(optax.scale_by_adam(b1, b2), optax.scale(-learning_rate),
                       optax.add_decayed_weights(-weight_decay))  # fmt: skip
