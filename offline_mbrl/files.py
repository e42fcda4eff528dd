"""Atomic writing of files."""

import os
from collections.abc import Callable
from pathlib import Path


def flush(path: Path) -> None:
    """Flushes a file or folder to the disk (fsync), before a rename makes it visible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file atomically: to a sibling, which is flushed and renamed to `path`.

    Args:
      path: the file, which replaces an existing one.
      write: writes the file at the path that it is called with.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    write(unfinished)
    flush(unfinished)
    unfinished.replace(path)
