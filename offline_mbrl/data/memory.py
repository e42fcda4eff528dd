"""A dataset that fits on the device: columns and episode bounds, and pure samplers that run inside the scan."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import steps
from offline_mbrl.types import Array, PyTree, Trajectory, Transition, UsageError

# The names that other libraries give to the same fields.
SYNONYMS = {
    "observations": "observation", "actions": "action", "rewards": "reward", "terminals": "is_terminal",
    "terminations": "is_terminal", "timeouts": "is_truncated", "truncations": "is_truncated",
    "next_observations": "next_observation", "terminal": "is_terminal", "truncated": "is_truncated",
}  # fmt: skip
REQUIRED = ("observation", "action", "reward")
UNCLEAR = ("done", "dones")  # terminal or cut? The difference decides what bootstraps
FLAGS = (*steps.FLAGS, "is_truncated")


class Dataset(NamedTuple):
    """Columns over all R records, frames stored once, and where the N transitions and the episodes' ends are."""

    observation: PyTree  # [R, ...]
    action: Array  # [R, ...]   meaningless on an episode's last record
    reward: Array  # [R]
    discount: Array  # [R]   0 on the step that leads to a true terminal
    episode_end: Array  # [R] int32 row of the last record of this record's episode
    starts: Array  # [N] int32 rows that begin a transition
    extras: PyTree = ()

    @staticmethod
    def from_arrays(arrays: Mapping[str, Any]) -> "Dataset":
        """Your own data: a dict of numpy arrays with one row per step.

        Args:
          arrays: `observation` (an array or a dict of arrays), `action`, `reward`, all `[N, ...]`, and the ends
            of episodes in one of two layouts. RLDS: `is_last` and `is_terminal` (a record without action closes
            each episode). Transitions (D4RL): `is_terminal`, `is_truncated`, optionally `next_observation`.
            Plural and D4RL names (`observations`, `terminals`, `timeouts`, ...) are understood.

        Raises:
          UsageError: a field is missing, of another length, not numeric, or not finite; two fields mean the same
            or belong to different layouts; or no transition is left. Fields of other names become `extras`.
        """
        return from_columns(steps.align(records_from_arrays(arrays)))


