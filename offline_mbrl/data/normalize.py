"""Mean and standard deviation of observations as a pytree; apply and undo. And what transitions are
measured by."""

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl.data import memory
from offline_mbrl.types import PyTree, UsageError

# Of an entry's own size: less is how float32 stores one value
ROUNDING = 4 * float(np.finfo(np.float32).eps)
# Of an entry, in units of the largest entry beside it where that is below 1: less is at rest
SMALLEST_STD = 1e-6
CHUNK_ROWS, CHUNK_BYTES = 2**16, 2**26  # of records that are read at a time, whichever is less


class TransitionStatistics(NamedTuple):
    """Of transitions with flat observations `[n]` and actions `[m]`; float32, every deviation above
    0.

    Discrete actions count as one-hot: m is the largest of the data plus one. An entry is constant
    where its deviation is below 1e-6, or below that share of the largest entry where all are small,
    or no more than rounding.
    """

    observation_mean: np.ndarray  # [n]
    observation_std: np.ndarray  # [n]   1 where constant
    observation_min: np.ndarray  # [n]   of observations and next observations
    observation_max: np.ndarray  # [n]
    action_mean: np.ndarray  # [m]
    action_std: np.ndarray  # [m]   1 where constant
    delta_mean: np.ndarray  # [n]   next_observation - observation, where it is known
    delta_std: np.ndarray  # [n]   1 where constant
    reward_mean: np.ndarray  # []
    reward_std: np.ndarray  # []   1 where constant
    reward_min: np.ndarray  # []
    reward_max: np.ndarray  # []
    # [n + 1] bool, whether each entry of (delta, reward) does: a constant is copied, not modelled
    varies: np.ndarray
    terminates: np.ndarray  # [] bool, whether any transition ends in a true terminal


class Statistics(NamedTuple):
    """Of one observation: the same tree, one record's shapes, float32."""

    mean: PyTree
    std: PyTree
    # Of flat observations and continuous actions in memory
    transitions: TransitionStatistics | tuple[()] = ()


def statistics(dataset: memory.Dataset) -> Statistics:
    """Mean and standard deviation of every entry of the observations, over all records.

    Leaves that are not floating (frames) get mean 0 and standard deviation 1: they are scaled in
    the encoder.
    """
    moments = jax.tree.map(_moments, dataset.observation)  # a leaf each of [2, ...]
    return Statistics(
        jax.tree.map(lambda both: both[0], moments), jax.tree.map(lambda both: both[1], moments)
    )


def full_statistics(dataset: memory.Dataset) -> Statistics:
    """`statistics` together with `transition_statistics`: what models and estimators are made from.

    Raises:
      UsageError: as `transition_statistics`.
    """
    return statistics(dataset)._replace(transitions=transition_statistics(dataset))


def transition_statistics(dataset: memory.Dataset) -> TransitionStatistics:
    """What models of `(observation, action) -> (reward, next observation)` are normalized by.

    A terminal step whose next observation repeats its observation says how the episode ended, not
    where it led (`unknown_outcomes`): it counts in everything but the changes. Where no step is
    left the changes are constant, 0.

    Args:
      dataset: of the training transitions alone (`starts`), observations `[R, n]`, actions `[R, m]`
        or, where they are discrete, `[R]`; on the host.

    Raises:
      UsageError: observations are no vectors of floats, or actions neither that nor integers.
    """
    _check_vectors(dataset)
    rows = np.asarray(dataset.starts)
    observation, action = np.asarray(dataset.observation), np.asarray(dataset.action)[rows]
    if action.ndim == 1:
        action = np.eye(int(action.max(initial=0)) + 1, dtype=np.float32)[action]
    ends = np.asarray(dataset.discount)[rows] == 0
    unknown = unknown_outcomes(dataset.observation, rows, ends)
    if unknown.any():
        warnings.warn(
            f"{unknown.sum()} of {ends.sum()} terminal steps have no known next observation (it "
            "repeats the observation): they are left out of the changes that models learn; give "
            "`next_observation` to repair it",
            stacklevel=2,
        )
    genuine = rows[~unknown]
    delta = (observation[genuine + 1] - observation[genuine]).astype(np.float64)
    reward = np.asarray(dataset.reward)[rows]
    both = np.union1d(rows, rows + 1)
    low, high = observation[both].min(axis=0), observation[both].max(axis=0)
    (seen_mean, seen_std, _), (action_mean, action_std, _) = (
        _deviation(observation[rows]),
        _deviation(action),
    )
    # The difference of two float32 values is rounded as they are.
    delta_mean, delta_std, changes = _deviation(delta, np.maximum(np.abs(low), np.abs(high)))
    reward_mean, reward_std, differs = _deviation(reward)
    figures = (
        seen_mean,
        seen_std,
        low,
        high,
        action_mean,
        action_std,
        delta_mean,
        delta_std,
        reward_mean,
        reward_std,
        reward.min(),
        reward.max(),
    )
    return TransitionStatistics(
        *(np.asarray(figure, np.float32) for figure in figures),
        varies=np.append(changes, differs),
        terminates=np.asarray(ends.any()),
    )


