"""The column store: one memory-mapped file per field, and a manifest with hashes of all files.

    <directory>/manifest.json            counts, spec, columns and their hashes, origin of the data
    <directory>/manifest.sha256          sha256 of manifest.json
    <directory>/train.<field>.bin        [R, ...] in C order, little endian
    <directory>/validation.<field>.bin   the same for the episodes that are held out

Every chunk of a file has a sha256, which is checked when the chunk is first read: a damaged store
never returns a number.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.data import steps, trees
from offline_mbrl.types import UsageError

FORMAT = 1
CHUNK = 4 * 2**20  # bytes covered by one hash
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
SPLITS = ("train", "validation")
ENDS = ("episode_ends",)  # path of the column with the rows of the episodes' last records


class Column(NamedTuple):
    """A file of a store, not yet read."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    hashes: tuple[str, ...]  # one for each chunk
    verified: set[int]  # chunks whose hashes were checked since the store was opened
    dataset: str  # the store's name, for error messages


class Store(NamedTuple):
    """An open store: its manifest, and its columns by split and path."""

    directory: Path
    manifest: Mapping[str, Any]
    columns: Mapping[str, Mapping[trees.Path, Column]]


def is_complete(directory: Path) -> bool:
    """Whether the directory holds a complete store."""
    return (directory / MANIFEST).is_file() and (directory / MANIFEST_HASH).is_file()


def open_store(directory: Path) -> Store:
    """Opens a store: checks its manifest and the sizes of its files, and reads no data.

    Raises:
      UsageError: the manifest is damaged or of another format, or a file is missing or has another
        length.
    """
    manifest = _read_manifest(directory)
    version = manifest.get("format")
    if version != FORMAT:
        raise UsageError(
            f"{directory} has format {version}, this version reads {FORMAT}; {_rebuild(directory)}"
        )
    columns = {
        split: {
            tuple(entry["path"]): column(directory, entry, manifest["name"]) for entry in entries
        }
        for split, entries in manifest["columns"].items()
    }
    return Store(directory=directory, manifest=manifest, columns=columns)