def records_from_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a dict of arrays and returns RLDS records; see `Dataset.from_arrays`."""
    _check_names(arrays)
    fields = {SYNONYMS.get(name, name): _as_arrays(name, value) for name, value in arrays.items()}
    for name in REQUIRED:
        if name not in fields:
            close = difflib.get_close_matches(name, arrays, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"field {name!r} is missing from the arrays (found: {', '.join(sorted(arrays))}){hint}")
    _check_fields(fields)
    if not any(name in fields for name in FLAGS):
        raise UsageError(
            "nothing tells where episodes end: add `is_last` and `is_terminal` (RLDS), or `is_terminal` and "
            "`is_truncated` (one row per transition)")  # fmt: skip
    if "is_last" in fields or "is_first" in fields:
        return fields
    fields.setdefault("is_terminal", np.zeros(len(fields["reward"]), bool))
    return steps.from_transitions(fields)


def _check_names(arrays: Mapping[str, Any]) -> None:
    """Refuses names that mean the same, do not say what kind of end they mark, or belong to different layouts."""
    meant: dict[str, str] = {}
    for name in arrays:
        if name in UNCLEAR:
            raise UsageError(f"field {name!r} does not tell terminals from time limits: give `is_terminal` and "
                             "`is_truncated` instead")  # fmt: skip
        if (ours := SYNONYMS.get(name, name)) in meant:
            raise UsageError(f"fields {meant[ours]!r} and {name!r} are both the {ours}: give one of them")
        meant[ours] = name
    mixed = [meant[name] for name in ("is_truncated", "next_observation") if name in meant]
    if mixed and ("is_first" in meant or "is_last" in meant):
        raise UsageError(f"field {mixed[0]!r} belongs to one row per transition, `is_first` and `is_last` to RLDS, "
                         "where a record without action closes each episode: use one of the two layouts")  # fmt: skip


def _as_arrays(name: str, value: Any) -> PyTree:
    """A mapping is a tree of columns; anything else is one column, lists included."""
    if isinstance(value, Mapping):
        return {key: _as_arrays(f"{name}/{key}", inner) for key, inner in value.items()}
    try:
        return np.asarray(value)
    except ValueError as error:  # ragged
        raise UsageError(f"field {name!r} is no array: its rows have different shapes") from error


def _check_fields(fields: Mapping[str, Any]) -> None:
    size = np.shape(fields["reward"])
    if len(size) != 1:
        raise UsageError(f"field 'reward' must have one axis [N], got shape {size}")
    if not size[0]:
        raise UsageError("the arrays are empty: 0 steps")
    for path, column in jax.tree_util.tree_leaves_with_path(fields):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if column.ndim == 0 or len(column) != size[0]:
            raise UsageError(f"field {name!r} has shape {column.shape}, but reward has {size[0]} rows")
        if column.dtype.kind not in "biuf":
            raise UsageError(f"field {name!r} has dtype {column.dtype}: numbers or booleans are needed")
        if name in FLAGS and column.ndim != 1:
            raise UsageError(f"field {name!r} must have one axis [N], got shape {column.shape}")
        if name in FLAGS and not np.isin(column, (0, 1)).all():
            row = int(np.argmax(~np.isin(column, (0, 1))))
            raise UsageError(f"field {name!r} is {column[row]} at row {row}: flags must be 0 or 1")
        with np.errstate(over="ignore"):
            finite = np.isfinite(device_dtype(column))  # as float32, in which learners see it
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            raise UsageError(f"field {name!r} is not finite at row {row}; remove or repair that episode first")


def from_columns(aligned: steps.Aligned) -> Dataset:
    """Aligned columns to a Dataset of host arrays: float32, int32 actions, uint8 frames kept as they are."""
    columns = dict(aligned.columns)
    size = len(columns["reward"])
    lengths = np.diff(np.concatenate([[-1], aligned.episode_ends]))
    episode_end: Any = np.repeat(aligned.episode_ends, lengths).astype(np.int32)
    starts: Any = np.flatnonzero(np.arange(size) != episode_end).astype(np.int32)
    if not len(starts):
        raise UsageError("no transition is left: every episode has a single record")
    fields = {name: jax.tree.map(device_dtype, columns.pop(name)) for name in (*REQUIRED, "discount")}
    return Dataset(**fields, episode_end=episode_end, starts=starts, extras=jax.tree.map(device_dtype, columns))


def device_dtype(column: np.ndarray) -> np.ndarray:
    """A column as it is kept: floats as float32, wide integers as int32, everything else as it is."""
    if column.dtype.kind == "f":
        return np.asarray(column, np.float32)
    return np.asarray(column, np.int32) if column.dtype in (np.int64, np.uint32, np.uint64) else np.asarray(column)


# --- samplers: (dataset, key) -> batch ---


def transitions(batch_size: int) -> Callable[[Dataset, Array], Transition]:
    """A sampler of `batch_size` transitions, uniform over steps, with replacement."""

    def sample(dataset: Dataset, key: Array) -> Transition:
        dataset = jax.tree.map(jnp.asarray, dataset)  # host arrays cannot be indexed by traced rows
        rows = _uniform(dataset.starts, key, batch_size)
        take = lambda tree: jax.tree.map(lambda column: column[rows], tree)  # noqa: E731
        return Transition(
            observation=take(dataset.observation), action=take(dataset.action), reward=take(dataset.reward),
            discount=take(dataset.discount), extras=take(dataset.extras),
            next_observation=jax.tree.map(lambda column: column[rows + 1], dataset.observation))  # fmt: skip

    return sample


def windows(batch_size: int, length: int, *, start_on_final: bool = False) -> Callable[[Dataset, Array], Trajectory]:
    """A sampler of `batch_size` windows of `length` steps, uniform over their first step, with replacement.

    Args:
      batch_size: B.
      length: T, so that observations are `[B, T + 1, ...]`.
      start_on_final: also start on the last record of an episode, as ROSMO's released sampler does; such a window
        is masked throughout.
    """

    def sample(dataset: Dataset, key: Array) -> Trajectory:
        dataset = jax.tree.map(jnp.asarray, dataset)
        if start_on_final:
            rows = jax.random.randint(key, (batch_size,), 0, dataset.reward.shape[0])
        else:
            rows = _uniform(dataset.starts, key, batch_size)
        return jax.vmap(lambda row: window(dataset, row, length=length))(rows)

    return sample


def window(dataset: Dataset, row: Array, *, length: int) -> Trajectory:
    """The window of `length` steps that starts at `row` []; see `Trajectory` for what stands past the end."""
    chex.assert_shape(row, ())
    end = dataset.episode_end[row]
    rows = row + jnp.arange(length + 1)
    happened = rows[:-1] < end
    terminated = dataset.discount[jnp.maximum(end - 1, 0)] == 0  # how this episode ended
    rows = jnp.minimum(rows, end)
    take = lambda tree: jax.tree.map(lambda column: column[rows[:-1]], tree)  # noqa: E731
    return Trajectory(
        observation=jax.tree.map(lambda column: column[rows], dataset.observation),
        action=take(dataset.action),
        reward=jnp.where(happened, dataset.reward[rows[:-1]], 0.0),
        discount=jnp.where(happened, dataset.discount[rows[:-1]], 1.0 - terminated),
        mask=happened.astype(jnp.float32),
        extras=take(dataset.extras))  # fmt: skip


def _uniform(choices: Array, key: Array, size: int) -> Array:
    return choices[jax.random.randint(key, (size,), 0, choices.shape[0])]
