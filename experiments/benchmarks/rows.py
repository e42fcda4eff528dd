"""A table of finished work, one row a piece, in a CSV that is also the record to resume from.

Any number of processes may work at the same table: each claims a piece by a lock that the system
frees when the process ends, however it ends, and rows are added to a fresh copy that then replaces
the table.
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

TABLE = "runs.csv"
LOCKS = ".locks"
Row = TypeVar("Row", bound=tuple)  # a NamedTuple of str, int and float fields


# --- the table ---


def read(folder: Path, kind: type[Row]) -> list[Row]:
    """All rows; none where there is no table.

    A field with a default may be missing from a table that was begun before there was such a field:
    its rows have the default.

    Raises:
      UsageError: the table is damaged or of another kind.
    """
    path = folder / TABLE
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    try:
        return [_parsed(line, kind) for line in lines]
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is not a table of runs ({error}); repair it, or start over with --fresh"
        ) from error


def _parsed(line: dict[str, str], kind: type[Row]) -> Row:
    optional: set[str] = set(getattr(kind, "_field_defaults", ()))
    fields = {
        name: convert(line[name])
        for name, convert in kind.__annotations__.items()
        if name in line or name not in optional
    }
    return kind(**fields)


def append(folder: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Adds rows; the file on disk is the old table or the new one, never anything between.

    Args:
      folder: of the table; it is made where it is absent.
      kind: of the rows.
      rows: to add.

    Raises:
      UsageError: see `read`.
    """
    with locked(folder, TABLE, wait=True):
        _replace(folder, kind, [*read(folder, kind), *rows])


def discard(folder: Path, kind: type[Row], which: Callable[[Row], bool]) -> None:
    """Takes out the rows that `which` is true of, and the table where no row is left.

    Args:
      folder: of the table.
      kind: of the rows.
      which: whether a row goes.

    Raises:
      UsageError: see `read`.
    """
    if not (folder / TABLE).exists():
        return
    with locked(folder, TABLE, wait=True):
        kept = [row for row in read(folder, kind) if not which(row)]
        if kept:
            _replace(folder, kind, kept)
        else:
            clear(folder)


def clear(folder: Path) -> None:
    """Removes the table, even a damaged one."""
    (folder / TABLE).unlink(missing_ok=True)


def by_setting(rows: Iterable[Any], kind: type[Row]) -> dict[Row, dict[int, Any]]:
    """Setting -> seed -> row; of two rows of one run, the last.

    Args:
      rows: each with the fields of `kind`, and `seed`.
      kind: a NamedTuple of what was run.
    """
    runs: dict[Row, dict[int, Any]] = {}
    for row in rows:
        runs.setdefault(setting_of(row, kind), {})[row.seed] = row
    return runs


def setting_of(row: Any, kind: type[Row]) -> Row:
    """The fields of `kind`, from a row that has them."""
    return kind(*(getattr(row, name) for name in kind.__annotations__))


def _replace(folder: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    def write(place: Path) -> None:
        with place.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(kind.__annotations__)
            writer.writerows(rows)

    files.write_whole(folder / TABLE, write)


# --- claims of processes ---


def locked(folder: Path, name: str, *, wait: bool = False) -> AbstractContextManager[Any]:
    """An acquired lock; the end of the context frees it.

    Args:
      folder: of the table.
      name: of what is locked.
      wait: until another process frees it.

    Raises:
      filelock.Timeout: another process has it, and `wait` is false.
    """
    place = folder / LOCKS
    place.mkdir(parents=True, exist_ok=True)
    (place / ".gitignore").write_text("*\n")
    lock = filelock.FileLock(place / hashlib.sha256(name.encode()).hexdigest()[:16])
    return lock.acquire(timeout=-1 if wait else 0)
