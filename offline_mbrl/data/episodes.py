"""Whole episodes of a dataset in memory, for estimators of returns; everything is on the host.

An episode counts if at least one of its transitions is in `starts`. So episodes that were held out
as a whole are left out, and all others are complete, held-out transitions included.
"""

from typing import Any

import jax
import numpy as np

from offline_mbrl.data import memory
from offline_mbrl.types import Observation, Trajectory, UsageError


def first_rows(dataset: memory.Dataset) -> np.ndarray:
    """`[N]` int32 rows of the episodes' first records, in the order of the data."""
    ends = np.unique(np.asarray(dataset.episode_end))
    kept = np.isin(ends, np.asarray(dataset.episode_end)[np.asarray(dataset.starts)])
    return (np.concatenate([[0], ends[:-1] + 1])[kept]).astype(np.int32)


def initial_observations(dataset: memory.Dataset) -> Observation:
    """The episodes' first observations `[N, ...]`."""
    rows = first_rows(dataset)
    return jax.tree.map(lambda column: np.asarray(column[rows]), dataset.observation)


def trajectories(
    dataset: memory.Dataset, horizon: int | None = None, *, rows: Any = None
) -> Trajectory:
    """Whole episodes as trajectories `[N, T, ...]`; past an episode's end the mask is 0.

    Args:
      dataset: in memory; observations are returned as stored (frames are not stacked).
      horizon: T. Longer episodes are truncated there. None: the length of the longest episode read.
      rows: `[N]` rows out of `first_rows(dataset)`, to read some episodes only; None: all. Give a
        horizon where episodes are read in chunks, so that all have one shape.

    Returns:
      Trajectories with the dataset's extras.

    Raises:
      UsageError: the horizon is not positive, or a row begins no episode.
    """
    starts = first_rows(dataset)
    rows = starts if rows is None else np.asarray(rows, np.int32)
    if not np.isin(rows, starts).all():
        row = rows[~np.isin(rows, starts)][0]
        raise UsageError(
            f"trajectories: row {row} begins no episode of this dataset; take rows from first_rows"
        )
    if horizon is None:
        horizon = int(np.max(np.asarray(dataset.episode_end)[rows] - rows))
    if horizon < 1:
        raise UsageError(f"trajectories: the horizon must be at least 1 step, got {horizon}")
    sampler = memory.Windows(batch_size=len(rows), length=horizon)
    return sampler.gather(jax.tree.map(np.asarray, dataset), rows)
