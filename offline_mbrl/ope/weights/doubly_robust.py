"""Doubly robust estimates: values, corrected by importance-weighted temporal differences.

`V = mean v(s_0) + mean sum_t gamma^t w_t (r_t + gamma discount_t v(s_{t+1}) - q(s_t, a_t))`, which
is the textbook form `sum_t gamma^t (w_t (r_t - q_t) + w_{t-1} v_t)` with its terms sorted by
weight. Jiang and Li, arXiv:1511.03722; self-normalized weights: Thomas and Brunskill,
arXiv:1604.00923. Unlike in `policy_eval` of google-research, what follows a true terminal is worth
nothing.

The values, of a model or a critic, may be wrong where the weights are right, and the weights where
the values are. Either way `v` must be the policy's mean of `q` (a sampled one will do): a value
network of its own does not qualify.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from offline_mbrl.ope.weights import importance
from offline_mbrl.types import (
    Action,
    Array,
    Estimate,
    Key,
    Observation,
    Params,
    Trajectory,
    UsageError,
)


def doubly_robust(
    trajectories: Trajectory,
    log_ratios: Array,
    q: Any,
    v: Any,
    *,
    gamma: float,
    weighting: importance.Weighting = importance.per_decision,
    normalizer: importance.Normalizer = importance.unnormalized,
) -> Estimate:
    """DR; pure, vmap `log_ratios`, `q` and `v` for many policies.

    Args:
      trajectories: `[N, T]` whole episodes of the behavior policy, N at least 2.
      log_ratios: `[N, T]` of `importance.log_ratios`.
      q: `[N, T]` values of the logged actions; see `along`.
      v: `[N, T + 1]` values of all observations under the policy. That of the observation at which
        a time limit cuts counts as what is left there: 0 gives the value over T steps, a stationary
        value the value without end.
      gamma: discount factor.
      weighting: one episode's log ratios to the log weights of its steps.
      normalizer: all episodes' log weights to weights.

    Returns:
      The estimate. Its standard error takes `q` and `v` as given, not as fitted to the same data.

    Raises:
      UsageError: the shapes differ, there are fewer than 2 episodes, or (outside jit) a log ratio
        is NaN or infinite.
    """
    differences = temporal_differences(trajectories, q, v, gamma=gamma)
    return importance.weighted_sum(
        trajectories,
        differences,
        log_ratios,
        gamma=gamma,
        weighting=weighting,
        normalizer=normalizer,
        baseline=jnp.asarray(v)[:, 0],
    )


def weighted_doubly_robust(
    trajectories: Trajectory,
    log_ratios: Array,
    q: Any,
    v: Any,
    *,
    gamma: float,
    weighting: importance.Weighting = importance.per_decision,
    normalizer: importance.Normalizer = importance.self_normalized,
) -> Estimate:
    """DR with self-normalized weights: a little bias for much variance.

    Arguments, result and errors are those of `doubly_robust`.
    """
    return doubly_robust(
        trajectories,
        log_ratios,
        q,
        v,
        gamma=gamma,
        weighting=weighting,
        normalizer=normalizer,
    )


def temporal_differences(trajectories: Trajectory, q: Any, v: Any, *, gamma: float) -> Array:
    """`r_t + gamma discount_t v_{t+1} - q_t` `[N, T]`, 0 past the ends.

    Args:
      trajectories: `[N, T]`.
      q: `[N, T]`.
      v: `[N, T + 1]`.
      gamma: discount factor.

    Raises:
      UsageError: `q` is not `[N, T]` or `v` not `[N, T + 1]`.
    """
    q = jnp.asarray(q)
    v = jnp.asarray(v)
    size, length = trajectories.reward.shape
    if q.shape != (size, length) or v.shape != (size, length + 1):
        raise UsageError(
            f"q and v have shapes {q.shape} and {v.shape}, but {size} trajectories of {length} "
            f"steps need {(size, length)} and {(size, length + 1)}"
        )
    next_value = gamma * trajectories.discount * v[:, 1:]
    return trajectories.mask * (trajectories.reward + next_value - q)


def along(
    q_value: Callable[[Params, Observation, Action], Array],
    state_value: Callable[[Params, Observation, Key], Array],
    params: Params,
    trajectories: Trajectory,
    key: Key,
) -> tuple[Array, Array]:
    """Values `q` `[N, T]` and `v` `[N, T + 1]` along trajectories, an episode at a time.

    Args:
      q_value: `(params, observation, action) -> []` in raw units, as of `fqe.values`.
      state_value: `(params, observation, key) -> []`, the policy's mean of `q_value`.
      params: of both.
      trajectories: `[N, T]`.
      key: for the actions that `state_value` samples.
    """

    def values_of_episode(episode: tuple[Observation, Action, Key]) -> tuple[Array, Array]:
        observation, action, key = episode
        before = jax.tree.map(lambda leaf: leaf[:-1], observation)
        keys = jax.random.split(key, action.shape[0] + 1)
        q = jax.vmap(q_value, (None, 0, 0))(params, before, action)
        v = jax.vmap(state_value, (None, 0, 0))(params, observation, keys)
        return q, v

    keys = jax.random.split(key, trajectories.reward.shape[0])
    episodes = (trajectories.observation, trajectories.action, keys)
    return jax.lax.map(values_of_episode, episodes)
