"""Guides: what the samples of a diffusion model are drawn towards.

A guide tilts the law of the data by a function h of clean points: the exponential of a value, or
the ratio of two policies' probabilities. Only h at noisy points would be exact; the published rules
approximate it in different places of a step, so a `Guide` is a function at each of them.

For off-policy evaluation `second_order` with `log_ratio_tilt` is the rule to use, with both weights
1: the law of a window under the target policy is that under the behavior policy times the product
of `pi / beta`. On a linear system with a perfect denoiser it is exact, where the fixed-gain rules
below reach a plausible return by errors that cancel: the noise of the actions collapses to a third
or less, and the dynamics are violated. Rules that leave gradients of the states out are not the
gradient of any density.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from offline_mbrl.models.diffusion.denoisers import Denoiser
from offline_mbrl.models.diffusion.levels import Level, Step
from offline_mbrl.rollouts import posteriors
from offline_mbrl.rollouts.posteriors import Tilt
from offline_mbrl.types import Array

LogDensity = Callable[[Array], Array]  # (point [n]) -> log h, []
Residuals = Callable[[Array], Array]  # (point [n]) -> [m], (a - mean(s)) / std(s) of each action
# (gradients of log pi and of log beta by raw actions [n], 0 elsewhere) -> direction [n]
Direction = Callable[[Array, Array], Array]


class Clean(Protocol):
    """Estimates the clean point."""

    def __call__(self, denoiser: Denoiser, x: Array, level: Level) -> Array:
        """Of a point `[...]` at its level, `[...]`."""
        ...


def _same_noisy(denoiser: Denoiser, x: Array, step: Step) -> Array:
    del denoiser, step
    return x


def _same_mean(mean: Array, step: Step) -> Array:
    del step
    return mean


def denoised(denoiser: Denoiser, x: Array, level: Level) -> Array:
    """The denoiser's own clean point."""
    return denoiser(x, level)


class Guide(NamedTuple):
    """Functions at the places of a step; `UNGUIDED` has none."""

    noisy: Callable[[Denoiser, Array, Step], Array] = _same_noisy  # moves x before the step
    clean: Clean = denoised  # the clean point that the step aims at
    tilt: Tilt | None = None  # in the place of `clean`: g and Q of `posteriors.tilted`
    mean: Callable[[Array, Step], Array] = _same_mean  # moves the mean of the step


UNGUIDED = Guide()


def estimate(denoiser: Denoiser, guide: Guide, x: Array, level: Level) -> Array:
    """The clean point that a guided step aims at, of the shape of `x`."""
    if guide.tilt is None:
        return guide.clean(denoiser, x, level)
    before = posteriors.posterior(denoiser, x, level)
    return posteriors.tilted(before, *guide.tilt(before.mean)).mean


# --- tilts, the exact rule ---


def tilt(log_density: LogDensity) -> Tilt:
    """The tilt by any h: its gradient and Hessian by differentiation.

    Args:
      log_density: log h of a clean point.
    """

    def quadratic(clean: Array) -> tuple[Array, Array]:
        return jax.grad(log_density)(clean), -jax.hessian(log_density)(clean)

    return quadratic


def log_ratio_tilt(
    target: Residuals, behavior: Residuals, *, alpha: float = 1.0, lambda_: float = 1.0
) -> Tilt:
    """The tilt by `prod pi^alpha beta^-lambda` of Gaussian policies, after Gauss and Newton.

    `g = -alpha J_pi^T e_pi + lambda J_beta^T e_beta`, `Q = alpha J_pi^T J_pi - lambda J_beta^T
    J_beta`, where e are the residuals and J their Jacobians by the whole window, states included.
    Exact where means are linear and deviations fixed; a deviation's own gradient is left out.

    Args:
      target: residuals of the target policy.
      behavior: those of the behavior policy.
      alpha: exponent of the target policy. Only 1 and 1 give the law of the target policy; with a
        lesser `lambda_` that of rollouts depends on the length of windows.
      lambda_: exponent of the behavior policy.
    """

    def quadratic(clean: Array) -> tuple[Array, Array]:
        target_gradient, target_curvature = _gauss_newton(target, clean)
        behavior_gradient, behavior_curvature = _gauss_newton(behavior, clean)
        return (
            alpha * target_gradient - lambda_ * behavior_gradient,
            alpha * target_curvature - lambda_ * behavior_curvature,
        )

    return quadratic


def _gauss_newton(residuals: Residuals, clean: Array) -> tuple[Array, Array]:
    """Gradient and negative Hessian of `-|e|^2 / 2`."""
    jacobian = jax.jacfwd(residuals)(clean)
    return -(jacobian.T @ residuals(clean)), jacobian.T @ jacobian


# --- rules that differentiate log h alone ---


def at_mean(log_density: LogDensity, *, scale: Array | float = 1.0) -> Guide:
    """`mean + scale variance grad log h(mean)`, with the posterior's variance.

    Args:
      log_density: log h.
      scale: 1 is the rule; `[n]` 0 at entries that are not guided.

    Source: arXiv:2205.09991, algorithm 1.
    """

    def mean(mean: Array, step: Step) -> Array:
        return mean + scale * step.variance * jax.grad(log_density)(mean)

    return Guide(mean=mean)


