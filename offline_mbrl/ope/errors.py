"""What an estimate's error comes from, so that errors of several estimates can be drawn together.

`Estimate.errors` has a vector for each source: times as many independent standard normal numbers,
and added up over sources, it is the error. Two policies that meet the same episodes, members or
fits share those numbers, so what they have in common leaves their difference. What of `stderr` the
vectors do not explain is the estimate's own. This is the multiplier bootstrap: for a mean over N
episodes the vector holds their deviations over `sqrt(N (N - 1))`.
"""

import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import Array, Metrics

EPISODES = "episodes"  # [N] logged episodes, or their first observations, in the log's order
ROLLOUTS = "rollouts"  # [n] of a model, from a single start
MEMBERS = "members"  # [E] elites of an ensemble
FITS = "fits"  # [S] fits of one estimator, by seed


def of_influence(influence: Array) -> Array:
    """The vector `[N]` of a mean of influences `[N]`, whose size is its standard error."""
    size = influence.shape[0]
    return influence / jnp.sqrt(size * max(size - 1.0, 1.0))


def of_size(direction: Array, size: Array) -> Array:
    """The direction `[K]` with this Euclidean norm `[]`; zeros where the direction is 0."""
    largest = jnp.max(jnp.abs(direction))
    scaled = direction / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(scaled**2))
    return scaled * size / jnp.where(norm > 0, norm, 1.0)


def mean_over_fits(errors: Metrics, stderr: Array) -> Metrics:
    """The vectors of S fits of one policy as one, as large as their errors are on average.

    Args:
      errors: `[S, K]` by source.
      stderr: `[S]` of the fits.

    Returns:
      `[K]` by source: their mean direction, its squared norm the mean over fits of what the
      vectors explain.
    """
    if not errors:
        return {}
    means = {source: jnp.mean(vectors, axis=0) for source, vectors in errors.items()}
    explained = sum(jnp.sum(vectors**2, axis=1) for vectors in errors.values())
    within = jnp.mean(jnp.minimum(explained, stderr**2))
    names, leaves = zip(*means.items(), strict=True)
    ends = np.cumsum([leaf.shape[0] for leaf in leaves])[:-1]
    scaled = of_size(jnp.concatenate(leaves), jnp.sqrt(within))
    return dict(zip(names, jnp.split(scaled, ends), strict=True))
