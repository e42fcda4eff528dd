"""Where a model can be trusted: means of a quantity over cells of a plane through the states."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.stats

from offline_mbrl.types import UsageError


class Plane(NamedTuple):
    """A projection of observations `[n]` onto two numbers."""

    names: tuple[str, str]
    shift: np.ndarray  # [n]
    directions: np.ndarray  # [n, 2]

    def project(self, observation: np.ndarray) -> np.ndarray:
        """`[M, n]` to `[M, 2]`."""
        return (np.asarray(observation) - self.shift) @ self.directions


class TrustMap(NamedTuple):
    """G x G cells; a cell without transitions is NaN."""

    names: tuple[str, str]  # of the axes
    edges: tuple[np.ndarray, np.ndarray]  # [G + 1] each
    count: np.ndarray  # [G, G] transitions; the first axis is the first name's
    values: dict[str, np.ndarray]  # by quantity, means [G, G]


def principal(observations: np.ndarray) -> Plane:
    """The plane of the first two principal components of standardized observations `[M, n]`.

    Raises:
      UsageError: observations have a single entry.
    """
    observations = np.asarray(observations, np.float64)
    if observations.shape[1] < 2:
        raise UsageError("a map needs observations of at least two entries")
    mean = observations.mean(axis=0)
    std = observations.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    _, singular, components = np.linalg.svd((observations - mean) / std, full_matrices=False)
    # The sign of a component is arbitrary: its largest entry is positive.
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(len(components)), largest])[:, None]
    shares = singular**2 / max(float(np.sum(singular**2)), np.finfo(float).tiny)
    names = tuple(f"component {i + 1} ({shares[i]:.0%} of variance)" for i in range(2))
    return Plane(names=(names[0], names[1]), shift=mean, directions=(components[:2] / std).T)


def chosen(num_entries: int, first: int, second: int) -> Plane:
    """The plane of two entries of the observation.

    Args:
      num_entries: n.
      first: index of the entry on the first axis.
      second: index of the other.

    Raises:
      UsageError: an index is out of range, or both are the same.
    """
    if first == second or not all(0 <= index < num_entries for index in (first, second)):
        raise UsageError(
            f"a map needs two different entries out of 0 .. {num_entries - 1}, got {first} and "
            f"{second}"
        )
    return Plane(
        names=(f"entry {first}", f"entry {second}"),
        shift=np.zeros(num_entries),
        directions=np.eye(num_entries)[:, [first, second]],
    )


def trust_map(
    plane: Plane,
    observation: np.ndarray,
    values: Mapping[str, np.ndarray],
    *,
    num_cells: int = 24,
) -> TrustMap:
    """Means of quantities over cells of the plane.

    Args:
      plane: see `principal` and `chosen`.
      observation: `[M, n]`.
      values: quantities by name, `[M]`.
      num_cells: G, along each axis, between the 0.5 and the 99.5 percentile of the transitions.
    """
    points = plane.project(observation)
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    bounds = [(a, b if b > a else a + 1.0) for a, b in zip(low, high, strict=True)]
    binned = scipy.stats.binned_statistic_2d(
        points[:, 0],
        points[:, 1],
        [np.ones(len(points)), *values.values()],
        statistic="sum",
        bins=num_cells,
        range=bounds,
    )
    count, *totals = binned.statistic
    means = [np.where(count > 0, total / np.maximum(count, 1), np.nan) for total in totals]
    return TrustMap(
        names=plane.names,
        edges=(binned.x_edge, binned.y_edge),
        count=count.astype(int),
        values=dict(zip(values, means, strict=True)),
    )
