"""Skeleton: the file to copy. A policy climbs a reward model, held near the data.

What it is in two sentences: stage one regresses the reward `r(s, a)`, a dynamics model of horizon
one. Stage two ascends the model's reward at the policy's action and pays for the distance to the
data's action, as TD3+BC does with a critic (arXiv:2106.06860, equation 5, whose Q is here the
model's reward and whose weight is a plain constant).

When copying: name the paper and the equations that are here; list in this docstring what differs
from the paper; keep the settings in `Config`, the method's own equation as a function of one
transition, and the batch axis in one `vmap`. Then add an entry to `registry.py`, with a case that
the contract's tests run, and a test of the equation's closed form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.networks import optimizers, torsos
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
    Policy,
    Stage,
    Transition,
    action_size,
)


@dataclass(frozen=True)
class Config:
    """One line a setting, with its source; here all are ours."""

    num_updates: Annotated[int, at_least(1)] = 5_000  # of each stage
    batch_size: Annotated[int, at_least(1)] = 256  # transitions per update
    # Of the reward model and of the policy.
    hidden_layers: Annotated[tuple[int, ...], sizes()] = (64, 64)
    learning_rate: Annotated[float, at_least(0)] = 1e-3  # Adam
    # Weight of the squared distance to the data's action.
    behavior_coef: Annotated[float, at_least(0)] = 0.1


class State(NamedTuple):
    """What an update changes; constants, such as the fitted model, come as `context`."""

    params: Params
    opt_state: optax.OptState


# --- the method's own equations, one transition ---


def reward_loss(predicted: Array, transition: Transition) -> Array:
    """Squared error of the reward model, `[]`."""
    return (predicted - transition.reward) ** 2


def policy_loss(
    predicted: Array, action: Action, transition: Transition, *, behavior_coef: float
) -> Array:
    """`-r(s, pi(s)) + behavior_coef |pi(s) - a|^2`, `[]`.

    Args:
      predicted: `[]` the model's reward at the policy's action.
      action: `[A]` the policy's action.
      transition: the data's.
      behavior_coef: weight of the distance.
    """
    return -predicted + behavior_coef * jnp.sum((action - transition.action) ** 2)


# --- assembly ---


def pretrain(config: Config, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The earlier stages by name.

    What a stage hands on (by default its `policy_params`) reaches the functions of later learners
    as `context.upstream[name]`.

    Raises:
      UsageError: the actions are discrete.
    """
    network = torsos.MLP((*config.hidden_layers, 1))
    num_inputs = torsos.flat_size(spec.observation) + action_size(spec, "skeleton")

    def loss(params: Params, context: Context, transition: Transition) -> Array:
        del context
        predicted = predict_reward(config, params, transition.observation, transition.action)
        return reward_loss(predicted, transition)

    learner = _learner(config, network, num_inputs, loss, policy=None)
    return {"model": Stage(learner=learner, num_updates=config.num_updates)}


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The policy learner.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    size = action_size(spec, "skeleton")
    settings.require_valid(config, "skeleton", spec)
    network = torsos.MLP((*config.hidden_layers, size))

    def mode(params: Params, observation: Observation) -> Action:
        return jnp.tanh(torsos.apply(network, params, torsos.flat(observation)))

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        del key  # deterministic
        return mode(params, observation)

    def loss(params: Params, context: Context, transition: Transition) -> Array:
        action = mode(params, transition.observation)
        model = context.upstream["model"]
        predicted = predict_reward(config, model, transition.observation, action)
        return policy_loss(predicted, action, transition, behavior_coef=config.behavior_coef)

    num_inputs = torsos.flat_size(spec.observation)
    return _learner(config, network, num_inputs, loss, policy=Policy(sample=sample, mode=mode))


def predict_reward(
    config: Config, params: Params, observation: Observation, action: Action
) -> Array:
    """The model's reward.

    Args:
      config: sizes.
      params: the model's.
      observation: one.
      action: `[A]`.

    Returns:
      `[]`.
    """
    network = torsos.MLP((*config.hidden_layers, 1))
    return torsos.apply(network, params, jnp.concatenate([torsos.flat(observation), action]))[0]


def _learner(
    config: Config,
    network: torsos.MLP,
    num_inputs: int,
    loss: Callable[[Params, Context, Transition], Array],
    policy: Policy | None,
) -> Learner:
    """Adam on the mean of `loss(params, context, transition)` over a batch."""
    optimizer = optax.adam(config.learning_rate)

    def init(key: Key, example: Transition, context: Context) -> State:
        del example, context
        params = torsos.init(network, key, jnp.zeros(num_inputs))
        return State(params=params, opt_state=optimizer.init(params))

    def batch_loss(params: Params, context: Context, batch: Transition) -> Array:
        return jnp.mean(jax.vmap(loss, (None, None, 0))(params, context, batch))

    def step(state: State, context: Context, batch: Transition, key: Key) -> tuple[State, Metrics]:
        del key  # deterministic
        value, gradient = jax.value_and_grad(batch_loss)(state.params, context, batch)
        params, opt_state = optimizers.descend(optimizer, gradient, state.opt_state, state.params)
        return State(params=params, opt_state=opt_state), {"loss/total": value}

    def validate(state: State, context: Context, batch: Transition, key: Key) -> Metrics:
        del key  # deterministic
        return {"loss/total": batch_loss(state.params, context, batch)}

    def policy_params(state: State, context: Context) -> Params:
        del context
        return state.params

    return Learner(
        sample=memory.Transitions(config.batch_size),
        init=init,
        step=step,
        validate=validate,
        policy=policy,
        policy_params=policy_params,
    )
