"""A dataset that fits on the device: columns and episode bounds, and pure samplers that run inside
the scan."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import steps
from offline_mbrl.types import Array, PyTree, Trajectory, Transition, UsageError

# The names that other libraries give to the same fields.
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
UNCLEAR = ("done", "dones")  # terminal or cut? The difference decides what bootstraps
FLAGS = (*steps.FLAGS, "is_truncated")


class Dataset(NamedTuple):
    """Columns over all R records, frames stored once, and where the N transitions and the episodes'
    ends are."""

    observation: PyTree  # [R, ...]
    action: Array  # [R, ...]   meaningless on an episode's last record
    reward: Array  # [R]
    discount: Array  # [R]   0 on the step that leads to a true terminal
    episode_end: Array  # [R] int32 row of the last record of this record's episode
    starts: Array  # [N] int32 rows that begin a transition
    extras: PyTree = ()
    # [M] int32 rows that begin a transition kept from training; see `splits.hold_out`
    held_out: Array | tuple[()] = ()

    @staticmethod
    def from_arrays(arrays: Mapping[str, Any]) -> "Dataset":
        """Your own data: a dict of numpy arrays with one row per step.

        Args:
          arrays: `observation` (an array or a dict of arrays), `action`, `reward`, all `[N, ...]`,
            and the ends of episodes in one of two layouts. RLDS: `is_last` and `is_terminal` (a
            record without action closes each episode). Transitions (D4RL): `is_terminal`,
            `is_truncated`, optionally `next_observation`. Plural and D4RL names (`observations`,
            `terminals`, `timeouts`, ...) are understood.

        Raises:
          UsageError: a field is missing, of another length, not numeric, or not finite; two fields
            mean the same or belong to different layouts; or no transition is left. Fields of other
            names become `extras`.
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
            raise UsageError(
                f"field {name!r} is missing from the arrays (found: "
                f"{', '.join(sorted(arrays))}){hint}"
            )
    _check_fields(fields)
    if not any(name in fields for name in FLAGS):
        raise UsageError(
            "nothing tells where episodes end: add `is_last` and `is_terminal` (RLDS), or "
            "`is_terminal` and `is_truncated` (one row per transition)"
        )
    if "is_last" in fields or "is_first" in fields:
        return fields
    fields.setdefault("is_terminal", np.zeros(len(fields["reward"]), bool))
    steps.warn_if_endless(fields)
    return steps.from_transitions(fields)


def _check_names(arrays: Mapping[str, Any]) -> None:
    """Refuses names that mean the same, do not say what kind of end they mark, or belong to
    different layouts."""
    meant: dict[str, str] = {}
    for name in arrays:
        if name in UNCLEAR:
            raise UsageError(
                f"field {name!r} does not tell terminals from time limits: give `is_terminal` and "
                "`is_truncated` instead"
            )
        if (ours := SYNONYMS.get(name, name)) in meant:
            raise UsageError(
                f"fields {meant[ours]!r} and {name!r} are both the {ours}: give one of them"
            )
        meant[ours] = name
    mixed = [meant[name] for name in ("is_truncated", "next_observation") if name in meant]
    if mixed and ("is_first" in meant or "is_last" in meant):
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
            finite = np.isfinite(device_dtype(column))  # as float32, in which learners see it
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            raise UsageError(
                f"field {name!r} is not finite at row {row}; remove or repair that episode first"
            )


def from_columns(aligned: steps.Aligned) -> Dataset:
    """Aligned columns to a Dataset of host arrays: float32, int32 actions, uint8 frames kept as
    they are."""
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
    """A column as it is kept: floats as float32, wide integers as int32, everything else as it
    is."""
    if column.dtype.kind == "f":
        return np.asarray(column, np.float32)
    return (
        np.asarray(column, np.int32)
        if column.dtype in (np.int64, np.uint32, np.uint64)
        else np.asarray(column)
    )


# --- samplers: (dataset, cache, key) -> batch ---
#
# A sampler says what a learner eats: a stream reads its fields, gathers rows of files with the same
# functions, and leaves `finish` to the device. Frozen dataclasses, because jit takes no NamedTuple
# for a function.


@dataclass(frozen=True)
class Transitions:
    """Transitions, uniform over steps, with replacement."""

    batch_size: int
    frame_stack: int = 1  # records that make one observation

    def __call__(self, dataset: Dataset, cache: PyTree, key: Array) -> Transition:
        """A batch `[B, ...]` of the dataset alone; pure, runs inside the scan."""
        del cache
        dataset = jax.tree.map(jnp.asarray, dataset)  # host arrays cannot be indexed by traced rows
        return self.finish(self.gather(dataset, _uniform(dataset.starts, key, self.batch_size)))

    def gather(self, dataset: Dataset, rows: Any) -> Transition:
        """The transitions that start at `rows` `[B]`, unfinished: each frame once.

        Args:
          dataset: columns of the host (numpy, memory-mapped) or the device.
          rows: `[B]` rows, of the same side.

        Returns:
          With frame_stack f > 1: observation `[B, f + 1, ...]`, and no next_observation.
        """
        take = lambda tree: jax.tree.map(lambda column: column[rows], tree)  # noqa: E731
        if self.frame_stack == 1:
            observation = take(dataset.observation)
            following = jax.tree.map(lambda column: column[rows + 1], dataset.observation)
        else:
            observation, following = _frames(dataset, rows, 1, self.frame_stack), ()
        return Transition(
            observation=observation,
            action=take(dataset.action),
            reward=take(dataset.reward),
            discount=take(dataset.discount),
            extras=take(dataset.extras),
            next_observation=following,
        )

    def finish(self, batch: Transition) -> Transition:
        """Stacks the frames of what `gather` returned; runs inside jit."""
        if self.frame_stack == 1:
            return batch
        stacked = _stacked(
            batch.observation, jnp.tile(jnp.arange(2), (batch.reward.shape[0], 1)), self.frame_stack
        )
        observation, following = (
            jax.tree.map(lambda leaf, at=at: leaf[:, at], stacked) for at in (0, 1)
        )
        return batch._replace(observation=observation, next_observation=following)


