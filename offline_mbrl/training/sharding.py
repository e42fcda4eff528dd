"""One mesh axis, `data`: states and datasets are replicated, batches are split over devices.

Losses are plain means over the whole batch, so no algorithm knows an axis name: the compiler adds
the reductions. The same code runs on one device, on many, and on many processes (after
`jax.distributed.initialize`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from offline_mbrl.streams import Shard
from offline_mbrl.types import PyTree, UsageError

AXIS = "data"


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis over `devices`, by default all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of states, keys and datasets: a whole copy on each device. None without a
    mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Places every leaf whole on each device of the mesh (on the default device without one).

    Args:
      tree: arrays of the host or of this process, the same on every process; typed keys are arrays
        too.
      mesh: the mesh, or None.
    """
    if mesh is None:
        return jax.tree.map(jax.device_put, tree)
    sharding = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _replicate_globally(leaf, sharding), tree)


def copied(tree: PyTree) -> PyTree:
    """The same arrays in buffers of their own, where they are: they may be donated."""

    def copy(leaf: jax.Array) -> jax.Array:
        if leaf.is_fully_addressable:
            return jax.device_put(leaf, may_alias=False)  # compiles nothing, unlike `jnp.copy`
        return jnp.copy(leaf)  # of several processes

    return jax.tree.map(copy, tree)


def _replicate_globally(leaf: PyTree, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf  # already placed over all processes
    if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _replicate_globally(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def split_batch(mesh: Mesh | None) -> Callable[[PyTree], PyTree]:
    """A function that asks the compiler to split a batch's leaves on their leading axis; identity
    without a mesh.

    It is applied inside the traced update, under the vmap over seeds too (the axis it sees first is
    the batch's).

    Raises:
      UsageError: (when traced) the leading axis does not divide by the number of devices.
    """
    if mesh is None:
        return lambda batch: batch
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def split(leaf: jax.Array) -> jax.Array:
        if not leaf.ndim:
            return leaf
        _check_divides(leaf.shape[0], mesh)
        return jax.lax.with_sharding_constraint(leaf, sharding)

    return lambda batch: jax.tree.map(split, batch)


def _check_divides(size: int, mesh: Mesh) -> None:
    if size % mesh.size:
        raise UsageError(
            f"a batch with leading axis {size} cannot be split over {mesh.size} devices; "
            f"choose a batch size that is a multiple of {mesh.size}, or fewer devices"
        )


# --- stacked batches of the host ---


def shard(mesh: Mesh | None) -> Shard:
    """Which part of every batch this process reads, of how many; the whole one without a mesh."""
    if mesh is None:
        return Shard(index=0, count=1)
    return Shard(index=jax.process_index(), count=jax.process_count())


def split_stack(tree: PyTree, mesh: Mesh | None, *, axis: int) -> PyTree:
    """Places stacked batches, split over devices on the batches' axis.

    Args:
      tree: arrays of the host, `[*stack, B / P, ...]`: of P processes each has its own part.
      mesh: the mesh, or None.
      axis: number of the batches' axis.
    """
    if mesh is None:
        return jax.tree.map(jax.device_put, tree)
    sharding = _stack_sharding(mesh, axis)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)


def stack_shapes(batch: PyTree, lead: tuple[int, ...], mesh: Mesh | None) -> PyTree:
    """Shapes, dtypes and shardings of `split_stack`'s result over all processes, from one whole
    batch `[B, ...]`.

    Raises:
      UsageError: the batch does not divide by the number of devices.
    """

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        if mesh is None:
            return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype)
        _check_divides(leaf.shape[0], mesh)
        return jax.ShapeDtypeStruct(
            (*lead, *leaf.shape), leaf.dtype, sharding=_stack_sharding(mesh, len(lead))
        )

    return jax.tree.map(shape, batch)


def _stack_sharding(mesh: Mesh, axis: int) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
