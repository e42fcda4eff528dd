"""Importance sampling: returns of logged episodes, weighted by how likely another policy had been to act like that.

An estimator is two functions: a *weighting* turns one episode's log ratios into the log weights of its steps, and a
*normalizer* turns the log weights of all episodes into weights. Precup, Sutton and Singh, ICML 2000 (per-decision and
weighted forms); the clipped, self-normalized per-decision form is that of `policy_eval` in google-research.

Standard errors are those of the infinitesimal jackknife: an estimate is a function of how often each episode counts,
and its gradient there gives the influence of each. For a mean that is the usual standard error, for self-normalized
forms the delta method's. They know nothing of weights that were never seen: look at `low_support`.

Departures from the reference: an ended episode keeps its weight (`self_normalized`) or leaves the sums
(`self_normalized_alive`), but never counts with the weight 1; the value is not multiplied by `1 - gamma`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from offline_mbrl import policies
from offline_mbrl.ope import support
from offline_mbrl.ope.weights import checks
from offline_mbrl.types import Array, Estimate, Metrics, Policy, PyTree, Trajectory, UsageError

LARGEST_LOG_WEIGHT = 40.0  # of an unnormalized weight: beyond it an estimate says nothing, but it stays finite
FEWEST_EPISODES = 10.0  # effective ones: below it support is low, for 95 % intervals cover less than 90 % of the time
WEIGHT_SLACK = 0.05  # how far the mean weight may be from 1 (it is 1 in expectation), beside 3 standard errors

Weighting = Callable[[Array], Array]  # one episode's log ratios [T], 0 past its end -> log weights [T]
Normalizer = Callable[[Array, Array, Array], Array]  # (log weights [N, T], mask [N, T], counts [N]) -> weights [N, T]


# --- log ratios ---


def log_probs(policy: Policy, params: PyTree, trajectories: Trajectory) -> Array:
    """`log pi(a|s)` of the logged actions `[N, T]`, 0 past the ends; also of a cloned behavior policy.

    Raises:
      UsageError: the policy has no log_prob, or one that fails or is not one number; the trajectories have no [N, T].
    """
    log_prob = policy.log_prob
    if log_prob is None:
        raise UsageError("importance sampling needs the density of the policy's actions, but policy.log_prob is None")
    checks.episodes(trajectories)
    first = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[2:], leaf.dtype), tree)  # noqa: E731
    policies.check_log_prob(policy, params, first(trajectories.observation), first(trajectories.action))

    def one(episode: tuple[PyTree, Array, Array]) -> Array:
        observation, action, mask = episode
        before = jax.tree.map(lambda leaf: leaf[:-1], observation)
        return jnp.where(mask > 0, jax.vmap(log_prob, (None, 0, 0))(params, before, action), 0.0)

    return jax.lax.map(one, (trajectories.observation, trajectories.action, trajectories.mask))


def log_ratios(policy: Policy, params: PyTree, trajectories: Trajectory, behavior_log_prob: Any) -> Array:
    """`log pi(a|s) - log b(a|s)` `[N, T]` of the logged actions, 0 past the ends.

    Args:
      policy: the one to evaluate, with a `log_prob`.
      params: its parameters.
      trajectories: `[N, T]` whole episodes (`data.episodes.trajectories`).
      behavior_log_prob: `[N, T]` what was logged, `trajectories.extras["behavior_log_prob"]`, or `log_probs` of a
        cloned policy.

    Raises:
      UsageError: the policy has no log_prob, the shapes differ, or (outside jit) a ratio is undefined.
    """
    behavior = jnp.asarray(behavior_log_prob)
    checks.episodes(trajectories)
    checks.same_shape("behavior_log_prob", behavior, trajectories)
    ratios = jnp.where(trajectories.mask > 0, log_probs(policy, params, trajectories) - behavior, 0.0)
    return checks.log_ratios(ratios, trajectories)


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
    """Weights over their mean at the same step; an ended episode carries its last weight on. Consistent."""
    return _over_mean(log_weights, jnp.broadcast_to(counts[:, None], mask.shape))


def self_normalized_alive(log_weights: Array, mask: Array, counts: Array) -> Array:
    """Weights over their mean among the episodes that go on at the same step, as in the reference.

    Biased where the policies' episodes differ in length, for it keeps the data's share of running episodes.
    """
    return mask * _over_mean(log_weights, mask * counts[:, None])


def _over_mean(log_weights: Array, counts: Array) -> Array:
    weights = _relative(log_weights, counts)
    total = jnp.sum(weights * counts, axis=0)
    scale = jnp.where(total > 0, jnp.sum(counts, axis=0) / jnp.where(total > 0, total, 1.0), 0.0)
    return weights * scale[None]


def _relative(log_weights: Array, counts: Array) -> Array:
    """Weights `[N, T]` as shares of the largest that counts; all 0 where every weight is 0."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.where(counts > 0, log_weights, -jnp.inf), axis=0, keepdims=True))
    return jnp.exp(jnp.minimum(log_weights - jnp.where(jnp.isfinite(largest), largest, 0.0), 0.0))