@dataclass(frozen=True)
class Windows:
    """Windows of `length` steps, uniform over their first step, with replacement."""

    batch_size: int
    length: int  # T, so that observations are [B, T + 1, ...]
    # Also on an episode's last record (ROSMO's released sampler): masked throughout
    start_on_final: bool = False
    frame_stack: int = 1  # records that make one observation

    def __call__(self, dataset: Dataset, cache: PyTree, key: Array) -> Trajectory:
        """A batch `[B, T, ...]` of the dataset alone; pure, runs inside the scan."""
        del cache
        dataset = jax.tree.map(jnp.asarray, dataset)
        if self.start_on_final:
            rows = jax.random.randint(key, (self.batch_size,), 0, dataset.reward.shape[0])
        else:
            rows = _uniform(dataset.starts, key, self.batch_size)
        return self.finish(self.gather(dataset, rows))

    def gather(self, dataset: Dataset, rows: Any) -> Trajectory:
        """The windows that start at `rows` `[B]`, unfinished: each frame once; see `Trajectory` for
        past the end.

        Args:
          dataset: columns of the host (numpy, memory-mapped) or the device.
          rows: `[B]` rows, of the same side.

        Returns:
          With frame_stack f: observation `[B, f - 1 + T + 1, ...]`, the f - 1 older frames first.
        """
        xp: Any = np if isinstance(rows, np.ndarray) else jnp
        end = dataset.episode_end[rows][:, None]
        steps = rows[:, None] + xp.arange(self.length)[None]
        happened = steps < end
        terminated = dataset.discount[xp.maximum(end - 1, 0)] == 0  # how this episode ended
        steps = xp.minimum(steps, end)
        take = lambda tree: jax.tree.map(lambda column: column[steps], tree)  # noqa: E731
        return Trajectory(
            observation=_frames(dataset, rows, self.length, self.frame_stack),
            action=take(dataset.action),
            reward=xp.where(happened, dataset.reward[steps], xp.float32(0.0)),
            discount=xp.where(happened, dataset.discount[steps], (~terminated).astype(xp.float32)),
            mask=happened.astype(xp.float32),
            extras=take(dataset.extras),
        )

    def finish(self, batch: Trajectory) -> Trajectory:
        """Stacks the frames of what `gather` returned; runs inside jit. Past the end the last stack
        repeats."""
        if self.frame_stack == 1:
            return batch
        happened = jnp.sum(batch.mask, axis=1, dtype=jnp.int32)[:, None]
        positions = jnp.minimum(jnp.arange(self.length + 1)[None], happened)
        return batch._replace(observation=_stacked(batch.observation, positions, self.frame_stack))


def transitions(batch_size: int, *, frame_stack: int = 1) -> Transitions:
    """A sampler of `batch_size` transitions, uniform over steps, with replacement; see
    `Transitions`."""
    return Transitions(batch_size, frame_stack)


def windows(
    batch_size: int, length: int, *, start_on_final: bool = False, frame_stack: int = 1
) -> Windows:
    """A sampler of `batch_size` windows of `length` steps, uniform over their first step; see
    `Windows`."""
    return Windows(batch_size, length, start_on_final, frame_stack)


def window(dataset: Dataset, row: Array, *, length: int, frame_stack: int = 1) -> Trajectory:
    """The one window of `length` steps that starts at `row` []."""
    one = Windows(1, length, frame_stack=frame_stack)
    return jax.tree.map(lambda leaf: leaf[0], one.finish(one.gather(dataset, row[None])))


def _uniform(choices: Array, key: Array, size: int) -> Array:
    return choices[jax.random.randint(key, (size,), 0, choices.shape[0])]


def _frames(dataset: Dataset, rows: Any, length: int, frame_stack: int) -> PyTree:
    """Frames `[B, frame_stack - 1 + length + 1, ...]` around `rows` `[B]`; an episode's first and
    last repeat."""
    xp: Any = np if isinstance(rows, np.ndarray) else jnp
    end = dataset.episode_end[rows][:, None]
    older = rows[:, None] - xp.arange(1, frame_stack)[None]
    inside = (older >= 0) & (dataset.episode_end[xp.maximum(older, 0)] == end)
    # Rows of one episode are neighbors
    oldest = rows[:, None] - xp.sum(inside, axis=1, keepdims=True)
    wanted = xp.clip(rows[:, None] + xp.arange(1 - frame_stack, length + 1)[None], oldest, end)
    return jax.tree.map(lambda column: column[wanted], dataset.observation)


def _stacked(frames: PyTree, positions: Array, frame_stack: int) -> PyTree:
    """Frames `[B, F, ..., C]` to observations `[B, P, ..., frame_stack * C]`, oldest first, at
    `positions` `[B, P]`."""

    def stack(leaf: Array, positions: Array) -> Array:
        taken = leaf[positions[:, None] + jnp.arange(frame_stack)[None]]  # [P, frame_stack, ..., C]
        taken = jnp.moveaxis(taken, 1, -2)
        return taken.reshape(*taken.shape[:-2], -1)

    return jax.tree.map(lambda leaf: jax.vmap(stack)(leaf, positions), frames)
