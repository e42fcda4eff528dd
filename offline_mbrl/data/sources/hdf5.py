"""D4RL-style HDF5 files as sources of RLDS records.

What a step leads to, in this order:

* `next_observations`, where the file has them: no step is lost;
* the next row's observation, except at a time limit: `timeouts`, or else a limit that is known of
  the file. The row after it is the reset of another episode, so that the step before it has no
  outcome, and its observation closes the episode;
* at a terminal a copy of its own observation, since the next row is a reset; only D4RL's AntMaze
  goes on after terminals, and its rows lead to the next one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.data import memory, steps, trees
from offline_mbrl.data.catalog import d4rl
from offline_mbrl.data.sources import episode_ends, ingest
from offline_mbrl.types import BoundedActions, UsageError

TABLE = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
LIMIT = "max_episode_steps"  # a file's attribute
D4RL_GAMMA = 0.99  # as by TFDS's names
WITHOUT_OUTCOME = "steps before a time limit whose next observation the file lacks"


class Layout(NamedTuple):
    """How the steps of a file follow each other."""

    fields: Mapping[str, str]  # canonical name -> the file's
    limit: int  # cuts episodes of files without `timeouts`; 0: nothing is cut
    stride: float = 0.0  # of AntMaze, whose episodes go on after terminals; else 0


def hdf5_source(path: Path) -> ingest.Source:
    """A D4RL-style file as a source.

    It holds `observations`, `actions`, `rewards`, `terminals`, optionally `timeouts` and
    `next_observations`; groups such as `infos` and `metadata` are not read. The attributes
    `action_minimum` and `action_maximum` of the file, `[A]` or `[]`, are the bounds of the actions;
    without them they are assumed to be [-1, 1]. The attribute `max_episode_steps` is the time limit
    of a file without `timeouts`; that of D4RL's files is known from their names.

    Raises:
      UsageError: the file is damaged or cut short, or lacks a field; or it is one of D4RL's whose
        time limits can no longer be recovered.
    """
    import h5py

    official = d4rl.by_file(path.stem)
    try:
        with h5py.File(path, "r") as opened:
            file: Any = opened
            fields = _table_fields(path, file)
            size = len(file[fields["reward"]])
            action = _action_bounds(file, file[fields["action"]].shape)
            layout = _layout(path, fields, official, int(file.attrs.get(LIMIT, 0)))
    except OSError as error:
        raise UsageError(f"{path} cannot be read as HDF5, it may be cut short: {error}") from error
    origin = {"d4rl": official.name} if official else {}
    return ingest.Source(
        batches=_table_batches(path, layout),
        provenance={
            "source": "hdf5",
            "path": str(path),
            "fields": sorted(fields),
            **origin,
            "semantics": _semantics(layout, official),
        },
        action=action,
        unit_actions=official is not None,
        gamma=D4RL_GAMMA if official else None,
        horizon=official.horizon if official else layout.limit,
        steps=size,
    )


def _layout(
    path: Path, fields: Mapping[str, str], official: d4rl.Official | None, limit: int
) -> Layout:
    """Refuses D4RL's files whose ends are neither in the file nor at a fixed limit."""
    if limit < 0:
        raise UsageError(f"{path}: the attribute {LIMIT!r} must be a number of steps, got {limit}")
    if "next_observation" in fields:
        return Layout(fields=fields, limit=0)
    stride = d4rl.ANTMAZE_STRIDE if official and official.family == "antmaze" else 0.0
    if "is_truncated" in fields:
        return Layout(fields=fields, limit=0, stride=stride)
    limit = limit or (official.horizon if official else 0)
    if official and not limit and official.family != "kitchen":
        raise UsageError(
            f"{path} is D4RL's {official.name} by its name, but it has neither 'timeouts' nor "
            "'next_observations', and that dataset's episodes have no fixed length: their ends "
            f"cannot be recovered; take the released file, or set its attribute {LIMIT!r}"
        )
    return Layout(fields=fields, limit=limit, stride=stride)


def _semantics(layout: Layout, official: d4rl.Official | None) -> list[str]:
    """Sentences for the manifest, which `data audit` prints."""
    copied = "terminals lead to a copy of their own observation, since the next row is a reset"
    if "next_observation" in layout.fields:
        outcome = "every step leads to its next_observations, also at terminals and time limits"
    elif layout.stride:
        outcome = (
            "every step leads to the next row, terminals included; steps at timeouts, or after "
            f"which the ant is more than {layout.stride:g} away, have no outcome: they are left "
            "out, or lead to a copy of their own observation where they are terminals"
        )
    elif "is_truncated" in layout.fields:
        outcome = f"{copied}; timeouts are time limits, and their steps have no outcome"
    elif layout.limit:
        outcome = f"{copied}; steps at the limit, {layout.limit}, have no outcome (no timeouts)"
    else:
        outcome = f"{copied}; the file marks no time limits: attribute {LIMIT!r}, or timeouts"
    return [outcome, *(d4rl.semantics(official) if official else [])]


