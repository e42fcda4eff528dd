"""Importance sampling: returns of logged episodes, weighted by how likely another policy acts so.

An estimator is two functions: a *weighting* turns one episode's log ratios into the log weights of
its steps, and a *normalizer* turns the log weights of all episodes into weights. Precup, Sutton and
Singh, ICML 2000 (per-decision and weighted forms); the clipped, self-normalized per-decision form
is that of `policy_eval` in google-research. Standard errors: see `diagnostics`.

Departures from the reference: an ended episode keeps its weight (`self_normalized`) or leaves the
sums (`self_normalized_alive`), but never counts with the weight 1; the value is not multiplied by
`1 - gamma`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from offline_mbrl import policies
from offline_mbrl.ope import errors, support
from offline_mbrl.ope.weights import checks
from offline_mbrl.ope.weights.diagnostics import (
    LARGEST_LOG_WEIGHT,
    diagnostics,
    least_standard_error,
    relative_weights,
    standard_error,
    with_influence,
)
from offline_mbrl.types import (
    Action,
    Array,
    Estimate,
    Observation,
    Params,
    Policy,
    PyTree,
    Trajectory,
    UsageError,
)

# One episode's log ratios [T], 0 past its end -> log weights [T].
Weighting = Callable[[Array], Array]
# (log weights [N, T], mask [N, T], counts [N]) -> weights [N, T]
Normalizer = Callable[[Array, Array, Array], Array]


# --- log ratios ---


def log_probs(policy: Policy, params: Params, trajectories: Trajectory) -> Array:
    """`log pi(a|s)` of the logged actions `[N, T]`, 0 past the ends.

    Args:
      policy: with a `log_prob`; also a cloned behavior policy.
      params: its parameters.
      trajectories: `[N, T]`.

    Raises:
      UsageError: the policy has a memory or no log_prob, or one that fails or is not one number;
        the trajectories have no [N, T].
    """
    log_prob = policies.require_memoryless(policy, "importance sampling").log_prob
    if log_prob is None:
        raise UsageError(
            "importance sampling needs the density of the policy's actions, but policy.log_prob is "
            "None"
        )
    checks.require_episodes(trajectories)
    observation = _single_shapes(trajectories.observation)
    action = _single_shapes(trajectories.action)
    policies.check_log_prob(policy, params, observation, action)

    def of_episode(episode: tuple[Observation, Action, Array]) -> Array:
        observation, action, mask = episode
        before = jax.tree.map(lambda leaf: leaf[:-1], observation)
        return jnp.where(mask > 0, jax.vmap(log_prob, (None, 0, 0))(params, before, action), 0.0)

    columns = (trajectories.observation, trajectories.action, trajectories.mask)
    return jax.lax.map(of_episode, columns)


def log_ratios(
    policy: Policy, params: Params, trajectories: Trajectory, behavior_log_prob: Any
) -> Array:
    """`log pi(a|s) - log b(a|s)` `[N, T]` of the logged actions, 0 past the ends.

    Args:
      policy: the one to evaluate, with a `log_prob`.
      params: its parameters.
      trajectories: `[N, T]` whole episodes (`data.episodes.trajectories`).
      behavior_log_prob: `[N, T]` as logged, `trajectories.extras["behavior_log_prob"]`, or
        `log_probs` of a cloned policy.

    Raises:
      UsageError: as `log_probs`, the shapes differ, or (outside jit) a ratio is undefined.
    """
    behavior = jnp.asarray(behavior_log_prob)
    checks.require_episodes(trajectories)
    checks.require_steps("behavior_log_prob", behavior, trajectories)
    difference = log_probs(policy, params, trajectories) - behavior
    ratios = jnp.where(trajectories.mask > 0, difference, 0.0)
    return checks.checked_log_ratios(ratios, trajectories)


def _single_shapes(tree: PyTree) -> PyTree:
    """Shapes of one step, of leaves `[N, T, ...]`."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[2:], leaf.dtype), tree)


# --- weightings: log weights of one episode ---


