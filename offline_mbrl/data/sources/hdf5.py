"""D4RL-style HDF5 files as sources of RLDS records."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offline_mbrl.data import memory, steps, trees
from offline_mbrl.data.sources import ingest
from offline_mbrl.types import BoundedActions, UsageError

TABLE = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def hdf5_source(path: Path) -> ingest.Source:
    """A D4RL-style file as a source.

    It holds `observations`, `actions`, `rewards`, `terminals`, optionally `timeouts` and
    `next_observations`; groups such as `infos` and `metadata` are not read. The attributes
    `action_minimum` and `action_maximum` of the file, `[A]` or `[]`, are the bounds of the actions;
    without them the bounds are [-1, 1].

    Raises:
      UsageError: the file is damaged or cut short, or lacks a field.
    """
    import h5py

    try:
        with h5py.File(path, "r") as opened:
            file: Any = opened
            fields = _table_fields(path, file)
            size = len(file[fields["reward"]])
            action = _action_bounds(file, file[fields["action"]].shape)
    except OSError as error:
        raise UsageError(f"{path} cannot be read as HDF5, it may be cut short: {error}") from error
    return ingest.Source(
        batches=_table_batches(path, fields),
        provenance={"source": "hdf5", "path": str(path), "fields": sorted(fields)},
        action=action,
        steps=size,
    )


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


def _table_batches(path: Path, fields: Mapping[str, str]) -> Iterator[ingest.Batch]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            flags = [_read_flag(path, file, fields[name]) for name in _ends(fields)]
            steps.warn_if_endless(dict(fields) | dict(zip(_ends(fields), flags, strict=True)))
            for rows in _episode_groups(np.logical_or.reduce(flags)):
                table = {name: _read_tree(file[field], rows) for name, field in fields.items()}
                table |= {name: np.reshape(table[name], -1) for name in ("reward", *_ends(fields))}
                records = steps.from_transitions(table)
                ends = np.flatnonzero(records["is_last"])
                lengths = np.diff(np.concatenate([[-1], ends]))
                added = len(records["reward"]) - (rows.stop - rows.start)
                yield ingest.Batch(
                    records=records,
                    lengths=lengths,
                    added=added,
                    without_outcome=len(lengths) - added,
                )
    except (OSError, KeyError) as error:
        raise UsageError(
            f"{path} cannot be read to its end, it may be damaged or cut short: {error}"
        ) from error


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
