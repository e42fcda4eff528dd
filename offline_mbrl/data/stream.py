"""Training data that stay on the disk: windows of a column store, read in an order that needs no
memory.

The batches of a run are a fixed sequence: in every epoch each window comes once, in a pseudo-random
order that the run's key decides. Where update `t`'s windows are is computed from `t`, so that the
number of updates done is the whole cursor, a run goes on in the middle of an epoch, and of several
processes each reads its own part of every batch.

Columns are mapped, not loaded: what was read belongs to the kernel's page cache and is given back
when memory is short. A chunk of a file is compared with its hash when the first window touches it.
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

BLOCK_BYTES = 256 * 2**20  # of the stacked batches of one dispatch
# Gathered at a time: index arrays stay small, and copies stay in the cache
GATHER_BYTES = 8 * 2**20
ROUNDS = 10  # of the Feistel network; see tests
Rows = Any  # an integer array of any shape, or a slice


@dataclass(frozen=True, eq=False)
class Column:
    """A column `[R, ...]` that is not in memory; indexing with rows reads those. To jax, a leaf
    that is no array."""

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
            "learner.sample)`, or load the data whole (`--stream never`, `stream_above=None`)"
        )


# --- a dataset whose columns stay on the disk ---


def open_split(
    opened: store.Store, split: str, *, fields: tuple[str, ...], chosen: np.ndarray | None = None
) -> memory.Dataset:
    """One split of a store as a dataset of `Column`s.

    Args:
      opened: an open store.
      split: `train` or `validation`; it may not be empty.
      fields: top-level fields to read; those besides observation, action, reward and discount
        become extras.
      chosen: [E] bool, the episodes to keep; None for all. At least one.

    Returns:
      The same dataset as `memory.from_columns` would make, a few bytes an episode in memory.
    """
    listed = opened.columns[split]
    stored_ends = np.asarray(store.read(listed[store.ENDS]))
    lengths = np.diff(stored_ends, prepend=-1)
    kept = np.ones(len(lengths), bool) if chosen is None else chosen
    ends = np.cumsum(lengths[kept]) - 1
    shift = stored_ends[kept] - ends
    size = int(ends[-1]) + 1

    def one(column: store.Column) -> Column:
        read = store.reader(column)
        if kept.all():
            return Column(read, column.shape, column.dtype)
        return Column(
            lambda rows: read(_moved(_as_array(rows, size), ends, shift)),
            (size, *column.shape[1:]),
            column.dtype,
        )

    wanted = {
        path[1:]: one(column)
        for path, column in listed.items()
        if path != store.ENDS and path[1] in fields
    }
    columns = trees.unflatten(wanted)
    transitions = ends - np.arange(len(ends))  # [E] of the episodes up to this one

    def start(indices: Rows) -> np.ndarray:
        indices = _as_array(indices, int(transitions[-1]))
        return indices + np.searchsorted(transitions, indices, side="right")

    def end(rows: Rows) -> np.ndarray:
        return ends[np.searchsorted(ends, _as_array(rows, size))]

    required = {name: columns.pop(name) for name in (*memory.REQUIRED, "discount")}
    bounds: dict[str, Any] = {
        "episode_end": Column(end, (size,), ends.dtype),
        "starts": Column(start, (int(transitions[-1]),), ends.dtype),
    }
    return memory.Dataset(**required, **bounds, extras=columns)


def on_disk(dataset: PyTree) -> bool:
    """Whether a dataset's columns are read from the disk."""
    return any(isinstance(leaf, Column) for leaf in jax.tree.leaves(dataset))


def size(dataset: memory.Dataset) -> int:
    """Bytes of the columns that are read from the disk."""
    stored = jax.tree.leaves(dataset._replace(episode_end=(), starts=()))
    return sum(int(np.prod(one.shape)) * one.dtype.itemsize for one in stored)


def mapped(column: Any, function: Callable[[np.ndarray], np.ndarray]) -> Column:
    """The `Column` with a function applied to whatever is read; it keeps shapes and gives
    float32."""
    return Column(lambda rows: function(column[rows]), column.shape, np.dtype(np.float32))


def flattened(dataset: memory.Dataset) -> memory.Dataset:
    """The same dataset with observations `[R, D]`; see `trees.flatten_dataset`."""
    leaves = trees.flatten(dataset.observation)
    if tuple(leaves) == ((),):
        return dataset
    size = sum(int(np.prod(leaf.shape[1:])) for leaf in leaves.values())

    def read(rows: Rows) -> np.ndarray:
        taken = trees.unflatten({path: leaf[rows] for path, leaf in leaves.items()})
        return trees.observation_vector(
            taken, batch_axes=1 if isinstance(rows, slice) else rows.ndim
        )

    vector = Column(read, (dataset.reward.shape[0], size), np.dtype(np.float32))
    return dataset._replace(observation=vector)


def _as_array(rows: Rows, size: int) -> np.ndarray:
    return np.arange(*rows.indices(size)) if isinstance(rows, slice) else rows


