"""A small DQN as pure functions: the behavior policy of the BSuite datasets.

Double Q-learning (arXiv:1509.06461) on n-step targets, epsilon-greedy, the settings of Acme's DQN
for BSuite. Differences: uniform replay, and the update period and batch size named in `Config`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from offline_mbrl.learners.discrete.losses import epsilon_greedy_log_probs
from offline_mbrl.types import (
    Array,
    DiscreteActions,
    EnvironmentSpec,
    Key,
    Metrics,
    Params,
    PyTree,
    UsageError,
)


@dataclass(frozen=True)
class Config:
    """Settings, those of Acme's DQN for BSuite except where noted."""

    hidden: tuple[int, ...] = (56, 56)  # RL Unplugged's BSuite network
    td_steps: int = 5  # steps before bootstrapping
    gamma: float = 0.99
    learning_rate: float = 1e-3
    batch_size: int = 256
    update_period: int = 8  # environment steps between updates
    target_period: int = 100  # updates between copies to the target network
    epsilon: float = 0.05  # probability of a uniform action


class Batch(NamedTuple):
    """n-step transitions, on the host (numpy) or the device."""

    observation: Any  # [B, ...]
    action: Any  # [B]
    reward: Any  # [B]   discounted sum over the steps
    discount: Any  # [B]   gamma to the number of steps; 0 when a terminal state came first
    bootstrap_observation: Any  # [B, ...]


class State(NamedTuple):
    """The state of learning."""

    params: Params
    target_params: Params
    opt_state: PyTree
    num_updates: Array  # []


class DQN(NamedTuple):
    """The agent's functions."""

    init: Callable[[Key], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    act: Callable[[Params, Array, Key], tuple[Array, Array]]  # -> action [], log probability []


def make(config: Config, spec: EnvironmentSpec) -> DQN:
    """Builds the agent.

    Args:
      config: settings.
      spec: one observation array and discrete actions.

    Raises:
      UsageError: the actions are not discrete.
    """
    if not isinstance(spec.action, DiscreteActions):
        raise UsageError(f"DQN needs discrete actions, got {spec.action}")
    layers = [layer for size in config.hidden for layer in (nn.Dense(size), nn.relu)]
    network = nn.Sequential([*layers, nn.Dense(spec.action.num_actions)])
    optimizer = optax.adam(config.learning_rate)

    def qvalues(params: Params, observation: Array) -> Any:
        return network.apply(params, observation.ravel())

    def init(key: Key) -> State:
        params = network.init(key, jnp.zeros(spec.observation.shape).ravel())
        return State(
            params=params,
            target_params=params,
            opt_state=optimizer.init(params),
            num_updates=jnp.zeros((), jnp.int32),
        )

    def loss(params: Params, target_params: Params, batch: Batch) -> Array:
        batch_qvalues = jax.vmap(qvalues, (None, 0))
        q_tm1 = batch_qvalues(params, batch.observation)
        q_t = batch_qvalues(params, batch.bootstrap_observation)
        target_q_t = batch_qvalues(target_params, batch.bootstrap_observation)
        errors = jax.vmap(td_error)(
            q_tm1, batch.action, batch.reward, batch.discount, q_t, target_q_t
        )
        return optax.huber_loss(errors).mean()

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        value, gradient = jax.value_and_grad(loss)(state.params, state.target_params, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        num_updates = state.num_updates + 1
        target_params = optax.periodic_update(
            params, state.target_params, num_updates, config.target_period
        )
        state = State(
            params=params,
            target_params=target_params,
            opt_state=opt_state,
            num_updates=num_updates,
        )
        return state, {"loss": value}

    def act(params: Params, observation: Array, key: Key) -> tuple[Array, Array]:
        return epsilon_greedy(qvalues(params, observation), key, epsilon=config.epsilon)

    return DQN(init=init, step=step, act=act)


def td_error(
    q_tm1: Array, a_tm1: Array, r_t: Array, discount_t: Array, q_t: Array, target_q_t: Array
) -> Array:
    """The double Q-learning error `r + discount * target_q[argmax q] - q[a]`, `[]`.

    Gradients flow through `q[a]` alone.

    Args:
      q_tm1: `[A]` online values where the action was taken.
      a_tm1: `[]` the action.
      r_t: `[]` sum of discounted rewards up to the bootstrap.
      discount_t: `[]` factor of the bootstrap value.
      q_t: `[A]` online values at the bootstrap, which select the action.
      target_q_t: `[A]` the target network's values there, which evaluate it.
    """
    chex.assert_rank([q_tm1, q_t, target_q_t, a_tm1, r_t, discount_t], [1, 1, 1, 0, 0, 0])
    target = r_t + discount_t * target_q_t[jnp.argmax(q_t)]
    return jax.lax.stop_gradient(target) - q_tm1[a_tm1]


def epsilon_greedy(qvalues: Array, key: Key, *, epsilon: float) -> tuple[Array, Array]:
    """Samples an epsilon-greedy action.

    Args:
      qvalues: `[A]`.
      key: consumed.
      epsilon: probability of a uniform action.

    Returns:
      The action `[]` and its log probability `[]`.
    """
    log_probabilities = epsilon_greedy_log_probs(qvalues, epsilon=epsilon)
    action = jax.random.categorical(key, log_probabilities)
    return action, log_probabilities[action]