# --- estimates ---


def importance_sampling(trajectories: Trajectory, log_ratios: Array, *, gamma: float,
                        weighting: Weighting = per_decision, normalizer: Normalizer = self_normalized,
                        limits: support.Limits = support.Limits()) -> Estimate:  # fmt: skip
    """The expected discounted return over the trajectories' T steps; pure, vmap `log_ratios` for many policies.

    An episode cut by a time limit before step T adds nothing from there on, like one that truly ended: weights cannot
    tell what was never logged. `cut_fraction` is the share of such episodes, and many of them are `low_support`.

    Args:
      trajectories: `[N, T]` whole episodes of the behavior policy, N at least 2.
      log_ratios: `[N, T]` of `log_ratios`.
      gamma: discount factor; 1 for undiscounted returns (which rank policies differently).
      weighting: one episode's log ratios to the log weights of its steps.
      normalizer: all episodes' log weights to weights.
      limits: of `cut_fraction`.

    Returns:
      The estimate; `per_episode` `[N]` are the weighted returns, whose mean is the value.

    Raises:
      UsageError: the shapes differ, there are fewer than 2 episodes, or (outside jit) a log ratio is NaN or infinite.
    """
    found = weighted_sum(trajectories, trajectories.reward, log_ratios, gamma=gamma, weighting=weighting,
                         normalizer=normalizer)  # fmt: skip
    return support.with_signs(found, {"cut_fraction": cut_fraction(trajectories)}, limits)


def cut_fraction(trajectories: Trajectory) -> Array:
    """The share `[]` of the trajectories `[N, T]` that a time limit cut before step T."""
    cut = (jnp.asarray(trajectories.mask) == 0) & (jnp.asarray(trajectories.discount) != 0)
    return jnp.mean(jnp.any(cut, axis=1), dtype=jnp.float32)


ordinary = functools.partial(importance_sampling, weighting=trajectory_wise, normalizer=unnormalized)
weighted = functools.partial(importance_sampling, weighting=trajectory_wise, normalizer=self_normalized)
ordinary_per_decision = functools.partial(importance_sampling, weighting=per_decision, normalizer=unnormalized)
weighted_per_decision = functools.partial(importance_sampling, weighting=per_decision, normalizer=self_normalized)
# What the published benchmark calls IS: clipped ratios, running episodes only.
clipped_per_decision = functools.partial(
    importance_sampling, weighting=clipped(per_decision), normalizer=self_normalized_alive
)


def weighted_sum(trajectories: Trajectory, per_step: Array, log_ratios: Array, *, gamma: float, weighting: Weighting,
                 normalizer: Normalizer, baseline: Array | float = 0.0) -> Estimate:  # fmt: skip
    """Mean over episodes of `baseline + sum_t gamma^t w_t per_step_t`: what all estimators with weights are.

    Args:
      trajectories: `[N, T]`; of them only the mask.
      per_step: `[N, T]` what each step adds: rewards, or temporal differences.
      log_ratios: `[N, T]`.
      gamma: discount factor.
      weighting: see `importance_sampling`.
      normalizer: see `importance_sampling`.
      baseline: `[N]` what each episode begins with, never weighted.
    """
    checks.gamma(gamma)
    ratios, mask = checks.log_ratios(log_ratios, trajectories), jnp.asarray(trajectories.mask)
    log_weights = jax.vmap(weighting)(ratios)
    powers = gamma ** jnp.arange(mask.shape[1])

    def value(counts: Array) -> tuple[Array, Array]:
        weights = normalizer(log_weights, mask, counts)
        each = baseline + jnp.sum(powers[None] * weights * mask * per_step, axis=1)
        return jnp.sum(counts * each) / jnp.sum(counts), each

    mean, influence, each = with_influence(value, mask.shape[0])
    figures = diagnostics(ratios, log_weights, mask, influence, gamma=gamma)
    return Estimate(mean, standard_error(influence), each, figures)


