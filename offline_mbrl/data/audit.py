"""Checks for faults in data: pure functions over aligned columns."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.data import action_bounds, normalize, specs, steps, trees
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec

ERROR = "error"
WARNING = "warning"
CHUNK_ROWS = 2**13


class Finding(NamedTuple):
    """A fault, and its first occurrence."""

    severity: str  # ERROR: training is refused or meaningless; WARNING: to be looked at
    field: str
    row: int | None  # row of the audited columns; `store.write.locate` finds it in the source
    episode: int | None
    message: str


def findings(part: steps.Aligned, spec: EnvironmentSpec, *, longest: int = 0) -> list[Finding]:
    """Runs all checks.

    Args:
      part: aligned columns, `[R, ...]`; they may be memory-mapped.
      spec: expected shapes and dtypes, and the range of actions in the columns' own units.
      longest: steps of the longest episode of the whole dataset, of which `part` may be a split; 0:
        of the longest episode of `part`.
    """
    return [
        *shapes(part, spec),
        *nonfinite(part),
        *action_range(part, spec.action),
        *assumed_bounds(part, spec.action),
        *constants(part),
        *duplicates(part),
        *terminals_at_limit(part, spec.horizon or longest),
        *unknown_terminals(part),
    ]


def episodes(part: steps.Aligned) -> dict[str, float]:
    """Statistics of episodes: number, kinds of end, lengths in steps, undiscounted returns."""
    lengths = episode_lengths(part)
    returns = episode_returns(part)
    terminal = int(ends_terminal(part).sum())
    summary: dict[str, float] = {"episodes": len(lengths), "transitions": int(lengths.sum())}
    summary |= {"terminal": terminal, "truncated": len(lengths) - terminal}
    summary |= {"masked": masked(part)}
    for name, values in (("length", lengths), ("return", returns)):
        low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
        summary |= {
            f"{name}_min": float(low),
            f"{name}_median": float(middle),
            f"{name}_max": float(high),
        }
        summary |= {f"{name}_mean": float(values.mean()), f"{name}_std": float(values.std())}
    return summary


def health(part: steps.Aligned, action: DiscreteActions | BoundedActions) -> dict[str, Any]:
    """The findings because of which training refuses data, as JSON."""
    broken = [finding._asdict() for finding in nonfinite(part)]
    return {"nonfinite": broken, **health_of_actions(part, action)}


def health_of_actions(
    part: steps.Aligned, action: DiscreteActions | BoundedActions
) -> dict[str, Any]:
    """The part of `health` that depends on the bounds of actions."""
    return {"action_range": [finding._asdict() for finding in action_range(part, action)]}


# --- the checks ---


def shapes(part: steps.Aligned, spec: EnvironmentSpec) -> list[Finding]:
    """Fields whose shape or dtype differs from the spec's."""
    record = trees.flatten(specs.record_structure(spec))
    expected: dict[trees.Path, tuple[tuple[int, ...], Any]] = {
        ("observation", *path): (tuple(leaf.shape), leaf.dtype) for path, leaf in record.items()
    }
    if isinstance(spec.action, DiscreteActions):
        expected["action",] = ((), np.int32)
    else:
        expected["action",] = ((spec.action.size,), np.float32)
    expected["reward",] = ((), np.float32)
    columns = trees.flatten(part.columns)
    listed = []
    for path, (shape, dtype) in expected.items():
        if path not in columns:
            listed.append(_finding(ERROR, path, message="is missing"))
            continue
        column = columns[path]
        if (column.shape[1:], column.dtype.kind) != (shape, np.dtype(dtype).kind):
            message = (
                f"has rows of {column.dtype}{list(column.shape[1:])}, the spec says "
                f"{np.dtype(dtype)}{list(shape)}"
            )
            listed.append(_finding(ERROR, path, message=message))
    return listed


