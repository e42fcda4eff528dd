"""Aligns RLDS steps to columns: the only module that decides where episodes end.

A record is one RLDS step: an observation, the action taken there, and the reward and discount that
the action caused. The last record of an episode holds only an observation. The same four rules
apply to every source:

* an episode ends at `is_last`, at `is_terminal`, before the next `is_first`, and where the source's
  episode ends;
* no transition starts at an episode's last record;
* `discount` is 0 exactly on the step that leads to an `is_terminal` record: a truncation never
  stops bootstrapping; a source with a field `bootstrap` (OGBench's masks) adds the steps where
  that is 0, from which the episode goes on;
* an episode of a single record holds no transition: it is dropped and counted.

The values that a source stores beside an episode's last observation are meaningless (RLDS) and
become 0.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl.types import UsageError

FLAGS = ("is_first", "is_last", "is_terminal")
BOOTSTRAP = "bootstrap"  # 0 on a step that no value is bootstrapped from


class Aligned(NamedTuple):
    """Columns over R records of E episodes, and the number of dropped records."""

    columns: dict[str, Any]  # observation, action, reward, discount, and any extras: [R, ...]
    episode_ends: np.ndarray  # [E] row of each episode's last record
    dropped: dict[str, int]  # reason -> number of records


def align(records: Mapping[str, Any], source_lengths: np.ndarray | None = None) -> Aligned:
    """Aligns R consecutive RLDS records.

    Args:
      records: `observation` (a pytree), `action`, `reward` and any of `is_first`, `is_last`,
        `is_terminal`, `bootstrap`, all `[R, ...]`; further fields become columns too. A `discount`
        in the source is ignored: the flags decide.
      source_lengths: `[E']` lengths of the source's own episodes, where it has them.

    Returns:
      Columns with `discount` `[R]`, the episodes' ends, and the number of dropped records by
      reason.
    """
    size = len(records["reward"])
    first, last, terminal = (
        np.asarray(records.get(name, np.zeros(size, bool)), bool) for name in FLAGS
    )
    ends = last | terminal
    ends[:-1] |= first[1:]
    if source_lengths is not None and len(source_lengths):
        ends[np.cumsum(source_lengths) - 1] = True
    ends[-1:] = True
    starts = np.concatenate([[True], ends[:-1]])[:size]
    single = starts & ends
    discount = np.ones(size, np.float32)
    discount[:-1][terminal[1:] & ~ends[:-1]] = 0.0
    if BOOTSTRAP in records:
        discount[~ends & (np.asarray(records[BOOTSTRAP]) == 0)] = 0.0
    decided = (*FLAGS, BOOTSTRAP, "discount")
    columns = {name: value for name, value in records.items() if name not in decided}
    columns |= {"discount": discount}
    columns = jax.tree.map(lambda column: np.asarray(column)[~single], columns)
    episode_ends = np.flatnonzero(ends[~single])
    for name, column in columns.items():
        if name not in ("observation", "discount"):
            _clear(column, episode_ends)
    dropped = {"episodes of a single record": int(single.sum())} if single.any() else {}
    return Aligned(columns=columns, episode_ends=episode_ends, dropped=dropped)


def from_transitions(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a table of transitions (the D4RL layout) to RLDS records.

    Args:
      fields: `observation`, `action`, `reward` `[N, ...]`; `is_terminal` `[N]`, true where the step
        ended in a terminal state; optionally `is_truncated` `[N]`, true where it was cut, and
        `next_observation` `[N, ...]`: a step whose next observation differs from the next row's
        observation was cut there, whatever the flags say.

    Returns:
      Records with one more row per episode, the observation that its last step led to. Without
      `next_observation`, the last step of a truncated episode has no known outcome and becomes the
      episode's last record; the last step of a terminal episode leads to a copy of its own
      observation, which nothing bootstraps from and of which models learn the reward but no change
      (`normalize.unknown_outcomes`).

    Raises:
      UsageError: observations and next observations differ in structure or shape.
    """
    terminal = np.asarray(fields["is_terminal"], bool)
    truncated = np.asarray(fields.get("is_truncated", np.zeros_like(terminal)), bool)
    following = fields.get("next_observation")
    ends = terminal | truncated
    if following is not None:
        ends[:-1] |= _departs(fields["observation"], following)
    ends[-1:] = True
    extended = ends if following is not None else terminal
    # The added row is a copy of its episode's last step.
    rows = np.repeat(np.arange(len(ends)), 1 + extended)
    added = np.zeros(len(rows), bool)
    added[1:] = rows[1:] == rows[:-1]
    records = {
        name: jax.tree.map(lambda column: np.asarray(column)[rows], value)
        for name, value in fields.items()
        if name not in ("is_terminal", "is_truncated", "next_observation")
    }
    if following is not None:
        records["observation"] = jax.tree.map(
            lambda column, after: _overwrite(column, added, np.asarray(after)[rows[added]]),
            records["observation"],
            following,
        )
    records["is_last"] = added | (ends[rows] & ~extended[rows])
    records["is_terminal"] = added & terminal[rows]
    records["is_first"] = np.concatenate([[True], records["is_last"][:-1]])[: len(rows)]
    return records


def warn_if_endless(fields: Mapping[str, Any]) -> None:
    """Warns if a table of transitions is a single episode because no field marks an end."""
    if (
        "is_truncated" not in fields
        and "next_observation" not in fields
        and not np.any(fields["is_terminal"])
    ):
        warnings.warn(
            f"no row ends an episode: all {len(fields['is_terminal'])} steps are taken as one; if "
            "there are several, give `is_truncated` (timeouts) or `next_observation`",
            stacklevel=2,
        )


def _departs(observation: Any, following: Any) -> np.ndarray:
    """`[N - 1]` bool: where the next observation differs from the observation of the next row."""
    shapes = [
        jax.tree.map(lambda column: np.shape(column)[1:], tree) for tree in (observation, following)
    ]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"observations have shape {shapes[0]} and next observations {shapes[1]}: they must be "
            "the same; leave the field out if it holds anything else"
        )
    differences = [
        _differs(np.asarray(current)[1:], np.asarray(successor)[:-1])
        for current, successor in zip(
            jax.tree.leaves(observation), jax.tree.leaves(following), strict=True
        )
    ]
    return np.logical_or.reduce(differences)


def _differs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`[M]` bool: where two columns `[M, ...]` differ. NaN equals NaN, which the audit reports."""
    unequal = first != second
    if first.dtype.kind == "f":
        unequal &= ~(np.isnan(first) & np.isnan(second))
    return unequal.any(axis=tuple(range(1, first.ndim)))


def _clear(tree: Any, rows: np.ndarray) -> None:
    for column in jax.tree.leaves(tree):
        column[rows] = 0  # in place: `align` has copied it


def _overwrite(column: np.ndarray, where: np.ndarray, values: np.ndarray) -> np.ndarray:
    column = column.copy()
    column[where] = values
    return column
