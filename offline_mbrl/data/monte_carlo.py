"""Returns of the data themselves: of episodes, and from every row on; everything is on the host."""

import jax
import numpy as np

from offline_mbrl.data import episodes, memory
from offline_mbrl.types import Observation


def episode_returns(dataset: memory.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Undiscounted returns over the transitions in `starts`, which may be on the disk.

    Returns:
      Returns of the episodes `[E]`, in the order of the data, and the index `[N]` of the episode of
      each transition in `starts`.
    """
    rows = np.asarray(dataset.starts[:])
    _, episode = np.unique(np.asarray(dataset.episode_end[rows]), return_inverse=True)
    reward = np.asarray(dataset.reward[rows], np.float64)
    return np.bincount(episode, weights=reward), episode


def row_returns(dataset: memory.Dataset, gamma: float) -> np.ndarray:
    """`augmented_returns` from every row on, `[R]`; 0 on rows that begin no transition.

    Args:
      dataset: on the host.
      gamma: discount factor.
    """
    observation = _flat(dataset.observation)
    reward = np.asarray(dataset.reward, np.float64)
    returns = np.zeros(len(reward))
    for first in episodes.first_rows(dataset):
        end = int(dataset.episode_end[first])
        returns[first:end] = augmented_returns(
            reward[first:end],
            observation[first : end + 1],
            gamma=gamma,
            is_truncated=bool(dataset.discount[end - 1]),
        )
    return returns


def augmented_returns(
    reward: np.ndarray, observation: np.ndarray, *, gamma: float, is_truncated: bool
) -> np.ndarray:
    """Discounted returns from every step of an episode, `[T]`.

    With j the state closest to the last one, a truncated episode goes on from there:
    `G_t + gamma^(T - t) (G_j - gamma^t G_{j + t})`, so that no return has more than T rewards.

    Args:
      reward: `[T]`.
      observation: `[T + 1, D]`.
      gamma: discount factor.
      is_truncated: whether it ended without a terminal.

    Source: arXiv:1910.12179, augmented returns, with the last term of the released code.
    """
    num_steps = len(reward)
    returns = np.zeros(num_steps + 1)
    for t in reversed(range(num_steps)):
        returns[t] = reward[t] + gamma * returns[t + 1]
    if not is_truncated:
        return returns[:-1]
    distances = np.sum(np.square(observation[:-1] - observation[-1]), axis=1)
    closest = int(np.argmin(distances))
    t = np.arange(num_steps)
    beyond = returns[np.minimum(closest + t, num_steps)]
    return returns[:-1] + gamma ** (num_steps - t) * (returns[closest] - gamma**t * beyond)


def _flat(observation: Observation) -> np.ndarray:
    """`[R, D]` of a tree of columns."""
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(observation)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
