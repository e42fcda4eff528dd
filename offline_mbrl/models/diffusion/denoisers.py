"""Denoisers: what a network predicts, what it learns from, and the clean point that follows.

A denoiser maps a point and its level to an estimate of the clean point, whatever its network
predicts: the forms below convert exactly into each other. Networks see points scaled to a variance
of one and the logarithm of noise over signal, so one network serves all families of levels.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.diffusion.levels import Level
from offline_mbrl.types import Array, Key, Params

Denoiser = Callable[[Array, Level], Array]  # (x [...], level) -> the clean point [...]
Network = Callable[[Array, Array], Array]  # (scaled x [...], condition []) -> prediction [...]
DrawLevel = Callable[[Key], Level]

SIGMA_DATA = 1.0  # of standardized data; 0.5 is that of images
SMALLEST = 1e-5  # signal or noise that `condition` distinguishes from 0


# --- what networks predict ---


class Form(NamedTuple):
    """What a network predicts, and the clean point that a prediction implies."""

    target: Callable[[Array, Array, Level], Array]  # (clean x_0 [...], noise [...], level)
    clean: Callable[[Array, Array, Level], Array]  # (x [...], prediction [...], level)


def _clean_target(clean: Array, noise: Array, level: Level) -> Array:
    del noise, level
    return clean


def _clean_itself(x: Array, prediction: Array, level: Level) -> Array:
    del x, level
    return prediction


def _noise_target(clean: Array, noise: Array, level: Level) -> Array:
    del clean, level
    return noise


def _clean_of_noise(x: Array, prediction: Array, level: Level) -> Array:
    return (x - level.noise * prediction) / level.signal


def _v_target(clean: Array, noise: Array, level: Level) -> Array:
    return (level.signal * noise - level.noise * clean) / _norm(level)


def _clean_of_v(x: Array, prediction: Array, level: Level) -> Array:
    norm = _norm(level)
    return (level.signal * x / norm - level.noise * prediction) / norm


def _velocity_target(clean: Array, noise: Array, level: Level) -> Array:
    del level
    return clean - noise


def _clean_of_velocity(x: Array, prediction: Array, level: Level) -> Array:
    return (x + level.noise * prediction) / (level.signal + level.noise)


# x_0 itself, Diffuser's choice.
CLEAN = Form(target=_clean_target, clean=_clean_itself)
# epsilon, Decision Diffuser's.
NOISE = Form(target=_noise_target, clean=_clean_of_noise)
# `v = signal epsilon - noise x_0` (arXiv:2202.00512, appendix D), over the norm of the level.
V = Form(target=_v_target, clean=_clean_of_v)
# `x_0 - epsilon`, flow matching's (arXiv:2210.02747).
VELOCITY = Form(target=_velocity_target, clean=_clean_of_velocity)


def preconditioned(sigma_data: float = SIGMA_DATA) -> Form:
    """EDM's: `x_0 = c_skip x + c_out F`, so that F has a unit variance at every level.

    With a `sigma_data` of 1 it is `V` with the opposite sign.

    Args:
      sigma_data: deviation of the data.

    Source: arXiv:2206.00364, table 1, for `x / signal` and `noise / signal`.
    """

    def coefficients(level: Level) -> tuple[Array, Array]:
        square = jnp.square(level.noise) + jnp.square(level.signal * sigma_data)
        c_skip = sigma_data**2 * level.signal / square
        c_out = level.noise * sigma_data / jnp.sqrt(square)
        return c_skip, c_out

    def target(clean: Array, noise: Array, level: Level) -> Array:
        c_skip, c_out = coefficients(level)
        return (clean - c_skip * (level.signal * clean + level.noise * noise)) / c_out

    def clean(x: Array, prediction: Array, level: Level) -> Array:
        c_skip, c_out = coefficients(level)
        return c_skip * x + c_out * prediction

    return Form(target=target, clean=clean)


def noised(clean: Array, noise: Array, level: Level) -> Array:
    """`signal x_0 + noise epsilon`, of the shape of the clean point."""
    return level.signal * clean + level.noise * noise


def noise_of(x: Array, clean: Array, level: Level) -> Array:
    """`epsilon = (x - signal x_0) / noise`."""
    return (x - level.signal * clean) / level.noise


def score_of(x: Array, clean: Array, level: Level) -> Array:
    """`grad log p(x) = (signal x_0 - x) / noise^2`, where x_0 is the mean of clean points given x.

    Source: Tweedie's formula.
    """
    return (level.signal * clean - x) / jnp.square(level.noise)


# --- networks as denoisers ---


def scaled(x: Array, level: Level, sigma_data: float = SIGMA_DATA) -> Array:
    """`x / sqrt(signal^2 sigma_data^2 + noise^2)`: EDM's c_in, 1 at VP levels of unit data."""
    square = jnp.square(level.signal * sigma_data) + jnp.square(level.noise)
    return x / jnp.sqrt(square)


