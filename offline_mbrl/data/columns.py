"""Writing the column files of a store, batch by batch, so that a dataset need not fit in memory."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from offline_mbrl.data import memory, steps, store, trees
from offline_mbrl.types import UsageError

VALIDATION_EVERY = 20  # one random episode of every 20 is held out: 5 %, spread over the whole of the data
VALIDATION_SEED = 20260101


class Leaf(NamedTuple):
    """A column that is being written."""

    file: BinaryIO
    dtype: np.dtype
    shape: tuple[int, ...]  # of one row


def write(directory: Path, batches: Iterable[steps.Aligned]) -> dict[str, list[dict[str, Any]]]:
    """Writes aligned columns as files.

    Args:
      directory: where the files go.
      batches: whole episodes, in order; every batch has the same fields, shapes and dtypes.

    Returns:
      The manifest's `columns` entry: for each split the columns with path, file, dtype, shape and hashes.

    Raises:
      UsageError: fields, shapes or dtypes change on the way.
    """
    with ExitStack() as opened:
        leaves: dict[tuple[str, trees.Path], Leaf] = {}
        rows: dict[str, int] = dict.fromkeys(store.SPLITS, 0)
        episodes = 0
        for batch in batches:
            for split, part in _split(batch, first_episode=episodes):
                flat = _leaves(part, rows[split])
                for path, values in flat.items():
                    if (split, path) not in leaves:
                        _refuse_new_field(path, rows[split])
                        file = opened.enter_context((directory / _file_name(split, path, len(leaves))).open("wb"))
                        leaves[split, path] = Leaf(file, values.dtype, values.shape[1:])
                    _append(leaves[split, path], path, values)
                _refuse_lost_field({path for at, path in leaves if at == split} - set(flat))
                rows[split] += len(part.columns["reward"])
            episodes += len(batch.episode_ends)
    entries: dict[str, list[dict[str, Any]]] = {}
    for (split, path), leaf in leaves.items():
        entries.setdefault(split, []).append(_entry(directory, path, leaf))
    return entries


def held_out(episode: int) -> bool:
    """Whether an episode, counted from 0 in the source's order, belongs to the validation split.

    One random episode of every consecutive `VALIDATION_EVERY`; of the first block always the second, so that two
    episodes suffice to have a validation split.
    """
    block, place = divmod(episode, VALIDATION_EVERY)
    return place == (1 if block == 0 else np.random.default_rng([VALIDATION_SEED, block]).integers(VALIDATION_EVERY))


def take_episodes(part: steps.Aligned, chosen: np.ndarray) -> steps.Aligned:
    """The chosen episodes, `chosen` `[E]` bool; the arrays themselves when all are chosen."""
    if chosen.all():
        return part
    lengths = np.diff(np.concatenate([[-1], part.episode_ends]))
    rows = np.repeat(chosen, lengths)
    taken = {path: leaf[rows] for path, leaf in trees.flatten(part.columns).items()}
    return steps.Aligned(trees.unflatten(taken), np.cumsum(lengths[chosen]) - 1, {})


def _split(batch: steps.Aligned, *, first_episode: int) -> Iterator[tuple[str, steps.Aligned]]:
    validation = np.array([held_out(first_episode + e) for e in range(len(batch.episode_ends))], bool)
    for split, chosen in (("train", ~validation), ("validation", validation)):
        if chosen.any():
            yield split, take_episodes(batch, chosen)


def _leaves(part: steps.Aligned, first_row: int) -> Mapping[trees.Path, np.ndarray]:
    flat = trees.flatten({"columns": part.columns})
    arrays = {path: memory.device_dtype(np.asarray(leaf)) for path, leaf in flat.items()}
    return arrays | {store.ENDS: np.asarray(part.episode_ends + first_row, np.int64)}


def _append(leaf: Leaf, path: trees.Path, values: np.ndarray) -> None:
    if (values.dtype, values.shape[1:]) != (leaf.dtype, leaf.shape):
        raise UsageError(
            f"field {'/'.join(path[1:])!r} changes on the way from {leaf.dtype}{list(leaf.shape)} to "
            f"{values.dtype}{list(values.shape[1:])}; all episodes must have the same shapes and dtypes")  # fmt: skip
    leaf.file.write(np.ascontiguousarray(values).tobytes())


def _refuse_new_field(path: trees.Path, rows: int) -> None:
    if rows:
        raise UsageError(f"field {'/'.join(path[1:])!r} appears after {rows} steps; all episodes must have it")


def _refuse_lost_field(lost: set[trees.Path]) -> None:
    if lost:
        raise UsageError(f"field {'/'.join(sorted(lost)[0][1:])!r} is missing from later episodes")


def _file_name(split: str, path: trees.Path, index: int) -> str:
    plain = ["".join(c if c.isalnum() or c in "_-" else "_" for c in part) for part in path[1:] or path]
    return f"{split}.{index:02d}.{'.'.join(plain)}.bin"


def _entry(directory: Path, path: trees.Path, leaf: Leaf) -> dict[str, Any]:
    file = directory / Path(leaf.file.name).name
    row_bytes = leaf.dtype.itemsize * int(np.prod(leaf.shape))
    rows = file.stat().st_size // row_bytes if row_bytes else 0
    return {
        "path": list(path), "file": file.name, "dtype": leaf.dtype.name, "shape": [rows, *leaf.shape],
        "sha256": store.chunk_hashes(file)}  # fmt: skip
