"""Builds a directory once and atomically: under a lock, in a sibling that is renamed at the end."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import filelock

from offline_mbrl import files
from offline_mbrl.types import UsageError


def root() -> Path:
    """The folder of all datasets: `$OFFLINE_MBRL_DATA`, by default `~/.cache/offline_mbrl`."""
    folder = os.environ.get("OFFLINE_MBRL_DATA")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "offline_mbrl"


def build_once(
    target: Path,
    build: Callable[[Path], None],
    *,
    is_complete: Callable[[Path], bool],
    force: bool = False,
) -> bool:
    """Builds a directory unless it exists; one of several concurrent processes builds.

    The remains of a killed build are removed by the next process that takes the lock.

    Args:
      target: the directory to build.
      build: fills an empty directory.
      is_complete: whether a directory is a finished build.
      force: rebuild an existing directory.

    Returns:
      Whether this call built it.

    Raises:
      UsageError: the disk is full or not writable; no partial build is left then.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / f".{target.name}.lock"):
            _remove_leftovers(target)
            if is_complete(target) and not force:
                return False
            _build(target, build)
            return True
    except OSError as error:
        raise UsageError(
            f"cannot write {target}: {error.strerror or error}; free space there, or set "
            "OFFLINE_MBRL_DATA to a directory that can be written"
        ) from error


def _build(target: Path, build: Callable[[Path], None]) -> None:
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-", dir=target.parent))
    try:
        build(building)
        building.chmod(0o755)  # mkdtemp's own mode excludes other users
        for path in [*building.rglob("*"), building]:
            files.flush(path)
        if target.exists():
            target.rename(target.parent / f".{target.name}.building-replaced-{os.getpid()}")
        building.rename(target)
        files.flush(target.parent)
    finally:
        _remove_leftovers(target)


def _remove_leftovers(target: Path) -> None:
    for path in target.parent.iterdir():
        if path.name.startswith(f".{target.name}.building-"):
            shutil.rmtree(path, ignore_errors=True)
