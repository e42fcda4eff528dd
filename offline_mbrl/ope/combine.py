"""Estimates of several fits of one policy as one estimate, whose standard error knows of the fits."""

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, Estimate

FLAGS = ("low_support", "updates_too_few")  # raised by any fit, raised


def combine(estimates: Estimate, *, resampled: bool) -> Estimate:
    """The mean of S fits of one policy; vmap for many policies.

    Args:
      estimates: every field `[S, ...]`, S >= 2.
      resampled: whether each fit saw its own bootstrap resample of the episodes (`bootstrap=True` in the configs).
        Then the spread over fits is the data's as well, and more fits do not make it less; otherwise it is chance of
        the fit alone, which averages out, and `stderr` says nothing of the transitions that were logged by chance.

    Returns:
      Value and `per_episode` are means; `stderr` adds what each fit said of itself (of an estimator of values: the
      initial states) and the spread over fits, in squares. Diagnostics are means, but a flag that any fit raises is
      raised; `between_fits` is the standard deviation over fits.
    """
    size = estimates.value.shape[0]
    spread = jnp.std(estimates.value, ddof=1)
    within = jnp.mean(jnp.square(estimates.stderr))
    stderr = jnp.sqrt(within + jnp.square(spread) / (1 if resampled else size))

    def one(name: str, each: Array) -> Array:
        return jnp.max(each) if name in FLAGS else jnp.mean(each)

    diagnostics = {name: one(name, each) for name, each in estimates.diagnostics.items()}
    return Estimate(
        jnp.mean(estimates.value), stderr, jax.tree.map(lambda each: jnp.mean(each, axis=0), estimates.per_episode),
        {**diagnostics, "between_fits": spread})  # fmt: skip
