"""A linear-quadratic control problem, whose optimal controller the Riccati equation gives.

`s' = A s + B a` without noise, reward `-(|s|^2 + a^2)`, discount factor 0.95: a damped position and
its velocity. Data come from a weak, noisy controller. A linear controller of gain K is the action
`K s`; that of least cost is `optimal_gain`, and from the starts of the problem its actions stay
within the bounds, so that no policy does better.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from offline_mbrl.data.memory import Dataset
from offline_mbrl.problems.toy import Problem
from offline_mbrl.types import Array, BoundedActions, EnvironmentSpec, Observation, Params, Policy

GAMMA = 0.95
DYNAMICS = np.array([[0.95, 0.3], [0.0, 0.9]])  # A
DRIVE = np.array([[0.0], [0.4]])  # B
START = 0.6  # episodes start uniformly in [-START, START]^2
BEHAVIOR_GAIN = 0.2  # of the optimal gain
BEHAVIOR_STD = 0.4  # of the behavior's actions around its controller, before clipping
SCORED_STEPS = 200  # 0.95^200 is 4e-5


def linear_quadratic(seed: int, *, num_episodes: int = 250, horizon: int = 20) -> Problem:
    """The problem with logged data.

    The score is the share of the optimal return: of discounted returns over a grid of starts, each
    by a rollout of the greedy policy, with 1 for the optimal controller and 0 for the action 0 in
    every state. The behavior's controller scores 0.78 without its noise, 0.6 times the optimal gain
    scores 0.97.

    Args:
      seed: seed of the logged behavior.
      num_episodes: number of logged episodes.
      horizon: steps after which an episode is truncated; none terminates.
    """
    observation, action = _simulate(np.random.default_rng(seed), num_episodes, horizon)
    reward = np.zeros(observation.shape[:2])
    reward[:, :-1] = -np.sum(observation[:, :-1] ** 2, axis=-1) - action[:, :-1, 0] ** 2
    is_last = np.broadcast_to(np.arange(horizon + 1) == horizon, reward.shape)
    columns = {
        "observation": observation.reshape(-1, 2),
        "action": action.reshape(-1, 1),
        "reward": reward.ravel(),
        "is_last": is_last.ravel(),
        "is_terminal": np.zeros(reward.size, bool),
    }
    spec = EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((2,), jnp.float32),
        action=BoundedActions(minimum=(-1.0,), maximum=(1.0,)),
        gamma=GAMMA,
        horizon=horizon,
    )
    return Problem(dataset=Dataset.from_arrays(columns), spec=spec, score=score)


@functools.cache
def optimal_gain() -> np.ndarray:
    """`[1, 2]`, of the controller of least discounted cost without bounds."""
    cost = optimal_cost()
    drive = GAMMA * DRIVE.T @ cost
    return -np.linalg.solve(1.0 + drive @ DRIVE, drive @ DYNAMICS)


@functools.cache
def optimal_cost() -> np.ndarray:
    """`[2, 2]`: the optimal return from state s is `-s P s`; P of the discounted Riccati equation.

    A discount factor acts as the square root of it on the dynamics.
    """
    root = GAMMA**0.5
    return scipy.linalg.solve_discrete_are(root * DYNAMICS, root * DRIVE, np.eye(2), np.eye(1))


def cost_of(gain: np.ndarray) -> np.ndarray:
    """`[2, 2]`: the return of the controller `gain` `[1, 2]` from state s is `-s P s`, unbounded.

    The solution of `P = 1 + K'K + gamma (A + B K)' P (A + B K)`, a discounted Lyapunov equation.
    """
    closed = GAMMA**0.5 * (DYNAMICS + DRIVE @ gain)
    return scipy.linalg.solve_discrete_lyapunov(closed.T, np.eye(2) + gain.T @ gain)


def controller() -> Policy:
    """The policy `clip(gain s)` with params `{"gain": [1, 2]}`, without a density."""

    def mode(params: Params, observation: Observation) -> Array:
        return jnp.clip(params["gain"] @ observation, -1.0, 1.0)

    return Policy(sample=lambda params, observation, key: mode(params, observation), mode=mode)


def score(policy: Policy, params: Params) -> Array:
    """The share of the optimal return, `[]`; see `linear_quadratic`."""
    zero, optimal = (
        -float(np.mean(np.sum(starts() @ cost * starts(), axis=1)))
        for cost in (cost_of(np.zeros((1, 2))), optimal_cost())
    )
    returns = rollout_return(policy, params, jnp.asarray(starts(), jnp.float32))
    return (jnp.mean(returns) - zero) / (optimal - zero)


def starts() -> np.ndarray:
    """`[25, 2]`, a grid over the region where episodes start."""
    axis = np.linspace(-START, START, 5)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def rollout_return(policy: Policy, params: Params, states: Array) -> Array:
    """Discounted returns `[N]` of the greedy policy over `SCORED_STEPS` steps.

    Args:
      policy: without memory; its actions are clipped to the bounds.
      params: its parameters.
      states: `[N, 2]` starts.
    """
    dynamics = jnp.asarray(DYNAMICS, jnp.float32)
    drive = jnp.asarray(DRIVE, jnp.float32)

    def step(states: Array, factor: Array) -> tuple[Array, Array]:
        actions = jnp.clip(jax.vmap(policy.mode, (None, 0))(params, states), -1.0, 1.0)
        reward = -jnp.sum(states**2, axis=1) - jnp.sum(actions**2, axis=1)
        return states @ dynamics.T + actions @ drive.T, factor * reward

    factors = GAMMA ** jnp.arange(SCORED_STEPS, dtype=jnp.float32)
    return jnp.sum(jax.lax.scan(step, states, factors)[1], axis=0)


def _simulate(
    rng: np.random.Generator, num_episodes: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """States `[N, H + 1, 2]` and actions `[N, H + 1, 1]` of the behavior."""
    gain = BEHAVIOR_GAIN * optimal_gain()
    states = [rng.uniform(-START, START, (num_episodes, 2))]
    actions = []
    for _ in range(horizon + 1):
        noise = BEHAVIOR_STD * rng.normal(size=(num_episodes, 1))
        actions.append(np.clip(states[-1] @ gain.T + noise, -1.0, 1.0))
        states.append(states[-1] @ DYNAMICS.T + actions[-1] @ DRIVE.T)
    return np.stack(states[:-1], axis=1), np.stack(actions, axis=1)
