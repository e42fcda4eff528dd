"""Building a directory once: locked, in a sibling, then renamed, so that nothing half-written is
ever seen."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import filelock

from offline_mbrl import files
from offline_mbrl.types import UsageError


def root() -> Path:
    """Where datasets live: the environment variable `OFFLINE_MBRL_DATA`, else
    `~/.cache/offline_mbrl`."""
    given = os.environ.get("OFFLINE_MBRL_DATA")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "offline_mbrl"


def build_once(
    target: Path,
    build: Callable[[Path], None],
    *,
    is_complete: Callable[[Path], bool],
    force: bool = False,
) -> bool:
    """Makes `target` by `build(empty directory)` unless it is there; of many processes that ask,
    one builds.

    What a killed build left behind is removed by the next one that takes the lock.

    Args:
      target: the directory to be made.
      build: fills the empty directory that it is given.
      is_complete: says whether a directory is a finished build.
      force: build even if it is there.

    Returns:
      Whether this call built.

    Raises:
      UsageError: the disk is full, read-only, or not ours to write; nothing is left then.
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
        building.chmod(0o755)  # mkdtemp's own mode keeps everybody else out
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
