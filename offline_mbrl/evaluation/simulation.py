"""Many simulators stepped together: built once, used again by every evaluation, closed at the end.

They run in one thread of this process or are spread over processes. Every simulator has a seed of
its own, so what they answer does not depend on where they run.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dm_env
import numpy as np

from offline_mbrl.evaluation import channels, serving
from offline_mbrl.evaluation.channels import SimulatorFailed
from offline_mbrl.evaluation.serving import Moment
from offline_mbrl.types import UsageError

__all__ = ["Moment", "Simulation", "SimulatorFailed", "Simulators", "make"]


class Simulation(NamedTuple):
    """N simulators that have begun; valid until the next `begin`."""

    step: Callable[[np.ndarray, np.ndarray], Moment]  # (actions [N, ...], active [N] bool)
    first: np.ndarray  # [N, ...] first observations
    action_spec: Any  # a dm_env spec


class Simulators(NamedTuple):
    """Simulators that are kept from one evaluation to the next."""

    begin: Callable[[Sequence[int]], Simulation]  # (a seed for each of N simulators)
    close: Callable[[], None]  # frees them; `begin` would build them again


def make(
    build: Callable[[int], dm_env.Environment], *, timeout: float, processes: int = 0
) -> Simulators:
    """Simulators of one kind; the first `begin` builds them.

    `begin` and `step` raise `SimulatorFailed` when a simulator raises or hangs, and `UsageError`
    when `build` refuses its input. All simulators are then given up, and the next `begin` builds
    others.

    Args:
      build: (seed) -> environment. With processes, a function that can be imported.
      timeout: seconds without an answer, to one step of all or to the building of one, that count
        as hanging.
      processes: that step them; 0 for a thread of this process.
    """
    opened: list[channels.Channel] = []

    def open_all() -> None:
        open_one = channels.in_process if processes else channels.in_thread
        for _ in range(max(processes, 1)):
            opened.append(open_one(build))

    def abandon() -> None:
        for channel in opened:
            channel.abandon()
        opened.clear()

    def answer(channel: channels.Channel) -> Any:
        content = channel.receive(timeout)
        if isinstance(content, serving.Failure):
            raise (UsageError if content.usage else SimulatorFailed)(content.message)
        return content

    def begin(seeds: Sequence[int]) -> Simulation:
        try:
            if not opened:
                open_all()
            bounds = _split(len(seeds), len(opened))
            for channel, rows in zip(opened, bounds, strict=True):
                channel.send(serving.Begin(tuple(seeds[rows])))
            ready = [
                answer(channel)
                for channel, rows in zip(opened, bounds, strict=True)
                for _ in seeds[rows]
            ]
        except BaseException:  # also Ctrl-C: an answer that nobody waits for would be misread
            abandon()
            raise
        used = [
            (channel, rows)
            for channel, rows in zip(opened, bounds, strict=True)
            if rows.stop > rows.start
        ]

        def step(actions: np.ndarray, active: np.ndarray) -> Moment:
            try:
                for channel, rows in used:
                    channel.send(serving.Step(actions[rows], active[rows]))
                moments = [answer(channel) for channel, _ in used]
            except BaseException:
                abandon()
                raise
            return Moment(*(np.concatenate(parts) for parts in zip(*moments, strict=True)))

        first = np.stack([simulator.observation for simulator in ready])
        return Simulation(step=step, first=first, action_spec=ready[0].action_spec)

    def close() -> None:
        for channel in opened:
            channel.close()
        opened.clear()
        _trim()

    return Simulators(begin=begin, close=close)


def _split(size: int, parts: int) -> list[slice]:
    """`size` rows in contiguous parts that differ by one row at most."""
    ends = [size * (part + 1) // parts for part in range(parts)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _trim() -> None:
    """Gives freed memory back to the system, which glibc keeps for the thread that allocated it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return
