"""Datasets in memory: columns, bounds of episodes, and pure samplers that run inside the scan."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import action_bounds as bounds
from offline_mbrl.data import steps
from offline_mbrl.data.action_bounds import Stated
from offline_mbrl.types import Array, Key, Observation, PyTree, Trajectory, Transition, UsageError

# Names that other libraries give to the same fields.
SYNONYMS = {
    "observations": "observation",
    "actions": "action",
    "rewards": "reward",
    "terminals": "is_terminal",
    "terminations": "is_terminal",
    "timeouts": "is_truncated",
    "truncations": "is_truncated",
    "next_observations": "next_observation",
    "terminal": "is_terminal",
    "truncated": "is_truncated",
}
REQUIRED = ("observation", "action", "reward")
UNCLEAR = ("done", "dones")  # terminals and time limits alike, which bootstrap differently
FLAGS = (*steps.FLAGS, "is_truncated")


class Dataset(NamedTuple):
    """Columns over all R records, and the rows of the N transitions and of the episodes' ends.

    Frames are stored once, however many transitions they are part of.
    """

    observation: Observation  # [R, ...]
    action: Array  # [R, ...]   meaningless on an episode's last record
    reward: Array  # [R]
    discount: Array  # [R]   0 on the step that leads to a true terminal
    episode_end: Array  # [R] int32 row of the last record of this record's episode
    starts: Array  # [N] int32 rows that begin a transition
    extras: PyTree = ()
    # [M] int32 rows that begin a held-out transition; see `splits.hold_out`
    held_out: Array | None = None
    # [2, A] least and largest action in the simulator's units, where they are stated; the columns'
    # own actions are scaled to [-1, 1]
    action_bounds: Array | None = None

    @staticmethod
    def from_arrays(arrays: Mapping[str, Any], *, action_bounds: Stated | None = None) -> "Dataset":
        """A dataset from a dict of numpy arrays with one row per step.

        Fields of other names than those below become `extras`.

        Args:
          arrays: `observation` (an array or a dict of arrays), `action`, `reward`, all `[N, ...]`,
            and the ends of episodes in one of two layouts. RLDS: `is_last` and `is_terminal` (a
            record without action closes each episode). Transitions (D4RL): `is_terminal`,
            `is_truncated`, optionally `next_observation`. Plural and D4RL names (`observations`,
            `terminals`, `timeouts`, ...) are accepted.
          action_bounds: of continuous actions, (least, largest) for all entries or for each, in the
            arrays' own units, which are to be the simulator's; "measured" takes those of the data.
            Policies act in these units. None: actions have to lie in [-1, 1].

        Raises:
          UsageError: a field is missing, of another length, not numeric, or not finite; two fields
            mean the same or belong to different layouts; no transition is left; or bounds are not
            understood, or actions lie outside.
        """
        dataset = from_columns(steps.align(records_from_arrays(arrays)))
        return dataset if action_bounds is None else _scaled(dataset, action_bounds)


def _scaled(dataset: Dataset, stated: Stated) -> Dataset:
    action, kind = bounds.scaled(np.asarray(dataset.action), np.asarray(dataset.starts), stated)
    limits = np.array([kind.minimum, kind.maximum], np.float32)
    return dataset._replace(action=action, action_bounds=limits)


def records_from_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a dict of arrays and returns RLDS records; see `Dataset.from_arrays`."""
    _check_names(arrays)
    fields = {SYNONYMS.get(name, name): _as_arrays(name, value) for name, value in arrays.items()}
    for name in REQUIRED:
        if name not in fields:
            close = difflib.get_close_matches(name, arrays, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(
                f"field {name!r} is missing from the arrays "
                f"(found: {', '.join(sorted(arrays))}){hint}"
            )
    _check_fields(fields)
    if not any(name in fields for name in FLAGS):
        raise UsageError(
            "no field marks where episodes end: add `is_last` and `is_terminal` (RLDS), or "
            "`is_terminal` and `is_truncated` (one row per transition)"
        )
    if "is_last" in fields or "is_first" in fields:
        return fields
    fields.setdefault("is_terminal", np.zeros(len(fields["reward"]), bool))
    steps.warn_if_endless(fields)
    return steps.from_transitions(fields)


def _check_names(arrays: Mapping[str, Any]) -> None:
    """Refuses duplicate fields, flags that do not say which end they mark, and mixed layouts."""
    names: dict[str, str] = {}  # canonical name -> the array's own
    for name in arrays:
        if name in UNCLEAR:
            raise UsageError(
                f"field {name!r} does not distinguish terminals from time limits: give "
                "`is_terminal` and `is_truncated` instead"
            )
        canonical = SYNONYMS.get(name, name)
        if canonical in names:
            raise UsageError(
                f"fields {names[canonical]!r} and {name!r} are both the {canonical}: give one of "
                "them"
            )
        names[canonical] = name
    mixed = [names[name] for name in ("is_truncated", "next_observation") if name in names]
    if mixed and ("is_first" in names or "is_last" in names):
        raise UsageError(
            f"field {mixed[0]!r} belongs to one row per transition, `is_first` and `is_last` to "
            "RLDS, where a record without action closes each episode: use one of the two layouts"
        )


def _as_arrays(name: str, value: Any) -> PyTree:
    """A mapping is a tree of columns; anything else is one column, lists included."""
    if isinstance(value, Mapping):
        return {key: _as_arrays(f"{name}/{key}", inner) for key, inner in value.items()}
    try:
        return np.asarray(value)
    except ValueError as error:  # ragged
        raise UsageError(
            f"field {name!r} is not an array: its rows have different shapes"
        ) from error


def _check_fields(fields: Mapping[str, Any]) -> None:
    size = np.shape(fields["reward"])
    if len(size) != 1:
        raise UsageError(f"field 'reward' must have one axis [N], got shape {size}")
    if not size[0]:
        raise UsageError("the arrays are empty: 0 steps")
    for path, column in jax.tree_util.tree_leaves_with_path(fields):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if column.ndim == 0 or len(column) != size[0]:
            raise UsageError(
                f"field {name!r} has shape {column.shape}, but reward has {size[0]} rows"
            )
        if column.dtype.kind not in "biuf":
            raise UsageError(
                f"field {name!r} has dtype {column.dtype}: numbers or booleans are needed"
            )
        if name in FLAGS and column.ndim != 1:
            raise UsageError(f"field {name!r} must have one axis [N], got shape {column.shape}")
        if name in FLAGS and not np.isin(column, (0, 1)).all():
            row = int(np.argmax(~np.isin(column, (0, 1))))
            raise UsageError(f"field {name!r} is {column[row]} at row {row}: flags must be 0 or 1")
        with np.errstate(over="ignore"):
            finite = np.isfinite(device_dtype(column))  # as float32, which learners see
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            raise UsageError(
                f"field {name!r} is not finite at row {row}; remove or repair that episode first"
            )


def from_columns(aligned: steps.Aligned) -> Dataset:
    """Converts aligned columns to a dataset of host arrays; dtypes as of `device_dtype`.

    Raises:
      UsageError: every episode has a single record.
    """
    columns = dict(aligned.columns)
    size = len(columns["reward"])
    lengths = np.diff(np.concatenate([[-1], aligned.episode_ends]))
    episode_end: Any = np.repeat(aligned.episode_ends, lengths).astype(np.int32)
    starts: Any = np.flatnonzero(np.arange(size) != episode_end).astype(np.int32)
    if not len(starts):
        raise UsageError("no transition is left: every episode has a single record")
    fields = {
        name: jax.tree.map(device_dtype, columns.pop(name)) for name in (*REQUIRED, "discount")
    }
    return Dataset(
        **fields, episode_end=episode_end, starts=starts, extras=jax.tree.map(device_dtype, columns)
    )


def device_dtype(column: np.ndarray) -> np.ndarray:
    """Casts floats to float32 and wide integers to int32; other dtypes, such as uint8, are kept."""
    if column.dtype.kind == "f":
        return np.asarray(column, np.float32)
    if column.dtype in (np.int64, np.uint32, np.uint64):
        return np.asarray(column, np.int32)
    return np.asarray(column)


# --- samplers: (dataset, cache, key) -> batch ---
#
# A sampler describes the batches that a learner consumes: a stream reads its settings, gathers rows
# of files with the same functions, and leaves `finish` to the device. The samplers are frozen
# dataclasses, because jit does not take a NamedTuple for a function.


@dataclass(frozen=True)
class Transitions:
    """Samples transitions, uniform over steps, with replacement."""

    batch_size: int
    frame_stack: int = 1  # records that make one observation
    # Adds the logged action of the next step to `extras`, as `next_action` `[B, ...]`, and
    # `has_next_action` `[B]`: 0 on the last step of an episode, which no logged action follows
    with_next_action: bool = False

    def __call__(self, dataset: Dataset, cache: PyTree, key: Key) -> Transition:
        """A batch `[B, ...]` of the dataset alone; the cache is not read."""
        del cache
        dataset = jax.tree.map(jnp.asarray, dataset)  # host arrays cannot be indexed by traced rows
        return self.finish(self.gather(dataset, _uniform(dataset.starts, key, self.batch_size)))

    def gather(self, dataset: Dataset, rows: Any) -> Transition:
        """The transitions that start at `rows` `[B]`, each frame once; `finish` stacks the frames.

        Args:
          dataset: columns on the host (numpy, memory-mapped) or on the device.
          rows: `[B]`, on the same side.

        Returns:
          With frame_stack f > 1: observation `[B, f + 1, ...]`, and no next_observation.
        """
        if self.frame_stack == 1:
            observation = _take(dataset.observation, rows)
            next_observation = _take(dataset.observation, rows + 1)
        else:
            observation = _frames(dataset, rows, length=1, frame_stack=self.frame_stack)
            next_observation = ()
        return Transition(
            observation=observation,
            action=_take(dataset.action, rows),
            reward=_take(dataset.reward, rows),
            discount=_take(dataset.discount, rows),
            next_observation=next_observation,
            extras=self._extras(dataset, rows),
        )

    def _extras(self, dataset: Dataset, rows: Any) -> PyTree:
        extras = _take(dataset.extras, rows)
        if not self.with_next_action:
            return extras
        xp = _array_module(rows)
        follows = rows + 1 < dataset.episode_end[rows]
        return {
            **(extras or {}),
            "next_action": _take(dataset.action, rows + 1),
            "has_next_action": follows.astype(xp.float32),
        }

    def finish(self, batch: Transition) -> Transition:
        """Stacks the frames of a batch from `gather`; runs inside jit."""
        if self.frame_stack == 1:
            return batch
        positions = jnp.tile(jnp.arange(2), (batch.reward.shape[0], 1))
        stacked = _stacked(batch.observation, positions, self.frame_stack)
        return batch._replace(
            observation=jax.tree.map(lambda leaf: leaf[:, 0], stacked),
            next_observation=jax.tree.map(lambda leaf: leaf[:, 1], stacked),
        )


@dataclass(frozen=True)
class Windows:
    """Samples windows of `length` steps, uniform over their first step, with replacement."""

    batch_size: int
    length: int  # T, so that observations are [B, T + 1, ...]
    # Whether windows may start on an episode's last record, masked throughout (ROSMO's sampler)
    start_on_final: bool = False
    frame_stack: int = 1  # records that make one observation

    def __call__(self, dataset: Dataset, cache: PyTree, key: Key) -> Trajectory:
        """A batch `[B, T, ...]` of the dataset alone; the cache is not read."""
        del cache
        dataset = jax.tree.map(jnp.asarray, dataset)
        if self.start_on_final:
            rows = jax.random.randint(key, (self.batch_size,), 0, dataset.reward.shape[0])
        else:
            rows = _uniform(dataset.starts, key, self.batch_size)
        return self.finish(self.gather(dataset, rows))

    def gather(self, dataset: Dataset, rows: Any) -> Trajectory:
        """The windows that start at `rows` `[B]`, each frame once; `finish` stacks the frames.

        Past the end of an episode they are as `Trajectory` says.

        Args:
          dataset: columns on the host (numpy, memory-mapped) or on the device.
          rows: `[B]`, on the same side.

        Returns:
          With frame_stack f: observation `[B, f - 1 + T + 1, ...]`, the f - 1 older frames first.
        """
        xp = _array_module(rows)
        end = dataset.episode_end[rows][:, None]
        window_rows = rows[:, None] + xp.arange(self.length)[None]
        happened = window_rows < end
        window_rows = xp.minimum(window_rows, end)
        truncated = (dataset.discount[xp.maximum(end - 1, 0)] != 0).astype(xp.float32)
        return Trajectory(
            observation=_frames(dataset, rows, length=self.length, frame_stack=self.frame_stack),
            action=_take(dataset.action, window_rows),
            reward=xp.where(happened, dataset.reward[window_rows], xp.float32(0.0)),
            discount=xp.where(happened, dataset.discount[window_rows], truncated),
            mask=happened.astype(xp.float32),
            extras=_take(dataset.extras, window_rows),
        )

    def finish(self, batch: Trajectory) -> Trajectory:
        """Stacks the frames of a batch from `gather`; runs inside jit.

        Past the end of an episode its last stack repeats.
        """
        if self.frame_stack == 1:
            return batch
        happened = jnp.sum(batch.mask, axis=1, dtype=jnp.int32)[:, None]
        positions = jnp.minimum(jnp.arange(self.length + 1)[None], happened)
        return batch._replace(observation=_stacked(batch.observation, positions, self.frame_stack))


def window(dataset: Dataset, row: Array, *, length: int, frame_stack: int = 1) -> Trajectory:
    """The window of `length` steps that starts at `row` [].

    Args:
      dataset: columns on the host or on the device.
      row: [] an array, on the same side.
      length: T.
      frame_stack: records that make one observation.

    Returns:
      A trajectory without batch axis, observations `[T + 1, ...]`.
    """
    sampler = Windows(batch_size=1, length=length, frame_stack=frame_stack)
    batch = sampler.finish(sampler.gather(dataset, row[None]))
    return jax.tree.map(lambda leaf: leaf[0], batch)


def _uniform(choices: Array, key: Key, size: int) -> Array:
    return choices[jax.random.randint(key, (size,), 0, choices.shape[0])]


def _array_module(rows: Any) -> Any:
    return np if isinstance(rows, np.ndarray) else jnp


def _take(tree: PyTree, rows: Any) -> PyTree:
    return jax.tree.map(lambda column: column[rows], tree)


def _frames(dataset: Dataset, rows: Any, *, length: int, frame_stack: int) -> PyTree:
    """Frames `[B, frame_stack - 1 + length + 1, ...]` around `rows` `[B]`.

    Before an episode its first frame repeats, after it its last.
    """
    xp = _array_module(rows)
    end = dataset.episode_end[rows][:, None]
    older = rows[:, None] - xp.arange(1, frame_stack)[None]
    inside = (older >= 0) & (dataset.episode_end[xp.maximum(older, 0)] == end)
    # Rows of one episode are neighbors
    oldest = rows[:, None] - xp.sum(inside, axis=1, keepdims=True)
    offsets = xp.arange(1 - frame_stack, length + 1)[None]
    return _take(dataset.observation, xp.clip(rows[:, None] + offsets, oldest, end))


def _stacked(frames: PyTree, positions: Array, frame_stack: int) -> PyTree:
    """Stacks frames `[B, F, ..., C]` at `positions` `[B, P]`: `[B, P, ..., frame_stack * C]`.

    The oldest frame of each stack comes first.
    """

    def stack(leaf: Array, positions: Array) -> Array:
        stacks = leaf[
            positions[:, None] + jnp.arange(frame_stack)[None]
        ]  # [P, frame_stack, ..., C]
        stacks = jnp.moveaxis(stacks, 1, -2)
        return stacks.reshape(*stacks.shape[:-2], -1)

    return jax.tree.map(lambda leaf: jax.vmap(stack)(leaf, positions), frames)