def unknown_outcomes(observation: PyTree, rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Where a terminal step has no known outcome: a copy of its own observation follows
    (`steps.from_transitions`).

    Args:
      observation: a tree of columns `[R, ...]`.
      rows: `[N]` that begin a transition.
      ends: `[N]` bool, whether it leads to a true terminal.

    Returns:
      `[N]` bool. A terminal state that looks exactly like the one before cannot be told from that,
      and counts too.
    """
    found, at = ends.copy(), rows[ends]
    pairs = [
        (np.asarray(leaf[at]), np.asarray(leaf[at + 1])) for leaf in jax.tree.leaves(observation)
    ]
    found[ends] = np.logical_and.reduce(
        [(a == b).all(axis=tuple(range(1, a.ndim))) for a, b in pairs]
    )
    return found


def _check_vectors(dataset: memory.Dataset) -> None:
    def told(column: Any) -> tuple[str, int]:
        return (np.dtype(column.dtype).kind, column.ndim) if hasattr(column, "dtype") else ("", 0)

    if told(dataset.observation) != ("f", 2):
        raise UsageError(
            "statistics of transitions need one float vector per observation; flatten the "
            "observations first (catalog.flattened)"
        )
    if told(dataset.action) not in (("f", 2), ("i", 1), ("u", 1)):
        raise UsageError(
            "statistics of transitions need actions of one float vector or one integer each, got "
            f"rows of {dataset.action.dtype}{list(dataset.action.shape[1:])} in field 'action'"
        )


def _deviation(
    values: np.ndarray, magnitude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation (1 where there is none) and whether there is one, over the first
    axis.

    `magnitude` is the size of what the values were computed from, per entry; their own where it is
    not given.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return (
            np.zeros(values.shape[1:]),
            np.ones(values.shape[1:]),
            np.zeros(values.shape[1:], bool),
        )
    std = values.std(axis=0)
    varies = std > _smallest(np.abs(values).max(axis=0) if magnitude is None else magnitude)
    return values.mean(axis=0), np.where(varies, std, 1.0), varies


def _smallest(magnitude: np.ndarray) -> np.ndarray:
    """The greatest deviation of entries of this size that counts as none."""
    magnitude = np.asarray(magnitude, np.float64)
    least = max(
        SMALLEST_STD * min(1.0, magnitude.max(initial=0.0)), float(np.finfo(np.float32).tiny)
    )
    return np.maximum(ROUNDING * magnitude, least)


def normalize(stats: Statistics, observation: PyTree) -> PyTree:
    """Observations with mean 0 and standard deviation 1; one record, or numpy arrays with leading
    axes."""
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
    variance = (
        np.sum(
            [np.square(chunk - mean).sum(axis=0, dtype=np.float64) for chunk in chunks()], axis=0
        )
        / size
    )
    largest = np.max([np.abs(chunk).max(axis=0) for chunk in chunks()], axis=0)
    std = np.sqrt(variance)
    return np.stack([mean, np.where(std > _smallest(largest), std, 1.0)]).astype(np.float32)
