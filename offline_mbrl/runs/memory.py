"""How much memory this process holds: its own (anonymous), and pages of files that the kernel may
take back."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

STATUS = Path("/proc/self/status")


class Resident(NamedTuple):
    """Bytes in memory."""

    anonymous: int  # where the system does not tell them apart (not Linux): all, at their largest
    file_backed: int  # mapped files and shared memory


def now() -> Resident:
    """Of this process at this moment."""
    try:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        anonymous, *shared = (
            int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem")
        )
    # Another system, or a sandbox's Linux that does not tell them apart
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Resident(peak if sys.platform == "darwin" else peak * 1024, 0)
    return Resident(anonymous, sum(shared))


def watching() -> tuple[Callable[[object], None], Callable[[], Resident]]:
    """A hook for `fit` that looks after every block, and what tells the largest figures that it
    saw."""
    seen = [now()]

    def watch(progress: object) -> None:
        del progress
        seen[0] = Resident(*map(max, seen[0], now()))

    return watch, lambda: seen[0]


def in_words(size: int) -> str:
    """Bytes in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def describe(memory: Resident) -> str:
    """One phrase for a person."""
    return f"{in_words(memory.anonymous)} anonymous, {in_words(memory.file_backed)} of files"
