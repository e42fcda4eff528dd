"""Whole episodes of a dataset in memory: their first observations, and trajectories padded to one
length, on the host.

What estimators of returns work on. An episode counts if at least one of its transitions is in
`starts`: episodes held out whole are left out, and of the others every step is there, transitions
held out one by one included.
"""

from typing import Any

import jax
import numpy as np

from offline_mbrl.data import memory
from offline_mbrl.types import PyTree, Trajectory, UsageError


def first_rows(dataset: memory.Dataset) -> np.ndarray:
    """`[N]` int32 rows of the episodes' first records, in the data's order. Split them to work in
    chunks."""
    ends = np.unique(np.asarray(dataset.episode_end))
    kept = np.isin(ends, np.asarray(dataset.episode_end)[np.asarray(dataset.starts)])
    return (np.concatenate([[0], ends[:-1] + 1])[kept]).astype(np.int32)


def initial_observations(dataset: memory.Dataset) -> PyTree:
    """The episodes' first observations `[N, ...]`."""
    rows = first_rows(dataset)
    return jax.tree.map(lambda column: np.asarray(column[rows]), dataset.observation)


def trajectories(
    dataset: memory.Dataset, horizon: int | None = None, *, rows: Any = None
) -> Trajectory:
    """Whole episodes as trajectories `[N, T, ...]`, with their extras; past an episode's end the
    mask is 0.

    Args:
      dataset: in memory; observations as stored (frames are not stacked).
      horizon: T. Longer episodes are cut there, which is a truncation; None: the longest one's
        length.
      rows: `[N]` of `first_rows(dataset)`, to read some episodes only; None: all. In chunks, give a
        horizon.

    Raises:
      UsageError: the horizon is not positive, or a row begins no episode.
    """
    starts = first_rows(dataset)
    rows = starts if rows is None else np.asarray(rows, np.int32)
    if not np.isin(rows, starts).all():
        wrong = rows[~np.isin(rows, starts)][0]
        raise UsageError(
            f"trajectories: row {wrong} begins no episode of this dataset; take rows from "
            "first_rows"
        )
    if horizon is None:
        horizon = int(np.max(np.asarray(dataset.episode_end)[rows] - rows))
    if horizon < 1:
        raise UsageError(f"trajectories: the horizon must be at least 1 step, got {horizon}")
    return memory.Windows(len(rows), horizon).gather(jax.tree.map(np.asarray, dataset), rows)
