"""Where the episodes of a table of transitions end, for tables whose own flags do not say it."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def at_limit(terminal: np.ndarray, limit: int) -> np.ndarray:
    """The rows at which a time limit cuts episodes.

    Args:
      terminal: `[N]` bool; an episode also ends there, and the next one starts to count.
      limit: the longest episode in rows.

    Returns:
      `[N]` bool, false at terminals.
    """
    rows = np.arange(len(terminal))
    starts = np.zeros(len(terminal), int)
    starts[1:] = np.where(terminal[:-1], rows[1:], 0)
    position = rows - np.maximum.accumulate(starts)
    return (position % limit == limit - 1) & ~terminal


def at_jumps(position: np.ndarray, stride: float) -> np.ndarray:
    """The rows after which a body is elsewhere: a reset that no flag marks.

    Args:
      position: `[N, 2]`.
      stride: the longest way of one step.

    Returns:
      `[N]` bool, false at the last row.
    """
    jumps = np.zeros(len(position), bool)
    jumps[:-1] = np.linalg.norm(np.diff(position, axis=0), axis=1) > stride
    return jumps


def lead_on(table: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Gives every row the observation of the next one, also where a terminal stands between them.

    For tables whose episodes go on after a terminal: only `is_truncated` separates the rows. A cut
    row has no next observation. If it is a terminal it leads to a copy of its own observation
    (`steps.from_transitions`); otherwise it is left out, and its observation remains as the next
    one of the row before.

    Args:
      table: `observation` `[N, D]`, `is_terminal` and `is_truncated` `[N]`, and further columns;
        the last row must be cut.

    Returns:
      The table with `next_observation`, and the number of rows that were left out.
    """
    observation = table["observation"]
    terminal = table["is_terminal"].astype(bool)
    cut = table["is_truncated"].astype(bool)
    following = np.concatenate([observation[1:], observation[-1:]])
    following[cut] = observation[cut]
    left_out = cut & ~terminal
    truncated = cut & terminal
    truncated[:-1] |= left_out[1:]
    extended = {**table, "next_observation": following, "is_truncated": truncated}
    kept = {name: column[~left_out] for name, column in extended.items()}
    return kept, int(left_out.sum())
