"""Skeleton: the file to copy. A reward model is fitted first; a policy then climbs it, held near the data.

What it is in two sentences: stage one regresses the reward `r(s, a)`, a dynamics model of horizon one. Stage two
ascends the model's reward at the policy's action and pays for the distance to the data's action, as TD3+BC does with
a critic (arXiv:2106.06860, equation 5, whose Q is here the model's reward and whose weight is a plain constant).

When copying: name the paper and the equations that are here; list in this docstring what differs from the paper;
keep the settings in `Config`, the method's own equation as a function of one transition, and the batch axis in one
`vmap`. Then add one line to `registry.py` and one test of the equation's closed form.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data import memory
from offline_mbrl.networks import torsos
from offline_mbrl.types import (
    Array,
    Context,
    EnvironmentSpec,
    Learner,
    Metrics,
    Policy,
    PyTree,
    Stage,
    Transition,
    action_size,
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """One line a setting, with its source; here all are ours."""

    num_updates: int = 5_000  # of each stage
    batch_size: int = 256  # transitions per update
    hidden_layers: tuple[int, ...] = (64, 64)  # of the reward model and of the policy
    learning_rate: float = 1e-3  # Adam
    behavior_coef: float = 0.1  # weight of the squared distance to the data's action


class State(NamedTuple):
    """Everything that changes while learning."""

    params: PyTree
    opt_state: optax.OptState


# --- the method's own equations, one transition ---


def reward_loss(predicted: Array, transition: Transition) -> Array:
    """Squared error of the reward model, `[]`."""
    return (predicted - transition.reward) ** 2


def policy_loss(predicted: Array, action: Array, transition: Transition, *, behavior_coef: float) -> Array:
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
    """The earlier stages by name; what `policy_params` returns reaches the main learner as `context.upstream[name]`."""
    network = torsos.MLP((*config.hidden_layers, 1))

    def loss(context: Context, params: PyTree, transition: Transition) -> Array:
        del context
        return reward_loss(predict_reward(config, params, transition.observation, transition.action), transition)

    num_inputs = _num_inputs(spec) + action_size(spec, "skeleton")
    return {"model": Stage(_learner(config, network, num_inputs, loss, policy=None), config.num_updates)}


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The policy learner.

    Raises:
      UsageError: the actions are discrete.
    """
    network = torsos.MLP((*config.hidden_layers, action_size(spec, "skeleton")))

    def act(params: PyTree, observation: PyTree) -> Array:
        return jnp.tanh(torsos.apply(network, params, torsos.flat(observation)))

    def loss(context: Context, params: PyTree, transition: Transition) -> Array:
        action = act(params, transition.observation)
        predicted = predict_reward(config, context.upstream["model"], transition.observation, action)
        return policy_loss(predicted, action, transition, behavior_coef=config.behavior_coef)

    def sample(params: PyTree, observation: PyTree, key: Array) -> Array:
        del key  # deterministic
        return act(params, observation)

    return _learner(config, network, _num_inputs(spec), loss, Policy(sample=sample, mode=act))


def predict_reward(config: Config, params: PyTree, observation: PyTree, action: Array) -> Array:
    """The model's reward `[]` for one observation and action `[A]`."""
    network = torsos.MLP((*config.hidden_layers, 1))
    return torsos.apply(network, params, jnp.concatenate([torsos.flat(observation), action]))[0]


def _learner(config: Config, network: torsos.MLP, num_inputs: int, loss, policy: Policy | None) -> Learner:
    """Adam on the mean of `loss(context, params, transition)` over a batch."""
    optimizer = optax.adam(config.learning_rate)

    def init(key: Array, example: Transition, context: Context) -> State:
        del example, context
        params = torsos.init(network, key, jnp.zeros(num_inputs))
        return State(params, optimizer.init(params))

    def batch_loss(params: PyTree, context: Context, batch: Transition) -> Array:
        return jnp.mean(jax.vmap(loss, (None, None, 0))(context, params, batch))

    def validate(state: State, context: Context, batch: Transition, key: Array) -> Metrics:
        del key  # deterministic
        return {"loss/total": batch_loss(state.params, context, batch)}

    def step(state: State, context: Context, batch: Transition, key: Array) -> tuple[State, Metrics]:
        del key  # deterministic
        value, gradient = jax.value_and_grad(batch_loss)(state.params, context, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        return State(optax.apply_updates(state.params, updates), opt_state), {"loss/total": value}

    return Learner(
        sample=memory.Transitions(config.batch_size), init=init, step=step, validate=validate, policy=policy,
        policy_params=lambda state, context: state.params,
    )  # fmt: skip


def _num_inputs(spec: EnvironmentSpec) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(spec.observation))
