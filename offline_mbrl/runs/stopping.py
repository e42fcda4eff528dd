"""SIGTERM: what is being trained is saved first, anything else stops at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM came where nothing has to be saved.

    It is not an error, so `except Exception` lets it through.
    """


class Stopping(NamedTuple):
    """What a run asks about SIGTERM."""

    requested: Callable[[], bool]  # whether it has come
    # Inside this context the signal only asks; outside it raises Terminated.
    deferred: Callable[[], AbstractContextManager[None]]


@contextlib.contextmanager
def on_sigterm() -> Iterator[Stopping]:
    """Handles SIGTERM in the main thread; the earlier handler is put back.

    Raises:
      Terminated: on the signal, outside of `deferred`.
    """
    received: list[int] = []
    deferring: list[bool] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        if not deferring:
            raise Terminated

    @contextlib.contextmanager
    def deferred() -> Iterator[None]:
        deferring.append(True)
        try:
            yield
        finally:
            deferring.pop()

    stopping = Stopping(lambda: bool(received), deferred)
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    earlier_handler = signal.signal(signal.SIGTERM, handle)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, earlier_handler)
