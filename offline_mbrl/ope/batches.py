"""Batches of learned estimators: transitions, their episodes, and an initial observation each."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import poisson

from offline_mbrl.data import memory
from offline_mbrl.types import Array, Key, Observation, PyTree, Transition

MAX_COPIES = 8  # of an episode in a resample; a Poisson count above has probability 1e-6


class Batch(NamedTuple):
    """A field that an estimator ignores is not computed: sampling is compiled with the update."""

    transition: Transition  # [B, ...]
    episode: Array  # [B] int32 the row of the episode's last record
    step: Array  # [B] int32 steps of the episode before this one
    initial_observation: Observation  # [B, ...] first observations of other episodes
    initial_episode: Array  # [B] int32
    initial_weight: Array  # [B] mean 1; so weighted, they are uniform over episodes
    num_transitions: Array  # [] of the dataset


@dataclass(frozen=True)
class Experience:
    """Draws a `Batch`; transitions are uniform over steps, with replacement.

    Initial observations are those of episodes drawn by one of their transitions, weighted by one
    over the number of these that the dataset has (held-out transitions do not count). This takes
    neither a list of first rows nor a pass over the data. Weights are normalized within the batch.
    """

    batch_size: int

    def __call__(self, dataset: memory.Dataset, cache: PyTree, key: Key) -> Batch:
        """A batch `[B, ...]`; pure, runs inside the scan. The cache is ignored."""
        del cache
        dataset = jax.tree.map(jnp.asarray, dataset)
        shape = (2, self.batch_size)
        rows, others = dataset.starts[jax.random.randint(key, shape, 0, dataset.starts.shape[0])]
        first = _first_row(dataset, rows)
        first_of_others = _first_row(dataset, others)
        bounds = jnp.stack([first_of_others, dataset.episode_end[others]])
        before, until = jnp.searchsorted(dataset.starts, bounds)  # starts are sorted
        weight = 1.0 / (until - before)
        return Batch(
            transition=memory.Transitions(self.batch_size).gather(dataset, rows),
            episode=dataset.episode_end[rows],
            step=rows - first,
            initial_observation=jax.tree.map(
                lambda leaf: leaf[first_of_others], dataset.observation
            ),
            initial_episode=dataset.episode_end[others],
            initial_weight=weight / jnp.mean(weight),
            num_transitions=jnp.float32(dataset.starts.shape[0]),
        )


def episode_weights(key: Key, episode: Array) -> Array:
    """How often a bootstrap resample of whole episodes holds each episode.

    Args:
      key: of the resample: the same key and episode give the same count in any batch.
      episode: `[B]` int32.

    Returns:
      `[B]` float32, independent Poisson counts of mean one: the bootstrap's multiplicities without
      a table of them.
    """

    def uniform_of(number: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, number))

    uniform = jax.vmap(uniform_of)(episode)
    distribution = poisson.cdf(jnp.arange(MAX_COPIES), 1.0)
    return jnp.sum(uniform[:, None] > distribution[None], axis=1).astype(jnp.float32)


def weights(key: Key, episode: Array, *, bootstrap: bool) -> Array:
    """Weights `[B]` of a batch: `episode_weights` of this resample, or ones without one.

    They are ones also where the resample holds no episode of the batch: of few episodes a Poisson
    resample can be empty, and a fit without data would stay where it began.

    Args:
      key: of the resample.
      episode: `[B]` int32.
      bootstrap: whether there is a resample.
    """
    if not bootstrap:
        return jnp.ones(episode.shape)
    counts = episode_weights(key, episode)
    return jnp.where(jnp.any(counts > 0), counts, 1.0)


def weighted_mean(values: Array, weights: Array) -> Array:
    """`sum(w x) / sum(w)`, `[]`, and 0 where all weights are."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-6)


def _first_row(dataset: memory.Dataset, rows: Array) -> Array:
    """The first row `[B]` of each row's episode: `episode_end` is sorted."""
    first = jnp.searchsorted(dataset.episode_end, dataset.episode_end[rows], side="left")
    return first.astype(jnp.int32)
