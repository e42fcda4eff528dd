"""A table of finished work, one row a piece, in a CSV that is also the record to resume from.

Any number of processes may work at the same table: each claims a piece by a lock that the system frees when the
process ends, however it ends, and each row is added to a fresh copy that then replaces the table.
"""

import csv
import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import filelock

from offline_mbrl import files
from offline_mbrl.types import UsageError

TABLE, LOCKS = "runs.csv", ".locks"
Row = TypeVar("Row", bound=tuple)  # a NamedTuple of str, int and float fields


def read(folder: Path, kind: type[Row]) -> list[Row]:
    """All rows; none where there is no table.

    A field with a default may be missing from a table that was begun before there was such a field: its rows have
    the default.

    Raises:
      UsageError: the table is damaged or of another kind.
    """
    path = folder / TABLE
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    later: set[str] = set(getattr(kind, "_field_defaults", ()))
    try:
        return [kind(**{name: make(line[name]) for name, make in kind.__annotations__.items()
                        if name in line or name not in later}) for line in lines]  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a table of runs ({error}); repair it, or start over with --fresh") from error


def append(folder: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Adds rows; the file on disk is the old table or the new one, never anything between.

    Raises:
      UsageError: see `read`.
    """
    with locked(folder, TABLE, wait=True):
        _replace(folder, kind, [*read(folder, kind), *rows])


def discard(folder: Path, kind: type[Row], which: Callable[[Row], bool]) -> None:
    """Takes out the rows that `which` is true of, whole or not at all, and the table where no row is left.

    Raises:
      UsageError: see `read`.
    """
    if not (folder / TABLE).exists():
        return
    with locked(folder, TABLE, wait=True):
        if left := [row for row in read(folder, kind) if not which(row)]:
            _replace(folder, kind, left)
        else:
            (folder / TABLE).unlink(missing_ok=True)


def _replace(folder: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    def write(place: Path) -> None:
        with place.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(kind.__annotations__)
            writer.writerows(rows)

    files.write_whole(folder / TABLE, write)


def locked(folder: Path, name: str, *, wait: bool = False) -> AbstractContextManager[Any]:
    """An acquired lock; the end of the context frees it.

    Raises:
      filelock.Timeout: another process has it, and `wait` is false.
    """
    place = folder / LOCKS
    place.mkdir(parents=True, exist_ok=True)
    (place / ".gitignore").write_text("*\n")
    lock = filelock.FileLock(place / hashlib.sha256(name.encode()).hexdigest()[:16])
    return lock.acquire(timeout=-1 if wait else 0)
