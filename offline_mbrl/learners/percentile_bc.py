"""Percentile cloning: `bc` on the episodes of the data with the highest returns.

A strong baseline wherever some of the data are good (10 % cloning of Decision Transformer,
arXiv:2106.01345, and of CORL, arXiv:2210.07105).

Departures: the share is one of episodes, as in CORL, where the first paper counts steps; the
density and its settings are `bc`'s, where CORL's actor is deterministic. Held-out losses are those
of all episodes.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from offline_mbrl import settings
from offline_mbrl.data import memory, monte_carlo
from offline_mbrl.learners import bc
from offline_mbrl.settings import above, at_most
from offline_mbrl.types import EnvironmentSpec, Learner, PyTree, UsageError


@dataclass(frozen=True)
class Config(bc.Config):
    """The settings of `bc` on a share of the episodes."""

    fraction: Annotated[float, above(0), at_most(1)] = 0.1  # of the episodes, the best ones


def best_episodes(dataset: memory.Dataset, fraction: float) -> memory.Dataset:
    """The transitions of the episodes with the highest undiscounted returns.

    Of episodes with equal returns the earlier one is taken. Columns are shared.

    Args:
      dataset: on the host or on the disk.
      fraction: of the episodes; at least one is taken.
    """
    returns, episode = monte_carlo.episode_returns(dataset)
    count = max(1, round(fraction * len(returns)))
    best = np.argsort(-returns, kind="stable")[:count]
    starts = np.asarray(dataset.starts[:])
    return dataset._replace(starts=starts[np.isin(episode, best)])


def prepare(config: Config, dataset: PyTree) -> memory.Dataset:
    """What is cloned: `best_episodes`.

    Raises:
      UsageError: the data are batches of a stream, not a dataset.
    """
    if not isinstance(dataset, memory.Dataset):
        raise UsageError(
            f"percentile_bc selects whole episodes of a dataset, but was given a "
            f"{type(dataset).__name__}: give it the dataset, in memory or on the disk"
        )
    return best_episodes(dataset, config.fraction)


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner of `bc`.

    Raises:
      UsageError: a setting makes no network, or these actions do not read it.
    """
    settings.require_valid(config, "percentile_bc", spec)
    return bc.make(config, spec)
