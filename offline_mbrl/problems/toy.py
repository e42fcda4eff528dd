"""Small problems with known answers, built from a key: for tests, notebooks and the first look at a
new algorithm."""

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
    Policy,
    PyTree,
)


class Problem(NamedTuple):
    """Logged data, its spec, and an exact score of any policy."""

    dataset: Dataset
    spec: EnvironmentSpec
    # (policy, params) -> [], exact: 1 is optimal, 0 is a uniform policy
    score: Callable[[Policy, PyTree], Array]


def chain(
    seed: int,
    *,
    num_states: int = 6,
    num_episodes: int = 200,
    right: float = 0.5,
    horizon: int = 20,
) -> Problem:
    """A corridor: action 1 moves right, action 0 left; reward 1 and a terminal at the right end, 0
    elsewhere.

    Episodes that do not arrive within `horizon` steps are truncated. The optimal policy always
    moves right. The score is the normalized discounted return of the greedy policy from the left
    end, solved exactly.

    Args:
      seed: of the logged behavior.
      num_states: states, the terminal one included; observations are one-hot `[num_states]`.
      num_episodes: logged episodes, each from a random non-terminal state.
      right: probability of moving right in the logged behavior.
      horizon: longest episode.
    """
    generator = np.random.default_rng(seed)
    rows: dict[str, list] = {
        "observation": [],
        "action": [],
        "reward": [],
        "is_last": [],
        "is_terminal": [],
    }
    for _ in range(num_episodes):
        state = int(generator.integers(num_states - 1))
        for step in range(horizon + 1):
            arrived = state == num_states - 1
            action = int(generator.random() < right)
            following = max(state + 2 * action - 1, 0)
            values = (
                np.eye(num_states, dtype=np.float32)[state],
                action,
                float(following == num_states - 1),
            )
            for name, value in zip(
                rows, (*values, arrived or step == horizon, arrived), strict=True
            ):
                rows[name].append(value)
            if arrived:
                break
            state = following
    spec = EnvironmentSpec(
        jax.ShapeDtypeStruct((num_states,), jnp.float32),
        DiscreteActions(2),
        gamma=0.9,
        horizon=horizon,
    )
    return Problem(
        Dataset.from_arrays(rows),
        spec,
        lambda policy, params: _chain_score(policy, params, num_states),
    )


def _chain_score(policy: Policy, params: PyTree, num_states: int, gamma: float = 0.9) -> Array:
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
    """A contextual bandit: context `x` in `[-1, 1]^2`, action `a` in `[-1, 1]`, reward `-(a - (x_0
    - x_1) / 2)^2`.

    Every step is an episode. The score is `1 - regret / regret of uniform actions`, averaged over a
    fixed grid.

    Args:
      seed: of contexts and of the uniform behavior.
      num_steps: logged steps.
    """
    generator = np.random.default_rng(seed)
    context = generator.uniform(-1, 1, (num_steps, 2)).astype(np.float32)
    action = generator.uniform(-1, 1, (num_steps, 1)).astype(np.float32)
    reward = -np.square(action[:, 0] - (context[:, 0] - context[:, 1]) / 2)
    ended = np.ones(num_steps, bool)
    arrays: dict[str, Any] = {
        "observation": context,
        "action": action,
        "reward": reward,
        "is_terminal": ended,
    }
    spec = EnvironmentSpec(
        jax.ShapeDtypeStruct((2,), jnp.float32), BoundedActions((-1.0,), (1.0,)), horizon=1
    )
    return Problem(Dataset.from_arrays(arrays), spec, _bandit_score)


def _bandit_score(policy: Policy, params: PyTree) -> Array:
    axis = jnp.linspace(-1.0, 1.0, 11)
    contexts = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    best = (contexts[:, 0] - contexts[:, 1]) / 2
    actions = jax.vmap(policy.mode, (None, 0))(params, contexts)[:, 0]
    uniform = jnp.mean(best**2) + 1.0 / 3.0  # a uniform action has mean 0 and variance 1/3
    return 1.0 - jnp.mean((actions - best) ** 2) / uniform
