"""D4RL-style HDF5 files and Minari datasets as sources of RLDS records."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offline_mbrl.data import ingest, memory, steps, trees
from offline_mbrl.types import BoundedActions, DiscreteActions, UsageError

TABLE = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


# --- HDF5: a table of transitions ---


def hdf5_source(path: Path) -> ingest.Source:
    """A D4RL-style file: `observations`, `actions`, `rewards`, `terminals`, optionally `timeouts`, `next_observations`.

    Groups such as `infos` and `metadata` are not read. The attributes `action_minimum` and `action_maximum` of the
    file, `[A]` or `[]`, give the actions' bounds; without them they are [-1, 1].

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
        _table_batches(path, fields), {"source": "hdf5", "path": str(path), "fields": sorted(fields)}, action,
        steps=size)  # fmt: skip


def _table_fields(path: Path, file: Any) -> dict[str, str]:
    """Our names of the fields -> the file's."""
    fields = {memory.SYNONYMS.get(name, name): name for name in TABLE if name in file}
    for name in ("observation", "action", "reward", "is_terminal"):
        if name not in fields:
            wanted = next(ours for ours in TABLE if memory.SYNONYMS.get(ours) == name)
            raise UsageError(f"{path} has no field {wanted!r} (found: {', '.join(sorted(file))})")
    reward = file[fields["reward"]]
    if not getattr(reward, "shape", None):
        raise UsageError(f"{path}: field {fields['reward']!r} is no table: one number per step is needed")
    size = len(reward)
    for name in fields.values():
        leaves = trees.flatten(_open_tree(file[name]))
        for leaf in leaves.values():
            if leaf.shape[:1] != (size,):
                rows = leaf.shape[0] if leaf.shape else "no"
                raise UsageError(f"{path}: field {name!r} has {rows} rows, but {fields['reward']!r} has {size}")
            if leaf.dtype.kind not in "biuf":
                raise UsageError(f"{path}: field {name!r} has dtype {leaf.dtype}: numbers or booleans are needed")
    for name in (fields[ours] for ours in ("reward", *_ends(fields))):
        if file[name].size != size:
            raise UsageError(f"{path}: field {name!r} has shape {file[name].shape}: one number per step is needed")
    if "next_observation" in fields:
        _refuse_other_shapes(path, file, fields["observation"], fields["next_observation"])
    return fields


def _refuse_other_shapes(path: Path, file: Any, name: str, following: str) -> None:
    now, after = (
        {field: leaf.shape for field, leaf in trees.flatten(_open_tree(file[each])).items()}
        for each in (name, following)
    )
    for field in dict.fromkeys([*now, *after]):
        if now.get(field) != after.get(field):
            told = (
                f"{'/'.join((each, *field))!r} {f'has shape {list(found[field])}' if field in found else 'is absent'}"
                for each, found in ((following, after), (name, now)))  # fmt: skip
            raise UsageError(f"{path}: field {', but '.join(told)}: both must have the same")


def _table_batches(path: Path, fields: Mapping[str, str]) -> Iterator[ingest.Batch]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            flags = [_read_flag(path, file, fields[name]) for name in _ends(fields)]
            steps.warn_if_endless(dict(fields) | dict(zip(_ends(fields), flags, strict=True)))
            for rows in _episode_groups(np.logical_or.reduce(flags)):
                table = {ours: _read_tree(file[theirs], rows) for ours, theirs in fields.items()}
                table |= {name: np.reshape(table[name], -1) for name in ("reward", *_ends(fields))}
                records = steps.from_transitions(table)
                ends = np.flatnonzero(records["is_last"])
                lengths = np.diff(np.concatenate([[-1], ends]))
                added = len(records["reward"]) - (rows.stop - rows.start)
                yield ingest.Batch(records, lengths, added, without_outcome=len(lengths) - added)
    except (OSError, KeyError) as error:
        raise UsageError(f"{path} cannot be read to its end, it may be damaged or cut short: {error}") from error


def _read_flag(path: Path, file: Any, name: str) -> np.ndarray:
    values = np.asarray(file[name]).reshape(-1)
    wrong = np.flatnonzero((values != 0) & (values != 1))  # NaN is neither
    if len(wrong):
        raise UsageError(f"{path}: field {name!r} must hold 0 or 1, but row {wrong[0]} holds {values[wrong[0]]}")
    return values.astype(bool)


def _ends(fields: Mapping[str, str]) -> list[str]:
    return [name for name in ("is_terminal", "is_truncated") if name in fields]