def with_influence(value: Callable[[Array], tuple[Array, Any]], size: int) -> tuple[Array, Array, Any]:
    """`value(counts [N]) -> (estimate [], more)` at one count each: the estimate, its influences `[N]`, and more.

    An episode's influence is N times the derivative by its count (Jaeckel's infinitesimal jackknife; Efron, 1982).
    """
    (estimate, more), gradient = jax.value_and_grad(value, has_aux=True)(jnp.ones(size))
    return estimate, size * gradient, more


def standard_error(influence: Array) -> Array:
    """`sqrt(sum_i influence_i^2 / (N (N - 1)))` `[]` of influences `[N]`; huge ones do not overflow."""
    size = influence.shape[0]
    scale = jnp.maximum(jnp.max(jnp.abs(influence)), jnp.finfo(influence.dtype).tiny)
    return scale * jnp.sqrt(jnp.mean(jnp.square(influence / scale)) / (size - 1))


# --- how far to trust them ---


def effective_sample_size(log_weights: Array) -> Array:
    """`(sum w)^2 / sum w^2` over the first axis of `[N, ...]`, between 0 (no weight at all) and N."""
    weights = _relative(log_weights, jnp.ones_like(log_weights))
    squares = jnp.sum(jnp.square(weights), axis=0)
    return jnp.where(squares > 0, jnp.square(jnp.sum(weights, axis=0)) / jnp.where(squares > 0, squares, 1.0), 0.0)


def diagnostics(log_ratios: Array, log_weights: Array, mask: Array, influence: Array, *, gamma: float) -> Metrics:
    """Scalars about an estimate, its `log_weights` `[N, T]` made of `log_ratios` `[N, T]`, and `influence` `[N]`.

    * `effective_sample_size`: of the weights at the last step; `_min`: the least of any step. Ended episodes carry on.
    * `largest_weight`: as a share of all at the last step.
    * `mean_weight`: over episodes, and over steps by `gamma^t`. Its expectation is 1 where the data support the policy;
      it is below where the policy does what the data never show.
    * `mean_log_ratio`: of the steps that happened, each within 40 of 0.
    * `stderr_sample_size`: `(sum influence^2)^2 / sum influence^4`, how many episodes the standard error rests on.
    * `low_support`: 1 where the last figure, or the effective sample without clipping and truncation, is below 10, or
      the mean weight is significantly not 1. Where it is 0, 95 % intervals cover the truth at least 90 % of the time
      on the linear-Gaussian system.
    """
    sizes, plain = effective_sample_size(log_weights), jax.vmap(per_decision)(log_ratios)
    last = _relative(log_weights[:, -1:], jnp.ones_like(mask[:, -1:]))
    within = jnp.clip(log_ratios, -LARGEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT)
    rests_on = jnp.where(
        jnp.any(influence != 0), effective_sample_size(2.0 * jnp.log(jnp.abs(influence))), influence.shape[0]
    )
    few = jnp.minimum(rests_on, effective_sample_size(plain[:, -1])) < FEWEST_EPISODES
    strange = _not_one(_mean_over_steps(plain, gamma)) | _not_one(_mean_over_steps(log_weights, gamma))
    return {
        "effective_sample_size": sizes[-1], "effective_sample_size_min": jnp.min(sizes),
        "largest_weight": jnp.max(last) / jnp.maximum(jnp.sum(last), 1.0),
        "mean_weight": jnp.mean(_mean_over_steps(log_weights, gamma)),
        "mean_log_ratio": jnp.sum(within) / jnp.maximum(jnp.sum(mask), 1.0),
        "stderr_sample_size": rests_on, "low_support": jnp.asarray(few | strange, jnp.float32),
    }  # fmt: skip


def _mean_over_steps(log_weights: Array, gamma: float) -> Array:
    """Each episode's mean weight `[N]` over steps, by `gamma^t`; of expectation 1."""
    powers = gamma ** jnp.arange(log_weights.shape[1])
    return jnp.sum(jnp.exp(jnp.minimum(log_weights, LARGEST_LOG_WEIGHT)) * powers[None], axis=1) / jnp.sum(powers)


def _not_one(weights: Array) -> Array:
    mean = jnp.mean(weights)
    return jnp.abs(mean - 1.0) > WEIGHT_SLACK + 3.0 * standard_error(weights - mean)
