"""Whole episodes as RLDS records."""

from typing import Any

import numpy as np

from offline_mbrl.types import Array, Transition


def steps(transitions: Transition) -> dict[str, np.ndarray]:
    """RLDS records `[T + 1, ...]` of the transitions `[T, ...]` of an episode.

    The last record closes the episode: its observation and its flags alone are meaningful. The
    episode ends in a true terminal where the last discount is 0, else it is truncated.

    Args:
      transitions: in order; `extras` are the log densities of the actions, `[T]`, or `()` where
        they have none.
    """
    length = len(transitions.reward)
    is_last = np.arange(length + 1) == length

    def padded(column: Any, last: float) -> np.ndarray:
        return np.concatenate([column, np.full_like(column[:1], last)])

    has_log_probs = not isinstance(transitions.extras, tuple)
    log_probs = {"behavior_log_prob": transitions.extras} if has_log_probs else {}
    return {
        "observation": np.concatenate([transitions.observation, transitions.next_observation[-1:]]),
        "action": padded(transitions.action, 0.0),
        "reward": padded(transitions.reward, 0.0),
        "discount": padded(transitions.discount, 1.0),
        "is_first": np.arange(length + 1) == 0,
        "is_last": is_last,
        "is_terminal": is_last & bool(transitions.discount[-1] == 0),
        **{name: padded(column, 0.0) for name, column in log_probs.items()},
    }


def total(reward: Array) -> float:
    """The undiscounted return of an episode."""
    return float(np.sum(np.asarray(reward), dtype=np.float64))
