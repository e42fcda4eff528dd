"""Episodes that a behavior plays in a simulator, as a dataset in memory."""

import functools
import itertools

import jax
import numpy as np

from offline_mbrl.collect import online
from offline_mbrl.collect.online import Act
from offline_mbrl.data.memory import Dataset
from offline_mbrl.types import Params, Policy, PyTree

NUM_SIMULATORS = 10


def play(simulator: str, act: Act, *, num_steps: int, seed: int) -> Dataset:
    """Plays simulators side by side; their last episodes are truncated where the steps end.

    Args:
      simulator: for example `gym/Hopper-v4`.
      act: chooses the actions, in [-1, 1]; what lies outside is clipped.
      num_steps: of all simulators together, at least.
      seed: of the simulators.

    Raises:
      UsageError: the simulator is unknown or not installed.
    """
    running = online.simulators(simulator, NUM_SIMULATORS, entropy=[seed, 23])

    def clipped(observations: np.ndarray) -> tuple[np.ndarray, PyTree]:
        return np.clip(np.asarray(act(observations)[0]), -1.0, 1.0), ()

    length = -(-num_steps // NUM_SIMULATORS)
    _, transitions, is_last = online.play(running, online.reset(running), clipped, length)
    for simulator_ in running:
        simulator_.close()
    # From the order of time to one simulator after the other.
    order = np.arange(len(is_last)).reshape(length, NUM_SIMULATORS).T.ravel()
    columns = jax.tree.map(lambda leaf: leaf[order], transitions)
    is_terminal = columns.discount == 0
    is_end = is_last[order] | (np.arange(len(order)) % length == length - 1)
    return Dataset.from_arrays(
        {
            "observation": columns.observation.astype(np.float32),
            "action": columns.action,
            "reward": columns.reward,
            "next_observation": columns.next_observation.astype(np.float32),
            "is_terminal": is_terminal,
            "is_truncated": is_end & ~is_terminal,
        }
    )


def sampling(policy: Policy, params: Params, seed: int) -> Act:
    """The policy's sampled actions."""
    return functools.partial(online.acting(policy, jax.random.key(seed)), params)


def perturbed(act: Act, std: float, seed: int) -> Act:
    """The actions of `act` plus normal noise of this deviation, new at every step."""
    counter = itertools.count()

    def noisy(observations: np.ndarray) -> tuple[np.ndarray, PyTree]:
        rng = np.random.default_rng([seed, 29, next(counter)])
        action = np.asarray(act(observations)[0])
        return action + std * rng.normal(size=action.shape), ()

    return noisy


def uniform(size: int, seed: int) -> Act:
    """Uniform actions of `size` entries."""
    return functools.partial(online.uniform, np.random.default_rng([seed, 31]), (size,))
