"""Small problems with known optimal policies, for tests, notebooks and trials of algorithms."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data.memory import Dataset
from offline_mbrl.types import (
    Array,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Params,
    Policy,
)


class Problem(NamedTuple):
    """Logged data, its spec, and an exact score of any policy."""

    dataset: Dataset
    spec: EnvironmentSpec
    # (policy, params) -> [], exact: 1 for the optimal policy, 0 for uniform actions
    score: Callable[[Policy, Params], Array]


def chain(
    seed: int,
    *,
    num_states: int = 6,
    num_episodes: int = 200,
    right: float = 0.5,
    horizon: int = 20,
) -> Problem:
    """A corridor with a terminal at the right end: action 1 moves right, action 0 moves left.

    The reward is 1 at the right end and 0 elsewhere. Episodes that do not arrive within `horizon`
    steps are truncated. The optimal policy always moves right. The score is the normalized
    discounted return of the greedy policy from the left end, solved exactly.

    Args:
      seed: seed of the logged behavior.
      num_states: number of states, the terminal one included; observations are one-hot
        `[num_states]`.
      num_episodes: number of logged episodes, each from a random non-terminal state.
      right: probability of moving right in the logged behavior.
      horizon: steps of the longest episode.
    """
    generator = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for _ in range(num_episodes):
        state = int(generator.integers(num_states - 1))
        for step in range(horizon + 1):
            arrived = state == num_states - 1
            action = int(generator.random() < right)
            following = max(state + 2 * action - 1, 0)
            records.append(
                {
                    "observation": np.eye(num_states, dtype=np.float32)[state],
                    "action": action,
                    "reward": float(following == num_states - 1),
                    "is_last": arrived or step == horizon,
                    "is_terminal": arrived,
                }
            )
            if arrived:
                break
            state = following
    columns = {name: [record[name] for record in records] for name in records[0]}
    spec = EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((num_states,), jnp.float32),
        action=DiscreteActions(2),
        gamma=0.9,
        horizon=horizon,
    )
    return Problem(
        dataset=Dataset.from_arrays(columns),
        spec=spec,
        score=functools.partial(_chain_score, num_states=num_states),
    )


def _chain_score(policy: Policy, params: Params, *, num_states: int, gamma: float = 0.9) -> Array:
    actions = jax.vmap(policy.mode, (None, 0))(params, jnp.eye(num_states)[:-1])
    uniform = _chain_return(jnp.full(num_states - 1, 0.5), gamma)
    optimal = _chain_return(jnp.ones(num_states - 1), gamma)
    return (_chain_return(actions.astype(jnp.float32), gamma) - uniform) / (optimal - uniform)


def _chain_return(right: Array, gamma: float) -> Array:
    """Discounted return from the left end when state i moves right with probability `right[i]`."""
    size = right.shape[0]
    matrix = jnp.zeros((size, size))
    matrix = matrix.at[jnp.arange(size - 1), jnp.arange(1, size)].set(right[:-1])
    matrix = matrix.at[jnp.arange(size), jnp.maximum(jnp.arange(size) - 1, 0)].add(1.0 - right)
    reward = jnp.zeros(size).at[-1].set(right[-1])
    return jnp.linalg.solve(jnp.eye(size) - gamma * matrix, reward)[0]


def bandit(seed: int, *, num_steps: int = 4_000) -> Problem:
    """A contextual bandit with continuous actions.

    The context x is in `[-1, 1]^2`, the action a in `[-1, 1]`; the reward is
    `-(a - (x_0 - x_1) / 2)^2`. Every step is an episode. The score is
    `1 - regret / regret of uniform actions`, averaged over a fixed grid of contexts.

    Args:
      seed: seed of the contexts and of the uniform behavior.
      num_steps: number of logged steps.
    """
    generator = np.random.default_rng(seed)
    context = generator.uniform(-1, 1, (num_steps, 2)).astype(np.float32)
    action = generator.uniform(-1, 1, (num_steps, 1)).astype(np.float32)
    reward = -np.square(action[:, 0] - (context[:, 0] - context[:, 1]) / 2)
    columns: dict[str, Any] = {
        "observation": context,
        "action": action,
        "reward": reward,
        "is_terminal": np.ones(num_steps, bool),
    }
    spec = EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((2,), jnp.float32),
        action=BoundedActions(minimum=(-1.0,), maximum=(1.0,)),
        horizon=1,
    )
    return Problem(dataset=Dataset.from_arrays(columns), spec=spec, score=_bandit_score)


def _bandit_score(policy: Policy, params: Params) -> Array:
    axis = jnp.linspace(-1.0, 1.0, 11)
    contexts = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    best = (contexts[:, 0] - contexts[:, 1]) / 2
    actions = jax.vmap(policy.mode, (None, 0))(params, contexts)[:, 0]
    uniform = jnp.mean(best**2) + 1.0 / 3.0  # a uniform action has mean 0 and variance 1/3
    return 1.0 - jnp.mean((actions - best) ** 2) / uniform
