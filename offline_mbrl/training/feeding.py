"""Where the batches of a block come from: a dataset on the device, or a stream read ahead.

A piece is what one dispatch does: a whole block from a dataset on the device; from a stream no more
updates than their stacked batches may take memory. Which pieces there are changes nothing in the
result.
"""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from offline_mbrl.streams import BatchRequest, Stream
from offline_mbrl.training import blocks as updates
from offline_mbrl.training import sharding
from offline_mbrl.types import Array, Key, Learner, PyTree, UsageError

NO_LIMIT = 2**31 - 1
LONGEST_TRIAL = 100_000  # updates
T = TypeVar("T")
R = TypeVar("R")


class Piece(NamedTuple):
    """The updates of one dispatch."""

    start: int  # updates done before
    stop: int


class Feed(NamedTuple):
    """What a run's programs are compiled for, and what they are given."""

    learner: Learner  # whose `sample` draws from what `pick` returns
    example: PyTree  # shapes of what a dispatch is given
    seed_axis: int | None  # its axis of seeds; None where they share it
    pick: Callable[[PyTree, Array], PyTree]  # see `blocks.run_block`
    most_updates: int  # of one piece
    read: Callable[[Piece], PyTree]  # what a dispatch is given for these updates
    resident: PyTree  # the dataset that `refresh` gets
    reads_ahead: bool  # whether reading takes time, which a thread spends


def source(learner: Learner, dataset: PyTree) -> tuple[Learner, PyTree]:
    """Learner and data for one example batch: a stream gives way to a batch that is only
    finished."""
    if not isinstance(dataset, Stream):
        return learner, dataset
    return _finishing(learner, dataset), dataset.example()


def make(
    learner: Learner, dataset: PyTree, keys: Key, mesh: Mesh | None, *, longest: int = NO_LIMIT
) -> Feed:
    """The feed of a run.

    Args:
      learner: of the run.
      dataset: on the host or device, or a `Stream`.
      keys: [S] keys of the seeds (or [] of a single unbatched run): a stream's randomness.
      mesh: devices to split batches over.
      longest: updates between two ends of blocks; larger stacks would never be full.
    """
    if isinstance(dataset, Stream):
        return _stream_feed(learner, dataset, keys, mesh, longest)
    resident = sharding.replicate(dataset, mesh)
    return Feed(
        learner=learner,
        example=resident,
        seed_axis=None,
        pick=updates.whole_dataset,
        most_updates=NO_LIMIT,
        read=lambda piece: resident,
        resident=resident,
        reads_ahead=False,
    )


