"""Many simulators stepped together in a thread of their own, so that one that hangs cannot take the caller with it."""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dm_env
import numpy as np

from offline_mbrl.types import UsageError


class SimulatorFailed(Exception):
    """A simulator raised, or gave no answer in time. The message says which and why."""


class Moment(NamedTuple):
    """What N simulators answered to one step; rows of simulators that were not stepped are not new."""

    observation: np.ndarray  # [N, ...]
    reward: np.ndarray  # [N] float64
    last: np.ndarray  # [N] bool, the step ended an episode; `observation` is then the first of the next one


class Simulation(NamedTuple):
    """N running simulators."""

    step: Callable[[np.ndarray, np.ndarray], Moment]  # (actions [N, ...], active [N] bool) -> Moment
    first: np.ndarray  # [N, ...] first observations
    action_spec: Any  # a dm_env spec
    close: Callable[[], None]  # lets the thread end when it can; returns at once


def start(make: Callable[[int], dm_env.Environment], seeds: Sequence[int], *, timeout: float) -> Simulation:
    """Builds one simulator per seed.

    The thread is a daemon and is never joined: Python can exit while a simulator hangs.

    Args:
      make: (seed) -> environment.
      seeds: of the N simulators.
      timeout: seconds without an answer, to one step of all or to the building of one, that count as hanging.

    Raises:
      SimulatorFailed: a simulator raised or hung, now or in a later `step`.
      UsageError: `make` refused its input.
    """
    requests: queue.SimpleQueue = queue.SimpleQueue()
    answers: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_serve, args=(make, seeds, requests, answers), daemon=True, name="simulators").start()

    def answer() -> Any:
        try:
            found = answers.get(timeout=timeout)
        except queue.Empty:
            raise SimulatorFailed(f"no answer from the simulator within {timeout:g} s") from None
        if isinstance(found, UsageError):
            raise found
        if isinstance(found, Exception):
            raise SimulatorFailed(f"the simulator raised {type(found).__name__}: {found}") from found
        return found

    def step(actions: np.ndarray, active: np.ndarray) -> Moment:
        requests.put((actions, active))
        return answer()

    def close() -> None:
        requests.put(None)

    try:
        built = [answer() for _ in seeds]
    except (SimulatorFailed, UsageError):
        close()
        raise
    return Simulation(step, np.stack([observation for observation, _ in built]), built[0][1], close)


def _serve(make: Callable[[int], dm_env.Environment], seeds: Sequence[int], requests: Any, answers: Any) -> None:
    """The thread: builds the simulators, then answers requests until None comes or something raises."""
    simulators: list[dm_env.Environment] = []
    observations: list[np.ndarray] = []
    try:
        for seed in seeds:
            simulators.append(make(seed))
            observations.append(np.asarray(simulators[-1].reset().observation))
            answers.put((observations[-1], simulators[-1].action_spec()))
        while (request := requests.get()) is not None:
            answers.put(_step(simulators, observations, *request))
    except Exception as error:  # whatever a simulator raises is the caller's to judge
        answers.put(error)
    for simulator in simulators:
        with contextlib.suppress(Exception):
            simulator.close()


def _step(
    simulators: Sequence[dm_env.Environment], observations: list[np.ndarray], actions: np.ndarray, active: np.ndarray
) -> Moment:
    """Steps the active simulators; one whose episode ends starts the next one at once."""
    rewards, last = np.zeros(len(simulators)), np.zeros(len(simulators), bool)
    for row in np.flatnonzero(active).tolist():
        timestep = simulators[row].step(actions[row])
        rewards[row], last[row] = timestep.reward, timestep.last()
        if last[row]:
            timestep = simulators[row].reset()
        observations[row] = np.asarray(timestep.observation)
    return Moment(np.stack(observations), rewards, last)
