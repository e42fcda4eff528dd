"""Builds column stores from sources of RLDS records, accounting for every step of the source."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl import provenance
from offline_mbrl.data import action_bounds, audit, specs, steps, trees
from offline_mbrl.data.store import atomic
from offline_mbrl.data.store import read as store
from offline_mbrl.data.store import write as columns
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, UsageError

# Episodes are aligned and written together once they hold so many records or bytes.
BATCH_RECORDS = 2**16
BATCH_BYTES = 2**27


class Batch(NamedTuple):
    """Whole episodes of a source."""

    records: Mapping[str, Any]  # RLDS records [R, ...]; see steps.align
    lengths: np.ndarray  # [E] records in each of the source's episodes
    added: int = 0  # records that the source lacks: final observations of tables of transitions
    dropped: Mapping[str, int] = {}  # records that were left out before alignment, by reason
    without_outcome: int = 0  # steps that close an episode because the source lacks their outcome


class Source(NamedTuple):
    """A source of data. Fields that are None are inferred from the data."""

    batches: Iterable[Batch]
    provenance: Mapping[str, Any]  # JSON
    action: DiscreteActions | BoundedActions | None = None
    unit_actions: bool = False  # continuous actions are known to lie in [-1, 1]
    gamma: float | None = None
    horizon: int = 0  # 0 when unknown
    frame_stack: int = 1  # records that make one observation
    episodes: int | None = None  # number of episodes according to the source
    steps: int | None = None  # number of records according to the source
    simulator: str | None = None
    # number of episodes before those of the validation split; None: it is drawn from all of them
    train_episodes: int | None = None


def ingest(
    source: Source | Callable[[], Source], directory: Path, *, name: str, force: bool = False
) -> bool:
    """Builds the column store of a source unless it exists.

    Args:
      source: the source, or a function that opens it, called only by the process that builds.
      directory: the store's directory; it appears atomically, when it is complete.
      name: the dataset's name, for its manifest.
      force: rebuild an existing store.

    Returns:
      Whether this call built it.

    Raises:
      UsageError: the source cannot be read, is shorter than it states, holds no transition or
        unsuitable fields; or the directory cannot be written.
    """

    def build(target: Path) -> None:
        _build(source() if callable(source) else source, target, name)

    return atomic.build_once(directory, build, is_complete=store.is_complete, force=force)


def grouped(episodes: Iterable[Batch], *, records: int = BATCH_RECORDS) -> Iterator[Batch]:
    """Joins single episodes to batches of at least `records` records or `BATCH_BYTES` bytes.

    Raises:
      UsageError: episodes have different fields or shapes.
    """
    waiting: list[Batch] = []
    for episode in episodes:
        if waiting and jax.tree.structure(dict(episode.records)) != jax.tree.structure(
            dict(waiting[0].records)
        ):
            fields = sorted(episode.records), sorted(waiting[0].records)
            raise UsageError(f"episodes hold different fields: {fields[0]} after {fields[1]}")
        waiting.append(episode)
        if (
            sum(len(batch.records["reward"]) for batch in waiting) >= records
            or _bytes(waiting) >= BATCH_BYTES
        ):
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _bytes(batches: list[Batch]) -> int:
    return sum(
        np.asarray(leaf).nbytes
        for batch in batches
        for leaf in jax.tree.leaves(dict(batch.records))
    )


def _join(batches: list[Batch]) -> Batch:
    dropped: Counter[str] = Counter()
    for batch in batches:
        dropped.update(batch.dropped)
    try:
        records = jax.tree.map(
            lambda *parts: np.concatenate(parts), *[dict(batch.records) for batch in batches]
        )
    except ValueError as error:
        raise UsageError(f"episodes cannot be joined: {str(error).splitlines()[0]}") from error
    lengths = np.concatenate([batch.lengths for batch in batches])
    return Batch(
        records=records,
        lengths=lengths,
        added=sum(batch.added for batch in batches),
        dropped=dropped,
        without_outcome=sum(batch.without_outcome for batch in batches),
    )


def _build(source: Source, directory: Path, name: str) -> None:
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    rule = columns.held_out_after(source.train_episodes)
    entries = columns.write(directory, _aligned(source.batches, counts, dropped), rule)
    _check_counts(source, counts, dropped, name)
    written = {
        split: {tuple(entry["path"]): store.column(directory, entry, name) for entry in listed}
        for split, listed in entries.items()
    }
    unfinished = store.Store(directory=directory, manifest={}, columns=written)
    parts = {split: store.aligned(unfinished, split) for split in entries}
    train = parts["train"]
    assert train is not None
    action = source.action or _action_kind([part for part in parts.values() if part], name)
    if source.unit_actions and isinstance(action, BoundedActions):
        action = dataclasses.replace(action, assumed=False)
    observation = specs.observation_structure(
        jax.tree.map(np.asarray, train.columns["observation"])
    )
    observation = specs.stacked(observation, source.frame_stack)
    spec = specs.to_json(
        EnvironmentSpec(
            observation=observation,
            action=action,
            gamma=source.gamma,
            horizon=source.horizon,
            frame_stack=source.frame_stack,
        )
    )
    store.write_manifest(
        directory,
        {
            "name": name,
            "counts": {**counts, "dropped": dict(dropped)},
            "spec": spec,
            "simulator": source.simulator,
            "train_episodes": source.train_episodes,
            "health": {split: audit.health(part, action) for split, part in parts.items() if part},
            "provenance": {**source.provenance, **provenance.describe()},
            "fingerprint": store.fingerprint(entries, spec),
            "columns": entries,
        },
    )


def _aligned(
    batches: Iterable[Batch], counts: Counter[str], dropped: Counter[str]
) -> Iterator[steps.Aligned]:
    """Aligns the batches, and adds their counts to `counts` and `dropped`."""
    for batch in batches:
        _check_fields(batch.records)
        part = steps.align(batch.records, batch.lengths)
        records = len(part.columns["reward"])
        episodes = len(part.episode_ends)
        counts.update(
            source_episodes=len(batch.lengths),
            episodes=episodes,
            records=records,
            transitions=records - episodes,
            steps=len(batch.records["reward"]) - batch.added + sum(batch.dropped.values()),
            added=batch.added,
            without_outcome=batch.without_outcome,
        )
        dropped.update(batch.dropped)
        dropped.update(part.dropped)
        if episodes:
            yield part


def _check_counts(
    source: Source, counts: Mapping[str, int], dropped: Mapping[str, int], name: str
) -> None:
    for unit, count, expected in (
        ("episodes", counts.get("source_episodes", 0), source.episodes),
        ("steps", counts.get("steps", 0), source.steps),
    ):
        if expected is not None and count != expected:
            raise UsageError(
                f"{name} is incomplete: it says that it has {expected} {unit}, but {count} were "
                "read; fetch or write it again"
            )
    if not counts.get("transitions"):
        raise UsageError(
            f"{name} holds no transition: {counts.get('steps', 0)} steps read, {dict(dropped)} "
            "dropped"
        )
    if counts["steps"] + counts["added"] != counts["records"] + sum(dropped.values()):
        raise AssertionError(f"steps were lost: {dict(counts)}, dropped {dict(dropped)}")


def _check_fields(records: Mapping[str, Any]) -> None:
    missing = [name for name in ("observation", "action", "reward") if name not in records]
    if missing:
        raise UsageError(
            f"the source has no field {missing[0]!r} (found: {', '.join(sorted(records))})"
        )
    size = len(records["reward"])
    for path, leaf in trees.flatten(dict(records)).items():
        field = "/".join(path)
        leaf = np.asarray(leaf)
        if leaf.dtype.kind not in "biuf":
            raise UsageError(
                f"field {field!r} has dtype {leaf.dtype}: numbers or booleans are needed"
            )
        if leaf.ndim == 0 or len(leaf) != size or 0 in leaf.shape[1:]:
            raise UsageError(f"field {field!r} has shape {leaf.shape}, but there are {size} steps")
    if np.ndim(records["reward"]) != 1:
        raise UsageError(
            f"field 'reward' must have one axis [N], got shape {np.shape(records['reward'])}"
        )
    action = np.asarray(records["action"])
    if (action.dtype.kind in "iu") != (action.ndim == 1) or action.ndim > 2:
        raise UsageError(
            f"field 'action' has dtype {action.dtype} and shape {action.shape}: discrete actions "
            "must be integers [N], continuous ones floats [N, A]"
        )


def _action_kind(parts: list[steps.Aligned], name: str) -> DiscreteActions | BoundedActions:
    """Read off the data: the largest discrete action plus one, or [-1, 1]."""
    action = parts[0].columns["action"]
    if action.ndim == 2:
        return action_bounds.assumed(action.shape[1])
    smallest = min(int(part.columns["action"].min()) for part in parts)
    if smallest < 0:
        raise UsageError(
            f"field 'action' of {name} is discrete and holds {smallest}: actions count from 0"
        )
    return DiscreteActions(max(int(part.columns["action"].max()) for part in parts) + 1)


def first_line(error: Exception) -> str:
    """The first line of a library's error, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
