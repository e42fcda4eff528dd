"""Whether a fit was long enough to be believed: how far its value still moved, and how far news can have travelled."""

from typing import NamedTuple

import jax.numpy as jnp

from offline_mbrl.types import Array, Metrics

FAST = 10.0  # times the rate of the slow average
LARGEST_DRIFT = 0.05  # of the value
SMALLEST_DRIFT = 1e-3  # of the range that values can have: below it a value near 0 counts as settled


class Track(NamedTuple):
    """Two running means of one noisy figure, both plain means while there are fewer updates than they average over."""

    updates: Array  # [] int32
    fast: Array  # []
    slow: Array  # []


def start() -> Track:
    """Before the first update."""
    return Track(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))


def follow(track: Track, figure: Array, *, over: float) -> Track:
    """The track after one more update.

    Args:
      track: before it.
      figure: `[]` of this update.
      over: updates that the slow mean looks back over; the fast one a tenth of them.
    """
    one = 1.0 / (track.updates + 1.0)
    slow = track.slow + jnp.maximum(one, 1.0 / over) * (figure - track.slow)
    fast = track.fast + jnp.clip(FAST / over, one, 1.0) * (figure - track.fast)
    return Track(track.updates + 1, fast, slow)


def diagnostics(track: Track, *, needed_updates: float, width: Array) -> Metrics:
    """`drift`, the recent change of the value, and `updates_too_few`: 1 where the fit is too short to be believed.

    Args:
      track: of the value in raw units.
      needed_updates: that news takes to travel back over the effective horizon; a Bellman backup through a target
        network that lags L updates needs `L / (1 - gamma)`.
      width: `[]` between the smallest and the largest value that there can be.
    """
    drift = track.fast - track.slow
    settled = jnp.abs(drift) <= LARGEST_DRIFT * jnp.abs(track.fast) + SMALLEST_DRIFT * width
    enough = settled & (track.updates >= needed_updates)
    return {"drift": drift, "updates_too_few": 1.0 - enough}