def _table_fields(path: Path, file: Any) -> dict[str, str]:
    """The file's fields by their canonical names."""
    fields = {memory.SYNONYMS.get(name, name): name for name in TABLE if name in file}
    for name in ("observation", "action", "reward", "is_terminal"):
        if name not in fields:
            expected = next(field for field in TABLE if memory.SYNONYMS.get(field) == name)
            raise UsageError(f"{path} has no field {expected!r} (found: {', '.join(sorted(file))})")
    reward = file[fields["reward"]]
    if not getattr(reward, "shape", None):
        raise UsageError(
            f"{path}: field {fields['reward']!r} is not a table: one number per step is needed"
        )
    size = len(reward)
    for name in fields.values():
        leaves = trees.flatten(_open_tree(file[name]))
        for leaf in leaves.values():
            if leaf.shape[:1] != (size,):
                rows = leaf.shape[0] if leaf.shape else "no"
                raise UsageError(
                    f"{path}: field {name!r} has {rows} rows, but {fields['reward']!r} has {size}"
                )
            if leaf.dtype.kind not in "biuf":
                raise UsageError(
                    f"{path}: field {name!r} has dtype {leaf.dtype}: numbers or booleans are needed"
                )
    for name in (fields[canonical] for canonical in ("reward", *_ends(fields))):
        if file[name].size != size:
            raise UsageError(
                f"{path}: field {name!r} has shape {file[name].shape}: one number per step is "
                "needed"
            )
    if "next_observation" in fields:
        _refuse_other_shapes(path, file, fields["observation"], fields["next_observation"])
    return fields


def _refuse_other_shapes(path: Path, file: Any, name: str, next_name: str) -> None:
    """Refuses next observations whose structure or shapes differ from the observations'."""
    shapes = _shapes(file[name])
    next_shapes = _shapes(file[next_name])
    for field in dict.fromkeys([*shapes, *next_shapes]):
        if shapes.get(field) != next_shapes.get(field):
            raise UsageError(
                f"{path}: field {_describe_shape(next_name, field, next_shapes)}, but "
                f"{_describe_shape(name, field, shapes)}: both must have the same"
            )


def _shapes(node: Any) -> dict[trees.Path, tuple[int, ...]]:
    return {field: leaf.shape for field, leaf in trees.flatten(_open_tree(node)).items()}


def _describe_shape(
    name: str, field: trees.Path, shapes: Mapping[trees.Path, tuple[int, ...]]
) -> str:
    shape = f"has shape {list(shapes[field])}" if field in shapes else "is absent"
    return f"{'/'.join((name, *field))!r} {shape}"


def _table_batches(path: Path, layout: Layout) -> Iterator[ingest.Batch]:
    import h5py

    fields = layout.fields
    try:
        with h5py.File(path, "r") as file:
            flags = _flags(path, file, layout)
            steps.warn_if_endless({**fields, **flags})
            # Episodes that go on after a terminal stay together.
            apart = ("is_truncated",) if layout.stride else tuple(flags)
            for rows in _episode_groups(np.logical_or.reduce([flags[name] for name in apart])):
                table = {name: _read_tree(file[field], rows) for name, field in fields.items()}
                table["reward"] = np.reshape(table["reward"], -1)
                table |= {name: flag[rows] for name, flag in flags.items()}
                yield _batch(table, layout)
    except (OSError, KeyError) as error:
        raise UsageError(
            f"{path} cannot be read to its end, it may be damaged or cut short: {error}"
        ) from error


def _batch(table: dict[str, Any], layout: Layout) -> ingest.Batch:
    size = len(table["reward"])
    left_out = unknown = 0
    if layout.stride:
        unknown = int((table["is_terminal"] & table["is_truncated"]).sum())
        table, left_out = episode_ends.lead_on(table)
    records = steps.from_transitions(table)
    lengths = np.diff(np.concatenate([[-1], np.flatnonzero(records["is_last"])]))
    added = len(records["reward"]) - (size - left_out)
    return ingest.Batch(
        records=records,
        lengths=lengths,
        added=added,
        dropped={WITHOUT_OUTCOME: left_out} if left_out else {},
        without_outcome=unknown if layout.stride else len(lengths) - added,
    )


def _flags(path: Path, file: Any, layout: Layout) -> dict[str, np.ndarray]:
    """`is_terminal` and, where something cuts episodes, `is_truncated`: `[N]` bool each."""
    flags = {name: _read_flag(path, file, layout.fields[name]) for name in _ends(layout.fields)}
    if layout.limit:
        flags["is_truncated"] = episode_ends.at_limit(flags["is_terminal"], layout.limit)
    if layout.stride:
        position = file[layout.fields["observation"]][:, :2]
        flags["is_truncated"] |= episode_ends.at_jumps(position, layout.stride)
        flags["is_truncated"][-1:] = True
    return flags


def _read_flag(path: Path, file: Any, name: str) -> np.ndarray:
    values = np.asarray(file[name]).reshape(-1)
    invalid = np.flatnonzero((values != 0) & (values != 1))  # NaN included
    if len(invalid):
        row = invalid[0]
        raise UsageError(
            f"{path}: field {name!r} must hold 0 or 1, but row {row} holds {values[row]}"
        )
    return values.astype(bool)


def _ends(fields: Mapping[str, str]) -> list[str]:
    return [name for name in ("is_terminal", "is_truncated") if name in fields]


def _episode_groups(ends: np.ndarray) -> Iterator[slice]:
    """Slices of whole episodes, of at least `ingest.BATCH_RECORDS` rows except for the last."""
    start = 0
    while start < len(ends):
        following = np.flatnonzero(ends[start + ingest.BATCH_RECORDS - 1 :])
        stop = start + ingest.BATCH_RECORDS + int(following[0]) if len(following) else len(ends)
        yield slice(start, stop)
        start = stop


def _open_tree(node: Any) -> Any:
    return {key: _open_tree(node[key]) for key in node} if hasattr(node, "keys") else node


def _read_tree(node: Any, rows: slice) -> Any:
    return (
        {key: _read_tree(node[key], rows) for key in node} if hasattr(node, "keys") else node[rows]
    )


def _action_bounds(file: Any, shape: tuple[int, ...]) -> BoundedActions | None:
    if "action_minimum" not in file.attrs or len(shape) != 2:
        return None
    low, high = (
        np.broadcast_to(file.attrs[f"action_{end}"], shape[1:]).tolist()
        for end in ("minimum", "maximum")
    )
    return BoundedActions(tuple(low), tuple(high))
