"""The discounted sum of the next n rewards, regressed on observation and action by an ensemble.

It is the value at the end of MBOP's plans (arXiv:2008.05556, section 4): what the data's behavior
earned over n steps from there. Windows that a time limit cut short are left out; after a true
terminal nothing is earned.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data import memory
from offline_mbrl.data.normalize import TransitionStatistics
from offline_mbrl.learners.parts import networks as parts
from offline_mbrl.models import explicit, fitting
from offline_mbrl.models.densities import coordinates
from offline_mbrl.networks import ensemble, optimizers
from offline_mbrl.planning.shooting import Tail
from offline_mbrl.rollouts.unroll import discounted_return
from offline_mbrl.settings import at_least, sizes
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Metrics,
    Observation,
    Params,
    Stage,
    Trajectory,
)


@dataclass(frozen=True)
class ReturnConfig:
    """Acme's MBOP, but for the number of updates."""

    num_steps: Annotated[int, at_least(1)] = 10  # n
    num_members: Annotated[int, at_least(1)] = 5  # their mean counts
    layers: Annotated[tuple[int, ...], sizes()] = (64, 64)  # ReLU
    learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam
    batch_size: Annotated[int, at_least(1)] = 256  # windows per update
    num_updates: Annotated[int, at_least(1)] = 50_000


# --- equations, one window ---


class Target(NamedTuple):
    """What one window says of its first step."""

    value: Array  # []
    weight: Array  # []   0 where the window was cut


def target(window: Trajectory, *, gamma: float) -> Target:
    """`sum_{t<n} gamma^t r_t` of a window of n steps, with weight 1 where all n are known."""
    is_over = jnp.any(window.discount == 0)
    return Target(
        value=discounted_return(window, gamma),
        weight=jnp.maximum(window.mask[-1], is_over.astype(jnp.float32)),
    )


def scale(statistics: TransitionStatistics, num_steps: int, gamma: float) -> tuple[Array, Array]:
    """Shift and scale `[]` of returns over n steps, as if their rewards were all the same.

    Args:
      statistics: of the data.
      num_steps: n.
      gamma: discount factor.
    """
    weight = sum(gamma**t for t in range(num_steps))
    reward_mean = jnp.asarray(statistics.reward_mean)
    return weight * reward_mean, weight * jnp.asarray(statistics.reward_std)


# --- assembly ---


class State(NamedTuple):
    """Everything that changes while learning."""

    params: Params
    opt_state: optax.OptState


def _network(config: ReturnConfig, spec: EnvironmentSpec) -> ensemble.Ensemble:
    network = parts.mlp(sum(explicit.sizes(spec)), (*config.layers, 1))
    return ensemble.make(network.init, network.apply, config.num_members)


def _predict(
    network: ensemble.Ensemble,
    params: Params,
    statistics: TransitionStatistics,
    observation: Observation,
    action: Action,
) -> Array:
    """`[E]`, in units of the targets."""
    return network.apply(params, coordinates.inputs(statistics, observation, action))[:, 0]


def _batch_loss(
    predict: Callable[..., Array],
    params: Params,
    statistics: TransitionStatistics,
    windows: Trajectory,
    targets: Target,
    units: tuple[Array, Array],
) -> Array:
    """The weighted mean of the members' squared errors, `[]`."""

    def error(window: Trajectory, value: Array) -> Array:
        prediction = predict(params, statistics, window.observation[0], window.action[0])
        return jnp.sum((prediction - (value - units[0]) / units[1]) ** 2)

    errors = jax.vmap(error)(windows, targets.value)
    return jnp.sum(targets.weight * errors) / jnp.maximum(jnp.sum(targets.weight), 1.0)


def make(config: ReturnConfig, spec: EnvironmentSpec, *, gamma: float) -> Learner:
    """The learner of the head, without a policy; it hands on `{"network", "statistics"}`.

    Args:
      config: sizes and rates.
      spec: of the data.
      gamma: discount factor.

    Raises:
      UsageError: the spec is not one of vectors, or the actions are discrete; in `init`, there are
        no statistics of transitions.
    """
    network = _network(config, spec)
    optimizer = optax.adam(config.learning_rate)
    predict = functools.partial(_predict, network)

    def init(key: Key, example: Trajectory, context: Context) -> State:
        del example
        explicit.require_statistics(context.statistics)
        params = network.init(key)
        return State(params=params, opt_state=optimizer.init(params))

    def loss(params: Params, context: Context, batch: Trajectory) -> Array:
        statistics = explicit.require_statistics(context.statistics)
        targets = jax.vmap(lambda window: target(window, gamma=gamma))(batch)
        units = scale(statistics, config.num_steps, gamma)
        return _batch_loss(predict, params, statistics, batch, targets, units)

    def step(state: State, context: Context, batch: Trajectory, key: Key) -> tuple[State, Metrics]:
        del key  # deterministic
        value, gradient = jax.value_and_grad(loss)(state.params, context, batch)
        params, opt_state = optimizers.descend(optimizer, gradient, state.opt_state, state.params)
        return State(params=params, opt_state=opt_state), {"loss/total": value}

    def validate(state: State, context: Context, batch: Trajectory, key: Key) -> Metrics:
        del key  # deterministic
        return {"loss/total": loss(state.params, context, batch)}

    def policy_params(state: State, context: Context) -> Params:
        statistics = explicit.require_statistics(context.statistics)
        return {"network": state.params, "statistics": statistics}

    return Learner(
        sample=memory.Windows(config.batch_size, config.num_steps),
        init=init,
        step=step,
        validate=validate,
        policy=None,
        policy_params=policy_params,
    )


def stage(config: ReturnConfig, spec: EnvironmentSpec, *, gamma: float) -> Stage:
    """The fit as a stage; see `make` for the arguments and what it raises."""
    return Stage(
        learner=make(config, spec, gamma=gamma),
        num_updates=config.num_updates,
        statistics=fitting.training_statistics,
    )


def tail(config: ReturnConfig, spec: EnvironmentSpec, *, gamma: float) -> Tail:
    """The mean of the members, in raw units, of the planner's parameters "returns".

    Args:
      config: that of the stage.
      spec: of the data.
      gamma: discount factor.
    """
    predict = functools.partial(_predict, _network(config, spec))

    def value(params: Params, observation: Observation, action: Action, key: Key) -> Array:
        del key  # deterministic
        head = params["returns"]
        shift, unit = scale(head["statistics"], config.num_steps, gamma)
        predictions = predict(head["network"], head["statistics"], observation, action)
        return shift + unit * jnp.mean(predictions)

    return value
