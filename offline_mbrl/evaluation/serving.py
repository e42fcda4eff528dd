"""What a row of simulators is asked and answers, wherever it runs: a thread or another process."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dm_env
import numpy as np

from offline_mbrl import environments
from offline_mbrl.types import UsageError


class Begin(NamedTuple):
    """The request for simulators with these seeds, each at the start of its first episode."""

    seeds: tuple[int, ...]


class Step(NamedTuple):
    """The request for one step of n simulators."""

    actions: np.ndarray  # [n, ...]
    active: np.ndarray  # [n] bool, those that are stepped


class Ready(NamedTuple):
    """The answer to `Begin`, of each simulator in turn."""

    observation: np.ndarray  # [...] the first
    action_spec: Any  # a dm_env spec


class Moment(NamedTuple):
    """The answer to `Step`; rows of simulators that were not stepped are as before."""

    observation: np.ndarray  # [n, ...]
    reward: np.ndarray  # [n] float64
    # [n] bool, the step ended an episode; `observation` is then the first of the next one
    last: np.ndarray
    terminal: np.ndarray  # [n] bool, it ended in a true terminal


class Failure(NamedTuple):
    """The last answer: a simulator raised."""

    message: str
    usage: bool  # whether it was the user's error, raised as such


def serve(
    make: Callable[[int], dm_env.Environment],
    receive: Callable[[], Begin | Step | None],
    send: Callable[[Any], None],
) -> None:
    """Answers requests until there are no more or a simulator raises.

    Simulators are kept from one `Begin` to the next and seeded again where that is possible. Their
    episodes do not depend on what was played before.

    Args:
      make: (seed) -> environment.
      receive: the next request; None for the end.
      send: takes an answer: a `Ready` for each seed of `Begin`, a `Moment` for a `Step`, or a
        `Failure`.
    """
    simulators: list[dm_env.Environment] = []
    observations: list[np.ndarray] = []
    try:
        while (request := receive()) is not None:
            if isinstance(request, Begin):
                observations.clear()
                for row, seed in enumerate(request.seeds):
                    _place(simulators, row, seed, make)
                    observations.append(np.asarray(simulators[row].reset().observation))
                    send(Ready(observations[row], simulators[row].action_spec()))
            else:
                send(_step(simulators, observations, request))
    except UsageError as error:
        send(Failure(str(error), usage=True))
    except Exception as error:  # whatever a simulator raises
        message = f"the simulator raised {type(error).__name__}: {error}"
        send(Failure(message, usage=False))
    for simulator in simulators:
        _close(simulator)


def _place(
    simulators: list[dm_env.Environment],
    row: int,
    seed: int,
    make: Callable[[int], dm_env.Environment],
) -> None:
    """Puts a simulator with this seed at `row`: the one that is there, or a new one."""
    if row == len(simulators):
        simulators.append(make(seed))
    elif not environments.reseed(simulators[row], seed):
        _close(simulators[row])
        simulators[row] = make(seed)


def _close(simulator: dm_env.Environment) -> None:
    with contextlib.suppress(Exception):
        simulator.close()


def _step(
    simulators: Sequence[dm_env.Environment], observations: list[np.ndarray], request: Step
) -> Moment:
    """Steps the active simulators; one whose episode ends starts the next one at once."""
    rewards = np.zeros(len(observations))
    last = np.zeros(len(observations), bool)
    terminal = np.zeros(len(observations), bool)
    for row in np.flatnonzero(request.active).tolist():
        timestep = simulators[row].step(request.actions[row])
        rewards[row] = timestep.reward
        last[row] = timestep.last()
        if last[row]:
            terminal[row] = timestep.discount == 0
            timestep = simulators[row].reset()
        observations[row] = np.asarray(timestep.observation)
    return Moment(observation=np.stack(observations), reward=rewards, last=last, terminal=terminal)