def _moved(rows: np.ndarray, ends: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Rows of the kept episodes to rows of all."""
    return rows + shift[np.searchsorted(ends, rows)]


# --- the order ---


def permuted(index: np.ndarray, size: int, epoch: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Where each index of `0 .. size - 1` goes in an epoch's order: a bijection, computed element
    by element.

    An alternating unbalanced Feistel network on the bits of `size - 1`, walked until it is back in
    the range (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, method 3). It takes
    no memory and no time ahead.

    Args:
      index: [...] in 0 .. size - 1.
      size: number of elements.
      epoch: [...] which order; every epoch has another.
      words: [W] uint32, the randomness.
    """
    bits = max(int(size - 1).bit_length(), 1)
    low = np.uint64(bits // 2)
    masks = np.uint64(2 ** (bits - bits // 2) - 1), np.uint64(2 ** (bits // 2) - 1)
    epochs, which = np.unique(epoch.reshape(-1), return_inverse=True)
    keys = np.stack([_round_keys(words, int(number)) for number in epochs])
    value, pending = index.reshape(-1).astype(np.uint64), np.arange(index.size)
    while pending.size:
        walked, of = value[pending], keys[which[pending]] if len(epochs) > 1 else keys
        high, rest = walked >> low, walked & masks[1]
        for turn in range(0, ROUNDS, 2):
            high ^= _mixed(rest ^ of[:, turn]) & masks[0]
            rest ^= _mixed(high ^ of[:, turn + 1]) & masks[1]
        value[pending] = walked = high << low | rest
        pending = pending[walked >= size]
    return value.astype(np.int64).reshape(index.shape)


def _round_keys(words: np.ndarray, epoch: int) -> np.ndarray:
    return np.random.SeedSequence([*map(int, words), epoch]).generate_state(ROUNDS, np.uint64)


def _mixed(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014): every bit of the result depends on every
    bit of the value."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


# --- batches ---


def bind(dataset: memory.Dataset, sample: Callable, *, block_bytes: int = BLOCK_BYTES) -> Stream:
    """The batches that a learner draws, read from a dataset of the host; `fit` takes it in a
    dataset's place.

    A batch has the form of `sample`'s, but its windows are drawn without replacement within an
    epoch.

    Args:
      dataset: of `Column`s, or of numpy arrays (in memory or mapped).
      sample: `learner.sample`, a `memory.Windows` or `memory.Transitions`.
      block_bytes: what the stacked batches of one dispatch may take.

    Raises:
      UsageError: the learner draws its batches in some other way.
    """
    if not isinstance(sample, memory.Windows | memory.Transitions):
        raise UsageError(
            "this learner draws its batches by a function of its own, and only "
            "`memory.windows(...)` and `memory.transitions(...)` can be streamed: sample with one "
            "of them, or load the data whole (`--stream never`)"
        )
    on_final = isinstance(sample, memory.Windows) and sample.start_on_final
    size = int((dataset.reward if on_final else dataset.starts).shape[0])
    starts = (
        (lambda chosen: chosen)
        if on_final
        else (lambda chosen: np.asarray(dataset.starts[chosen], np.int64))
    )

    def example() -> PyTree:
        return sample.gather(dataset, starts(np.arange(sample.batch_size) % size))

    def read(request: BatchRequest) -> PyTree:
        seed_words = np.asarray(request.seed_words, np.uint32)
        part = _part(sample.batch_size, request.shard)
        updates = np.arange(request.num_updates, dtype=np.int64) + request.first_update
        positions = updates[:, None] * sample.batch_size + part
        chosen = [
            permuted(positions % size, size, positions // size, words)
            for words in seed_words.reshape(-1, seed_words.shape[-1])
        ]
        rows = starts(np.stack(chosen, axis=1).reshape(-1))
        lead = (request.capacity, *seed_words.shape[:-1], len(part))
        return _gathered(lambda rows: sample.gather(dataset, rows), rows, lead)

    return Stream(read=read, example=example, finish=sample.finish, block_bytes=block_bytes)


def _part(batch_size: int, shard: Shard) -> np.ndarray:
    """The places in a batch that are this process's to read."""
    index, count = shard
    if batch_size % count:
        raise UsageError(
            f"a batch of {batch_size} cannot be split over {count} processes; choose a multiple of "
            f"{count}"
        )
    return np.arange(batch_size // count) + index * (batch_size // count)


def _gathered(
    gather: Callable[[np.ndarray], PyTree], rows: np.ndarray, lead: tuple[int, ...]
) -> PyTree:
    """What `gather` returns for all rows, with leading axes `lead` instead of one; what is not
    filled is zero."""
    one = gather(rows[:1])
    step = max(1, GATHER_BYTES // max(sum(leaf.nbytes for leaf in jax.tree.leaves(one)), 1))
    whole = jax.tree.map(
        lambda leaf: np.zeros((int(np.prod(lead)), *leaf.shape[1:]), leaf.dtype), one
    )

    def put(target: np.ndarray, values: np.ndarray) -> None:
        target[at : at + len(values)] = values

    for at in range(0, len(rows), step):
        jax.tree.map(put, whole, gather(rows[at : at + step]))
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), whole)
