"""Files that appear whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def flush(path: Path) -> None:
    """fsync of a file or a folder, so that a rename never comes to the disk before what it
    names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write(place)` fill a file beside `path`, flushes it, and renames it to `path`.

    Args:
      path: the file; what was there before is replaced.
      write: writes the file that it is given.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    write(unfinished)
    flush(unfinished)
    unfinished.replace(path)
