"""Mean and standard deviation of observations as a pytree; apply and undo."""

from typing import NamedTuple

import jax
import numpy as np

from offline_mbrl.data import memory
from offline_mbrl.types import PyTree

SMALLEST_STD = 1e-6  # a constant entry is only shifted
CHUNK_ROWS, CHUNK_BYTES = 2**16, 2**26  # of records that are read at a time, whichever is less


class Statistics(NamedTuple):
    """Of one observation: the same tree, one record's shapes, float32."""

    mean: PyTree
    std: PyTree


def statistics(dataset: memory.Dataset) -> Statistics:
    """Mean and standard deviation of every entry of the observations, over all records.

    Leaves that are not floating (frames) get mean 0 and standard deviation 1: they are scaled in the encoder.
    """
    moments = jax.tree.map(_moments, dataset.observation)  # a leaf each of [2, ...]
    return Statistics(jax.tree.map(lambda both: both[0], moments), jax.tree.map(lambda both: both[1], moments))


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