def _episode_groups(ends: np.ndarray) -> Iterator[slice]:
    """Slices of whole episodes with at least `ingest.BATCH_RECORDS` rows each, but for the last."""
    start = 0
    while start < len(ends):
        following = np.flatnonzero(ends[start + ingest.BATCH_RECORDS - 1 :])
        stop = start + ingest.BATCH_RECORDS + int(following[0]) if len(following) else len(ends)
        yield slice(start, stop)
        start = stop


def _open_tree(node: Any) -> Any:
    return {key: _open_tree(node[key]) for key in node} if hasattr(node, "keys") else node


def _read_tree(node: Any, rows: slice) -> Any:
    return {key: _read_tree(node[key], rows) for key in node} if hasattr(node, "keys") else node[rows]


def _action_bounds(file: Any, shape: tuple[int, ...]) -> BoundedActions | None:
    if "action_minimum" not in file.attrs or len(shape) != 2:
        return None
    low, high = (np.broadcast_to(file.attrs[f"action_{end}"], shape[1:]).tolist() for end in ("minimum", "maximum"))
    return BoundedActions(tuple(low), tuple(high))


# --- Minari ---


def minari_source(location: str | Path) -> ingest.Source:
    """A Minari dataset by id, or the directory that holds its `data`.

    Raises:
      UsageError: Minari is missing, the dataset is not on this machine, damaged, or of an unsuitable kind.
    """
    try:
        import minari
    except ImportError as error:
        raise UsageError("reading Minari datasets needs minari: pip install 'offline_mbrl[minari]'") from error
    try:
        if isinstance(location, Path):
            dataset = minari.MinariDataset(location / "data" if (location / "data").is_dir() else location)
        else:
            dataset = minari.load_dataset(location)
    except Exception as error:  # whatever damaged metadata make it raise
        raise UsageError(
            f"the Minari dataset {str(location)!r} cannot be opened: {ingest.first_line(error)}; fetch it with "
            "`minari download`, or give its directory") from error  # fmt: skip
    env_spec = dataset.env_spec
    return ingest.Source(
        ingest.grouped(_minari_episodes(dataset, location)), {"source": "minari", "id": dataset.id},
        _minari_actions(dataset.action_space), episodes=int(dataset.total_episodes), steps=int(dataset.total_steps),
        horizon=(env_spec.max_episode_steps or 0) if env_spec else 0,
        simulator=_minari_simulator(env_spec))  # fmt: skip


def _minari_simulator(env_spec: Any) -> str | None:
    """The environment's name with the time limit under which the data were collected."""
    if not env_spec:
        return None
    limit = env_spec.max_episode_steps
    return f"gym/{env_spec.id}" + (f"?max_steps={limit}" if limit else "")


def _minari_actions(space: Any) -> DiscreteActions | BoundedActions:
    if hasattr(space, "n") and np.ndim(space.n) == 0:
        if getattr(space, "start", 0) != 0:
            raise UsageError(f"discrete actions must start at 0, this dataset's start at {space.start}")
        return DiscreteActions(int(space.n))
    if hasattr(space, "low") and len(space.shape) == 1:
        return BoundedActions(tuple(map(float, space.low)), tuple(map(float, space.high)))
    raise UsageError(f"the action space {space} is not supported: discrete, or a box with one axis")


def _minari_episodes(dataset: Any, location: str | Path) -> Iterator[ingest.Batch]:
    try:
        for episode in dataset.iterate_episodes():
            yield _minari_batch(episode)
    except UsageError:
        raise
    except Exception as error:
        reason = ingest.first_line(error)
        raise UsageError(f"Minari dataset {str(location)!r} cannot be read to its end: {reason}") from error


def _minari_batch(episode: Any) -> ingest.Batch:
    """T steps and T + 1 observations: the last observation gets a record of its own."""
    observation = trees.unflatten(trees.flatten(episode.observations))
    pad = lambda column: np.concatenate([column, np.zeros_like(column[:1])])  # noqa: E731
    reward = np.asarray(episode.rewards)
    terminal = np.concatenate([[False], np.asarray(episode.terminations, bool)])
    last = np.concatenate([[False], np.asarray(episode.terminations, bool) | np.asarray(episode.truncations, bool)])
    last[-1] = True
    records = {
        "observation": observation, "action": pad(np.asarray(episode.actions)), "reward": pad(reward),
        "is_first": np.arange(len(last)) == 0, "is_last": last, "is_terminal": terminal}  # fmt: skip
    return ingest.Batch(records, np.array([len(last)]), added=1)