def read(column: Column, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows of a column, memory-mapped; chunks that they lie in are checked once.

    Args:
      column: a column of an open store.
      start: the first row.
      stop: the row after the last; None: all rows from `start` on.

    Raises:
      UsageError: a chunk is damaged.
    """
    stop = column.shape[0] if stop is None else stop
    if not np.prod(column.shape):
        return np.zeros((stop - start, *column.shape[1:]), column.dtype)
    data = np.memmap(column.file, column.dtype, "r", shape=column.shape)
    row_bytes = data.nbytes // len(data)
    if stop > start:
        _verify(
            column, data, range(start * row_bytes // CHUNK, (stop * row_bytes - 1) // CHUNK + 1)
        )
    return data[start:stop]


def reader(column: Column) -> Callable[[Any], np.ndarray]:
    """A function that reads rows (integers of any shape, or a slice) of a column mapped once.

    The chunks that the rows lie in are checked once. A slice returns a view of the file, not a
    copy. The function raises UsageError if a chunk is damaged.
    """
    if not np.prod(column.shape):
        return lambda rows: np.zeros(column.shape, column.dtype)[rows]
    data = np.asarray(np.memmap(column.file, column.dtype, "r", shape=column.shape))
    row_bytes = data.nbytes // len(data)
    unverified = np.ones(len(column.hashes), bool)
    unverified[list(column.verified)] = False

    def verify(first: np.ndarray, last: np.ndarray) -> None:
        for span in range(int(np.max(last - first, initial=-1)) + 1):
            touched = np.minimum(first + span, last)
            chunks = np.unique(touched[unverified[touched]])
            if len(chunks):
                _verify(column, data, chunks)
                unverified[chunks] = False

    def take(rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(data))
            first = np.array([start])
            last = np.array([max(start, stop - 1)])
        else:
            first = rows
            last = rows
        if unverified.any():
            verify(first * row_bytes // CHUNK, ((last + 1) * row_bytes - 1) // CHUNK)
        return data[rows] if isinstance(rows, slice) else np.take(data, rows, axis=0)

    return take


def verify_all(store: Store) -> int:
    """Checks every chunk of every column.

    Returns:
      The number of chunks.

    Raises:
      UsageError: a chunk is damaged.
    """
    columns = [column for split in store.columns.values() for column in split.values()]
    for column in columns:
        read(column)
    return sum(len(column.hashes) for column in columns)


def aligned(
    store: Store, split: str, *, fields: tuple[str, ...] | None = None
) -> steps.Aligned | None:
    """The columns of a split, memory-mapped.

    Args:
      store: an open store.
      split: `train` or `validation`.
      fields: top-level fields to read; others are neither read nor checked. None: all.

    Returns:
      Aligned columns, or None where the split is empty.
    """
    columns = store.columns.get(split)
    if not columns:
        return None
    leaves = {
        path[1:]: read(column)
        for path, column in columns.items()
        if path != ENDS and (fields is None or path[1] in fields)
    }
    episode_ends = np.asarray(read(columns[ENDS]))
    return steps.Aligned(columns=trees.unflatten(leaves), episode_ends=episode_ends, dropped={})


def chunk_hashes(file: Path) -> list[str]:
    """The sha256 of each chunk of `CHUNK` bytes of a file."""
    with file.open("rb") as opened:
        return [
            hashlib.sha256(chunk).hexdigest() for chunk in iter(lambda: opened.read(CHUNK), b"")
        ]


def fingerprint(columns: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """A hash of columns and spec, independent of where and when the store was built."""
    content = {"format": FORMAT, "columns": columns, "spec": spec}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest and its hash, which completes the store."""
    data = json.dumps({"format": FORMAT, **manifest}, indent=1).encode()
    (directory / MANIFEST).write_bytes(data)
    (directory / MANIFEST_HASH).write_text(hashlib.sha256(data).hexdigest())


# --- checks ---


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        data = (directory / MANIFEST).read_bytes()
        expected = (directory / MANIFEST_HASH).read_bytes().decode("ascii", "replace")
    except OSError as error:
        raise UsageError(
            f"no dataset at {directory}: {error.strerror}; {_rebuild(directory)}"
        ) from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise UsageError(
            f"{directory / MANIFEST} is damaged: its sha256 does not match; {_rebuild(directory)}"
        )
    return json.loads(data)


def column(directory: Path, entry: Mapping[str, Any], dataset: str) -> Column:
    """The column of an entry in a manifest.

    Args:
      directory: the store's directory.
      entry: the entry, with path, file, dtype, shape and hashes.
      dataset: the dataset's name, for error messages.

    Raises:
      UsageError: its file is missing or has another length.
    """
    file = directory / entry["file"]
    dtype = np.dtype(entry["dtype"])
    shape = tuple(entry["shape"])
    expected = int(np.prod(shape)) * dtype.itemsize
    actual = file.stat().st_size if file.is_file() else None
    if actual != expected:
        fault = "is missing" if actual is None else f"has {actual} bytes instead of {expected}"
        raise UsageError(
            f"column {_name(file)} of {dataset} {fault}; {_rebuild(directory, dataset)}"
        )
    return Column(
        file=file,
        dtype=dtype,
        shape=shape,
        hashes=tuple(entry["sha256"]),
        verified=set(),
        dataset=dataset,
    )


def _verify(column: Column, data: np.ndarray, chunks: Iterable[int]) -> None:
    content: Any = data.reshape(-1).view(np.uint8)
    for chunk in chunks:
        if chunk in column.verified:
            continue
        digest = hashlib.sha256(content[chunk * CHUNK : (chunk + 1) * CHUNK]).hexdigest()
        if digest != column.hashes[chunk]:
            raise UsageError(
                f"column {_name(column.file)} of {column.dataset} is damaged: chunk {chunk} of "
                f"{len(column.hashes)} does not match its sha256; "
                f"{_rebuild(column.file.parent, column.dataset)}"
            )
        column.verified.add(chunk)


def _name(file: Path) -> str:
    return repr(file.name.removesuffix(".bin"))


def _rebuild(directory: Path, dataset: str = "NAME") -> str:
    return f"rebuild it: `offline-mbrl data build {dataset} --force`, or remove {directory}"


assert sys.byteorder == "little", "columns are stored little endian"
