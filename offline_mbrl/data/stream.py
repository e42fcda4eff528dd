"""Streams training data from the disk: windows of a column store, in an order computed on demand.

The batches of a run are a fixed sequence: every epoch reads each window once, in a pseudo-random
order that depends on the run's key. The windows of update `t` are computed from `t`. So the number
of updates done is the only cursor, a run can resume in the middle of an epoch, and each of several
processes reads its own part of every batch.

Columns are memory-mapped, not loaded: the kernel's page cache holds what was read and releases it
when memory is short. A chunk of a file is verified against its hash when it is first read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from offline_mbrl.data import memory, trees
from offline_mbrl.data.store import read as store
from offline_mbrl.streams import BatchRequest, Shard, Stream
from offline_mbrl.types import PyTree, UsageError

BLOCK_BYTES = 256 * 2**20  # limit of the stacked batches of one dispatch
# Rows are gathered in pieces of this size: index arrays stay small, copies stay in the cache.
GATHER_BYTES = 8 * 2**20
ROUNDS = 10  # rounds of the Feistel network; the tests show that they suffice
Rows = Any  # an integer array of any shape, or a slice


@dataclass(frozen=True, eq=False)
class Column:
    """A column `[R, ...]` on the disk: indexing reads rows. To JAX it is a leaf, but no array."""

    read: Callable[[Rows], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, rows: Rows) -> np.ndarray:
        """The values at `rows`, an integer array of any shape or a slice."""
        return self.read(rows)

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        """Refuses to load the column by accident, for example by sampling inside jit."""
        raise UsageError(
            f"a column of shape {self.shape} stays on the disk: train on `stream.bind(dataset, "
            "learner.sample)`, or load all data into memory (`--stream never`, "
            "`stream_above=None`)"
        )


# --- a dataset whose columns stay on the disk ---


def open_split(
    opened: store.Store, split: str, *, fields: tuple[str, ...], chosen: np.ndarray | None = None
) -> memory.Dataset:
    """A split of a store as a dataset of `Column`s.

    Args:
      opened: an open store.
      split: `train` or `validation`, not empty.
      fields: top-level fields to read; those besides observation, action, reward and discount
        become extras.
      chosen: `[E]` bool, the episodes to keep, at least one of them; None: all.

    Returns:
      The dataset that `memory.from_columns` would return, with a few bytes an episode in memory.
    """
    listed = opened.columns[split]
    stored_ends = np.asarray(store.read(listed[store.ENDS]))
    lengths = np.diff(stored_ends, prepend=-1)
    kept = np.ones(len(lengths), bool) if chosen is None else chosen
    ends = np.cumsum(lengths[kept]) - 1
    shift = stored_ends[kept] - ends
    size = int(ends[-1]) + 1

    def kept_rows(column: store.Column) -> Column:
        read = store.reader(column)
        if kept.all():
            return Column(read=read, shape=column.shape, dtype=column.dtype)
        return Column(
            read=lambda rows: read(_stored_rows(_as_array(rows, size), ends, shift)),
            shape=(size, *column.shape[1:]),
            dtype=column.dtype,
        )

    leaves = {
        path[1:]: kept_rows(column)
        for path, column in listed.items()
        if path != store.ENDS and path[1] in fields
    }
    columns = trees.unflatten(leaves)
    transitions = ends - np.arange(len(ends))  # [E] number in all episodes up to this one

    def start(indices: Rows) -> np.ndarray:
        indices = _as_array(indices, int(transitions[-1]))
        return indices + np.searchsorted(transitions, indices, side="right")

    def end(rows: Rows) -> np.ndarray:
        return ends[np.searchsorted(ends, _as_array(rows, size))]

    required = {name: columns.pop(name) for name in (*memory.REQUIRED, "discount")}
    bounds: dict[str, Any] = {
        "episode_end": Column(read=end, shape=(size,), dtype=ends.dtype),
        "starts": Column(read=start, shape=(int(transitions[-1]),), dtype=ends.dtype),
    }
    return memory.Dataset(**required, **bounds, extras=columns)


def on_disk(dataset: PyTree) -> bool:
    """Whether a dataset's columns are read from the disk."""
    return any(isinstance(leaf, Column) for leaf in jax.tree.leaves(dataset))


def size(dataset: memory.Dataset) -> int:
    """Bytes of the columns that are read from the disk."""
    columns = jax.tree.leaves(dataset._replace(episode_end=(), starts=()))
    return sum(int(np.prod(column.shape)) * column.dtype.itemsize for column in columns)


def mapped(column: Any, function: Callable[[np.ndarray], np.ndarray]) -> Column:
    """Applies a function, which keeps shapes and returns float32, to rows as they are read."""
    return Column(
        read=lambda rows: function(column[rows]), shape=column.shape, dtype=np.dtype(np.float32)
    )


def flattened(dataset: memory.Dataset) -> memory.Dataset:
    """Returns the dataset with its observations as vectors, like `trees.flatten_dataset`."""
    leaves = trees.flatten(dataset.observation)
    if tuple(leaves) == ((),):
        return dataset
    size = sum(int(np.prod(leaf.shape[1:])) for leaf in leaves.values())

    def read(rows: Rows) -> np.ndarray:
        observation = trees.unflatten({path: leaf[rows] for path, leaf in leaves.items()})
        batch_axes = 1 if isinstance(rows, slice) else rows.ndim
        return trees.observation_vector(observation, batch_axes=batch_axes)

    shape = (dataset.reward.shape[0], size)
    vector = Column(read=read, shape=shape, dtype=np.dtype(np.float32))
    return dataset._replace(observation=vector)


