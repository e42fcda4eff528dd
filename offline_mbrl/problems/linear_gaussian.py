"""A linear system with Gaussian noise: simulation, and the exact values of linear-Gaussian
policies.

With z = (state, action, 1), the reward is a quadratic form of z, so every value is one of (state,
1) or z.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from offline_mbrl.types import Array, Policy, PyTree

DYNAMICS_NOISE, REWARD_NOISE = 0.1, 0.05  # standard deviations


class System(NamedTuple):
    """With z = (state, action, 1): next state = dynamics @ z + noise, expected reward = z @ reward
    @ z."""

    dynamics: np.ndarray  # [n + 1, Z], its last row keeps the 1
    reward: np.ndarray  # [Z, Z] symmetric
    start: np.ndarray  # [n + 1, n + 1] second moments of (first state, 1)


def circulant(n: int, m: int) -> tuple[System, np.ndarray]:
    """The system of `n` state and `m` action entries, and which state entries `[m, n]` each action
    entry drives."""
    drives = (np.arange(n)[None] % m == np.arange(m)[:, None]).astype(float)
    dynamics = np.zeros((n + 1, n + m + 1))
    dynamics[:n, :n] = 0.7 * np.eye(n) + 0.2 * np.roll(np.eye(n), 1, axis=1)  # spectral radius 0.9
    dynamics[:n, n : n + m], dynamics[n, -1] = 0.3 * drives.T, 1.0
    linear = np.concatenate([np.full(n, 1.0 / n), np.full(m, 0.2 / m), [0.5]])
    reward = -0.1 * np.diag(np.append(np.ones(n + m), 0.0))
    reward[-1] += linear / 2
    reward[:, -1] += linear / 2
    mean = np.append(np.full(n, 0.2), 1.0)
    start = np.outer(mean, mean) + np.diag(np.append(np.full(n, 0.1**2), 0.0))
    return System(dynamics, reward, start), drives


def policy() -> Policy:
    """`a ~ N(gain s + offset, exp(log_std)^2)`, not squashed, not clipped."""

    def mode(params: PyTree, observation: Array) -> Array:
        return jnp.asarray(params["gain"]) @ observation + params["offset"]

    def sample(params: PyTree, observation: Array, key: Array) -> Array:
        mean = mode(params, observation)
        return mean + jnp.exp(params["log_std"]) * jax.random.normal(key, mean.shape)

    def log_prob(params: PyTree, observation: Array, action: Array) -> Array:
        return jnp.sum(
            jax.scipy.stats.norm.logpdf(
                action, mode(params, observation), jnp.exp(params["log_std"])
            )
        )

    return Policy(sample, mode, log_prob)


def simulate(
    system: System, params: PyTree, rng: np.random.Generator, num_episodes: int, horizon: int
) -> tuple[np.ndarray, ...]:
    """N episodes: states `[N, H + 1, n]`, actions `[N, H, m]`, rewards and log densities of the
    actions `[N, H]`."""
    n, m = system.dynamics.shape[0] - 1, params["offset"].shape[0]
    mean = system.start[:n, n]
    states = [
        mean + np.sqrt(np.diag(system.start)[:n] - mean**2) * rng.normal(size=(num_episodes, n))
    ]
    actions, rewards, log_probs = [], [], []
    std = np.exp(params["log_std"])
    for _ in range(horizon):
        standard = rng.normal(size=(num_episodes, m))
        actions.append(states[-1] @ params["gain"].T + params["offset"] + std * standard)
        log_probs.append(
            np.sum(-0.5 * standard**2 - np.log(std) - 0.5 * math.log(2 * math.pi), axis=1)
        )
        z = np.concatenate([states[-1], actions[-1], np.ones((num_episodes, 1))], axis=1)
        rewards.append(
            np.sum(z @ system.reward * z, axis=1) + REWARD_NOISE * rng.normal(size=num_episodes)
        )
        states.append(
            z @ system.dynamics[:n].T + DYNAMICS_NOISE * rng.normal(size=(num_episodes, n))
        )
    return tuple(np.stack(column, axis=1) for column in (states, actions, rewards, log_probs))


def coefficients(
    system: System, params: PyTree, gamma: float, steps: Any
) -> tuple[np.ndarray, ...]:
    """Exact values with `steps` `[...]` to go, as quadratic forms.

    Returns:
      Q's form `[..., Z, Z]` and constant `[...]`, and V's `[..., n + 1, n + 1]` and `[...]`.
      `math.inf` steps, no axes: the solution of the discounted Lyapunov equation.
    """
    gain, offset, log_std = (
        np.asarray(params[name], np.float64) for name in ("gain", "offset", "log_std")
    )
    n, m = gain.shape[1], gain.shape[0]
    acts = np.zeros((n + m + 1, n + 1))  # (state, mean action, 1) from (state, 1)
    acts[:n, :n], acts[n : n + m, :n], acts[n : n + m, n], acts[-1, -1] = (
        np.eye(n),
        gain,
        offset,
        1.0,
    )
    variance = np.exp(2 * log_std)

    def backup(quadratic: np.ndarray, constant: Any) -> tuple[Any, ...]:
        of_q = system.reward + gamma * system.dynamics.T @ quadratic @ system.dynamics
        constant = gamma * (DYNAMICS_NOISE**2 * np.trace(quadratic[:n, :n]) + constant)
        return of_q, constant, acts.T @ of_q @ acts, constant + variance @ np.diag(of_q)[n : n + m]

    if np.ndim(steps) == 0 and np.isinf(steps):
        closed = system.dynamics @ acts
        quadratic = scipy.linalg.solve_discrete_lyapunov(
            math.sqrt(gamma) * closed.T, acts.T @ system.reward @ acts
        )
        # V's constant is its own discounted backup
        return backup(quadratic, backup(quadratic, 0.0)[3] / (1 - gamma))
    steps = np.asarray(steps, int)
    rows: list[tuple[Any, ...]] = [
        (np.zeros_like(system.reward), 0.0, np.zeros_like(system.start), 0.0)
    ]
    for _ in range(int(steps.max(initial=0))):
        rows.append(backup(*rows[-1][2:]))
    return tuple(np.stack(column)[steps] for column in zip(*rows, strict=True))


def evaluate(quadratic: np.ndarray, constant: np.ndarray, *parts: Any) -> np.ndarray:
    """The quadratic form at (parts, 1) `[..., Z]`, where `parts` are states, or states and
    actions."""
    parts = tuple(np.asarray(part, np.float64) for part in parts)
    z = np.concatenate([*parts, np.ones((*parts[0].shape[:-1], 1))], axis=-1)
    return np.einsum("...i,...ij,...j->...", z, quadratic, z) + constant
