"""A linear system with Gaussian noise: simulation, and exact values of linear-Gaussian policies.

With z = (state, action, 1), the reward is a quadratic form of z. So state values are quadratic
forms of (state, 1), and action values are quadratic forms of z.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from offline_mbrl.types import Array, Key, Params, Policy

# Standard deviations.
DYNAMICS_NOISE = 0.1
REWARD_NOISE = 0.05


class System(NamedTuple):
    """A system of n state entries; Z is the size of z = (state, action, 1).

    The next (state, 1) is `dynamics @ z` plus noise, the expected reward `z @ reward @ z`.
    """

    dynamics: np.ndarray  # [n + 1, Z], its last row keeps the 1
    reward: np.ndarray  # [Z, Z] symmetric
    start: np.ndarray  # [n + 1, n + 1] second moments of (first state, 1)


def circulant(n: int, m: int) -> tuple[System, np.ndarray]:
    """The system of `n` state and `m` action entries, and the entries that actions drive.

    Returns:
      The system, and `[m, n]`: 1 where an action entry drives a state entry, else 0.
    """
    drives = (np.arange(n)[None] % m == np.arange(m)[:, None]).astype(float)
    dynamics = np.zeros((n + 1, n + m + 1))
    dynamics[:n, :n] = 0.7 * np.eye(n) + 0.2 * np.roll(np.eye(n), 1, axis=1)  # spectral radius 0.9
    dynamics[:n, n : n + m] = 0.3 * drives.T
    dynamics[n, -1] = 1.0
    linear = np.concatenate([np.full(n, 1.0 / n), np.full(m, 0.2 / m), [0.5]])
    reward = -0.1 * np.diag(np.append(np.ones(n + m), 0.0))
    reward[-1] += linear / 2
    reward[:, -1] += linear / 2
    mean = np.append(np.full(n, 0.2), 1.0)
    start = np.outer(mean, mean) + np.diag(np.append(np.full(n, 0.1**2), 0.0))
    return System(dynamics=dynamics, reward=reward, start=start), drives


def policy() -> Policy:
    """The policies `a ~ N(gain s + offset, exp(log_std)^2)`, neither squashed nor clipped."""

    def mode(params: Params, observation: Array) -> Array:
        return jnp.asarray(params["gain"]) @ observation + params["offset"]

    def sample(params: Params, observation: Array, key: Key) -> Array:
        mean = mode(params, observation)
        return mean + jnp.exp(params["log_std"]) * jax.random.normal(key, mean.shape)

    def log_prob(params: Params, observation: Array, action: Array) -> Array:
        std = jnp.exp(params["log_std"])
        return jnp.sum(jax.scipy.stats.norm.logpdf(action, mode(params, observation), std))

    return Policy(sample=sample, mode=mode, log_prob=log_prob)


def simulate(
    system: System, params: Params, rng: np.random.Generator, num_episodes: int, horizon: int
) -> tuple[np.ndarray, ...]:
    """Simulates N episodes.

    Args:
      system: the system.
      params: parameters of `policy`.
      rng: advanced by the draws.
      num_episodes: N.
      horizon: H.

    Returns:
      States `[N, H + 1, n]`, actions `[N, H, m]`, rewards `[N, H]` and log densities of the actions
      `[N, H]`.
    """
    n = system.dynamics.shape[0] - 1
    m = params["offset"].shape[0]
    start_mean = system.start[:n, n]
    start_std = np.sqrt(np.diag(system.start)[:n] - start_mean**2)
    states = [start_mean + start_std * rng.normal(size=(num_episodes, n))]
    actions = []
    rewards = []
    log_probs = []
    std = np.exp(params["log_std"])
    for _ in range(horizon):
        standard = rng.normal(size=(num_episodes, m))
        actions.append(states[-1] @ params["gain"].T + params["offset"] + std * standard)
        log_density = -0.5 * standard**2 - np.log(std) - 0.5 * math.log(2 * math.pi)
        log_probs.append(np.sum(log_density, axis=1))
        z = np.concatenate([states[-1], actions[-1], np.ones((num_episodes, 1))], axis=1)
        reward_noise = REWARD_NOISE * rng.normal(size=num_episodes)
        rewards.append(np.sum(z @ system.reward * z, axis=1) + reward_noise)
        state_noise = DYNAMICS_NOISE * rng.normal(size=(num_episodes, n))
        states.append(z @ system.dynamics[:n].T + state_noise)
    return tuple(np.stack(column, axis=1) for column in (states, actions, rewards, log_probs))


def coefficients(
    system: System, params: Params, gamma: float, steps: Any
) -> tuple[np.ndarray, ...]:
    """Exact values as quadratic forms.

    Args:
      system: the system.
      params: parameters of `policy`.
      gamma: discount factor.
      steps: `[...]` numbers of remaining steps, or the scalar `math.inf`, for which the discounted
        Lyapunov equation is solved.

    Returns:
      Q's form `[..., Z, Z]` and constant `[...]`, and V's `[..., n + 1, n + 1]` and `[...]`.
    """
    gain = np.asarray(params["gain"], np.float64)
    offset = np.asarray(params["offset"], np.float64)
    variance = np.exp(2 * np.asarray(params["log_std"], np.float64))
    m, n = gain.shape
    closed_loop = np.zeros((n + m + 1, n + 1))  # (state, mean action, 1) from (state, 1)
    closed_loop[:n, :n] = np.eye(n)
    closed_loop[n : n + m, :n] = gain
    closed_loop[n : n + m, n] = offset
    closed_loop[-1, -1] = 1.0

    def backup(quadratic: np.ndarray, constant: Any) -> tuple[Any, ...]:
        q_quadratic = system.reward + gamma * system.dynamics.T @ quadratic @ system.dynamics
        q_constant = gamma * (DYNAMICS_NOISE**2 * np.trace(quadratic[:n, :n]) + constant)
        v_quadratic = closed_loop.T @ q_quadratic @ closed_loop
        v_constant = q_constant + variance @ np.diag(q_quadratic)[n : n + m]
        return q_quadratic, q_constant, v_quadratic, v_constant

    if np.ndim(steps) == 0 and np.isinf(steps):
        dynamics = system.dynamics @ closed_loop
        quadratic = scipy.linalg.solve_discrete_lyapunov(
            math.sqrt(gamma) * dynamics.T, closed_loop.T @ system.reward @ closed_loop
        )
        constant = backup(quadratic, 0.0)[3] / (1 - gamma)  # V's constant equals its own backup
        return backup(quadratic, constant)
    steps = np.asarray(steps, int)
    rows: list[tuple[Any, ...]] = [
        (np.zeros_like(system.reward), 0.0, np.zeros_like(system.start), 0.0)
    ]
    for _ in range(int(steps.max(initial=0))):
        rows.append(backup(*rows[-1][2:]))
    return tuple(np.stack(column)[steps] for column in zip(*rows, strict=True))


def evaluate(quadratic: np.ndarray, constant: np.ndarray, *parts: Any) -> np.ndarray:
    """Evaluates a quadratic form at (parts, 1).

    Args:
      quadratic: `[..., Z, Z]`.
      constant: `[...]`, added.
      *parts: states `[..., n]`, or states and actions `[..., m]`.

    Returns:
      `[...]`.
    """
    parts = tuple(np.asarray(part, np.float64) for part in parts)
    z = np.concatenate([*parts, np.ones((*parts[0].shape[:-1], 1))], axis=-1)
    return np.einsum("...i,...ij,...j->...", z, quadratic, z) + constant
