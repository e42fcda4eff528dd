"""OGBench's tasks with a reward, for example `cube-single-singletask-task1`, as `dm_env` ones.

The reward is minus the number of parts of the task that are not solved, the episode ends in a
terminal when all are, and its score is that it did. Reward and end belong to the state before the
action (ogbench 1.2 and later), as the rewards of the data do.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import dm_env
import numpy as np

from offline_mbrl.environments import gymnasium as gymnasium_tasks
from offline_mbrl.environments.control_suite import without_display

VERSION = "-v0"  # of every environment; names here leave it out


def names() -> list[str]:
    """All tasks with a reward that are seen as states, not pixels."""
    return [
        identifier.removesuffix(VERSION)
        for identifier in _registry()
        if "-singletask-task" in identifier and not identifier.startswith("visual-")
    ]


def load(name: str, seed: int) -> tuple[dm_env.Environment, int]:
    """A task and its time limit in steps; reaching the limit is a truncation (discount 1).

    Args:
      name: one of `names()`.
      seed: of the first reset.
    """
    environment = make(name)
    adapted = gymnasium_tasks.FromGymnasium(Seeded(environment), seed)
    return adapted, int(environment.spec.max_episode_steps)


def make(name: str, **settings: Any) -> Any:
    """A `gymnasium.Env` of OGBench, all of whose own randomness follows from the resets' seeds.

    Its methods draw from numpy's global generator too: see `global_generator`.

    Args:
      name: without the version, with or without a task.
      **settings: of `gymnasium.make`.
    """
    _registry()
    import gymnasium

    gymnasium.logger.min_level = gymnasium.logger.ERROR  # none about float64 bounds
    environment = gymnasium.make(name + VERSION, disable_env_checker=True, **settings)
    # The robot's environments let a scene settle by actions drawn from a space that a property
    # builds anew, without a seed, at each use. This instance keeps a single one.
    inner = environment.unwrapped
    space = inner.action_space
    inner.__class__ = type(type(inner).__name__, (type(inner),), {"action_space": space})
    return environment


class Seeded:
    """A `gymnasium.Env` of OGBench whose episodes follow from the seed of a reset."""

    def __init__(self, environment: Any):
        """Args: `environment` is one of `make`."""
        self._environment = environment
        self._draws = np.random.RandomState(0)
        self.observation_space = environment.observation_space
        self.action_space = environment.action_space

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        """Starts an episode; a seed makes it independent of what was before."""
        if seed is not None:
            self._draws.seed(seed)
            self._environment.unwrapped.action_space.seed(seed)
        with global_generator(self._draws):
            return self._environment.reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Takes a step."""
        with global_generator(self._draws):
            return self._environment.step(action)

    def close(self) -> None:
        """Frees the simulator."""
        self._environment.close()


@contextlib.contextmanager
def global_generator(draws: np.random.RandomState) -> Iterator[None]:
    """While inside, numpy's global generator goes on from `draws`; afterwards it is as before."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.set_state(draws.get_state())  # noqa: NPY002
    try:
        yield
    finally:
        draws.set_state(np.random.get_state())  # noqa: NPY002
        np.random.set_state(before)  # noqa: NPY002


def _registry() -> list[str]:
    """The ids that OGBench registers."""
    without_display()
    import gymnasium
    import ogbench  # noqa: F401  registers

    return [
        identifier
        for identifier, spec in gymnasium.registry.items()
        if str(spec.entry_point).startswith("ogbench.")
    ]
