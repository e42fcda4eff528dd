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
        on_seed: Callable[[int], None] | None = None,
    ):
        """Wraps.

        Args:
          environment: what is wrapped.
          observe: of each observation; the identity where it is absent.
          act: of each action; the identity where it is absent.
          observation_spec: of what `observe` returns; the environment's own where it is absent.
          action_spec: of what `act` takes, likewise.
          on_seed: sets the state of `observe` and `act` back to what a seed gives; needed where
            they have one.
        """
        self._environment = environment
        self._observe = observe
        self._act = act
        self._on_seed = on_seed
        self._observation_spec = observation_spec or environment.observation_spec()
        self._action_spec = action_spec or environment.action_spec()
        self.executed_action: Any = None  # what `act` made of the last action

    def reset(self) -> dm_env.TimeStep:
        """Starts an episode."""
        return self._seen(self._environment.reset())

    def step(self, action: Any) -> dm_env.TimeStep:
        """Takes a step with the transformed action."""
        self.executed_action = action if self._act is None else self._act(action)
        return self._seen(self._environment.step(self.executed_action))

    def reseed(self, seed: int, reseed: Callable[[dm_env.Environment, int], bool]) -> bool:
        """Seeds the environment within by `reseed`, and its functions; False where that fails."""
        if not reseed(self._environment, seed):
            return False
        self.executed_action = None
        if self._on_seed is not None:
            self._on_seed(seed)
        return True

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
    """One array per observation, float32 or uint8; continuous actions in [-1, 1].

    See `simulators`.
    """
    observe, observation_spec = _observer(environment.observation_spec())
    act, action_spec = _rescaler(environment.action_spec())
    if observe is None and act is None:
        return environment
    return Transformed(
        environment,
        observe=observe,
        act=act,
        observation_spec=observation_spec,
        action_spec=action_spec,
    )


def _observer(spec: Any) -> tuple[Callable[[Any], np.ndarray] | None, specs.Array | None]:
    """What makes one float32 or uint8 array of an observation, and its spec; None for none."""
    if isinstance(spec, Mapping):
        size = sum(int(np.prod(spec[key].shape)) for key in spec)
        return flatten, specs.Array((size,), np.float32, "observation")
    if spec.dtype not in (np.float32, np.uint8):
        return _float32, specs.Array(spec.shape, np.float32, "observation")
    return None, None


def _rescaler(spec: Any) -> tuple[Callable[[Any], np.ndarray] | None, specs.Array | None]:
    """What maps actions in [-1, 1] to the simulator's bounds, and their spec; None if discrete."""
    if isinstance(spec, specs.DiscreteArray):
        return None, None
    low = np.asarray(spec.minimum, np.float64)
    high = np.asarray(spec.maximum, np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UsageError(
            f"the simulator's actions have no bounds ({spec}): they cannot be mapped from [-1, 1]"
        )

    def rescale(action: Any) -> np.ndarray:
        return low + 0.5 * (np.asarray(action, np.float64) + 1.0) * (high - low)

    return rescale, specs.BoundedArray(spec.shape, np.float32, -1.0, 1.0, "action")


def flatten(observation: Mapping[str, Any]) -> np.ndarray:
    """A dictionary to one float32 vector `[D]`: keys in alphabetical order, each in C order."""
    entries = [np.ravel(observation[key]) for key in sorted(observation)]
    return np.concatenate(entries).astype(np.float32)


def _float32(observation: Any) -> np.ndarray:
    return np.asarray(observation, np.float32)


def with_action_noise(
    environment: dm_env.Environment, probability: float, *, seed: int
) -> Transformed:
    """Replaces each action with `probability` by a uniform one, as RL Unplugged's BSuite does.

    The agent does not see it; `executed_action` holds the action that was taken.

    Args:
      environment: with discrete or bounded actions.
      probability: of a replacement, at each step.
      seed: of the noise.
    """
    action: Any = environment.action_spec()
    noise: list[np.random.Generator] = []

    def on_seed(seed: int) -> None:
        # A stream of its own: the simulator is seeded with `seed` itself.
        noise[:] = [np.random.default_rng([seed, 1])]

    def act(chosen: Any) -> Any:
        rng = noise[0]
        if rng.random() >= probability:
            return chosen
        if isinstance(action, specs.DiscreteArray):
            return int(rng.integers(action.num_values))
        return rng.uniform(action.minimum, action.maximum, action.shape).astype(np.float32)

    on_seed(seed)
    return Transformed(environment, act=act, on_seed=on_seed)
