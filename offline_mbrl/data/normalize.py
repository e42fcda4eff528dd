"""Statistics of observations and of transitions, and normalization by them."""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl.data import memory, monte_carlo
from offline_mbrl.types import Observation, UsageError

# A deviation below this share of an entry's magnitude is float32's rounding of a constant.
ROUNDING = 4 * float(np.finfo(np.float32).eps)
# A deviation below this counts as none; relative to the largest entry where that is below 1.
SMALLEST_STD = 1e-6
# Records are read in chunks of at most so many rows and bytes.
CHUNK_ROWS = 2**16
CHUNK_BYTES = 2**26


class TransitionStatistics(NamedTuple):
    """Statistics of transitions with observations `[n]` and actions `[m]`, in float32.

    Every deviation is above 0. Discrete actions count as one-hot: m is the largest action of the
    data plus one. An entry is constant where its deviation is below 1e-6 (relative to the largest
    entry where all are below 1) or no more than rounding.
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
    # [n + 1] bool, whether each entry of (delta, reward) varies; models copy constants
    varies: np.ndarray
    terminates: np.ndarray  # [] bool, whether any transition ends in a true terminal


class ReturnRange(NamedTuple):
    """The lowest and the highest sum of an episode's rewards."""

    low: np.ndarray  # []
    high: np.ndarray  # []


class Statistics(NamedTuple):
    """Statistics of observations: trees with the shapes of one record, float32."""

    mean: Observation
    std: Observation
    # For explicit models, which need flat observations in memory
    transitions: TransitionStatistics | None = None
    # For learners that scale rewards by it
    returns: ReturnRange | None = None


def statistics(dataset: memory.Dataset) -> Statistics:
    """Mean and standard deviation of the observations' entries over all records, and returns.

    Leaves that are not floating (frames) get mean 0 and standard deviation 1: encoders scale them.
    """
    moments = jax.tree.map(_moments, dataset.observation)  # leaves [2, ...]
    return Statistics(
        mean=jax.tree.map(lambda leaf: leaf[0], moments),
        std=jax.tree.map(lambda leaf: leaf[1], moments),
        returns=return_range(dataset),
    )


def return_range(dataset: memory.Dataset) -> ReturnRange:
    """The range of undiscounted returns over the episodes of `starts`."""
    returns, _ = monte_carlo.episode_returns(dataset)
    return ReturnRange(
        low=np.asarray(returns.min(), np.float32), high=np.asarray(returns.max(), np.float32)
    )


def full_statistics(dataset: memory.Dataset) -> Statistics:
    """`statistics` together with `transition_statistics`, for models and estimators.

    Raises:
      UsageError: under the conditions of `transition_statistics`.
    """
    return statistics(dataset)._replace(transitions=transition_statistics(dataset))


def transition_statistics(dataset: memory.Dataset) -> TransitionStatistics:
    """The statistics that normalize models of `(observation, action) -> (reward, change)`.

    A terminal step whose next observation repeats its observation has no known outcome
    (`unknown_outcomes`): it counts in everything but the changes. Where no step is left, all
    changes are constant and 0.

    Args:
      dataset: on the host, with observations `[R, n]` and actions `[R, m]` or, where they are
        discrete, `[R]`. Only the transitions in `starts` count.

    Raises:
      UsageError: observations are not vectors of floats, or actions neither vectors of floats nor
        integers.
    """
    _check_vectors(dataset)
    rows = np.asarray(dataset.starts)
    observation = np.asarray(dataset.observation)
    action = np.asarray(dataset.action)[rows]
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
    outcome_rows = rows[~unknown]
    delta = (observation[outcome_rows + 1] - observation[outcome_rows]).astype(np.float64)
    reward = np.asarray(dataset.reward)[rows]
    visited = observation[np.union1d(rows, rows + 1)]
    low = visited.min(axis=0)
    high = visited.max(axis=0)
    observation_mean, observation_std, _ = _deviation(observation[rows])
    action_mean, action_std, _ = _deviation(action)
    # The rounding of a difference follows the magnitude of the two float32 values.
    delta_mean, delta_std, delta_varies = _deviation(delta, np.maximum(np.abs(low), np.abs(high)))
    reward_mean, reward_std, reward_varies = _deviation(reward)
    moments = {
        "observation_mean": observation_mean,
        "observation_std": observation_std,
        "observation_min": low,
        "observation_max": high,
        "action_mean": action_mean,
        "action_std": action_std,
        "delta_mean": delta_mean,
        "delta_std": delta_std,
        "reward_mean": reward_mean,
        "reward_std": reward_std,
        "reward_min": reward.min(),
        "reward_max": reward.max(),
    }
    return TransitionStatistics(
        **{name: np.asarray(value, np.float32) for name, value in moments.items()},
        varies=np.append(delta_varies, reward_varies),
        terminates=np.asarray(ends.any()),
    )


