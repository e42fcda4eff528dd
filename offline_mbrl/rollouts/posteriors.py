"""The Gaussian around a denoised point, from the denoiser's Jacobian, and what a tilt makes of it.

`E[x_0 | x]` is the denoiser, and `Cov[x_0 | x] = noise^2 / signal d E[x_0 | x] / d x` (Tweedie's
formula of second order), both exact. Taking the law between them as Gaussian, a tilt of the clean
points by `h` with a quadratic logarithm moves both in closed form.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.models.diffusion.denoisers import Denoiser
from offline_mbrl.models.diffusion.levels import Level
from offline_mbrl.types import Array

SMALLEST = 1e-8  # eigenvalue of a covariance
LARGEST = 16.0  # the same, of standardized data; a window's grow with its length
DELTA = 0.5  # how far a tilt may widen the law: without this bound learned denoisers blow up

# (clean point [n]) -> gradient of log h [n], and its negative Hessian [n, n]
Tilt = Callable[[Array], tuple[Array, Array]]


class Posterior(NamedTuple):
    """A Gaussian of clean points: `mean + root z`."""

    mean: Array  # [n]
    root: Array  # [n, n]   root root^T is the covariance


def covariance(denoiser: Denoiser, x: Array, level: Level) -> Array:
    """`Cov[x_0 | x] = noise^2 / signal d x_0 / d x`, made symmetric; `[n, n]`.

    Args:
      denoiser: of vectors.
      x: `[n]` at a level with a signal above 0.
      level: its level.
    """
    return _moments(denoiser, x, level)[1]


def posterior(denoiser: Denoiser, x: Array, level: Level, *, largest: float = LARGEST) -> Posterior:
    """The Gaussian of clean points given `x`.

    Eigenvalues of the covariance are held between `SMALLEST` and the lesser of `largest` and
    `noise^2 / signal^2`, which is that of a flat prior.

    Args:
      denoiser: of vectors.
      x: `[n]` at a level with a signal above 0.
      level: its level.
      largest: eigenvalue.
    """
    flat_prior = jnp.square(level.noise / level.signal)
    mean, matrix = _moments(denoiser, x, level)
    values, vectors = jnp.linalg.eigh(matrix)
    values = jnp.clip(values, SMALLEST, jnp.maximum(jnp.minimum(flat_prior, largest), SMALLEST))
    return Posterior(mean=mean, root=vectors * jnp.sqrt(values)[None])


def tilted(
    before: Posterior, gradient: Array, curvature: Array, *, delta: float = DELTA
) -> Posterior:
    """The law of `before` times h, where log h is quadratic.

    With `R` the root, `R^T Q R = U diag(b) U^T` and b at least `-delta`: the mean moves by
    `R U diag(1 / (1 + b)) U^T R^T g`, the root becomes `R U diag(1 / sqrt(1 + b))`.

    Args:
      before: the Gaussian.
      gradient: g `[n]` of log h at the mean.
      curvature: Q `[n, n]`, the negative Hessian of log h.
      delta: below 1; the variance grows at most by `1 / (1 - delta)`.
    """
    values, vectors = jnp.linalg.eigh(_symmetric(before.root.T @ curvature @ before.root))
    kept = 1.0 + jnp.maximum(values, -delta)
    turned = before.root @ vectors
    return Posterior(
        mean=before.mean + turned @ ((turned.T @ gradient) / kept),
        root=turned / jnp.sqrt(kept)[None],
    )


def _moments(denoiser: Denoiser, x: Array, level: Level) -> tuple[Array, Array]:
    """Mean and covariance of clean points given x, by one pass for each column and no more."""

    def denoised(point: Array) -> tuple[Array, Array]:
        clean = denoiser(point, level)
        return clean, clean

    jacobian, mean = jax.jacfwd(denoised, has_aux=True)(x)
    return mean, _symmetric(jnp.square(level.noise) / level.signal * jacobian)


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.T)
