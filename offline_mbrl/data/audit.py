"""What is wrong with this data: pure functions over aligned columns."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from offline_mbrl.data import normalize, specs, steps, trees
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec

ERROR, WARNING = "error", "warning"
CHUNK_ROWS = 2**13


class Finding(NamedTuple):
    """One thing that is wrong, and where it is first seen."""

    severity: str  # error: training on it is refused or senseless; warning: look at it
    field: str
    row: int | None  # of the columns that were looked at; `columns.locate` finds it in the source
    episode: int | None
    message: str


def findings(part: steps.Aligned, spec: EnvironmentSpec, *, longest: int = 0) -> list[Finding]:
    """Everything that looks wrong.

    Args:
      part: aligned columns, `[R, ...]`; they may be memory-mapped.
      spec: what the columns should be, with actions in the columns' own units.
      longest: steps of the longest episode of the whole dataset, of which `part` may be a split; 0
        for that of `part`.
    """
    return [
        *shapes(part, spec),
        *nonfinite(part),
        *action_range(part, spec.action),
        *constants(part),
        *duplicates(part),
        *terminals_at_limit(part, spec.horizon or longest),
        *unknown_terminals(part),
    ]


def episodes(part: steps.Aligned) -> dict[str, float]:
    """Statistics of episodes: how many, how they end, their lengths in steps, their undiscounted
    returns."""
    lengths, returns = episode_lengths(part), episode_returns(part)
    terminal = int(ends_terminal(part).sum())
    summary: dict[str, float] = {"episodes": len(lengths), "transitions": int(lengths.sum())}
    summary |= {"terminal": terminal, "truncated": len(lengths) - terminal}
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
    """What makes training refuse data, as JSON: findings that are not finite or outside the
    actions' range."""
    found = {"nonfinite": nonfinite(part), "action_range": action_range(part, action)}
    return {name: [finding._asdict() for finding in listed] for name, listed in found.items()}


# --- the checks ---


def shapes(part: steps.Aligned, spec: EnvironmentSpec) -> list[Finding]:
    """Fields whose shape or dtype is not the spec's."""
    record = specs.record_structure(spec)
    expected = {
        ("observation", *p): (tuple(s.shape), s.dtype) for p, s in trees.flatten(record).items()
    }
    kind = spec.action
    expected["action",] = (
        ((), np.int32) if isinstance(kind, DiscreteActions) else ((kind.size,), np.float32)
    )
    expected["reward",] = ((), np.float32)
    found = {p: (leaf.shape[1:], leaf.dtype) for p, leaf in trees.flatten(part.columns).items()}
    listed = []
    for path, (shape, dtype) in expected.items():
        if path not in found:
            listed.append(Finding(ERROR, "/".join(path), None, None, "is missing"))
        elif (found[path][0], np.dtype(found[path][1]).kind) != (shape, np.dtype(dtype).kind):
            seen = f"{found[path][1]}{list(found[path][0])}"
            message = f"has rows of {seen}, the spec says {np.dtype(dtype)}{list(shape)}"
            listed.append(Finding(ERROR, "/".join(path), None, None, message))
    return listed


def nonfinite(part: steps.Aligned) -> list[Finding]:
    """NaN and infinities: one finding for each field of each episode that has any."""
    listed = []
    for path, leaf in trees.flatten(part.columns).items():
        if leaf.dtype.kind != "f":
            continue
        rows = np.concatenate(
            [start + np.flatnonzero(_any_nonfinite(chunk)) for start, chunk in _chunks(leaf)]
        )
        of_episode = np.searchsorted(part.episode_ends, rows)
        for episode, first in zip(*np.unique(of_episode, return_index=True), strict=True):
            message = f"is not finite ({leaf[rows[first]].reshape(-1)[_first_nonfinite(leaf[rows[first]])]})"
            listed.append(Finding(ERROR, "/".join(path), int(rows[first]), int(episode), message))
    return listed


def action_range(part: steps.Aligned, kind: DiscreteActions | BoundedActions) -> list[Finding]:
    """The first action outside its range."""
    action = part.columns["action"]
    row = specs.first_outside(kind, action, steps_taken(part))
    if row is None:
        return []
    episode = int(np.searchsorted(part.episode_ends, row))
    message = f"{np.asarray(action[row]).tolist()} is outside {specs.describe_range(kind)}"
    return [Finding(ERROR, "action", row, episode, message)]


