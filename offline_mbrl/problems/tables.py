"""Decision processes with few states and actions: simulation, and exact values of policies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from offline_mbrl.types import Array, Key, Params, Policy


def policy() -> Policy:
    """Policies over one-hot observations `[S]` with params `{"logits": [S, A]}`."""

    def log_probs(params: Params, observation: Array) -> Array:
        return jax.nn.log_softmax(observation @ jnp.asarray(params["logits"]))

    def sample(params: Params, observation: Array, key: Key) -> Array:
        return jax.random.categorical(key, log_probs(params, observation))

    def mode(params: Params, observation: Array) -> Array:
        return jnp.argmax(log_probs(params, observation))

    def log_prob(params: Params, observation: Array, action: Array) -> Array:
        return log_probs(params, observation)[action]

    return Policy(sample=sample, mode=mode, log_prob=log_prob)


class Table(NamedTuple):
    """A decision process with S states and A actions; terminal states are absorbing."""

    transition: np.ndarray  # [S, A, S]
    reward: np.ndarray  # [S, A]
    initial: np.ndarray  # [S]
    terminal: np.ndarray  # [S] bool


def probabilities(params: Params) -> np.ndarray:
    """The action probabilities `[S, A]` of a policy's logits, in float64."""
    return scipy.special.softmax(np.asarray(params["logits"], np.float64), axis=-1)


def action_values(table: Table, policy: np.ndarray, gamma: float, steps: Any) -> np.ndarray:
    """The exact action values `[..., S, A]` of a policy.

    Args:
      table: the process.
      policy: `[S, A]` action probabilities.
      gamma: discount factor.
      steps: `[...]` numbers of remaining steps, or the scalar `math.inf`, for which a linear system
        is solved.
    """
    onward = gamma * table.transition * ~table.terminal[:, None, None]
    if np.ndim(steps) == 0 and np.isinf(steps):
        state_values = np.linalg.solve(
            np.eye(len(policy)) - np.einsum("sa,sat->st", policy, onward),
            np.sum(policy * table.reward, axis=1),
        )
        return table.reward + onward @ state_values
    steps = np.asarray(steps, int)
    rows = [np.zeros_like(table.reward)]
    for _ in range(int(steps.max(initial=0))):
        rows.append(table.reward + onward @ np.sum(policy * rows[-1], axis=1))
    return np.stack(rows)[steps]


def density_ratio(
    table: Table, behavior: np.ndarray, target: np.ndarray, gamma: float, horizon: int
) -> np.ndarray:
    """The exact density ratio `[S, A]`: discounted visits of the target per share of logged steps.

    Its definition is in `known.tabular`.

    Args:
      table: the process.
      behavior: `[S, A]` action probabilities of the logging policy.
      target: `[S, A]` action probabilities of the evaluated policy.
      gamma: discount factor.
      horizon: steps after which logged episodes are truncated.
    """
    alive = ~table.terminal
    initial = table.initial * alive

    def moves(policy: np.ndarray) -> np.ndarray:
        transition = np.einsum("sa,sat->st", policy, table.transition)
        return transition * alive[:, None] * alive[None]

    visits = (1 - gamma) * np.linalg.solve(np.eye(len(alive)) - gamma * moves(target).T, initial)
    behavior_moves = moves(behavior)
    share = np.zeros(len(alive))
    distribution = initial
    for _ in range(horizon):
        share = share + distribution
        distribution = behavior_moves.T @ distribution
    logged = (share / share.sum())[:, None] * behavior
    return np.where(logged > 0, visits[:, None] * target / np.where(logged > 0, logged, 1.0), 0.0)


def simulate(
    table: Table, policy: np.ndarray, rng: np.random.Generator, num_episodes: int, horizon: int
) -> tuple[np.ndarray, ...]:
    """Simulates N episodes.

    Args:
      table: the process.
      policy: `[S, A]` action probabilities.
      rng: advanced by the draws.
      num_episodes: N.
      horizon: H.

    Returns:
      States `[N, H + 1]`, actions `[N, H]`, lengths `[N]` up to a terminal state or the horizon,
      and `[N]` bool, whether a terminal state was reached.
    """

    def draw(probabilities: np.ndarray) -> np.ndarray:
        uniform = rng.random((len(probabilities), 1))
        return np.argmax(uniform < np.cumsum(probabilities, axis=1), axis=1)

    states = [draw(np.broadcast_to(table.initial, (num_episodes, len(table.initial))))]
    actions = []
    for _ in range(horizon):
        actions.append(draw(policy[states[-1]]))
        states.append(draw(table.transition[states[-1], actions[-1]]))
    state = np.stack(states, axis=1)
    action = np.stack(actions, axis=1)
    arrived = table.terminal[state]
    terminal = np.asarray(arrived.any(axis=1))
    length = np.where(terminal, np.argmax(arrived, axis=1), horizon)
    return state, action, length, terminal
