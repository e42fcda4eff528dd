"""Batches for learned estimators: transitions, their episodes, and an initial observation beside each."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import poisson

from offline_mbrl.data import memory
from offline_mbrl.types import Array, PyTree, Transition

MOST_COPIES = 8  # of an episode in a bootstrap resample; a Poisson count above has probability 1e-6


class Batch(NamedTuple):
    """What an estimator does not use is never computed: `sample` and `step` are one compiled program."""

    transition: Transition  # [B, ...]
    episode: Array  # [B] int32 which episode: the row of its last record
    step: Array  # [B] int32 steps of the episode before this one
    initial_observation: PyTree  # [B, ...] the first observations of other episodes
    initial_episode: Array  # [B] int32
    initial_weight: Array  # [B] mean 1; so weighted, the initial observations are uniform over episodes
    num_transitions: Array  # [] of the dataset


@dataclass(frozen=True)
class Experience:
    """Draws a `Batch`; transitions are uniform over steps, with replacement.

    Initial observations are those of episodes drawn by one of their transitions, weighed by one over how many of these
    the dataset has (those held out do not count): neither a list of first rows nor a pass over the data is needed.
    Weights are normalized within the batch.
    """

    batch_size: int

    def __call__(self, dataset: memory.Dataset, key: Array) -> Batch:
        """A batch `[B, ...]`; pure, runs inside the scan."""
        dataset = jax.tree.map(jnp.asarray, dataset)
        picks = jax.random.randint(key, (2, self.batch_size), 0, dataset.starts.shape[0])
        rows, others = dataset.starts[picks]
        first, first_of_others = _first_row(dataset, rows), _first_row(dataset, others)
        bounds = jnp.stack([first_of_others, dataset.episode_end[others]])
        before, until = jnp.searchsorted(dataset.starts, bounds)  # starts are sorted
        weight = 1.0 / (until - before)
        return Batch(
            transition=memory.transitions(self.batch_size).gather(dataset, rows),
            episode=dataset.episode_end[rows],
            step=rows - first,
            initial_observation=jax.tree.map(lambda column: column[first_of_others], dataset.observation),
            initial_episode=dataset.episode_end[others],
            initial_weight=weight / jnp.mean(weight),
            num_transitions=jnp.float32(dataset.starts.shape[0]),
        )


def experience(batch_size: int) -> Experience:
    """A sampler of `batch_size` transitions and as many initial observations; see `Experience`."""
    return Experience(batch_size)


def episode_weights(key: Array, episode: Array) -> Array:
    """How often a bootstrap resample of whole episodes holds each episode, `[B]` float32.

    Args:
      key: of the resample: the same key and episode give the same count, in whatever batch.
      episode: `[B]` int32.

    Returns:
      Independent Poisson counts of mean one: the bootstrap's multiplicities, without a table of them.
    """
    uniform = jax.vmap(lambda one: jax.random.uniform(jax.random.fold_in(key, one)))(episode)
    distribution = poisson.cdf(jnp.arange(MOST_COPIES), 1.0)
    return jnp.sum(uniform[:, None] > distribution[None], axis=1).astype(jnp.float32)


def weights(key: Array, episode: Array, *, bootstrap: bool) -> Array:
    """`[B]` weights of a batch: `episode_weights` of this resample, or ones without one.

    Ones also where the resample holds no episode of the batch: of few episodes a Poisson resample can be empty, and a
    fit without data would stay where it began.
    """
    if not bootstrap:
        return jnp.ones(episode.shape)
    counts = episode_weights(key, episode)
    return jnp.where(jnp.any(counts > 0), counts, 1.0)


def weighted_mean(values: Array, weights: Array) -> Array:
    """`sum(w x) / sum(w)`, `[]`, and 0 where all weights are."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-6)


def _first_row(dataset: memory.Dataset, rows: Array) -> Array:
    """`[B]` the first row of each row's episode: `episode_end` is sorted."""
    return jnp.searchsorted(dataset.episode_end, dataset.episode_end[rows], side="left").astype(jnp.int32)