def per_decision(log_ratios: Array) -> Array:
    """Each reward weighted by the ratios up to its own action: `sum_{k <= t} log rho_k` `[T]`."""
    return jnp.cumsum(log_ratios)


def trajectory_wise(log_ratios: Array) -> Array:
    """Every reward weighted by the ratios of the whole episode `[T]`."""
    return jnp.broadcast_to(jnp.sum(log_ratios), log_ratios.shape)


def clipped(weighting: Weighting, *, low: float = -6.0, high: float = 2.0) -> Weighting:
    """The weighting of clipped log ratios; the reference's bounds. Biased."""
    return lambda log_ratios: weighting(jnp.clip(log_ratios, low, high))


def truncated(weighting: Weighting, *, most: float) -> Weighting:
    """Weights no larger than `most` (Ionides, 2008). Biased towards the data's own return."""
    return lambda log_ratios: jnp.minimum(weighting(log_ratios), math.log(most))


# --- normalizers: weights of all episodes ---


def unnormalized(log_weights: Array, mask: Array, counts: Array) -> Array:
    """The weights themselves: unbiased, of large variance."""
    del mask, counts
    return jnp.exp(jnp.minimum(log_weights, LARGEST_LOG_WEIGHT))


def self_normalized(log_weights: Array, mask: Array, counts: Array) -> Array:
    """Weights over their mean at the same step; an ended episode keeps its last weight.

    Consistent.
    """
    return _over_mean(log_weights, jnp.broadcast_to(counts[:, None], mask.shape))


def self_normalized_alive(log_weights: Array, mask: Array, counts: Array) -> Array:
    """Weights over their mean among the episodes still running at the same step (the reference).

    Biased where the policies' episodes differ in length, for it keeps the data's share of running
    episodes.
    """
    return mask * _over_mean(log_weights, mask * counts[:, None])


def _over_mean(log_weights: Array, counts: Array) -> Array:
    weights = relative_weights(log_weights, counts)
    total = jnp.sum(weights * counts, axis=0)
    safe_total = jnp.where(total > 0, total, 1.0)
    scale = jnp.where(total > 0, jnp.sum(counts, axis=0) / safe_total, 0.0)
    return weights * scale[None]


# --- estimates ---


def importance_sampling(
    trajectories: Trajectory,
    log_ratios: Array,
    *,
    gamma: float,
    weighting: Weighting = per_decision,
    normalizer: Normalizer = self_normalized,
    limits: support.Limits = support.Limits(),
) -> Estimate:
    """The expected discounted return over the trajectories' T steps.

    Pure; vmap `log_ratios` for many policies. An episode cut by a time limit before step T adds
    nothing from there on, like one that truly ended: weights cannot replace what was never logged.
    `cut_fraction` is the share of such episodes, and many of them are `low_support`. So is a mean
    weight far from 1 (`weight_error`), with which values of weights that are not normalized depend
    on what rewards are counted from.

    Args:
      trajectories: `[N, T]` whole episodes of the behavior policy, N at least 2.
      log_ratios: `[N, T]` of `log_ratios`.
      gamma: discount factor; 1 for undiscounted returns (which rank policies differently).
      weighting: one episode's log ratios to the log weights of its steps.
      normalizer: all episodes' log weights to weights.
      limits: of `cut_fraction` and `weight_error`.

    Returns:
      The estimate; `per_episode` `[N]` are the weighted returns, whose mean is the value.

    Raises:
      UsageError: the shapes differ, there are fewer than 2 episodes, or (outside jit) a log ratio
        is NaN or infinite.
    """
    estimate = weighted_sum(
        trajectories,
        trajectories.reward,
        log_ratios,
        gamma=gamma,
        weighting=weighting,
        normalizer=normalizer,
    )
    signs = {
        "cut_fraction": cut_fraction(trajectories),
        "weight_error": weight_error(
            trajectories, log_ratios, gamma=gamma, weighting=weighting, normalizer=normalizer
        ),
    }
    return support.with_signs(estimate, signs, limits)