def condition(level: Level) -> Array:
    """`log(noise / signal) / 4`, EDM's c_noise, `[]`; finite at both ends."""
    noise = jnp.maximum(level.noise, SMALLEST)
    return 0.25 * (jnp.log(noise) - jnp.log(jnp.maximum(level.signal, SMALLEST)))


def denoiser(
    network: Network, form: Form, fixed: np.ndarray, *, sigma_data: float = SIGMA_DATA
) -> Denoiser:
    """A network as a denoiser of points whose fixed entries are clean, and stay as they are.

    Args:
      network: reads fixed entries as they are, all others `scaled`.
      form: what it predicts.
      fixed: `[...]` bool, on the host.
      sigma_data: deviation of the data.
    """

    def denoise(x: Array, level: Level) -> Array:
        inputs = jnp.where(fixed, x, scaled(x, level, sigma_data))
        prediction = network(inputs, condition(level))
        return jnp.where(fixed, x, form.clean(x, prediction, level))

    return denoise


def clipped(denoise: Denoiser, low: Array | float, high: Array | float) -> Denoiser:
    """A denoiser whose clean points stay within bounds: Diffuser's `clip_denoised`, for plans.

    Not for second-order steps: where it clips, its Jacobian is 0, and so is the noise.

    Args:
      denoise: the denoiser.
      low: `[]` or `[...]`; -1 in Diffuser's mazes, whose data are scaled to [-1, 1].
      high: the same, 1.
    """
    return lambda x, level: jnp.clip(denoise(x, level), low, high)


# --- the loss ---


def uniform(schedule: Level) -> DrawLevel:
    """Any of a schedule's noisy levels, with equal probability (arXiv:2006.11239, algorithm 1)."""

    def draw(key: Key) -> Level:
        row = jax.random.randint(key, (), 0, len(schedule.noise) - 1)
        return Level(
            signal=jnp.asarray(schedule.signal)[row], noise=jnp.asarray(schedule.noise)[row]
        )

    return draw


def log_normal(mean: float = -1.2, std: float = 1.2) -> DrawLevel:
    """EDM's training levels: `log noise` is normal, the signal 1 (arXiv:2206.00364, table 1)."""

    def draw(key: Key) -> Level:
        noise = jnp.exp(mean + std * jax.random.normal(key))
        return Level(signal=jnp.ones_like(noise), noise=noise)

    return draw


def uniform_time(key: Key) -> Level:
    """A uniform time of flow matching's lines: `signal = t`, `noise = 1 - t`."""
    time = jax.random.uniform(key)
    return Level(signal=time, noise=1.0 - time)


def loss(
    network: Network,
    form: Form,
    clean: Array,
    noise: Array,
    level: Level,
    *,
    weights: Array | np.ndarray,
    fixed: np.ndarray,
    sigma_data: float = SIGMA_DATA,
) -> Array:
    """`mean weights (prediction - target)^2` over the entries that are not fixed, `[]`.

    For `preconditioned` this is EDM's loss: its weight of the clean point's error is 1 / c_out^2.

    Args:
      network: the network.
      form: what it predicts.
      clean: `[...]` one point of the data.
      noise: `[...]` standard normal.
      level: of the noisy point.
      weights: `[...]` of the entries.
      fixed: `[...]` bool, entries that stay clean and do not count.
      sigma_data: deviation of the data.

    Source: arXiv:2006.11239, equation 14; arXiv:2206.00364, equation 8.
    """
    chex.assert_equal_shape([clean, noise, weights])
    x = noised(clean, noise, level)
    inputs = jnp.where(fixed, clean, scaled(x, level, sigma_data))
    error = network(inputs, condition(level)) - form.target(clean, noise, level)
    return jnp.sum(jnp.where(fixed, 0.0, weights * jnp.square(error))) / max(np.sum(~fixed), 1)


def signal_to_noise(level: Level) -> Array:
    """`signal^2 / noise^2`: by it the clean point's error counts as the noise's does."""
    return jnp.square(level.signal / level.noise)


def moving_average(
    average: Params, params: Params, update: Array, *, decay: float, period: int = 1, start: int = 0
) -> Params:
    """The exponential moving average of parameters that samples are drawn with.

    Args:
      average: so far.
      params: after this update.
      update: `[]` int, updates done before this one.
      decay: weight of the average; Diffuser's is 0.995.
      period: updates between its moves; Diffuser's is 10.
      start: updates before which the average is a copy; Diffuser's is 2000.
    """
    kept = jnp.where(update < start, 0.0, decay)
    moves = (update + 1) % period == 0

    def moved(old: Array, new: Array) -> Array:
        return jnp.where(moves, kept * old + (1.0 - kept) * new, old)

    return jax.tree.map(moved, average, params)


def _norm(level: Level) -> Array:
    return jnp.sqrt(jnp.square(level.signal) + jnp.square(level.noise))
