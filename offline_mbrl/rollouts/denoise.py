"""Samplers of diffusion and flow models: from noise to a point of the data.

A `Solver` is one step and a schedule; `sample` runs it as one `lax.scan` over the levels, for one
point; vmap for many. All work on any family of levels, for `x = signal x_0 + noise epsilon`.

How many steps they need depends on the data. A trajectory's covariance has large eigenvalues along
the motion and small ones across it (the noise of the dynamics), and plain ancestral steps give the
small ones too little variance: 20 steps halve the noise of the dynamics, which is fine for control
and wrong for evaluation. In falling order of accuracy for the same work: `second_order` (16 steps;
exact for Gaussian data in any number of steps; needs the denoiser's Jacobian), `heun` (32 steps,
noises from at least 20), `ancestral` with `forward_variance` (256 steps).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.diffusion import levels
from offline_mbrl.models.diffusion.denoisers import Denoiser, noise_of
from offline_mbrl.models.diffusion.levels import Level, Step
from offline_mbrl.rollouts import posteriors
from offline_mbrl.rollouts.guides import UNGUIDED, Guide, estimate
from offline_mbrl.types import Array, Key, PyTree

SMALLEST_CORRECTED = 1e-4  # noise at which Heun's corrector is evaluated in the step that ends at 0


class Solver(NamedTuple):
    """A way to the data, one point at a time; the first entry of its carry is the point."""

    init: Callable[[Array], tuple[Array, ...]]  # (standard normal noise [...]) -> carry
    # (denoiser, guide, carry, standard normal noise [num_noises, ...], row of `schedule`) -> carry
    step: Callable[[Denoiser, Guide, tuple[Array, ...], Array, Any], tuple[Array, ...]]
    schedule: PyTree  # what a step reads, leaves [S], on the host
    num_noises: int = 1  # that a step consumes


# (denoiser, point [...], step) -> variance of a step's noise, [] or [...]
Variance = Callable[[Denoiser, Array, Step], Array]


def sample(
    solver: Solver,
    denoiser: Denoiser,
    shape: int | tuple[int, ...],
    key: Key,
    *,
    guide: Guide = UNGUIDED,
    temperature: float = 1.0,
) -> Array:
    """One point of the data, `[...]`.

    Args:
      solver: the steps.
      denoiser: of points of this shape.
      shape: of a point.
      key: consumed.
      guide: what samples are drawn towards.
      temperature: of the noises. Anything but 1 changes the law that is sampled; planners use 0.5.
    """
    shape = (shape,) if isinstance(shape, int) else shape
    key_start, key_steps = jax.random.split(key)
    keys = jax.random.split(key_steps, num_steps(solver))

    def body(carry: tuple[Array, ...], row: tuple[PyTree, Key]) -> tuple[tuple[Array, ...], None]:
        entry, key = row
        noise = temperature * jax.random.normal(key, (solver.num_noises, *shape))
        return solver.step(denoiser, guide, carry, noise, entry), None

    start = solver.init(temperature * jax.random.normal(key_start, shape))
    schedule = jax.tree.map(jnp.asarray, solver.schedule)
    carry, _ = jax.lax.scan(body, start, (schedule, keys))
    return carry[0]


def num_steps(solver: Solver) -> int:
    """S."""
    return len(jax.tree.leaves(solver.schedule)[0])


# --- variances of ancestral steps ---


def posterior_variance(denoiser: Denoiser, x: Array, step: Step) -> Array:
    """That of a step given the clean point, `[]`: right where all data are one point."""
    del denoiser, x
    return jnp.asarray(step.variance)


def forward_variance(denoiser: Denoiser, x: Array, step: Step) -> Array:
    """That of the forward step, `[]`: right for standard normal data; no noise in the last step."""
    del denoiser, x
    return jnp.where(step.left > 0, step.forward_variance, 0.0)


def diagonal_variance(denoiser: Denoiser, x: Array, step: Step) -> Array:
    """`[n]`: that given the clean point, and what the clean entry's own adds to it; last step: 0.

    Source: arXiv:2206.07309, theorem 1.
    """
    covariance = posteriors.covariance(denoiser, x, step.level)
    variance = step.variance + jnp.square(step.clean) * jnp.maximum(jnp.diagonal(covariance), 0.0)
    return jnp.where(step.left > 0, variance, 0.0)


# --- solvers ---


def ancestral(schedule: Level, *, variance: Variance = posterior_variance) -> Solver:
    """DDPM's steps (arXiv:2006.11239, algorithm 2): `x' = c1 x_0 + c2 x + sqrt(variance) z`.

    Args:
      schedule: `[S + 1]` levels.
      variance: of the noise; see the functions above.
    """

    def step(
        denoiser: Denoiser, guide: Guide, carry: tuple[Array, ...], noise: Array, entry: Step
    ) -> tuple[Array, ...]:
        x = guide.noisy(denoiser, carry[0], entry)
        clean = estimate(denoiser, guide, x, entry.level)
        mean = guide.mean(entry.clean * clean + entry.noisy * x, entry)
        return (mean + jnp.sqrt(variance(denoiser, x, entry)) * noise[0],)

    return Solver(init=_start(schedule), step=step, schedule=levels.steps(schedule))


def ddim(schedule: Level, *, eta: float = 0.0) -> Solver:
    """DDIM's steps (arXiv:2010.02502, equation 12); with an eta of 1 they are `ancestral`'s.

    `x' = signal' x_0 + sqrt(noise'^2 - s^2) epsilon + s z`, `s^2 = eta^2` times the posterior's
    variance. On straight lines and with an eta of 0 they are Euler's steps of flow matching.

    Args:
      schedule: `[S + 1]` levels.
      eta: 0 adds no noise.
    """

    def step(
        denoiser: Denoiser, guide: Guide, carry: tuple[Array, ...], noise: Array, entry: Step
    ) -> tuple[Array, ...]:
        x = guide.noisy(denoiser, carry[0], entry)
        clean = estimate(denoiser, guide, x, entry.level)
        square = eta**2 * entry.variance
        direction = jnp.sqrt(jnp.maximum(jnp.square(entry.target.noise) - square, 0.0))
        mean = entry.target.signal * clean + direction * noise_of(x, clean, entry.level)
        return (guide.mean(mean, entry) + jnp.sqrt(square) * noise[0],)

    return Solver(init=_start(schedule), step=step, schedule=levels.steps(schedule))


class MultistepEntry(NamedTuple):
    """A step of `dpm_solver`."""

    step: Step
    extrapolation: np.ndarray  # []   h / (2 h_before); 0 in the first and last steps


def dpm_solver(schedule: Level) -> Solver:
    """DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2): DDIM's steps, extrapolated.

    `x' = noise' / noise x - signal' (e^-h - 1) D`, where h is how far the logarithm of
    signal over noise moves, and D the clean point moved on by `h / (2 h_before)` of its last move.
    The first and the last step do not extrapolate.

    Args:
      schedule: `[S + 1]` levels.
    """
    signal = np.asarray(schedule.signal, np.float64)
    noise = np.asarray(schedule.noise, np.float64)
    with np.errstate(divide="ignore"):
        moves = np.diff(np.log(signal[:-1]) - np.log(noise[:-1]))
    extrapolation = np.zeros(len(signal) - 1)
    extrapolation[1:-1] = moves[1:] / (2.0 * moves[:-1])

    def init(noise: Array) -> tuple[Array, ...]:
        return *_start(schedule)(noise), jnp.zeros_like(noise)

    def step(
        denoiser: Denoiser,
        guide: Guide,
        carry: tuple[Array, ...],
        noise: Array,
        entry: MultistepEntry,
    ) -> tuple[Array, ...]:
        del noise  # deterministic
        level, target = entry.step.level, entry.step.target
        x = guide.noisy(denoiser, carry[0], entry.step)
        clean = estimate(denoiser, guide, x, level)
        moved = clean + entry.extrapolation * (clean - carry[1])
        decay = target.noise / level.noise
        mean = decay * x + (target.signal - level.signal * decay) * moved
        return guide.mean(mean, entry.step), clean

    entries = MultistepEntry(step=levels.steps(schedule), extrapolation=extrapolation)
    return Solver(init=init, step=step, schedule=entries, num_noises=0)


class HeunEntry(NamedTuple):
    """A step of `heun`, of `y = x / signal`."""

    step: Step
    noise: np.ndarray  # []   sigma_i
    raised: np.ndarray  # []   sigma_i (1 + gamma)
    target: np.ndarray  # []   sigma_(i + 1)


def heun(
    schedule: Level,
    *,
    churn: float = 0.0,
    churned: tuple[float, float] = (0.05, 50.0),
    noise_scale: float = 1.003,
) -> Solver:
    """EDM's stochastic steps (arXiv:2206.00364, algorithm 2), two evaluations each.

    Args:
      schedule: `[S + 1]` levels with a signal above 0, for example `levels.karras(32)`; others
        than EDM's are read as `noise / signal`.
      churn: 0 adds no noise but the first; EDM's is 80 with 256 steps.
      churned: noises between which noise is added.
      noise_scale: of the noise that is added.
    """
    sigma = np.asarray(schedule.noise, np.float64) / np.asarray(schedule.signal, np.float64)
    steps = levels.steps(Level(signal=np.ones_like(sigma), noise=sigma))
    inside = (sigma[:-1] >= churned[0]) & (sigma[:-1] <= churned[1])
    gamma = np.where(inside, min(churn / (len(sigma) - 1), np.sqrt(2.0) - 1.0), 0.0)

    def step(
        denoiser: Denoiser, guide: Guide, carry: tuple[Array, ...], noise: Array, entry: HeunEntry
    ) -> tuple[Array, ...]:
        def slope(x: Array, sigma: Array) -> Array:
            level = Level(signal=jnp.ones_like(sigma), noise=sigma)
            return (x - estimate(denoiser, guide, x, level)) / sigma

        raised, target = jnp.asarray(entry.raised), jnp.asarray(entry.target)
        x = guide.noisy(denoiser, carry[0], entry.step)
        added = jnp.sqrt(jnp.maximum(jnp.square(raised) - jnp.square(entry.noise), 0.0))
        x = x + noise_scale * added * noise[0]
        first = slope(x, raised)
        euler = x + (target - raised) * first
        second = slope(euler, jnp.maximum(target, SMALLEST_CORRECTED))
        corrected = x + (target - raised) * (first + second) / 2.0
        return (guide.mean(jnp.where(target > 0.0, corrected, euler), entry.step),)

    def init(noise: Array) -> tuple[Array, ...]:
        return (jnp.asarray(sigma[0]).astype(noise.dtype) * noise,)

    entries = HeunEntry(
        step=steps, noise=sigma[:-1], raised=sigma[:-1] * (1.0 + gamma), target=sigma[1:]
    )
    return Solver(init=init, step=step, schedule=entries)


def second_order(schedule: Level, *, largest: float = posteriors.LARGEST) -> Solver:
    """Ancestral steps with the clean point's full covariance, of vectors `[n]`.

    `x' = c1 x_0 + c2 x + sqrt(variance) z_1 + c1 R z_2` with `R R^T = Cov[x_0 | x]`, which the
    denoiser's Jacobian gives. A guide's `tilt` enters mean and covariance. The last step adds noise
    too: it draws the clean point. For Gaussian data, tilted or not, the law is exact in any number
    of steps. A step costs n forward derivatives and one or two decompositions of `[n, n]`.

    Args:
      schedule: `[S + 1]` levels with a signal above 0.
      largest: no eigenvalue of the covariance is above it; a wild Jacobian's would be.
    """

    def step(
        denoiser: Denoiser, guide: Guide, carry: tuple[Array, ...], noise: Array, entry: Step
    ) -> tuple[Array, ...]:
        x = guide.noisy(denoiser, carry[0], entry)
        posterior = posteriors.posterior(denoiser, x, entry.level, largest=largest)
        if guide.tilt is None:
            mean = guide.clean(denoiser, x, entry.level)
            posterior = posterior._replace(mean=mean)
        else:
            posterior = posteriors.tilted(posterior, *guide.tilt(posterior.mean))
        mean = guide.mean(entry.clean * posterior.mean + entry.noisy * x, entry)
        clean_noise = entry.clean * (posterior.root @ noise[1])
        return (mean + jnp.sqrt(entry.variance) * noise[0] + clean_noise,)

    return Solver(init=_start(schedule), step=step, schedule=levels.steps(schedule), num_noises=2)


def _start(schedule: Level) -> Callable[[Array], tuple[Array, ...]]:
    first = float(schedule.noise[0])

    def init(noise: Array) -> tuple[Array, ...]:
        return (first * noise,)

    return init