def constants(part: steps.Aligned) -> list[Finding]:
    """Fields, and entries of vector observations, that never change."""
    taken = steps_taken(part)
    listed = []
    for path, leaf in trees.flatten(part.columns).items():
        if path == ("discount",):
            continue
        rows = np.arange(len(leaf)) if path[0] == "observation" else taken
        same = np.ones(leaf.shape[1:], bool)
        for chunk in np.array_split(rows, max(1, len(rows) // CHUNK_ROWS)):
            same &= (leaf[chunk] == leaf[rows[0]]).all(axis=0)
        if same.all():
            listed.append(Finding(WARNING, "/".join(path), None, None, "never changes"))
        elif same.ndim == 1 and same.any():
            message = f"entries {np.flatnonzero(same).tolist()} of {len(same)} never change"
            listed.append(Finding(WARNING, "/".join(path), None, None, message))
    return listed


def duplicates(part: steps.Aligned) -> list[Finding]:
    """Transitions that repeat an earlier one: observation, action, reward and next observation."""
    observations = list(trees.flatten(part.columns["observation"]).values())
    rows = steps_taken(part)
    digests = np.array([_digest(part, observations, row) for row in rows], np.uint64)
    _, first = np.unique(digests, return_index=True)
    if len(first) == len(rows):
        return []
    repeated = np.setdiff1d(np.arange(len(rows)), first)
    row = int(rows[repeated[0]])
    message = f"{len(repeated)} of {len(rows)} transitions repeat an earlier one"
    return [
        Finding(WARNING, "observation", row, int(np.searchsorted(part.episode_ends, row)), message)
    ]


def terminals_at_limit(part: steps.Aligned, limit: int = 0) -> list[Finding]:
    """A time limit that was stored as a terminal: episodes that "terminate" exactly at `limit` or
    the greatest length.

    Args:
      part: aligned columns.
      limit: the time limit in steps; 0 when unknown, which takes the greatest length of `part` for
        it.
    """
    lengths, terminal = episode_lengths(part), ends_terminal(part)
    limit = limit or int(lengths.max())
    suspicious = terminal & (lengths == limit)
    if suspicious.sum() < 2:  # one longest episode there always is
        return []
    episode = int(np.argmax(suspicious))
    message = (
        f"{suspicious.sum()} of {terminal.sum()} terminals come exactly at the greatest length, "
        f"{limit} steps: a time limit stored as a terminal? If so mark these ends as truncations "
        "(is_last without is_terminal, or timeouts); if the task ends there by its own rules, "
        "ignore this"
    )
    return [Finding(WARNING, "is_terminal", int(part.episode_ends[episode]), episode, message)]


def unknown_terminals(part: steps.Aligned) -> list[Finding]:
    """Terminal steps whose next observation repeats their own: where they led is not known. Frames
    may well repeat."""
    leaves = trees.flatten(part.columns["observation"]).values()
    if not any(leaf.dtype.kind == "f" for leaf in leaves):
        return []
    rows, terminal = part.episode_ends - 1, ends_terminal(part)
    unknown = normalize.unknown_outcomes(part.columns["observation"], rows, terminal)
    if not unknown.any():
        return []
    episode = int(np.argmax(unknown))
    message = (
        f"{unknown.sum()} of {terminal.sum()} terminal steps lead to a copy of their own "
        "observation, as they do where the source lacks the next one: models learn no change from "
        "them; give `next_observation`"
    )
    return [Finding(WARNING, "observation", int(rows[episode]), episode, message)]


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


def _chunks(leaf: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    return ((start, leaf[start : start + CHUNK_ROWS]) for start in range(0, len(leaf), CHUNK_ROWS))


def _any_nonfinite(chunk: np.ndarray) -> np.ndarray:
    return np.asarray((~np.isfinite(chunk)).reshape(len(chunk), -1).any(axis=1))


def _first_nonfinite(row: np.ndarray) -> int:
    return int(np.argmax(~np.isfinite(np.reshape(row, -1))))


def _digest(part: steps.Aligned, observations: list[np.ndarray], row: int) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for leaf in (part.columns["action"], part.columns["reward"]):
        digest.update(leaf[row].tobytes())
    for leaf in observations:
        digest.update(leaf[row : row + 2].tobytes())
    return int.from_bytes(digest.digest(), "little")