def _stream_feed(
    learner: Learner, stream: Stream, keys: Key, mesh: Mesh | None, longest: int
) -> Feed:
    seed_words = np.asarray(jax.device_get(jax.random.key_data(keys)))
    example = stream.example()
    num_seeds = len(seed_words) if keys.ndim else 1
    batch_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(example)) * num_seeds
    capacity = max(1, min(stream.block_bytes // max(batch_bytes, 1), longest))
    lead = (capacity, *keys.shape)

    def read(piece: Piece) -> PyTree:
        request = BatchRequest(
            seed_words=seed_words,
            first_update=piece.start,
            num_updates=piece.stop - piece.start,
            capacity=capacity,
            shard=sharding.shard(mesh),
        )
        return sharding.split_stack(stream.read(request), mesh, axis=len(lead))

    def pick(stacked: PyTree, index: Array) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked
        )

    return Feed(
        learner=_finishing(learner, stream),
        example=sharding.stack_shapes(example, lead, mesh),
        seed_axis=1 if keys.ndim else None,
        pick=pick,
        most_updates=capacity,
        read=read,
        resident=(),
        reads_ahead=True,
    )


def _finishing(learner: Learner, stream: Stream) -> Learner:
    """A learner that is given the stream's batches, and whose refresh has no dataset to read."""

    def sample(batch: PyTree, cache: PyTree, key: Key) -> PyTree:
        del cache, key
        return stream.finish(batch)

    def refresh(state, context, dataset, cache, update, key):
        del dataset
        return learner.refresh(state, context, _Unavailable(), cache, update, key)

    return learner._replace(sample=sample, refresh=refresh)


class _Unavailable:
    """The dataset of a stream's `refresh`: reading it is refused in words."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError(
            f"this learner's refresh reads the dataset ({name!r}), which a stream leaves on the "
            "disk; load the data whole (`--stream never`)"
        )


def blocks(
    start: int, num_updates: int, *, block_updates: int, refresh_every: int, most_updates: int
) -> Iterator[list[Piece]]:
    """The pieces of each block.

    Blocks end at multiples of `block_updates`, before refreshes, and at the end.

    Args:
      start: updates done before.
      num_updates: of the whole run.
      block_updates: see `fit`.
      refresh_every: of the learner; 0 never.
      most_updates: of one piece.
    """
    while start < num_updates:
        stop = min(
            num_updates,
            _next(start, block_updates),
            _next(start, refresh_every or num_updates),
        )
        bounds = [*range(start, stop, most_updates), stop]
        yield [Piece(*both) for both in itertools.pairwise(bounds)]
        start = stop


def _next(step: int, every: int) -> int:
    """The first multiple of `every` after `step`."""
    return (step // every + 1) * every


def held_out(
    learner: Learner, dataset: PyTree, key: Key, num_batches: int, mesh: Mesh | None
) -> tuple[Learner, Callable[[], Iterator[tuple[PyTree, Key]]]]:
    """A learner, and the same held-out batches every time: (data, keys of its batches)."""
    keys = jax.random.split(key, num_batches)
    if not isinstance(dataset, Stream):
        placed = sharding.replicate((dataset, keys), mesh)
        return learner, lambda: iter([placed])
    seed_words = np.asarray(jax.device_get(jax.random.key_data(key)))

    def batches() -> Iterator[tuple[PyTree, Key]]:
        for index in range(num_batches):
            request = BatchRequest(
                seed_words=seed_words,
                first_update=index,
                num_updates=1,
                capacity=1,
                shard=sharding.shard(mesh),
            )
            batch = jax.tree.map(lambda leaf: leaf[0], dataset.read(request))
            batch = sharding.split_stack(batch, mesh, axis=0)
            yield batch, sharding.replicate(keys[index : index + 1], mesh)

    return _finishing(learner, dataset), batches


# --- the length of a block ---


def measure_block(run: Callable, feed: Feed, state: Any, block_seconds: float) -> int:
    """1, 2 or 5 times a power of ten: as many updates as take at most `block_seconds`.

    The time of reading is not counted.

    Args:
      run: (state, data, number of updates) -> (state, report), compiled.
      feed: gives the data.
      state: the `FitState` to resume from; what a block changes of it is copied.
      block_seconds: see `fit`.

    Raises:
      UsageError: there are several processes.
    """
    if jax.process_count() > 1:
        raise UsageError(
            "with several processes the block length must be given: each would measure its own"
        )
    trial = state._replace(
        learner=sharding.copied(state.learner),
        alive=sharding.copied(state.alive),
        step=sharding.copied(state.step),
    )
    most = min(feed.most_updates, LONGEST_TRIAL)
    data = feed.read(Piece(int(state.step), int(state.step) + most))

    def time_block(num_updates: int) -> float:
        nonlocal trial
        began = time.perf_counter()
        trial, _ = jax.block_until_ready(run(trial, data, np.int32(num_updates)))
        return time.perf_counter() - began

    num_updates = 1
    seconds = 0.0
    while not seconds or (seconds < min(0.1, block_seconds / 2) and num_updates < most):
        num_updates = min(4 * num_updates, most)
        # The faster of two: the first may pay for warming up.
        seconds = min(time_block(num_updates), time_block(num_updates))
    return _round_number(max(num_updates * block_seconds / seconds, 1.0))


def _round_number(largest: float) -> int:
    candidates = [factor * 10**power for power in range(8) for factor in (1, 2, 5)]
    return max(number for number in candidates if number <= largest)


# --- reading ahead ---


def opened(
    feed: Feed, plan: Iterable[Piece]
) -> contextlib.AbstractContextManager[Iterator[PyTree]]:
    """What the dispatches of these pieces are given, in order.

    A thread that reads ahead ends with the context.
    """
    if feed.reads_ahead:
        return prefetch(feed.read, plan)
    return contextlib.nullcontext(itertools.repeat(feed.resident))


@contextlib.contextmanager
def prefetch(function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[Iterator[R]]:
    """Results of `function`, in order, each computed in a thread while the one before is in use.

    At most one result waits. An error of the function is raised where its result is asked for. The
    thread has ended when the context is left, however it is left; a call that is under way is
    finished first.
    """
    pool = ThreadPoolExecutor(1, "offline-mbrl-prefetch")

    def results() -> Iterator[R]:
        ahead = deque()
        for argument in arguments:
            ahead.append(pool.submit(function, argument))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)
