"""Noise levels of diffusion and flow models: how much of the data is left, how much is noise.

A point at a level is `x = signal x_0 + noise epsilon` with standard normal epsilon. The families
differ in their pairs alone, so one denoiser and one sampler serve all of them:

* variance preserving (VP): `signal^2 + noise^2 = 1`, with `signal^2` the literature's alpha-bar;
* EDM (arXiv:2206.00364): `signal = 1`, with `noise` its sigma;
* straight lines of flow matching (arXiv:2210.02747): `signal + noise = 1`.

Schedules are computed on the host in float64, where differences of neighboring levels keep their
digits. They run from noise to data, as samplers do, and end at the data themselves, `(1, 0)`.
"""

from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.types import UsageError

Numbers = Any  # arrays of JAX, or of numpy on the host


class Level(NamedTuple):
    """One level, or a schedule of S steps with a leading axis `[S + 1]`."""

    signal: Numbers  # []
    noise: Numbers  # []


class Step(NamedTuple):
    """A step towards the data, from `x` at `level` to `x'` at `target`, given the clean point.

    Its law is `N(clean x_0 + noisy x, variance I)`. A schedule's steps have a leading axis `[S]`.

    Source: arXiv:2006.11239, equations 6 and 7, in terms of any two levels.
    """

    level: Level
    target: Level
    clean: Numbers  # []   c1
    noisy: Numbers  # []   c2
    variance: Numbers  # []   of the posterior, beta-tilde; 0 at the end
    # []   of x given x' where they stand at VP levels, beta; at any levels that of `x - ratio x'`
    forward_variance: Numbers
    index: Numbers  # []   int, from 0
    left: Numbers  # []   int, steps after this: the literature's k


# --- schedules ---


def variance_preserving(beta: np.ndarray) -> Level:
    """The schedule of noise variances `beta` `[K]`, of which the first acts on the data.

    `signal_k^2 = prod_{j <= k} (1 - beta_j)`, `[K + 1]` from k = K - 1 down to the data.
    """
    kept = np.cumprod(1.0 - np.asarray(beta, np.float64))[::-1]
    return Level(
        signal=np.append(np.sqrt(kept), 1.0),
        noise=np.append(np.sqrt(1.0 - kept), 0.0),
    )


def cosine(num_levels: int) -> Level:
    """The cosine schedule of K levels.

    `beta_k = clip(1 - f((k + 1) / K) / f(k / K), 0, 0.999)` with
    `f(u) = cos^2((u + 0.008) / 1.008 pi / 2)`.

    Source: arXiv:2102.09672, equation 17.

    Raises:
      UsageError: there is no level.
    """
    _require_positive("cosine", num_levels)
    u = np.linspace(0.0, 1.0, num_levels + 1)
    f = np.square(np.cos((u + 0.008) / 1.008 * np.pi / 2))
    return variance_preserving(np.clip(1.0 - f[1:] / f[:-1], 0.0, 0.999))


def linear(num_levels: int) -> Level:
    """Variances that grow evenly from `0.1 / K` to `20 / K`, at most 0.999.

    With K = 1000 they are those of DDPM (arXiv:2006.11239, section 4).

    Raises:
      UsageError: there is no level.
    """
    _require_positive("linear", num_levels)
    beta = np.linspace(1e-4, 0.02, num_levels) * 1_000.0 / num_levels
    return variance_preserving(np.clip(beta, 0.0, 0.999))


def continuous_linear(num_levels: int, *, first: float = 0.1, last: float = 20.0) -> Level:
    """Levels at evenly spaced times of the process whose variance grows linearly.

    `log signal(u) = -(last - first) u^2 / 4 - first u / 2` at `u = (k + 1) / K`.

    Args:
      num_levels: K.
      first: rate of the noise at time 0.
      last: rate of the noise at time 1.

    Source: arXiv:2011.13456, equation 33.

    Raises:
      UsageError: there is no level.
    """
    _require_positive("continuous_linear", num_levels)
    u = np.linspace(1.0, 0.0, num_levels + 1)
    log_signal = -(last - first) * u**2 / 4.0 - first * u / 2.0
    return Level(
        signal=np.exp(log_signal),
        noise=np.sqrt(-np.expm1(2.0 * log_signal)),
    )


def karras(
    num_levels: int,
    *,
    smallest: float = 0.002,
    largest: float = 80.0,
    rho: float = 7.0,
) -> Level:
    """EDM's schedule of N noises, evenly spaced in their root of order `rho`, then 0.

    A largest noise below 20 is too small for trajectories: the sampler starts at `N(0, largest^2)`,
    so it ignores a variance of the data that is as large as a window is long.

    Args:
      num_levels: N.
      smallest: the last noise before 0.
      largest: the first noise.
      rho: order of the root.

    Source: arXiv:2206.00364, equation 5.

    Raises:
      UsageError: there is no level, or the noises are not `0 < smallest <= largest`.
    """
    _require_positive("karras", num_levels)
    if not 0.0 < smallest <= largest:
        raise UsageError(
            f"karras needs 0 < smallest <= largest, got smallest {smallest:g} and largest "
            f"{largest:g}"
        )
    roots = np.linspace(largest ** (1.0 / rho), smallest ** (1.0 / rho), num_levels)
    return Level(
        signal=np.ones(num_levels + 1),
        noise=np.append(roots**rho, 0.0),
    )


def straight(num_levels: int) -> Level:
    """Evenly spaced times of flow matching's lines: `signal = i / N`, `noise = 1 - i / N`.

    The first level is pure noise, so samplers that divide by the signal do not start there.

    Raises:
      UsageError: there is no level.
    """
    _require_positive("straight", num_levels)
    time = np.linspace(0.0, 1.0, num_levels + 1)
    return Level(signal=time, noise=1.0 - time)


def thinned(schedule: Level, num_steps: int) -> Level:
    """The schedule with S of its levels, evenly spaced from the noisiest to the cleanest, and the
    data.

    Raises:
      UsageError: there are fewer noisy levels than steps, or no step.
    """
    num_levels = len(schedule.noise) - 1
    if not 1 <= num_steps <= num_levels:
        raise UsageError(
            f"thinned needs from 1 to {num_levels} steps, the schedule's noisy levels, got "
            f"{num_steps}"
        )
    rows = np.round(np.linspace(0, num_levels - 1, num_steps)).astype(int)
    rows = np.append(rows, num_levels)
    return Level(signal=schedule.signal[rows], noise=schedule.noise[rows])


def _require_positive(name: str, num_levels: int) -> None:
    if num_levels < 1:
        raise UsageError(f"{name} needs at least one level, got {num_levels}")


# --- steps ---


def steps(schedule: Level) -> Step:
    """The S steps between the levels `[S + 1]` of a schedule, float64 on the host."""
    signal = np.asarray(schedule.signal, np.float64)
    square = np.square(np.asarray(schedule.noise, np.float64))
    ratio = signal[:-1] / signal[1:]
    forward_variance = square[:-1] - ratio**2 * square[1:]
    num_steps = len(signal) - 1
    return Step(
        level=Level(signal=schedule.signal[:-1], noise=schedule.noise[:-1]),
        target=Level(signal=schedule.signal[1:], noise=schedule.noise[1:]),
        clean=signal[1:] * forward_variance / square[:-1],
        noisy=ratio * square[1:] / square[:-1],
        variance=forward_variance * square[1:] / square[:-1],
        forward_variance=forward_variance,
        index=np.arange(num_steps),
        left=np.arange(num_steps)[::-1],
    )
