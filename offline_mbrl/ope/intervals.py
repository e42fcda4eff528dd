"""Several fits of one policy as one estimate, whose standard error knows of the fits.

The spread over a few fits is itself only estimated: it is widened by Student's t over the normal quantile, so that
1.96 standard errors are meant for an interval of 95 %.
"""

import math

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, Estimate, UsageError

FLAGS = ("low_support", "updates_too_few")  # raised by any fit, raised


def combine(estimates: Estimate, *, resampled: bool) -> Estimate:
    """The mean of S fits of one policy; vmap for many policies.

    Args:
      estimates: every field `[S, ...]`, S >= 2; better four: the spread of two says so little that it counts 8 times.
      resampled: whether each fit saw its own bootstrap resample of the episodes (`bootstrap=True` in the configs).
        Then the spread over fits is the data's as well: the mean of S resamples errs like one more draw beside them,
        `sqrt(1 + 1 / S)` times it. Otherwise it is chance of the fit alone, which averages out, `sqrt(1 / S)` times it,
        and `stderr` says nothing of the transitions that were logged by chance.

    Returns:
      Value and `per_episode` are means; `stderr` adds what each fit said of itself (of an estimator of values: the
      initial states) and the spread over fits, widened, in squares. Diagnostics are means, but a flag that any fit
      raises is raised; `between_fits` is the standard deviation over fits.

    Raises:
      UsageError: there are fewer than 2 fits.
    """
    size = estimates.value.shape[0] if estimates.value.ndim else 0
    if size < 2:
        raise UsageError(f"combine takes at least 2 fits, stacked on the first axis, got {size}: one is an Estimate "
                         "already")  # fmt: skip
    spread = jnp.std(estimates.value, ddof=1)
    within = jnp.mean(jnp.square(estimates.stderr))
    of_spread = widening(size) * math.sqrt(1 / size + resampled)
    stderr = jnp.sqrt(within + jnp.square(of_spread * spread))

    def one(name: str, each: Array) -> Array:
        return jnp.max(each) if name in FLAGS else jnp.mean(each)

    diagnostics = {name: one(name, each) for name, each in estimates.diagnostics.items()}
    return Estimate(
        jnp.mean(estimates.value), stderr, jax.tree.map(lambda each: jnp.mean(each, axis=0), estimates.per_episode),
        {**diagnostics, "between_fits": spread})  # fmt: skip


def widening(size: int) -> float:
    """Student's t over the normal quantile, both of 95 %, where a deviation is estimated from `size` >= 2 figures."""
    from scipy import stats  # a second of CPU time, which training does without

    return float(stats.t.ppf(0.975, size - 1) / stats.norm.ppf(0.975))
