"""Two places where simulators run, so that one that hangs cannot take the caller with it."""

import contextlib
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import dm_env

from offline_mbrl.evaluation import serving, worker
from offline_mbrl.types import UsageError

STARTING = 120.0  # seconds for a process to import the package
CLOSING = 5.0  # seconds for simulators to be closed


class SimulatorFailed(Exception):
    """A simulator raised, or gave no answer in time. The message says which and why."""


class Channel(NamedTuple):
    """A way to a row of simulators; see `serving` for requests and answers."""

    send: Callable[[Any], None]  # a request
    receive: Callable[[float], Any]  # the next answer within so many seconds, or SimulatorFailed
    close: Callable[[], None]  # closes the simulators; waits a few seconds for it at most
    abandon: Callable[[], None]  # gives up on simulators that may hang; returns at once


def in_thread(make: Callable[[int], dm_env.Environment]) -> Channel:
    """Simulators in a daemon thread of this process, which does not keep Python from exiting."""
    requests: queue.SimpleQueue = queue.SimpleQueue()
    answers: queue.SimpleQueue = queue.SimpleQueue()
    arguments = (make, requests.get, answers.put)
    thread = threading.Thread(target=serving.serve, args=arguments, daemon=True, name="simulators")
    thread.start()

    def receive(timeout: float) -> Any:
        try:
            return answers.get(timeout=timeout)
        except queue.Empty:
            raise _no_answer(timeout) from None

    def abandon() -> None:
        requests.put(None)

    def close() -> None:
        requests.put(None)
        thread.join(CLOSING)

    return Channel(send=requests.put, receive=receive, close=close, abandon=abandon)


def in_process(make: Callable[[int], dm_env.Environment]) -> Channel:
    """Simulators in a process of their own, which imports neither the caller's script nor a GPU.

    Raises:
      UsageError: `make` cannot be sent there.
    """
    try:
        pickle.dumps(make)
    except Exception as error:  # pickling raises what it likes
        raise UsageError(
            "simulators step in other processes only where the function that makes them can be "
            f"imported from a module ({error}); use processes=0"
        ) from None
    connection, theirs = multiprocessing.Pipe()
    process = _start(theirs.fileno())
    theirs.close()
    starting = [True]

    def receive_within(timeout: float) -> Any:
        try:
            if not connection.poll(timeout):
                raise _no_answer(timeout)
            return connection.recv()
        except (EOFError, ConnectionError):
            raise SimulatorFailed(_ended(process)) from None

    def receive(timeout: float) -> Any:
        if starting:
            receive_within(STARTING)
            starting.clear()
        return receive_within(timeout)

    def send(request: Any) -> None:
        try:
            connection.send(request)
        except (BrokenPipeError, ConnectionError):
            raise SimulatorFailed(_ended(process)) from None

    def abandon() -> None:
        connection.close()
        process.kill()
        process.wait()

    def close() -> None:
        with contextlib.suppress(OSError):
            connection.send(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(CLOSING)
        abandon()

    send(make)
    return Channel(send=send, receive=receive, close=close, abandon=abandon)


def _start(descriptor: int) -> subprocess.Popen:
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-m", worker.__name__, str(descriptor), str(os.getpid())],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
    )


def _no_answer(timeout: float) -> SimulatorFailed:
    return SimulatorFailed(f"no answer from the simulator within {timeout:g} s")


def _ended(process: subprocess.Popen) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
    return f"the process of the simulators ended with exit code {process.poll()}"
