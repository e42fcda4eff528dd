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
    EnvironmentSpec,
    Learner,
    Metrics,
    Policy,
    PyTree,
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
    """What the next step needs; `model` is fixed, but stays in the state so that seeds can be vmapped."""

    params: PyTree
    opt_state: optax.OptState
    model: PyTree = ()


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


def pretrain(config: Config, spec: EnvironmentSpec) -> dict[str, Learner]:
    """The earlier stages by name; what `policy_params` returns reaches `init` of the main learner as `given[name]`."""
    network = torsos.MLP((*config.hidden_layers, 1))

    def loss(state: State, params: PyTree, transition: Transition) -> Array:
        del state
        return reward_loss(predict_reward(config, params, transition.observation, transition.action), transition)

    num_inputs = _num_inputs(spec) + action_size(spec, "skeleton")
    return {"model": _learner(config, network, num_inputs, loss, policy=None)}


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The policy learner.

    Raises:
      UsageError: the actions are discrete.
    """
    network = torsos.MLP((*config.hidden_layers, action_size(spec, "skeleton")))

    def act(params: PyTree, observation: PyTree) -> Array:
        return jnp.tanh(torsos.apply(network, params, torsos.flat(observation)))

    def loss(state: State, params: PyTree, transition: Transition) -> Array:
        action = act(params, transition.observation)
        predicted = predict_reward(config, state.model, transition.observation, action)
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
    """Adam on the mean of `loss(state, params, transition)` over a batch."""
    optimizer = optax.adam(config.learning_rate)

    def init(key: Array, example: Transition, statistics: PyTree, given: PyTree) -> State:
        del example, statistics
        params = torsos.init(network, key, jnp.zeros(num_inputs))
        return State(params, optimizer.init(params), given.get("model", ()) if given else ())

    def step(state: State, batch: Transition, key: Array) -> tuple[State, Metrics]:
        del key  # deterministic
        mean = lambda params: jnp.mean(jax.vmap(loss, (None, None, 0))(state, params, batch))  # noqa: E731
        value, gradient = jax.value_and_grad(mean)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        return State(optax.apply_updates(state.params, updates), opt_state, state.model), {"loss/total": value}

    return Learner(
        sample=memory.transitions(config.batch_size), init=init, step=step, policy=policy,
        policy_params=lambda state: state.params,
    )  # fmt: skip


def _num_inputs(spec: EnvironmentSpec) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(spec.observation))
