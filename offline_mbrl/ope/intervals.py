"""Several fits of one policy as one estimate, whose standard error covers the fits.

The spread over a few fits is itself only estimated: it is widened by Student's t over the normal
quantile, so that `value ± 1.96 * stderr` is a nominal 95 % interval.
"""

import math

import jax
import jax.numpy as jnp

from offline_mbrl.ope import errors
from offline_mbrl.types import Array, Estimate, UsageError

FLAGS = ("low_support", "updates_too_few")  # 1 for all fits where they are 1 for one
NORMAL_95 = 1.96  # standard errors on either side of a 95 % interval


def combine(estimates: Estimate, *, resampled: bool) -> Estimate:
    """The mean of S fits of one policy; vmap for many policies.

    Args:
      estimates: every field `[S, ...]`, S >= 2. Four are better: the spread of two is so uncertain
        that it counts 8 times.
      resampled: whether each fit saw its own bootstrap resample of the episodes
        (`bootstrap=True` in the configs). Then the spread over fits is the data's as well: the mean
        of S resamples errs like one more draw beside them, `sqrt(1 + 1 / S)` times it. Otherwise it
        is chance of the fit alone, which averages out, `sqrt(1 / S)` times it, and `stderr` leaves
        out which transitions were logged by chance.

    Returns:
      Value and `per_episode` are means. `stderr` is the root of the sum of two squares: what each
      fit reports itself (for an estimator of values, the initial states), and the widened spread
      over fits. Diagnostics are means, except that a flag that any fit raises is raised;
      `between_fits` is the standard deviation over fits.

    Raises:
      UsageError: there are fewer than 2 fits.
    """
    size = estimates.value.shape[0] if estimates.value.ndim else 0
    if size < 2:
        raise UsageError(
            f"combine takes at least 2 fits, stacked on the first axis, got {size}: a single fit "
            "is an Estimate already"
        )
    # Values of unbounded weights reach 1e20, and their squares overflow.
    largest = jnp.maximum(jnp.max(jnp.abs(estimates.value)), jnp.max(estimates.stderr))
    scale = jnp.where(jnp.isfinite(largest), jnp.maximum(largest, 1.0), 1.0)
    between_fits = scale * jnp.std(estimates.value / scale, ddof=1)
    within_fits = scale * jnp.sqrt(jnp.mean(jnp.square(estimates.stderr / scale)))
    factor = widening(size) * math.sqrt(1 / size + resampled)
    diagnostics = {
        name: jnp.max(values) if name in FLAGS else jnp.mean(values)
        for name, values in estimates.diagnostics.items()
    }
    return Estimate(
        value=jnp.mean(estimates.value),
        stderr=jnp.hypot(within_fits, factor * between_fits),
        per_episode=_mean_over_fits(estimates.per_episode),
        diagnostics={**diagnostics, "between_fits": between_fits},
        errors={
            **errors.mean_over_fits(estimates.errors, estimates.stderr),
            errors.FITS: errors.of_size(
                estimates.value - jnp.mean(estimates.value), factor * between_fits
            ),
        },
    )


def widening(size: int) -> float:
    """Student's t over the normal quantile, both of 95 %.

    It is the factor on a standard deviation that is estimated from `size` >= 2 values.
    """
    from scipy import stats  # a second of CPU time, which training does without

    return float(stats.t.ppf(0.975, size - 1) / stats.norm.ppf(0.975))


def _mean_over_fits(per_episode: Array | None) -> Array | None:
    return jax.tree.map(lambda values: jnp.mean(values, axis=0), per_episode)
