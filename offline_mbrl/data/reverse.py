"""Datasets with time reversed, so that what is fitted to them predicts what came before.

A transition `(s, a, r, s')` becomes `(s', a, r, s)`: an explicit model of it is
`p(r, s | s', a)`, the reverse model of ROMI (arXiv:2110.00188, section 3), and a policy that is
cloned from it is `p(a | s')`. Nothing else has to be told that time runs backwards.
"""

import jax
import numpy as np

from offline_mbrl.data import memory, stream
from offline_mbrl.types import UsageError


def reversed_in_time(dataset: memory.Dataset) -> memory.Dataset:
    """The same transitions, each episode from its end to its start; twice is the dataset itself.

    Transition i of `starts` is transition i of the result, so that splits and samplers choose the
    same ones for the same seed. Action, reward, discount and extras stay with their transition:
    a discount of 0 says that the step led to a true terminal, which here is where it begins. The
    transition that ends in the episode's first state comes last.

    Args:
      dataset: on the host, one record an observation (stacks of frames would be read backwards).

    Raises:
      UsageError: its columns stay on the disk.
    """
    if stream.on_disk(dataset):
        raise UsageError(
            "reversing a dataset in time needs it in memory: load it whole (`--stream never`)"
        )
    last = np.asarray(dataset.episode_end)
    row = np.arange(len(last), dtype=last.dtype)
    first = _first_rows(last)
    mirrored = first + last - row  # of observations
    # A transition is stored in the row that it starts from, which is now the one after it; the
    # last record has none and keeps its place.
    moved = np.where(row == last, row, mirrored - 1)

    def transitions(tree):
        return jax.tree.map(lambda column: np.asarray(column)[moved], tree)

    return dataset._replace(
        observation=jax.tree.map(lambda leaf: np.asarray(leaf)[mirrored], dataset.observation),
        action=transitions(dataset.action),
        reward=transitions(dataset.reward),
        discount=transitions(dataset.discount),
        starts=moved[np.asarray(dataset.starts)],
        extras=transitions(dataset.extras),
        held_out=None if dataset.held_out is None else moved[np.asarray(dataset.held_out)],
    )


def without_terminals(dataset: memory.Dataset) -> memory.Dataset:
    """The dataset without the transitions that end in a true terminal; columns are shared.

    ROMI's released code leaves them out of reverse models but for AntMaze, whose terminals carry
    the only reward: nothing follows a terminal, so that no imagined path goes through it.

    Raises:
      UsageError: nothing is left.
    """
    starts = np.asarray(dataset.starts)
    kept = starts[np.asarray(dataset.discount)[starts] != 0]
    if not len(kept):
        raise UsageError(
            f"all {len(starts)} transitions end in a terminal: a reverse model of such data needs "
            "them, keep them"
        )
    return dataset._replace(starts=kept)


def _first_rows(last: np.ndarray) -> np.ndarray:
    """`[R]` the first row of each row's episode, from the last one's."""
    ends, episode = np.unique(last, return_inverse=True)
    return np.concatenate([[0], ends[:-1] + 1]).astype(last.dtype)[episode]