def weight_error(
    trajectories: Trajectory,
    log_ratios: Array,
    *,
    gamma: float,
    weighting: Weighting,
    normalizer: Normalizer,
) -> Array:
    """How far the mean weight over episodes, and over steps by `gamma^t`, is from 1, `[]`.

    A constant c added to all rewards of episodes that do not end adds `c sum_t gamma^t` to a value,
    and `1 + error` (or `1 - error`) times that to its estimate. Normalized weights have no error.

    Args:
      trajectories: `[N, T]`.
      log_ratios: `[N, T]`.
      gamma: discount factor.
      weighting: see `importance_sampling`.
      normalizer: see `importance_sampling`.
    """
    log_weights = jax.vmap(weighting)(checks.checked_log_ratios(log_ratios, trajectories))
    ones = jnp.ones_like(log_weights)  # an ended episode keeps its weight
    means = jnp.mean(normalizer(log_weights, ones, ones[:, 0]), axis=0)
    powers = gamma ** jnp.arange(means.shape[0])
    return jnp.abs(jnp.sum(powers * means) / jnp.sum(powers) - 1.0)


def cut_fraction(trajectories: Trajectory) -> Array:
    """The share `[]` of the trajectories `[N, T]` that a time limit cut before step T."""
    cut = (jnp.asarray(trajectories.mask) == 0) & (jnp.asarray(trajectories.discount) != 0)
    return jnp.mean(jnp.any(cut, axis=1), dtype=jnp.float32)


ordinary = functools.partial(
    importance_sampling, weighting=trajectory_wise, normalizer=unnormalized
)
weighted = functools.partial(
    importance_sampling, weighting=trajectory_wise, normalizer=self_normalized
)
ordinary_per_decision = functools.partial(
    importance_sampling, weighting=per_decision, normalizer=unnormalized
)
weighted_per_decision = functools.partial(
    importance_sampling, weighting=per_decision, normalizer=self_normalized
)
# What the published benchmark calls IS: clipped ratios, running episodes only.
clipped_per_decision = functools.partial(
    importance_sampling, weighting=clipped(per_decision), normalizer=self_normalized_alive
)


def weighted_sum(
    trajectories: Trajectory,
    per_step: Array,
    log_ratios: Array,
    *,
    gamma: float,
    weighting: Weighting,
    normalizer: Normalizer,
    baseline: Array | float = 0.0,
) -> Estimate:
    """Mean over episodes of `baseline + sum_t gamma^t w_t per_step_t`: any estimate with weights.

    Args:
      trajectories: `[N, T]`; only their mask is used.
      per_step: `[N, T]` what each step adds: rewards, or temporal differences.
      log_ratios: `[N, T]`.
      gamma: discount factor.
      weighting: see `importance_sampling`.
      normalizer: see `importance_sampling`.
      baseline: `[N]` what each episode begins with, never weighted.
    """
    checks.require_gamma(gamma)
    ratios = checks.checked_log_ratios(log_ratios, trajectories)
    mask = jnp.asarray(trajectories.mask)
    log_weights = jax.vmap(weighting)(ratios)
    powers = gamma ** jnp.arange(mask.shape[1])

    def value(counts: Array) -> tuple[Array, Array]:
        weights = normalizer(log_weights, mask, counts)
        sums = baseline + jnp.sum(powers[None] * weights * mask * per_step, axis=1)
        return jnp.sum(counts * sums) / jnp.sum(counts), sums

    mean, influence, per_episode = with_influence(value, mask.shape[0])
    sums = jnp.sum(powers[None] * mask * per_step, axis=1)
    floor = least_standard_error(baseline, sums, log_weights, gamma=gamma)
    return Estimate(
        value=mean,
        stderr=jnp.maximum(standard_error(influence), floor),
        per_episode=per_episode,
        diagnostics=diagnostics(ratios, log_weights, mask, influence, gamma=gamma),
        errors={errors.EPISODES: errors.of_influence(influence)},
    )
