"""Whether a fit was long enough: how far its value still moved, and how far rewards can travel."""

from typing import NamedTuple

import jax.numpy as jnp

from offline_mbrl.types import Array, Metrics

FAST = 10.0  # times the rate of the slow average
LARGEST_DRIFT = 0.05  # of the value
# Effective horizons, 1 / (1 - gamma), that rewards have to travel back: exp(-3), 5 %, of where a
# fit began is then left in its values.
HORIZONS = 3.0
PLANNED_HORIZONS = 4.0  # that power steps are planned for
SMALLEST_DRIFT = 1e-3  # of the range of values: below it a value near 0 counts as settled


class Track(NamedTuple):
    """Two running means of one noisy scalar.

    Both are plain means while there are fewer updates than they average over.
    """

    updates: Array  # [] int32
    fast: Array  # []
    slow: Array  # []


def start() -> Track:
    """Before the first update."""
    return Track(updates=jnp.zeros((), jnp.int32), fast=jnp.zeros(()), slow=jnp.zeros(()))


def follow(track: Track, value: Array, *, over: float) -> Track:
    """The track after one more update.

    Args:
      track: before it.
      value: `[]` of this update.
      over: updates that the slow mean looks back over; the fast one a tenth of them.
    """
    plain_rate = 1.0 / (track.updates + 1.0)
    slow_rate = jnp.maximum(plain_rate, 1.0 / over)
    fast_rate = jnp.clip(FAST / over, plain_rate, 1.0)
    return Track(
        updates=track.updates + 1,
        fast=track.fast + fast_rate * (value - track.fast),
        slow=track.slow + slow_rate * (value - track.slow),
    )


def diagnostics(track: Track, *, needed_updates: float, width: Array) -> Metrics:
    """`drift`, the recent change of the value, and `updates_too_few`.

    `updates_too_few` is 1 where the value still drifts or the fit was shorter than needed.

    Args:
      track: of the value in raw units.
      needed_updates: that a reward takes to travel back over `HORIZONS` effective horizons; a
        Bellman backup through a target network that lags L updates needs
        `HORIZONS * L / (1 - gamma)`.
      width: `[]` distance between the smallest and the largest value that is possible.
    """
    drift = track.fast - track.slow
    tolerance = LARGEST_DRIFT * jnp.abs(track.fast) + SMALLEST_DRIFT * width
    enough = (jnp.abs(drift) <= tolerance) & (track.updates >= needed_updates)
    return {"drift": drift, "updates_too_few": 1.0 - enough}
