"""How much memory this process holds: its own, and pages of files that the kernel may take back."""

from collections.abc import Callable
from typing import NamedTuple

import psutil

from offline_mbrl.training.fit import DeviceMemory


class Resident(NamedTuple):
    """Bytes in memory."""

    anonymous: int  # all of them where the system does not tell the two apart (not Linux)
    file_backed: int  # mapped files and shared memory


def now() -> Resident:
    """Of this process at this moment."""
    info = psutil.Process().memory_info()
    shared = getattr(info, "shared", 0)
    return Resident(anonymous=info.rss - shared, file_backed=shared)


def watching() -> tuple[Callable[[object], None], Callable[[], Resident]]:
    """A hook for `fit` that looks after every block, and the largest figures that it saw."""
    largest = now()

    def watch(progress: object) -> None:
        nonlocal largest
        del progress
        largest = Resident(*map(max, largest, now()))

    return watch, lambda: largest


def in_words(size: int) -> str:
    """Bytes in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def describe(memory: Resident) -> str:
    """One phrase for a person."""
    anonymous = in_words(memory.anonymous)
    return f"{anonymous} anonymous, {in_words(memory.file_backed)} of files"


def describe_device(memory: DeviceMemory) -> str:
    """One phrase for a person: what a run will hold on each device, and all of it together."""
    parts = {
        "data": memory.dataset,
        "the learner": memory.state,
        "imagined data": memory.cache,
        "temporaries": memory.temporary,
    }
    listed = ", ".join(f"{name} {in_words(size)}" for name, size in parts.items() if size)
    return f"{in_words(sum(parts.values()))} on the device ({listed})"
