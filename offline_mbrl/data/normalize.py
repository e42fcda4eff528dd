"""Mean and standard deviation of observations as a pytree; apply and undo."""

from typing import NamedTuple

import jax
import numpy as np

from offline_mbrl.data import memory
from offline_mbrl.types import PyTree, UsageError

SMALLEST_STD = 1e-6  # a constant entry is only shifted
CHUNK_ROWS, CHUNK_BYTES = 2**16, 2**26  # of records that are read at a time, whichever is less


class TransitionStatistics(NamedTuple):
    """Of transitions with flat observations `[n]` and actions `[m]`; float32, every deviation at least 1e-6 or 1."""

    observation_mean: np.ndarray  # [n]
    observation_std: np.ndarray  # [n]   1 where constant
    observation_min: np.ndarray  # [n]   of observations and next observations
    observation_max: np.ndarray  # [n]
    action_mean: np.ndarray  # [m]
    action_std: np.ndarray  # [m]   1 where constant
    delta_mean: np.ndarray  # [n]   next_observation - observation
    delta_std: np.ndarray  # [n]   1 where constant
    reward_mean: np.ndarray  # []
    reward_std: np.ndarray  # []   1 where constant
    reward_min: np.ndarray  # []
    reward_max: np.ndarray  # []
    varies: np.ndarray  # [n + 1] bool, whether each entry of (delta, reward) does: a constant is copied, not modelled
    terminates: np.ndarray  # [] bool, whether any transition ends in a true terminal


class Statistics(NamedTuple):
    """Of one observation: the same tree, one record's shapes, float32."""

    mean: PyTree
    std: PyTree
    transitions: TransitionStatistics | tuple[()] = ()  # of flat observations and continuous actions in memory


def statistics(dataset: memory.Dataset) -> Statistics:
    """Mean and standard deviation of every entry of the observations, over all records.

    Leaves that are not floating (frames) get mean 0 and standard deviation 1: they are scaled in the encoder.
    """
    moments = jax.tree.map(_moments, dataset.observation)  # a leaf each of [2, ...]
    return Statistics(jax.tree.map(lambda both: both[0], moments), jax.tree.map(lambda both: both[1], moments))


def transition_statistics(dataset: memory.Dataset) -> TransitionStatistics:
    """What models of `(observation, action) -> (reward, next observation)` are normalized by.

    Args:
      dataset: of the training transitions alone (`starts`), observations `[R, n]`, actions `[R, m]`; on the host.

    Raises:
      UsageError: observations or actions are no vectors of numbers.
    """
    columns = (dataset.observation, dataset.action)
    if any(getattr(column, "ndim", 0) != 2 or np.dtype(column.dtype).kind != "f" for column in columns):
        raise UsageError("statistics of transitions need one float vector per observation and per action; "
                         "flatten the observations first (catalog.flattened)")  # fmt: skip
    rows = np.asarray(dataset.starts)
    observation, action = (np.asarray(column) for column in columns)
    delta = (observation[rows + 1] - observation[rows]).astype(np.float64)
    reward = np.asarray(dataset.reward)[rows]
    (seen_mean, seen_std, _), (action_mean, action_std, _) = _deviation(observation[rows]), _deviation(action[rows])
    (delta_mean, delta_std, changes), (reward_mean, reward_std, differs) = _deviation(delta), _deviation(reward)
    both = np.union1d(rows, rows + 1)
    figures = (seen_mean, seen_std, observation[both].min(axis=0), observation[both].max(axis=0), action_mean,
               action_std, delta_mean, delta_std, reward_mean, reward_std, reward.min(), reward.max())  # fmt: skip
    return TransitionStatistics(
        *(np.asarray(figure, np.float32) for figure in figures), varies=np.append(changes, differs),
        terminates=np.asarray((np.asarray(dataset.discount)[rows] == 0).any()))  # fmt: skip


def _deviation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation (1 where there is none) and whether there is one, over the first axis."""
    values = np.asarray(values, np.float64)
    std = values.std(axis=0)
    return values.mean(axis=0), np.where(std < SMALLEST_STD, 1.0, std), std >= SMALLEST_STD


def normalize(stats: Statistics, observation: PyTree) -> PyTree:
    """Observations with mean 0 and standard deviation 1; one record, or numpy arrays with leading axes."""
    return jax.tree.map(lambda x, mean, std: (x - mean) / std, observation, stats.mean, stats.std)


def denormalize(stats: Statistics, observation: PyTree) -> PyTree:
    """Undoes `normalize`."""
    return jax.tree.map(lambda x, mean, std: x * std + mean, observation, stats.mean, stats.std)


def _moments(leaf: np.ndarray) -> np.ndarray:
    shape = leaf.shape[1:]
    if leaf.dtype.kind != "f":
        return np.stack([np.zeros(shape, np.float32), np.ones(shape, np.float32)])
    size = leaf.shape[0]
    rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, leaf.dtype.itemsize * int(np.prod(shape)))))
    chunks = lambda: (np.asarray(leaf[at : at + rows]) for at in range(0, size, rows))  # noqa: E731
    mean = np.sum([chunk.sum(axis=0, dtype=np.float64) for chunk in chunks()], axis=0) / size
    variance = np.sum([np.square(chunk - mean).sum(axis=0, dtype=np.float64) for chunk in chunks()], axis=0) / size
    std = np.sqrt(variance)
    return np.stack([mean, np.where(std < SMALLEST_STD, 1.0, std)]).astype(np.float32)
