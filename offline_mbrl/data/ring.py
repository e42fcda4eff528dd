"""A ring buffer of transitions on the device: the newest overwrite the oldest."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import Array, Key, Transition


class Ring(NamedTuple):
    """A ring buffer with room for C transitions."""

    transitions: Transition  # [C, ...]
    # [] int32, transitions stored so far, overwritten ones included; from 2 C on less a multiple of
    # C, so that no run is too long for it
    num_stored: Array


def empty(example: Transition, capacity: int) -> Ring:
    """An empty ring for `capacity` transitions like `example`, whose fields have no batch axis."""

    def column(leaf: Array | np.ndarray) -> Array:
        return jnp.zeros((capacity, *np.shape(leaf)), jnp.asarray(leaf).dtype)

    return Ring(transitions=jax.tree.map(column, example), num_stored=jnp.int32(0))


def capacity(ring: Ring) -> int:
    """C."""
    return ring.transitions.reward.shape[0]


def size(ring: Ring) -> Array:
    """Transitions that it holds, `[]` int32."""
    return jnp.minimum(ring.num_stored, capacity(ring))


def store(ring: Ring, new: Transition, valid: Array | None = None) -> Ring:
    """Stores transitions over the oldest ones when full.

    Args:
      ring: a ring.
      new: `[N, ...]`; N is at most the capacity.
      valid: `[N]`, 0 or false where a row is left out: the others follow each other without a gap.
        None: all are stored.
    """
    room = capacity(ring)
    is_valid = jnp.ones(new.reward.shape, bool) if valid is None else valid.astype(bool)
    ends = jnp.cumsum(is_valid, dtype=jnp.int32)
    rows = jnp.where(is_valid, (ring.num_stored + ends - 1) % room, room)
    transitions = jax.tree.map(
        lambda column, values: column.at[rows].set(values, mode="drop"), ring.transitions, new
    )
    total = ring.num_stored + ends[-1]
    folded = jnp.where(total >= 2 * room, room + total % room, total)
    return Ring(transitions=transitions, num_stored=folded)


def sample(ring: Ring, batch_size: int, key: Key) -> Transition:
    """Draws transitions `[B, ...]`, uniform with replacement.

    Args:
      ring: with at least one transition.
      batch_size: B.
      key: consumed.
    """
    rows = jax.random.randint(key, (batch_size,), 0, size(ring))
    return jax.tree.map(lambda column: column[rows], ring.transitions)