def nonfinite(part: steps.Aligned) -> list[Finding]:
    """NaN and infinities: a finding for each field of each episode that has any."""
    listed = []
    for path, leaf in trees.flatten(part.columns).items():
        if leaf.dtype.kind != "f":
            continue
        rows = np.concatenate(
            [start + np.flatnonzero(_any_nonfinite(chunk)) for start, chunk in _chunks(leaf)]
        )
        episode_of_row = np.searchsorted(part.episode_ends, rows)
        for episode, first in zip(*np.unique(episode_of_row, return_index=True), strict=True):
            row = int(rows[first])
            message = f"is not finite ({_first_nonfinite(leaf[row])})"
            listed.append(_finding(ERROR, path, message=message, row=row, episode=int(episode)))
    return listed


def action_range(part: steps.Aligned, kind: DiscreteActions | BoundedActions) -> list[Finding]:
    """The first action outside its range."""
    action = part.columns["action"]
    row = specs.first_outside(kind, action, steps_taken(part))
    if row is None:
        return []
    episode = int(np.searchsorted(part.episode_ends, row))
    message = f"{np.asarray(action[row]).tolist()} is outside {specs.describe_range(kind)}"
    return [_finding(ERROR, ("action",), message=message, row=row, episode=episode)]


def assumed_bounds(part: steps.Aligned, kind: DiscreteActions | BoundedActions) -> list[Finding]:
    """Bounds that no source states: policies may act in other units than the data's."""
    if isinstance(kind, DiscreteActions) or not kind.assumed:
        return []
    largest = float(np.max(np.abs(np.asarray(part.columns["action"])[steps_taken(part)])))
    message = (
        f"has bounds that are assumed, [-1, 1], not stated (the largest is {largest:.3g}); "
        f"{action_bounds.REMEDY}"
    )
    return [_finding(WARNING, ("action",), message=message)]


