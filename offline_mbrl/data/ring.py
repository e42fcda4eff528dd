"""A ring of transitions on the device: the newest stay, the oldest give way."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import Array, Transition


class Ring(NamedTuple):
    """A ring of transitions on the device."""

    transitions: Transition  # [C, ...]
    num_stored: Array  # [] int32, of all times


def empty(example: Transition, capacity: int) -> Ring:
    """Room for `capacity` transitions like `example`, whose fields have no batch axis."""
    return Ring(
        jax.tree.map(lambda leaf: jnp.zeros((capacity, *np.shape(leaf)), jnp.float32), example),
        jnp.int32(0),
    )


def store(ring: Ring, new: Transition) -> Ring:
    """Writes transitions `[N, ...]` behind the newest, over the oldest when full; N is at most the
    capacity."""
    capacity, added = ring.transitions.reward.shape[0], new.reward.shape[0]
    rows = (ring.num_stored + jnp.arange(added)) % capacity
    transitions = jax.tree.map(
        lambda column, values: column.at[rows].set(values), ring.transitions, new
    )
    return Ring(transitions, ring.num_stored + added)


def sample(ring: Ring, batch_size: int, key: Array) -> Transition:
    """`batch_size` transitions, uniform with replacement."""
    stored = jnp.minimum(ring.num_stored, ring.transitions.reward.shape[0])
    rows = jax.random.randint(key, (batch_size,), 0, stored)
    return jax.tree.map(lambda column: column[rows], ring.transitions)
