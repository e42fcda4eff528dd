"""Decision processes with few states and actions: simulation, and the exact values of tabular
policies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from offline_mbrl.types import Array, Policy, PyTree


def policy() -> Policy:
    """Tables of logits over one-hot observations."""

    def logits(params: PyTree, observation: Array) -> Array:
        return jax.nn.log_softmax(observation @ jnp.asarray(params["logits"]))

    return Policy(
        sample=lambda params, observation, key: jax.random.categorical(
            key, logits(params, observation)
        ),
        mode=lambda params, observation: jnp.argmax(logits(params, observation)),
        log_prob=lambda params, observation, action: logits(params, observation)[action],
    )


class Table(NamedTuple):
    """A decision process with S states and A actions; nothing happens from a terminal state on."""

    transition: np.ndarray  # [S, A, S]
    reward: np.ndarray  # [S, A]
    initial: np.ndarray  # [S]
    terminal: np.ndarray  # [S] bool


def probabilities(params: PyTree) -> np.ndarray:
    """`[S, A]` of a policy's logits, in float64."""
    return scipy.special.softmax(np.asarray(params["logits"], np.float64), axis=-1)


def action_values(table: Table, policy: np.ndarray, gamma: float, steps: Any) -> np.ndarray:
    """Q `[..., S, A]` of the policy `[S, A]` with `steps` `[...]` to go; `math.inf`, no axes, by a
    linear solve."""
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
    """`[S, A]`: discounted visits of the target over the expected share of the logged steps; see
    `known.tabular`."""
    alive = ~table.terminal
    moves = lambda policy: (
        np.einsum("sa,sat->st", policy, table.transition) * alive[:, None] * alive[None]
    )  # noqa: E731
    visits = (1 - gamma) * np.linalg.solve(
        np.eye(len(alive)) - gamma * moves(target).T, table.initial * alive
    )
    share, now = np.zeros(len(alive)), table.initial * alive
    for _ in range(horizon):
        share, now = share + now, moves(behavior).T @ now
    logged = (share / share.sum())[:, None] * behavior
    return np.where(logged > 0, visits[:, None] * target / np.where(logged > 0, logged, 1.0), 0.0)


def simulate(
    table: Table, policy: np.ndarray, rng: np.random.Generator, num_episodes: int, horizon: int
) -> tuple[np.ndarray, ...]:
    """N episodes: states `[N, H + 1]`, actions `[N, H]`, lengths `[N]` up to a terminal state,
    whether there is one."""
    draw = lambda rows: np.argmax(rng.random((len(rows), 1)) < np.cumsum(rows, axis=1), axis=1)  # noqa: E731
    states, actions = [draw(np.broadcast_to(table.initial, (num_episodes, len(table.initial))))], []
    for _ in range(horizon):
        actions.append(draw(policy[states[-1]]))
        states.append(draw(table.transition[states[-1], actions[-1]]))
    state, action = np.stack(states, axis=1), np.stack(actions, axis=1)
    arrived = table.terminal[state]
    terminal = np.asarray(arrived.any(axis=1))
    length = np.where(terminal, np.argmax(arrived, axis=1), horizon)
    return state, action, length, terminal
