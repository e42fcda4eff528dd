"""Bounds of continuous actions: stated, measured on data, or assumed; and what scales by them."""

from collections.abc import Sequence

import numpy as np

from offline_mbrl.types import BoundedActions, UsageError

MEASURED = "measured"
TOLERANCE = 1e-4  # share of the range: rounding may put a squashed action beyond its bound
# (least, largest), of all entries or of each; or "measured": those of the data
Stated = tuple[float | Sequence[float], float | Sequence[float]] | str
REMEDY = (
    "state the bounds of the actions: --action-bounds LOW HIGH, or in Python "
    "`Dataset.from_arrays(arrays, action_bounds=(low, high))`"
)


def assumed(size: int) -> BoundedActions:
    """[-1, 1], because nothing is stated."""
    return BoundedActions((-1.0,) * size, (1.0,) * size, assumed=True)


def resolve(stated: Stated, action: np.ndarray) -> BoundedActions:
    """The bounds that are stated for actions, or that they have.

    Args:
      stated: see `Stated`.
      action: `[N, A]` actions that were taken.

    Raises:
      UsageError: a bound is not finite, is no number, or does not fit A entries; or a least value
        is not below the largest.
    """
    size = action.shape[-1]
    if isinstance(stated, str):
        if stated != MEASURED:
            raise UsageError(
                f"action bounds {stated!r} are not understood: give (low, high), or {MEASURED!r}"
            )
        low, high = action.min(axis=0), action.max(axis=0)
    else:
        if len(stated) != 2:
            raise UsageError(f"action bounds are two, the least and the largest; got {len(stated)}")
        low, high = (_entries(bound, size) for bound in stated)
    for entry, (least, largest) in enumerate(zip(low, high, strict=True)):
        if not (np.isfinite(least) and np.isfinite(largest) and least < largest):
            raise UsageError(
                f"action bounds of entry {entry} are {least:g} and {largest:g}: they must be "
                "finite, and the first below the second"
            )
    return BoundedActions(tuple(map(float, low)), tuple(map(float, high)))


def _entries(bound: float | Sequence[float], size: int) -> np.ndarray:
    try:
        return np.broadcast_to(np.asarray(bound, np.float64), (size,))
    except ValueError as error:
        raise UsageError(
            f"action bounds {bound} do not fit actions of {size} entries: give one number, or "
            f"{size}"
        ) from error


def to_unit_bounds(kind: BoundedActions, action: np.ndarray) -> np.ndarray:
    """Scales actions `[..., A]` from the simulator's units to [-1, 1].

    Unbounded dimensions are unchanged.
    """
    low = np.asarray(kind.minimum, np.float32)
    high = np.asarray(kind.maximum, np.float32)
    bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
    low = np.where(bounded, low, -1)
    high = np.where(bounded, high, 1)
    return np.asarray((action - low) / (high - low) * 2 - 1, np.float32)


def scaled(
    action: np.ndarray, rows: np.ndarray, stated: Stated
) -> tuple[np.ndarray, BoundedActions]:
    """Actions in [-1, 1], and the bounds by which they were scaled.

    Args:
      action: `[R, A]`.
      rows: `[N]` those that were really taken.
      stated: see `Stated`.

    Raises:
      UsageError: the actions are discrete, the bounds are not understood, or actions lie outside.
    """
    if action.ndim != 2 or action.dtype.kind != "f":
        raise UsageError(
            f"action bounds are for continuous actions [N, A], these have dtype {action.dtype} and "
            f"shape {action.shape}"
        )
    chosen = action[rows]
    kind = resolve(stated, chosen)
    low, high = np.array([kind.minimum, kind.maximum], np.float32)
    slack = TOLERANCE * (high - low)
    outside = ((chosen < low - slack) | (chosen > high + slack)).any(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        raise UsageError(
            f"field 'action', transition {row}: {chosen[row]} is outside the stated bounds, "
            f"{low.tolist()} to {high.tolist()}"
        )
    return to_unit_bounds(kind, action), kind
