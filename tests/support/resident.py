"""The most memory that this process holds while something runs."""

import contextlib
import ctypes
import gc
import threading
import time
from collections.abc import Iterator

import psutil


def now() -> int:
    """Resident bytes, once what was freed has gone back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    return psutil.Process().memory_info().rss


@contextlib.contextmanager
def watched(peaks: list[int]) -> Iterator[None]:
    """Appends the largest resident size that was seen inside the context.

    Args:
      peaks: appended to when the context ends; a look every two milliseconds.
    """
    process = psutil.Process()
    largest = [0]
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            largest[0] = max(largest[0], process.memory_info().rss)
            time.sleep(0.002)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        peaks.append(largest[0])