def _as_array(rows: Rows, size: int) -> np.ndarray:
    return np.arange(*rows.indices(size)) if isinstance(rows, slice) else rows


def _stored_rows(rows: np.ndarray, ends: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Converts rows of the kept episodes to rows of all episodes."""
    return rows + shift[np.searchsorted(ends, rows)]


# --- the order ---


def permuted(index: np.ndarray, size: int, epoch: np.ndarray, seed_words: np.ndarray) -> np.ndarray:
    """Permutes the indices `0 .. size - 1` by an epoch's own bijection, element by element.

    An alternating unbalanced Feistel network on the bits of `size - 1`, iterated until the value is
    in range again (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002,
    method 3). Nothing is precomputed or stored.

    Args:
      index: `[...]` in 0 .. size - 1.
      size: number of elements.
      epoch: `[...]` number of the epoch; each has its own order.
      seed_words: `[W]` uint32.

    Returns:
      `[...]` int64 in 0 .. size - 1.
    """
    bits = max(int(size - 1).bit_length(), 1)
    low = np.uint64(bits // 2)
    left_mask = np.uint64(2 ** (bits - bits // 2) - 1)
    right_mask = np.uint64(2 ** (bits // 2) - 1)
    epochs, epoch_index = np.unique(epoch.reshape(-1), return_inverse=True)
    keys = np.stack([_round_keys(seed_words, int(number)) for number in epochs])
    value = index.reshape(-1).astype(np.uint64)
    pending = np.arange(index.size)
    while pending.size:
        round_keys = keys[epoch_index[pending]] if len(epochs) > 1 else keys
        left = value[pending] >> low
        right = value[pending] & right_mask
        for number in range(0, ROUNDS, 2):
            left ^= _mixed(right ^ round_keys[:, number]) & left_mask
            right ^= _mixed(left ^ round_keys[:, number + 1]) & right_mask
        joined = left << low | right
        value[pending] = joined
        pending = pending[joined >= size]
    return value.astype(np.int64).reshape(index.shape)


def _round_keys(seed_words: np.ndarray, epoch: int) -> np.ndarray:
    sequence = np.random.SeedSequence([*map(int, seed_words), epoch])
    return sequence.generate_state(ROUNDS, np.uint64)


def _mixed(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014): mixes all bits of the value."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


# --- batches ---


def bind(dataset: memory.Dataset, sample: Callable, *, block_bytes: int = BLOCK_BYTES) -> Stream:
    """A stream of a learner's batches, read on the host; `fit` accepts it in place of a dataset.

    Batches have the structure of `sample`'s, but are drawn without replacement within an epoch.

    Args:
      dataset: `Column`s, or numpy arrays (in memory or mapped).
      sample: `learner.sample`, a `memory.Windows` or `memory.Transitions`.
      block_bytes: limit of the stacked batches of one dispatch.

    Raises:
      UsageError: `sample` is any other function.
    """
    if not isinstance(sample, memory.Windows | memory.Transitions):
        raise UsageError(
            "this learner draws its batches by a function of its own, and only "
            "`memory.Windows(...)` and `memory.Transitions(...)` can be streamed: sample with one "
            "of them, or load all data into memory (`--stream never`)"
        )
    on_final = isinstance(sample, memory.Windows) and sample.start_on_final
    size = int((dataset.reward if on_final else dataset.starts).shape[0])

    def start_rows(positions: np.ndarray) -> np.ndarray:
        return positions if on_final else np.asarray(dataset.starts[positions], np.int64)

    def gather(rows: np.ndarray) -> PyTree:
        return sample.gather(dataset, rows)

    def example() -> PyTree:
        return gather(start_rows(np.arange(sample.batch_size) % size))

    def read(request: BatchRequest) -> PyTree:
        seed_words = np.asarray(request.seed_words, np.uint32)
        part = _part(sample.batch_size, request.shard)
        updates = np.arange(request.num_updates, dtype=np.int64) + request.first_update
        positions = updates[:, None] * sample.batch_size + part
        positions_by_seed = [
            permuted(positions % size, size, positions // size, seed)
            for seed in seed_words.reshape(-1, seed_words.shape[-1])
        ]
        rows = start_rows(np.stack(positions_by_seed, axis=1).reshape(-1))
        batch_shape = (request.capacity, *seed_words.shape[:-1], len(part))
        return _gathered(gather, rows, batch_shape)

    return Stream(read=read, example=example, finish=sample.finish, block_bytes=block_bytes)


def _part(batch_size: int, shard: Shard) -> np.ndarray:
    """The positions in a batch that this process reads."""
    index, count = shard
    if batch_size % count:
        raise UsageError(
            f"a batch of {batch_size} cannot be split over {count} processes; choose a multiple of "
            f"{count}"
        )
    return np.arange(batch_size // count) + index * (batch_size // count)


def _gathered(
    gather: Callable[[np.ndarray], PyTree], rows: np.ndarray, batch_shape: tuple[int, ...]
) -> PyTree:
    """Gathers rows `[N]` piece by piece into arrays `[*batch_shape, ...]`, zero beyond the rows."""
    example = gather(rows[:1])
    row_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(example))
    piece = max(1, GATHER_BYTES // max(row_bytes, 1))
    size = int(np.prod(batch_shape))
    batch = jax.tree.map(lambda leaf: np.zeros((size, *leaf.shape[1:]), leaf.dtype), example)

    for start in range(0, len(rows), piece):
        gathered = gather(rows[start : start + piece])
        for target, values in zip(jax.tree.leaves(batch), jax.tree.leaves(gathered), strict=True):
            target[start : start + len(values)] = values
    return jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), batch)