def value_gradient(
    value: Callable[[Array, Level], Array],
    *,
    scale: float = 0.1,
    repeats: int = 2,
    stop_below: int = 2,
) -> Guide:
    """`x + scale variance grad V(x, level)`, a few times before the step: Diffuser's released rule.

    Args:
      value: of noisy points and their level, `[]`; trained on noisy points.
      scale: Diffuser's is 0.1 for hopper and walker2d, 0.001 for halfcheetah; the best one spans
        four orders of magnitude.
      repeats: times that `x` is moved.
      stop_below: steps k below this one, with k = 0 the last, are not guided.

    Source: the released code of arXiv:2205.09991, defaults for hopper and walker2d.
    """

    def noisy(denoiser: Denoiser, x: Array, step: Step) -> Array:
        del denoiser
        gain = jnp.where(step.left < stop_below, 0.0, scale * step.variance)
        for _ in range(repeats):
            x = x + gain * jax.grad(value)(x, step.level)
        return x

    return Guide(noisy=noisy)


def through_denoiser(log_density: LogDensity) -> Guide:
    """`x_0 + noise^2 / signal (d x_0 / d x)^T grad log h(x_0)`.

    Args:
      log_density: log h.

    Source: arXiv:2209.14687, equation 16, for any h.
    """

    def clean(denoiser: Denoiser, x: Array, level: Level) -> Array:
        point, pullback = jax.vjp(lambda x: denoiser(x, level), x)
        (pulled,) = pullback(jax.grad(log_density)(point))
        return point + jnp.square(level.noise) / level.signal * pulled

    return Guide(clean=clean)


# --- published rules that pull actions with a fixed gain ---


def policy_guided(
    log_density: LogDensity,
    actions: Array,
    *,
    coefficient: float,
    cosine_coefficient: float = 0.3,
    at_denoised: bool = True,
    normalized: bool = True,
) -> Guide:
    """Policy-guided diffusion: actions of `x` move by `coefficient` times a schedule before a step.

    `x + c (1 - i / N + 0.3 sin(pi (i + 1) / N)) g`, 0 in the last of N steps, where g is the
    gradient of the target policy's log density by the actions. Departure from the released code:
    the gradient's norm is never 0.

    Args:
      log_density: of the target policy's actions at a point.
      actions: `[n]` 1 at entries of actions, else 0.
      coefficient: c.
      cosine_coefficient: of the sine; the released value.
      at_denoised: whether g is read at the clean point, through which nothing is differentiated.
      normalized: whether g has a norm of 1.

    Source: the released code of arXiv:2404.06356.
    """

    def noisy(denoiser: Denoiser, x: Array, step: Step) -> Array:
        point = denoiser(x, step.level) if at_denoised else x
        gradient = actions * jax.grad(log_density)(point)
        if normalized:
            gradient = gradient / jnp.maximum(jnp.linalg.norm(gradient), 1e-8)
        num_steps = step.index + step.left + 1
        bump = cosine_coefficient * jnp.sin(jnp.pi * (step.index + 1) / num_steps)
        gain = jnp.where(step.left > 0, 1.0 - step.index / num_steps + bump, 0.0)
        return x + coefficient * gain * gradient

    return Guide(noisy=noisy)


def stitched(
    target: LogDensity,
    behavior: LogDensity,
    actions: Array,
    scale: Array,
    direction: Direction,
    *,
    alpha: float,
    repeats: int = 1,
) -> Guide:
    """STITCH-OPE's rule: raw actions of the step's mean move by `alpha` times a direction.

    The gain does not shrink with the noise, so the actions' own noise collapses.

    Args:
      target: log density of the target policy's actions at a point; the released code gives it a
        deviation of 1.
      behavior: that of the behavior policy.
      actions: `[n]` 1 at entries of actions, else 0.
      scale: `[n]` deviations by which entries are standardized.
      direction: of the two gradients, `clamped` or `row_normalized`.
      alpha: gain.
      repeats: times that the mean is moved.

    Source: the released code of STITCH-OPE (NeurIPS 2025).
    """

    def mean(mean: Array, step: Step) -> Array:
        del step
        to_raw = actions / scale
        for _ in range(repeats):
            target_gradient = to_raw * jax.grad(target)(mean)
            behavior_gradient = to_raw * jax.grad(behavior)(mean)
            mean = mean + alpha * to_raw * direction(target_gradient, behavior_gradient)
        return mean

    return Guide(mean=mean)


def clamped(ratio: float, limit: float = 1.0) -> Direction:
    """`clip(g_pi) - clip(ratio g_beta)`, within `limit`: STITCH-OPE's for D4RL."""

    def direction(target: Array, behavior: Array) -> Array:
        return jnp.clip(target, -limit, limit) - jnp.clip(ratio * behavior, -limit, limit)

    return direction


def row_normalized(ratio: float, rows: Array, num_rows: int) -> Direction:
    """`g_pi - ratio g_beta`, each with a norm of 1 in each row: STITCH-OPE's for Pendulum.

    Args:
      ratio: weight of the behavior policy.
      rows: `[n]` int, the row of each entry.
      num_rows: w.
    """

    def unit(gradient: Array) -> Array:
        square = jax.ops.segment_sum(jnp.square(gradient), rows, num_segments=num_rows)
        return gradient / jnp.sqrt(jnp.maximum(square, 1e-16))[rows]

    return lambda target, behavior: unit(target) - ratio * unit(behavior)
