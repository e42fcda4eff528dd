"""Data that stay on the disk, in a dataset's place: what a run asks of the host between blocks."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from offline_mbrl.types import PyTree


class Shard(NamedTuple):
    """The part of each batch that one process reads."""

    index: int
    count: int


class BatchRequest(NamedTuple):
    """The batches of several updates."""

    seed_words: Any  # [S, W] uint32, each seed's randomness; or [W]: then there is no axis S
    first_update: int
    num_updates: int  # to fill in
    capacity: int  # updates that the stack has room for
    shard: Shard


class ReadBatches(Protocol):
    """Reads the batches of several updates on the host."""

    def __call__(self, request: BatchRequest) -> PyTree:
        """Leaves `[capacity, S, B / shard.count, ...]`; the first `num_updates` are filled."""
        ...


class Stream(NamedTuple):
    """Data that stay on the disk: the host reads the batches of several updates at a time.

    The batch of update `t` depends only on (seed words, t): the number of updates done is the whole
    cursor.
    """

    read: ReadBatches
    example: Callable[[], PyTree]  # a whole batch [B, ...] of the host, always the same
    finish: Callable[[PyTree], PyTree]  # read batch -> what `step` takes; runs inside jit
    block_bytes: int  # of the stacked batches of one dispatch, where one update takes no more
