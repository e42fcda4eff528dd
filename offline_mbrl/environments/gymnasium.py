"""Gymnasium environments by their id, for example `Hopper-v4`, as `dm_env` ones."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import dm_env
import numpy as np
from dm_env import specs

from offline_mbrl.environments.control_suite import without_display
from offline_mbrl.types import UsageError


def names() -> list[str]:
    """All registered ids."""
    without_display()
    import gymnasium

    return [identifier for identifier in gymnasium.registry if "/" not in identifier]


@contextlib.contextmanager
def _quiet_models() -> Iterator[None]:
    """Keeps MuJoCo's warnings of gymnasium's own models from the screen and from a file."""
    try:
        mujoco: Any = importlib.import_module("mujoco")
    except ImportError:
        yield
        return
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)


def load(
    name: str, seed: int, max_steps: int = 0, contact_forces: float = 1.0
) -> tuple[dm_env.Environment, int]:
    """A gymnasium environment and its time limit in steps.

    Reaching the limit is a truncation (discount 1).

    Args:
      name: one of `names()`.
      seed: of the first reset.
      max_steps: after which episodes are cut; 0 for the environment's own limit.
      contact_forces: 0 leaves them out of the observations of Ant and Humanoid, version 5.
    """
    without_display()
    import gymnasium

    # No warnings about newer versions: the id was chosen.
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    try:
        with _quiet_models():
            environment = gymnasium.make(
                name,
                max_episode_steps=max_steps or None,
                disable_env_checker=True,
                **({} if contact_forces else {"include_cfrc_ext_in_observation": False}),
            )
    except gymnasium.error.DependencyNotInstalled as error:
        raise ModuleNotFoundError(str(error)) from error
    except TypeError as error:
        if contact_forces:
            raise
        raise UsageError(f"gym/{name} has no contact forces to leave out") from error
    limit = environment.spec.max_episode_steps if environment.spec else None
    return FromGymnasium(environment, seed), int(limit or 0)


def reseed(environment: dm_env.Environment, seed: int) -> bool:
    """Seeds the next reset of a `FromGymnasium`; False where this is another environment."""
    if not isinstance(environment, FromGymnasium):
        return False
    environment.reseed(seed)
    return True


class FromGymnasium(dm_env.Environment):
    """A gymnasium environment under dm_env's interface.

    `terminated` becomes discount 0; `truncated` alone ends the episode with discount 1. Both at
    once is a terminal.
    """

    def __init__(self, environment: Any, seed: int):
        """Args: `seed` is that of the first reset; later resets of the `gymnasium.Env` go on."""
        self._environment = _one_array(environment)
        self._seed: int | None = seed
        self._over = True
        self._action_spec = _action_spec(environment.action_space)

    def reset(self) -> dm_env.TimeStep:
        """Starts an episode; only the first reset is seeded."""
        observation, _ = self._environment.reset(seed=self._seed)
        self._seed = None
        self._over = False
        return dm_env.restart(observation)

    def reseed(self, seed: int) -> None:
        """Seeds the next reset, which gymnasium then makes independent of what was before."""
        self._seed = seed
        self._over = True

    def step(self, action: Any) -> dm_env.TimeStep:
        """Takes a step, or starts an episode when the last one is over."""
        if self._over:
            return self.reset()
        observation, reward, terminated, truncated, _ = self._environment.step(action)
        self._over = bool(terminated or truncated)
        if terminated:
            return dm_env.termination(float(reward), observation)
        if truncated:
            return dm_env.truncation(float(reward), observation, discount=1.0)
        return dm_env.transition(float(reward), observation)

    def observation_spec(self) -> specs.Array:
        """The observation space as a spec."""
        space = self._environment.observation_space
        return specs.Array(space.shape, space.dtype, "observation")

    def action_spec(self) -> specs.Array:
        """The action space as a spec, in the simulator's units."""
        return self._action_spec

    def close(self) -> None:
        """Frees the simulator."""
        self._environment.close()


def _one_array(environment: Any) -> Any:
    import gymnasium

    if isinstance(environment.observation_space, gymnasium.spaces.Box):
        return environment
    return gymnasium.wrappers.FlattenObservation(environment)


def _action_spec(space: Any) -> specs.Array:
    import gymnasium

    if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
        return specs.DiscreteArray(int(space.n), np.int32, "action")
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return specs.BoundedArray(space.shape, space.dtype, space.low, space.high, "action")
    raise UsageError(
        f"actions of the kind {space} are not supported: Discrete or a one-dimensional Box"
    )