def unknown_outcomes(observation: Observation, rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Terminal steps without a known outcome: a copy of their own observation follows them.

    `steps.from_transitions` adds such copies.

    Args:
      observation: a tree of columns `[R, ...]`.
      rows: `[N]` rows that begin a transition.
      ends: `[N]` bool, whether each leads to a true terminal.

    Returns:
      `[N]` bool. A terminal state that equals the state before it cannot be distinguished from a
      copy, and counts too.
    """
    terminal_rows = rows[ends]
    repeats = []
    for leaf in jax.tree.leaves(observation):
        equal = np.asarray(leaf[terminal_rows]) == np.asarray(leaf[terminal_rows + 1])
        repeats.append(equal.all(axis=tuple(range(1, equal.ndim))))
    unknown = ends.copy()
    unknown[ends] = np.logical_and.reduce(repeats)
    return unknown


def _check_vectors(dataset: memory.Dataset) -> None:
    def kind_and_rank(column: Any) -> tuple[str, int]:
        return (np.dtype(column.dtype).kind, column.ndim) if hasattr(column, "dtype") else ("", 0)

    if kind_and_rank(dataset.observation) != ("f", 2):
        raise UsageError(
            "statistics of transitions need one float vector per observation; flatten the "
            "observations first (catalog.flattened)"
        )
    if kind_and_rank(dataset.action) not in (("f", 2), ("i", 1), ("u", 1)):
        raise UsageError(
            "statistics of transitions need actions of one float vector or one integer each, got "
            f"rows of {dataset.action.dtype}{list(dataset.action.shape[1:])} in field 'action'"
        )


def _deviation(
    values: np.ndarray, magnitude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and whether entries vary, over the first axis of `[N, ...]`.

    The standard deviation of constant entries is 1. `magnitude` `[...]` is the size of the numbers
    that the values were computed from; None: the values' own.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        shape = values.shape[1:]
        return np.zeros(shape), np.ones(shape), np.zeros(shape, bool)
    std = values.std(axis=0)
    varies = std > _smallest(np.abs(values).max(axis=0) if magnitude is None else magnitude)
    return values.mean(axis=0), np.where(varies, std, 1.0), varies


def _smallest(magnitude: np.ndarray) -> np.ndarray:
    """The greatest deviation that counts as none, for entries of this magnitude."""
    magnitude = np.asarray(magnitude, np.float64)
    least = max(
        SMALLEST_STD * min(1.0, magnitude.max(initial=0.0)), float(np.finfo(np.float32).tiny)
    )
    return np.maximum(ROUNDING * magnitude, least)


def normalize(stats: Statistics, observation: Observation) -> Observation:
    """Scales observations `[..., *record]` to mean 0 and standard deviation 1."""
    return jax.tree.map(lambda x, mean, std: (x - mean) / std, observation, stats.mean, stats.std)


def denormalize(stats: Statistics, observation: Observation) -> Observation:
    """The inverse of `normalize`."""
    return jax.tree.map(lambda x, mean, std: x * std + mean, observation, stats.mean, stats.std)


def _moments(leaf: np.ndarray) -> np.ndarray:
    shape = leaf.shape[1:]
    if leaf.dtype.kind != "f":
        return np.stack([np.zeros(shape, np.float32), np.ones(shape, np.float32)])
    size = leaf.shape[0]
    rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, leaf.dtype.itemsize * int(np.prod(shape)))))

    def chunks() -> Iterator[np.ndarray]:
        return (np.asarray(leaf[start : start + rows]) for start in range(0, size, rows))

    mean = np.sum([chunk.sum(axis=0, dtype=np.float64) for chunk in chunks()], axis=0) / size
    squares = [np.square(chunk - mean).sum(axis=0, dtype=np.float64) for chunk in chunks()]
    variance = np.sum(squares, axis=0) / size
    largest = np.max([np.abs(chunk).max(axis=0) for chunk in chunks()], axis=0)
    std = np.sqrt(variance)
    return np.stack([mean, np.where(std > _smallest(largest), std, 1.0)]).astype(np.float32)