def constants(part: steps.Aligned) -> list[Finding]:
    """Fields, and entries of vector fields, that never change."""
    starts = steps_taken(part)
    listed = []
    for path, leaf in trees.flatten(part.columns).items():
        if path == ("discount",):
            continue
        rows = np.arange(len(leaf)) if path[0] == "observation" else starts
        same = np.ones(leaf.shape[1:], bool)
        for chunk in np.array_split(rows, max(1, len(rows) // CHUNK_ROWS)):
            same &= (leaf[chunk] == leaf[rows[0]]).all(axis=0)
        if same.all():
            listed.append(_finding(WARNING, path, message="never changes"))
        elif same.ndim == 1 and same.any():
            message = f"entries {np.flatnonzero(same).tolist()} of {len(same)} never change"
            listed.append(_finding(WARNING, path, message=message))
    return listed


def duplicates(part: steps.Aligned) -> list[Finding]:
    """Transitions equal to an earlier one in observation, action, reward and next observation."""
    observations = list(trees.flatten(part.columns["observation"]).values())
    rows = steps_taken(part)
    digests = np.array([_digest(part, observations, row) for row in rows], np.uint64)
    _, first = np.unique(digests, return_index=True)
    if len(first) == len(rows):
        return []
    repeated = np.setdiff1d(np.arange(len(rows)), first)
    row = int(rows[repeated[0]])
    message = f"{len(repeated)} of {len(rows)} transitions repeat an earlier one"
    episode = int(np.searchsorted(part.episode_ends, row))
    return [_finding(WARNING, ("observation",), message=message, row=row, episode=episode)]


def terminals_at_limit(part: steps.Aligned, limit: int = 0) -> list[Finding]:
    """Terminals exactly at the time limit, which suggest a truncation stored as a terminal.

    Data that are masked inside episodes too say by that what stops bootstrapping.

    Args:
      part: aligned columns.
      limit: the time limit in steps; 0 when unknown: the greatest length of `part`.
    """
    lengths = episode_lengths(part)
    terminal = ends_terminal(part)
    limit = limit or int(lengths.max())
    suspicious = terminal & (lengths == limit)
    if suspicious.sum() < 2 or masked(part):  # some episode is always the longest
        return []
    episode = int(np.argmax(suspicious))
    message = (
        f"{suspicious.sum()} of {terminal.sum()} terminals come exactly at the greatest length, "
        f"{limit} steps: a time limit stored as a terminal? If so mark these ends as truncations "
        "(is_last without is_terminal, or timeouts); if the task ends there by its own rules, "
        "ignore this"
    )
    row = int(part.episode_ends[episode])
    return [_finding(WARNING, ("is_terminal",), message=message, row=row, episode=episode)]


def unknown_terminals(part: steps.Aligned) -> list[Finding]:
    """Terminal steps whose next observation repeats their own, so that the outcome is unknown.

    Observations of frames alone are not checked: frames often repeat.
    """
    leaves = trees.flatten(part.columns["observation"]).values()
    if not any(leaf.dtype.kind == "f" for leaf in leaves):
        return []
    rows = part.episode_ends - 1
    terminal = ends_terminal(part)
    unknown = normalize.unknown_outcomes(part.columns["observation"], rows, terminal)
    if not unknown.any():
        return []
    episode = int(np.argmax(unknown))
    message = (
        f"{unknown.sum()} of {terminal.sum()} terminal steps lead to a copy of their own "
        "observation, as they do where the source lacks the next one: models learn no change from "
        "them; give `next_observation`"
    )
    row = int(rows[episode])
    return [_finding(WARNING, ("observation",), message=message, row=row, episode=episode)]


def _finding(
    severity: str,
    path: trees.Path,
    *,
    message: str,
    row: int | None = None,
    episode: int | None = None,
) -> Finding:
    return Finding(
        severity=severity, field="/".join(path), row=row, episode=episode, message=message
    )


# --- episodes ---


def steps_taken(part: steps.Aligned) -> np.ndarray:
    """`[N]` rows that begin a transition: all but the episodes' last."""
    return np.setdiff1d(
        np.arange(len(part.columns["reward"])), part.episode_ends, assume_unique=True
    )


def episode_lengths(part: steps.Aligned) -> np.ndarray:
    """`[E]` transitions in each episode."""
    return np.diff(np.concatenate([[-1], part.episode_ends])) - 1


def episode_returns(part: steps.Aligned) -> np.ndarray:
    """`[E]` undiscounted returns."""
    starts = np.concatenate([[0], part.episode_ends[:-1] + 1])
    return np.add.reduceat(np.asarray(part.columns["reward"], np.float64), starts)


def ends_terminal(part: steps.Aligned) -> np.ndarray:
    """`[E]` whether each episode ends in a true terminal."""
    return np.asarray(part.columns["discount"])[part.episode_ends - 1] == 0


def masked(part: steps.Aligned) -> int:
    """Steps inside episodes that nothing is bootstrapped from: their discount is 0."""
    is_masked = np.asarray(part.columns["discount"]) == 0
    return int(is_masked.sum() - is_masked[part.episode_ends - 1].sum())


def _chunks(leaf: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    return ((start, leaf[start : start + CHUNK_ROWS]) for start in range(0, len(leaf), CHUNK_ROWS))


def _any_nonfinite(chunk: np.ndarray) -> np.ndarray:
    return np.asarray((~np.isfinite(chunk)).reshape(len(chunk), -1).any(axis=1))


def _first_nonfinite(record: np.ndarray) -> Any:
    entries = np.reshape(record, -1)
    return entries[np.argmax(~np.isfinite(entries))]


def _digest(part: steps.Aligned, observations: list[np.ndarray], row: int) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for leaf in (part.columns["action"], part.columns["reward"]):
        digest.update(leaf[row].tobytes())
    for leaf in observations:
        digest.update(leaf[row : row + 2].tobytes())
    return int.from_bytes(digest.digest(), "little")
