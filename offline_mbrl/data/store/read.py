"""The column store: one raw file per field, memory-mapped, and a manifest with a sha256 for every
chunk of every file.

    <directory>/manifest.json            counts, spec, columns and their hashes, where the data came
    from <directory>/manifest.sha256          of the bytes of manifest.json
    <directory>/train.<field>.bin        [R, ...] in C order, little endian
    <directory>/validation.<field>.bin   the same for the episodes that are held out

A chunk is checked when it is first read; a store that was damaged never gives a number.
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
MANIFEST, MANIFEST_HASH = "manifest.json", "manifest.sha256"
SPLITS = ("train", "validation")
ENDS = ("episode_ends",)  # path of the column with the rows of the episodes' last records


class Column(NamedTuple):
    """One file of a store, not yet read."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    hashes: tuple[str, ...]  # one for each chunk
    verified: set[int]  # chunks that were found whole since the store was opened
    dataset: str  # the store's name, for messages


class Store(NamedTuple):
    """An open store: its manifest, and its columns by split and path."""

    directory: Path
    manifest: Mapping[str, Any]
    columns: Mapping[str, Mapping[trees.Path, Column]]


def is_complete(directory: Path) -> bool:
    """Whether a store was built there."""
    return (directory / MANIFEST).is_file() and (directory / MANIFEST_HASH).is_file()


def open_store(directory: Path) -> Store:
    """Opens a store: checks its manifest and the files' sizes, reads no data.

    Raises:
      UsageError: the manifest is damaged or of another format, or a file is missing or has another
        length.
    """
    manifest = _read_manifest(directory)
    if manifest.get("format") != FORMAT:
        found = manifest.get("format")
        raise UsageError(
            f"{directory} has format {found}, this version reads {FORMAT}; {_rebuild(directory)}"
        )
    columns = {
        split: {
            tuple(entry["path"]): column(directory, entry, manifest["name"]) for entry in entries
        }
        for split, entries in manifest["columns"].items()
    }
    return Store(directory, manifest, columns)


def read(column: Column, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows `start` to `stop` of a column, memory-mapped; the chunks they lie in are checked if they
    were not yet.

    Raises:
      UsageError: a chunk is not what was written.
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
    """A function of rows (an integer array of any shape, or a slice) that reads just those, mapped
    once.

    The chunks that the rows lie in are checked if they were not yet. A slice is a view of the file,
    not a copy.

    Raises:
      UsageError: (when called) a chunk is not what was written.
    """
    if not np.prod(column.shape):
        return lambda rows: np.zeros(column.shape, column.dtype)[rows]
    data = np.asarray(np.memmap(column.file, column.dtype, "r", shape=column.shape))
    row_bytes = data.nbytes // len(data)
    unknown = np.ones(len(column.hashes), bool)
    unknown[list(column.verified)] = False

    def verify(first: np.ndarray, last: np.ndarray) -> None:
        for span in range(int(np.max(last - first, initial=-1)) + 1):
            touched = np.minimum(first + span, last)
            if len(new := np.unique(touched[unknown[touched]])):
                _verify(column, data, new)
                unknown[new] = False

    def take(rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            begin, end, _ = rows.indices(len(data))
            bounds = np.array([begin]), np.array([max(begin, end - 1)])
        else:
            bounds = rows, rows
        if unknown.any():
            verify(bounds[0] * row_bytes // CHUNK, ((bounds[1] + 1) * row_bytes - 1) // CHUNK)
        return data[rows] if isinstance(rows, slice) else np.take(data, rows, axis=0)

    return take


def verify_all(store: Store) -> int:
    """Checks every chunk of every column.

    Returns:
      The number of chunks.

    Raises:
      UsageError: a chunk is not what was written.
    """
    columns = [column for split in store.columns.values() for column in split.values()]
    for column in columns:
        read(column)
    return sum(len(column.hashes) for column in columns)


def aligned(
    store: Store, split: str, *, fields: tuple[str, ...] | None = None
) -> steps.Aligned | None:
    """The columns of one split, memory-mapped.

    Args:
      store: an open store.
      split: `train` or `validation`.
      fields: top-level fields that are read; others are neither read nor checked. None for all.

    Returns:
      Aligned columns, or None where the split is empty.
    """
    columns = store.columns.get(split)
    if not columns:
        return None
    wanted = {
        path[1:]: read(column)
        for path, column in columns.items()
        if path != ENDS and (fields is None or path[1] in fields)
    }
    return steps.Aligned(trees.unflatten(wanted), np.asarray(read(columns[ENDS])), {})


def chunk_hashes(file: Path) -> list[str]:
    """The sha256 of every `CHUNK` bytes of a file."""
    with file.open("rb") as opened:
        return [
            hashlib.sha256(chunk).hexdigest() for chunk in iter(lambda: opened.read(CHUNK), b"")
        ]


def fingerprint(columns: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """A name for the content: equal for equal columns and spec, wherever and whenever they were
    made."""
    content = {"format": FORMAT, "columns": columns, "spec": spec}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest and its hash; with that the store is complete."""
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
    """The column that an entry in the manifest of `dataset` describes.

    Raises:
      UsageError: its file is missing or has another length.
    """
    file, dtype, shape = directory / entry["file"], np.dtype(entry["dtype"]), tuple(entry["shape"])
    expected = int(np.prod(shape)) * dtype.itemsize
    found = file.stat().st_size if file.is_file() else None
    if found != expected:
        size = "is missing" if found is None else f"has {found} bytes instead of {expected}"
        raise UsageError(
            f"column {_name(file)} of {dataset} {size}; {_rebuild(directory, dataset)}"
        )
    return Column(file, dtype, shape, tuple(entry["sha256"]), set(), dataset)


def _verify(column: Column, data: np.ndarray, chunks: Iterable[int]) -> None:
    content: Any = data.reshape(-1).view(np.uint8)
    for chunk in chunks:
        if chunk in column.verified:
            continue
        found = hashlib.sha256(content[chunk * CHUNK : (chunk + 1) * CHUNK]).hexdigest()
        if found != column.hashes[chunk]:
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
