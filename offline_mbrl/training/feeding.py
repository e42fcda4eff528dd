"""Where the batches of a block come from: a dataset on the device, or a stream that one thread reads ahead.

A piece is what one dispatch does: a whole block from a dataset on the device; from a stream no more updates than
their stacked batches may take memory. Which pieces there are changes nothing in the result.
"""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from offline_mbrl.training import sharding
from offline_mbrl.types import Array, Learner, PyTree, Stream, UsageError

NO_LIMIT = 2**31 - 1
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
    pick: Callable[[PyTree, Array], PyTree]  # (what a dispatch is given, number of the update in it); see `run_block`
    most_updates: int  # of one piece
    read: Callable[[Piece], PyTree]  # what a dispatch is given for these updates
    resident: PyTree  # the dataset that `refresh` gets
    ahead: bool  # whether reading takes time, which a thread spends


def drawn(learner: Learner, dataset: PyTree) -> tuple[Learner, PyTree]:
    """Learner and data for one example batch: a stream gives way to a batch that `sample` has only to finish."""
    if not isinstance(dataset, Stream):
        return learner, dataset
    return learner._replace(sample=lambda batch, key: dataset.finish(batch)), dataset.example()


def make(learner: Learner, dataset: PyTree, keys: Array, mesh: Mesh | None, *, longest: int = NO_LIMIT) -> Feed:
    """The feed of a run.

    Args:
      learner: of the run.
      dataset: on the host or device, or a `Stream`.
      keys: [S] keys of the seeds (or [] of a single unbatched run); their bits are a stream's randomness.
      mesh: devices to split batches over.
      longest: updates between two ends of blocks; larger stacks would never be full.
    """
    if not isinstance(dataset, Stream):
        placed = sharding.replicate(dataset, mesh)
        return Feed(
            learner, placed, None, lambda dataset, index: dataset, NO_LIMIT, lambda piece: placed, placed, ahead=False
        )
    words = np.asarray(jax.device_get(jax.random.key_data(keys)))
    finishing, example = drawn(learner, dataset)
    finishing = finishing._replace(refresh=lambda state, dataset, key: learner.refresh(state, _Unavailable(), key))
    batch_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(example)) * (len(words) if keys.ndim else 1)
    size = max(1, min(dataset.block_bytes // max(batch_bytes, 1), longest))
    lead = (size, *keys.shape)

    def read(piece: Piece) -> PyTree:
        stacked = dataset.read(words, piece.start, piece.stop - piece.start, size, sharding.share(mesh))
        return sharding.split_stack(stacked, mesh, axis=len(lead))

    def pick(stacked: PyTree, index: Array) -> PyTree:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked)

    shapes, axis = sharding.stack_shapes(example, lead, mesh), 1 if keys.ndim else None
    return Feed(finishing, shapes, axis, pick, size, read, (), ahead=True)


class _Unavailable:
    """The dataset of a stream's `refresh`: whoever reads it is told so."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError(
            f"this learner's refresh reads the dataset ({name!r}), which a stream leaves on the disk; load the data "
            "whole (`--stream never`)")  # fmt: skip


def blocks(
    start: int, num_updates: int, *, block_updates: int, refresh_every: int, most_updates: int
) -> Iterator[list[Piece]]:
    """The pieces of each block. Blocks end at multiples of `block_updates`, before refreshes, and at the end.

    Args:
      start: updates done before.
      num_updates: of the whole run.
      block_updates: see `fit`.
      refresh_every: of the learner; 0 never.
      most_updates: of one piece.
    """
    while start < num_updates:
        stop = min(num_updates, _next(start, block_updates), _next(start, refresh_every or num_updates))
        bounds = [*range(start, stop, most_updates), stop]
        yield [Piece(*both) for both in itertools.pairwise(bounds)]
        start = stop


def held_out(
    learner: Learner, dataset: PyTree, key: Array, num_batches: int, mesh: Mesh | None
) -> tuple[Learner, Callable[[], Iterator[tuple[PyTree, Array]]]]:
    """A learner, and what it draws the same held-out batches from every time: (data, keys of its batches)."""
    keys = jax.random.split(key, num_batches)
    if not isinstance(dataset, Stream):
        placed = sharding.replicate((dataset, keys), mesh)
        return learner, lambda: iter([placed])
    words = np.asarray(jax.device_get(jax.random.key_data(key)))
    learner = learner._replace(sample=lambda batch, key: dataset.finish(batch))

    def batches() -> Iterator[tuple[PyTree, Array]]:
        for index in range(num_batches):
            stacked = dataset.read(words, index, 1, 1, sharding.share(mesh))
            batch = jax.tree.map(lambda leaf: leaf[0], stacked)
            yield sharding.split_stack(batch, mesh, axis=0), sharding.replicate(keys[index : index + 1], mesh)

    return learner, batches


def measure_block(run: Callable, feed: Feed, state: Any, block_seconds: float) -> int:
    """1, 2 or 5 times a power of ten: as many updates as take at most `block_seconds`, without the reading.

    Args:
      run: (state, data, number of updates) -> (state, report), compiled.
      feed: gives the data.
      state: the `FitState` to go on from; it is copied.
      block_seconds: see `fit`.

    Raises:
      UsageError: there are several processes.
    """
    if jax.process_count() > 1:
        raise UsageError("with several processes the block length must be given: each would measure its own")
    trial, num_updates, seconds, most = jax.tree.map(jnp.copy, state), 1, 0.0, min(feed.most_updates, 100_000)
    data = feed.read(Piece(int(state.step), int(state.step) + most))
    while not seconds or (seconds < min(0.1, block_seconds / 2) and num_updates < most):
        num_updates = min(4 * num_updates, most)
        trials = []
        for _ in range(2):  # the faster of two: the first may pay for warming up
            began = time.perf_counter()
            trial, _ = jax.block_until_ready(run(trial, data, np.int32(num_updates)))
            trials.append(time.perf_counter() - began)
        seconds = min(trials)
    affordable = max(num_updates * block_seconds / seconds, 1.0)
    return max(n for power in range(8) for n in (10**power, 2 * 10**power, 5 * 10**power) if n <= affordable)


def _next(step: int, every: int) -> int:
    """The first multiple of `every` after `step`."""
    return (step // every + 1) * every


def opened(feed: Feed, plan: Iterable[Piece]) -> contextlib.AbstractContextManager[Iterator[PyTree]]:
    """What the dispatches of these pieces are given, in order; a thread that reads ahead ends with the context."""
    return prefetch(feed.read, plan) if feed.ahead else contextlib.nullcontext(itertools.repeat(feed.resident))


@contextlib.contextmanager
def prefetch(function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[Iterator[R]]:
    """Results of `function`, in order, each computed in a thread while the one before it is in use.

    At most one result waits. An error of the function is raised where its result is asked for. The thread has ended
    when the context is left, however it is left; a call that is under way is finished first.
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
