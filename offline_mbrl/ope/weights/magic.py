"""MAGIC: a blend of estimates that trust importance weights for the first j steps and values after.

Thomas and Brunskill, arXiv:1604.00923: the blend with the least estimated mean squared error,
between the direct method (j = 0) and the weighted doubly robust estimate (j = T). Departures:

* covariances are those of the infinitesimal jackknife instead of fixed self-normalized weights, to
  which the estimates with more weighted steps add what effective episodes leave of uncertainty: at
  an effective sample of one episode the jackknife alone would call the last estimate certain, and
  give it everything;
* the bias of an estimate is its distance from the last one's 90 % interval by that same normal
  theory, which effective episodes bound from below, where the paper bootstraps it;
* the paper gives no standard error. Ours is the root of the mean squared error that was minimized,
  estimated bias and all, but never less than the weighted doubly robust estimate's own: values that
  were fitted to the same episodes err with them, which no covariance over episodes sees (on a
  linear system with 200 episodes the root alone covered the truth in half of 50 repeats), and the
  blend is chosen to err no more than that estimate.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.ope import errors
from offline_mbrl.ope.weights import checks, diagnostics, importance
from offline_mbrl.ope.weights.doubly_robust import temporal_differences
from offline_mbrl.types import Array, Estimate, Trajectory, UsageError

INTERVAL = 1.645  # standard errors of the interval that biases are measured from: 90 %
NUM_LENGTHS = 16  # estimates that are blended by default


class Partial(NamedTuple):
    """J estimates, by how many steps they weight."""

    value: Array  # [J]
    influence: Array  # [J, N]
    per_episode: Array  # [J, N]
    last_stderr: Array  # [] of the last of them, the weighted doubly robust estimate
    covariance: Array  # [J, J]


def magic(
    trajectories: Trajectory,
    log_ratios: Array,
    q: Any,
    v: Any,
    *,
    gamma: float,
    lengths: Sequence[int] | None = None,
    weighting: importance.Weighting = importance.per_decision,
    normalizer: importance.Normalizer = importance.self_normalized,
) -> Estimate:
    """The blend; pure, vmap `log_ratios`, `q` and `v` for many policies.

    Its last step is a callback to the host.

    Args:
      trajectories: `[N, T]` whole episodes of the behavior policy, N at least 2.
      log_ratios: `[N, T]` of `importance.log_ratios`.
      q: `[N, T]` as for `doubly_robust`.
      v: `[N, T + 1]` as for `doubly_robust`.
      gamma: discount factor.
      lengths: numbers of weighted steps, of `0 .. T`; T is always among them. None: 0, T, and a
        geometric series.
      weighting: one episode's log ratios to the log weights of its steps.
      normalizer: all episodes' log weights to weights.

    Returns:
      The estimate. Further diagnostics: `direct_share`, the weight of the direct method where it is
      among them, and `bias`, the estimated one of the blend.

    Raises:
      UsageError: a length is not in `0 .. T`, and as `doubly_robust`.
    """
    lengths = _lengths(lengths, trajectories.reward.shape[1])
    parts = partial_estimates(
        trajectories,
        log_ratios,
        q,
        v,
        gamma=gamma,
        lengths=lengths,
        weighting=weighting,
        normalizer=normalizer,
    )
    distance = parts.value - parts.value[-1]
    tolerance = INTERVAL * parts.last_stderr
    bias = jnp.sign(distance) * jnp.maximum(jnp.abs(distance) - tolerance, 0.0)
    shares = jax.pure_callback(
        blend,
        jax.ShapeDtypeStruct(distance.shape, distance.dtype),
        parts.covariance + bias[:, None] * bias[None],
        vmap_method="sequential",
    )
    ratios = checks.checked_log_ratios(log_ratios, trajectories)
    weight_diagnostics = diagnostics.diagnostics(
        ratios,
        jax.vmap(weighting)(ratios),
        jnp.asarray(trajectories.mask),
        shares @ parts.influence,
        gamma=gamma,
    )
    direct_share = jnp.sum(shares * np.equal(lengths, 0))
    mean_squared_error = shares @ parts.covariance @ shares + jnp.square(shares @ bias)
    return Estimate(
        value=shares @ parts.value,
        stderr=jnp.maximum(jnp.sqrt(mean_squared_error), parts.last_stderr),
        per_episode=shares @ parts.per_episode,
        diagnostics={
            **weight_diagnostics,
            "direct_share": direct_share,
            "bias": shares @ bias,
        },
        errors={errors.EPISODES: errors.of_influence(shares @ parts.influence)},
    )


def partial_estimates(
    trajectories: Trajectory,
    log_ratios: Array,
    q: Any,
    v: Any,
    *,
    gamma: float,
    lengths: Sequence[int],
    weighting: importance.Weighting = importance.per_decision,
    normalizer: importance.Normalizer = importance.self_normalized,
) -> Partial:
    """`mean v(s_0) + mean sum_{t < j} gamma^t w_t (r_t + gamma discount_t v(s_{t+1}) - q_t)`.

    One for each j of `lengths`: the paper's g^(j), whose terms are sorted by weight here as in
    `doubly_robust`. Pure; the arguments are those of `magic`.
    """
    checks.require_gamma(gamma)
    ratios = checks.checked_log_ratios(log_ratios, trajectories)
    mask = jnp.asarray(trajectories.mask)
    differences = temporal_differences(trajectories, q, v, gamma=gamma)
    powers = gamma ** jnp.arange(mask.shape[1])
    log_weights = jax.vmap(weighting)(ratios)

    def value(counts: Array) -> tuple[Array, Array]:
        terms = powers[None] * normalizer(log_weights, mask, counts) * differences
        first = jnp.asarray(v)[:, :1]
        sums = jnp.concatenate([first, first + jnp.cumsum(terms, axis=1)], axis=1)
        per_episode = sums[:, np.asarray(lengths)].T
        return per_episode @ counts / jnp.sum(counts), per_episode

    values, pullback, per_episode = jax.vjp(value, jnp.ones(mask.shape[0]), has_aux=True)
    # One length at a time: each gradient is [N, T] wide.
    gradients = jax.lax.map(lambda unit: pullback(unit)[0], jnp.eye(len(lengths)))
    influence = mask.shape[0] * gradients
    stderrs = [
        diagnostics.least_standard_error(
            jnp.asarray(v)[:, 0],
            jnp.sum((powers[None] * mask * differences)[:, :length], axis=1),
            log_weights[:, :length],
            gamma=gamma,
        )
        for length in lengths
        if length > 0  # the direct method has no weights
    ]
    without_weights = [jnp.zeros(())] * (len(lengths) - len(stderrs))
    return Partial(
        value=values,
        influence=influence,
        per_episode=per_episode,
        last_stderr=jnp.maximum(diagnostics.standard_error(influence[-1]), stderrs[-1]),
        covariance=covariance(influence, jnp.stack(without_weights + stderrs)),
    )


def covariance(influence: Array, least_stderr: Array) -> Array:
    """Covariances `[J, J]` of estimates that weight more and more steps.

    What the jackknife's variance lacks of the least one, `lost_j`, is of the steps that are
    weighted, and later estimates weight those as well: covariances are short of `lost_min(j, k)`,
    which is semidefinite where `lost` does not decrease.

    Args:
      influence: `[J, N]`, by increasing numbers of weighted steps.
      least_stderr: `[J]`; 0 where there are no weights.
    """
    size = influence.shape[1]
    by_jackknife = influence @ influence.T / size / (size - 1)
    lost = jnp.maximum(jnp.square(least_stderr) - jnp.diagonal(by_jackknife), 0.0)
    lost = jax.lax.cummax(lost)
    return by_jackknife + jnp.minimum(lost[:, None], lost[None])


def blend(squared_error: Any) -> np.ndarray:
    """Shares, none negative and of sum 1, that minimize `x @ squared_error @ x`.

    Non-negative least squares of the root against zero, with one more row that asks for a sum of 1:
    the solution's direction does not depend on how much that row weighs. An estimate without a
    finite error gets no share.

    Args:
      squared_error: `[J, J]`, semidefinite.

    Returns:
      `[J]` float32.
    """
    from scipy import optimize  # takes a second to load, which other estimators do without

    squared_error = np.asarray(squared_error, np.float64)
    errors = np.diag(squared_error)
    shares = np.zeros(len(squared_error), np.float32)
    is_finite = np.isfinite(errors)
    finite = np.isfinite(squared_error) | ~is_finite[:, None] | ~is_finite[None]
    usable = is_finite & finite.all(axis=1)
    if not usable.any():
        return np.full_like(shares, np.nan)
    scale = errors[usable].min()
    if scale <= 0:  # an estimate without error
        usable &= errors <= 0
        shares[usable] = 1.0 / usable.sum()
        return shares
    eigenvalues, vectors = np.linalg.eigh(squared_error[np.ix_(usable, usable)] / scale)
    root = np.sqrt(np.maximum(eigenvalues, 0.0))[:, None] * vectors.T
    rows = np.vstack([root, np.ones(len(root))])
    solution, _ = optimize.nnls(rows, np.append(np.zeros(len(root)), 1.0))
    shares[usable] = solution / solution.sum()
    return shares


def _lengths(lengths: Sequence[int] | None, longest: int) -> list[int]:
    if lengths is None:
        series = np.geomspace(1, longest, NUM_LENGTHS - 1).round().astype(int)
        return sorted({0, *series.tolist()})
    if not all(0 <= length <= longest for length in lengths):
        raise UsageError(
            f"magic: lengths must be in 0 .. {longest}, the trajectories' steps, got "
            f"{list(lengths)}"
        )
    return sorted({*lengths, longest})
