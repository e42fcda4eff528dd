"""A ring buffer of transitions on the device: the newest overwrite the oldest."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import Array, Key, Transition


class Ring(NamedTuple):
    """A ring buffer with room for C transitions."""

    transitions: Transition  # [C, ...]
    num_stored: Array  # [] int32, transitions stored so far, overwritten ones included


def empty(example: Transition, capacity: int) -> Ring:
    """An empty ring for `capacity` transitions like `example`, whose fields have no batch axis."""
    transitions = jax.tree.map(
        lambda leaf: jnp.zeros((capacity, *np.shape(leaf)), jnp.float32), example
    )
    return Ring(transitions=transitions, num_stored=jnp.int32(0))


def store(ring: Ring, new: Transition) -> Ring:
    """Stores transitions `[N, ...]`, over the oldest ones when full; N is at most the capacity."""
    capacity = ring.transitions.reward.shape[0]
    num_added = new.reward.shape[0]
    rows = (ring.num_stored + jnp.arange(num_added)) % capacity
    transitions = jax.tree.map(
        lambda column, values: column.at[rows].set(values), ring.transitions, new
    )
    return Ring(transitions=transitions, num_stored=ring.num_stored + num_added)


def sample(ring: Ring, batch_size: int, key: Key) -> Transition:
    """Draws transitions `[B, ...]`, uniform with replacement.

    Args:
      ring: with at least one transition.
      batch_size: B.
      key: consumed.
    """
    stored = jnp.minimum(ring.num_stored, ring.transitions.reward.shape[0])
    rows = jax.random.randint(key, (batch_size,), 0, stored)
    return jax.tree.map(lambda column: column[rows], ring.transitions)
