"""Writes the column files of a store batch by batch, so that a dataset need not fit in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from offline_mbrl.data import memory, steps, trees
from offline_mbrl.data.store import read as store
from offline_mbrl.types import UsageError

# One random episode of every 20 is held out: 5 %, spread evenly over the data.
VALIDATION_EVERY = 20
VALIDATION_SEED = 20260101


class Field(NamedTuple):
    """Dtype and shape of the rows of a column."""

    dtype: np.dtype
    shape: tuple[int, ...]


class Position(NamedTuple):
    """Position of a record in the source, counted from 0 without dropped episodes."""

    episode: int
    step: int  # within the episode
    row: int  # over all episodes


def held_out(episode: int) -> bool:
    """Whether an episode, counted from 0 in the source's order, belongs to the validation split.

    One random episode of every consecutive `VALIDATION_EVERY` does; in the first block always the
    second, so that two episodes suffice for a validation split.
    """
    block, position = divmod(episode, VALIDATION_EVERY)
    if block == 0:
        return position == 1
    generator = np.random.default_rng([VALIDATION_SEED, block])
    return position == int(generator.integers(VALIDATION_EVERY))


def held_out_after(train_episodes: int | None) -> Callable[[int], bool]:
    """The rule of a source whose first episodes are for training and the others are not.

    Args:
      train_episodes: their number; None for `held_out`.
    """
    return held_out if train_episodes is None else lambda episode: episode >= train_episodes


def write(
    directory: Path,
    batches: Iterable[steps.Aligned],
    is_held_out: Callable[[int], bool] = held_out,
) -> dict[str, list[dict[str, Any]]]:
    """Writes aligned columns as files.

    Args:
      directory: the directory of the files.
      batches: whole episodes, in order; every batch has the same fields, shapes and dtypes.
      is_held_out: whether an episode, counted from 0, belongs to the validation split.

    Returns:
      The manifest's `columns`: for each split the columns with path, file, dtype, shape and hashes.

    Raises:
      UsageError: fields, shapes or dtypes differ between batches.
    """
    fields: dict[trees.Path, Field] = {}
    with ExitStack() as opened:
        files: dict[tuple[str, trees.Path], BinaryIO] = {}
        rows: dict[str, int] = dict.fromkeys(store.SPLITS, 0)
        episodes = 0
        for batch in batches:
            batch_fields = {
                path: Field(leaf.dtype, leaf.shape[1:]) for path, leaf in _leaves(batch).items()
            }
            fields = fields or batch_fields
            _refuse_change(fields, batch_fields)
            for split, part in _split(batch, episodes, is_held_out):
                for path, values in _leaves(part, first_row=rows[split]).items():
                    if (split, path) not in files:
                        file = directory / _file_name(split, path, len(files))
                        files[split, path] = opened.enter_context(file.open("wb"))
                    files[split, path].write(np.ascontiguousarray(values).tobytes())
                rows[split] += len(part.columns["reward"])
            episodes += len(batch.episode_ends)
    entries: dict[str, list[dict[str, Any]]] = {}
    for (split, path), file in files.items():
        entries.setdefault(split, []).append(
            _entry(directory / Path(file.name).name, path, fields[path])
        )
    return entries


def locate(
    episode_ends: Mapping[str, np.ndarray],
    split: str,
    rows: Iterable[int],
    is_held_out: Callable[[int], bool] = held_out,
) -> list[Position]:
    """Positions in the source of rows of a split: the inverse of the division by `is_held_out`.

    Args:
      episode_ends: for every split of the dataset, `[E]` rows of its episodes' last records.
      split: the split of the rows.
      rows: rows of the split.
      is_held_out: as of `write`.
    """
    lengths = {name: np.diff(np.concatenate([[-1], ends])) for name, ends in episode_ends.items()}
    validation = np.array(
        [is_held_out(episode) for episode in range(sum(map(len, lengths.values())))], bool
    )
    episodes = {"train": np.flatnonzero(~validation), "validation": np.flatnonzero(validation)}
    source_lengths = np.zeros(len(validation), np.int64)
    for name in lengths:
        source_lengths[episodes[name]] = lengths[name]
    starts = np.cumsum(source_lengths) - source_lengths
    positions = []
    for row in rows:
        index = int(np.searchsorted(episode_ends[split], row))
        episode = int(episodes[split][index])
        step = int(row - (episode_ends[split][index] + 1 - lengths[split][index]))
        positions.append(Position(episode=episode, step=step, row=int(starts[episode]) + step))
    return positions


def take_episodes(part: steps.Aligned, chosen: np.ndarray) -> steps.Aligned:
    """The episodes that `chosen` `[E]` marks; columns are not copied if all are chosen."""
    if chosen.all():
        return part
    lengths = np.diff(np.concatenate([[-1], part.episode_ends]))
    rows = np.repeat(chosen, lengths)
    leaves = {path: leaf[rows] for path, leaf in trees.flatten(part.columns).items()}
    episode_ends = np.cumsum(lengths[chosen]) - 1
    return steps.Aligned(columns=trees.unflatten(leaves), episode_ends=episode_ends, dropped={})


def _split(
    batch: steps.Aligned, first_episode: int, is_held_out: Callable[[int], bool]
) -> Iterator[tuple[str, steps.Aligned]]:
    validation = np.array(
        [is_held_out(first_episode + e) for e in range(len(batch.episode_ends))], bool
    )
    for split, chosen in (("train", ~validation), ("validation", validation)):
        if chosen.any():
            yield split, take_episodes(batch, chosen)


def _leaves(part: steps.Aligned, first_row: int = 0) -> Mapping[trees.Path, np.ndarray]:
    flat = trees.flatten({"columns": part.columns})
    arrays = {path: memory.device_dtype(np.asarray(leaf)) for path, leaf in flat.items()}
    return arrays | {store.ENDS: np.asarray(part.episode_ends + first_row, np.int64)}


def _refuse_change(
    fields: Mapping[trees.Path, Field], batch_fields: Mapping[trees.Path, Field]
) -> None:
    for path in dict.fromkeys([*fields, *batch_fields]):
        first = fields.get(path)
        later = batch_fields.get(path)
        if first != later:
            raise UsageError(
                f"field {'/'.join(path[1:])!r} changes on the way from {_describe(first)} to "
                f"{_describe(later)}; all episodes must have the same fields, shapes and dtypes"
            )


def _describe(field: Field | None) -> str:
    return "nothing" if field is None else f"{field.dtype}{list(field.shape)}"


def _file_name(split: str, path: trees.Path, index: int) -> str:
    plain = [
        "".join(c if c.isalnum() or c in "_-" else "_" for c in part) for part in path[1:] or path
    ]
    return f"{split}.{index:02d}.{'.'.join(plain)}.bin"


def _entry(file: Path, path: trees.Path, field: Field) -> dict[str, Any]:
    rows = file.stat().st_size // (field.dtype.itemsize * int(np.prod(field.shape)))
    return {
        "path": list(path),
        "file": file.name,
        "dtype": field.dtype.name,
        "shape": [rows, *field.shape],
        "sha256": store.chunk_hashes(file),
    }
