"""One episode of a scripted policy in one of OGBench's environments."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.data.catalog import ogbench
from offline_mbrl.environments.ogbench import global_generator


class Played(NamedTuple):
    """An episode of T steps."""

    observation: np.ndarray  # [T + 1, D] float32
    action: np.ndarray  # [T, A] float32
    state: dict[str, np.ndarray]  # of the simulator, [T + 1, ...]


Play = Callable[[int, int], Played]  # (seed, number of steps)


class Script(NamedTuple):
    """A scripted policy at the start of an episode."""

    observation: Any
    info: Mapping[str, Any]  # of the reset
    choose: Callable[[Any, Mapping[str, Any]], np.ndarray]  # (observation, info) -> action
    # (info) that a step gave: turns to the next target where this one is done
    proceed: Callable[[Mapping[str, Any]], None]


def player(
    environment: Any,
    start: Callable[[int | None, np.random.Generator], Script],
    *,
    keep: Callable[[Played], bool] = lambda played: True,
) -> Play:
    """Plays an environment of `environments.ogbench.make`.

    Args:
      environment: without a time limit.
      start: resets the environment with a seed, or from where its randomness is, and begins a
        script that draws from the generator.
      keep: whether an episode is kept; else another one is played in its place.

    Returns:
      What plays an episode that follows from its seed alone.
    """

    def play(seed: int, num_steps: int) -> Played:
        environment.unwrapped.action_space.seed(seed)
        draws = np.random.default_rng(seed)
        with global_generator(np.random.RandomState(seed)):
            played = roll(environment, start(seed, draws), num_steps)
            while not keep(played):
                played = roll(environment, start(None, draws), num_steps)
        return played

    return play


def roll(environment: Any, script: Script, num_steps: int) -> Played:
    """The episode of a script."""
    observation = script.observation
    info = script.info
    observations = [observation]
    actions = []
    states = []
    for _ in range(num_steps):
        chosen = script.choose(observation, info)
        action = np.clip(chosen, -1, 1).astype(np.float32)
        observation, _, _, _, info = environment.step(action)
        script.proceed(info)
        observations.append(observation)
        actions.append(action)
        states.append({name: info[f"prev_{name}"] for name in ogbench.STATE if name in info})
    states.append({name: info[name] for name in states[-1]})
    return Played(
        observation=np.stack(observations).astype(np.float32),
        action=np.stack(actions),
        state={name: _stacked([state[name] for state in states]) for name in states[-1]},
    )


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    """Rows as float32, or int32 where they are whole."""
    column = np.stack(rows)
    return column.astype(np.float32 if column.dtype.kind == "f" else np.int32)
