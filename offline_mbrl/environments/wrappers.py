"""One convention for observations and actions, and action noise, over any `dm_env.Environment`."""

from collections.abc import Callable, Mapping
from typing import Any

import dm_env
import numpy as np
from dm_env import specs

from offline_mbrl.types import UsageError


class Transformed(dm_env.Environment):
    """An environment seen through two functions: one on each observation, one on each action."""

    def __init__(
        self,
        environment: dm_env.Environment,
        *,
        observe: Callable[[Any], Any] | None = None,
        act: Callable[[Any], Any] | None = None,
        observation_spec: specs.Array | None = None,
        action_spec: specs.Array | None = None,
    ):
        """Args: `observe` and `act` default to the identity, the specs to the environment's own."""
        self._environment = environment
        self._observe = observe
        self._act = act
        self._observation_spec = environment.observation_spec() if observation_spec is None else observation_spec
        self._action_spec = environment.action_spec() if action_spec is None else action_spec
        self.executed_action: Any = None  # what `act` made of the last action

    def reset(self) -> dm_env.TimeStep:
        """Starts an episode."""
        return self._seen(self._environment.reset())

    def step(self, action: Any) -> dm_env.TimeStep:
        """Takes a step with the transformed action."""
        self.executed_action = action if self._act is None else self._act(action)
        return self._seen(self._environment.step(self.executed_action))

    def observation_spec(self) -> Any:
        """The transformed observation's spec."""
        return self._observation_spec

    def action_spec(self) -> Any:
        """The spec of the actions that `step` takes."""
        return self._action_spec

    def close(self) -> None:
        """Frees the simulator."""
        self._environment.close()

    def _seen(self, timestep: dm_env.TimeStep) -> dm_env.TimeStep:
        if self._observe is None:
            return timestep
        return timestep._replace(observation=self._observe(timestep.observation))


def canonical(environment: dm_env.Environment) -> dm_env.Environment:
    """One array per observation, float32 or uint8; continuous actions in [-1, 1]. See `simulators`."""
    observation: Any = environment.observation_spec()
    action: Any = environment.action_spec()
    observe = act = seen = taken = None
    if isinstance(observation, Mapping):
        size = sum(int(np.prod(observation[key].shape)) for key in observation)
        observe, seen = flatten, specs.Array((size,), np.float32, "observation")
    elif observation.dtype not in (np.float32, np.uint8):
        observe, seen = _float32, specs.Array(observation.shape, np.float32, "observation")
    if not isinstance(action, specs.DiscreteArray):
        low, high = (np.asarray(bound, np.float64) for bound in (action.minimum, action.maximum))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise UsageError(f"the simulator's actions have no bounds ({action}): they cannot be mapped from [-1, 1]")
        act = lambda given: low + 0.5 * (np.asarray(given, np.float64) + 1.0) * (high - low)  # noqa: E731
        taken = specs.BoundedArray(action.shape, np.float32, -1.0, 1.0, "action")
    if observe is None and act is None:
        return environment
    return Transformed(environment, observe=observe, act=act, observation_spec=seen, action_spec=taken)


def flatten(observation: Mapping[str, Any]) -> np.ndarray:
    """A dictionary to one float32 vector `[D]`: keys in alphabetical order, C order, scalars of length 1."""
    return np.concatenate([np.ravel(observation[key]) for key in sorted(observation)]).astype(np.float32)


def _float32(observation: Any) -> np.ndarray:
    return np.asarray(observation, np.float32)


def with_action_noise(environment: dm_env.Environment, probability: float, *, seed: int) -> Transformed:
    """Replaces each action with `probability` by a uniform one, as RL Unplugged's stochastic BSuite does.

    The agent is not told; `executed_action` holds what was really done.
    """
    rng = np.random.default_rng([seed, 1])  # a stream of its own: the simulator is seeded with `seed` itself
    action: Any = environment.action_spec()

    def act(given: Any) -> Any:
        if rng.random() >= probability:
            return given
        if isinstance(action, specs.DiscreteArray):
            return int(rng.integers(action.num_values))
        return rng.uniform(action.minimum, action.maximum, action.shape).astype(np.float32)

    return Transformed(environment, act=act)
