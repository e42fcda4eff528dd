"""The program of a process that steps simulators: `python -m offline_mbrl.evaluation.worker`.

It serves one connection until that is closed. Signals are its parent's to answer: it ignores them,
so that Ctrl-C does not end an evaluation from below, and ends when its parent does.
"""

import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from offline_mbrl.evaluation import serving

READY = "ready"  # the first message, once this module is imported


def main(descriptor: int, parent: int) -> None:
    """Serves the connection.

    Args:
      descriptor: of the file that the connection is.
      parent: the process that started this one.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)

    def receive() -> Any:
        try:
            return connection.recv()
        except (EOFError, ConnectionError):
            return None

    def send(answer: Any) -> None:
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionError):
            os._exit(1)  # the parent has gone

    send(READY)
    try:
        make = receive()
    except Exception as error:  # whatever reading it by its name raises
        message = f"the function that makes simulators cannot be imported ({error})"
        send(serving.Failure(message, usage=True))
        return
    if make is not None:
        serving.serve(make, receive, send)


def _end_with(parent: int) -> None:
    """Ends this process when the parent has ended, also while a simulator hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
